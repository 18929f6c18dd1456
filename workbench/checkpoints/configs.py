"""A config.json → nothing, or one sentence on what is wrong with it. Knows plain JSON, no model library.

transformers fills a missing size with a default and divides by what it is given; here each value that sizes, rotary
angles or routing rest on is looked at first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import CheckpointError

MODEL_TYPES = ("phi3", "phimoe")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok")
RESTORE = "restore config.json from the source of the checkpoint"
LARGEST = 10**15  # what is smaller is left to the memory plan
WINDOW = "original_max_position_embeddings"
LONGROPE_NAMES = {"phi3": ("longrope", "su", "yarn"), "phimoe": ("longrope",)}


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ``CheckpointError`` naming the first value that no Phi3 or Phimoe can be built from.

    >>> check_config({"model_type": "llama"}, "config.json")
    Traceback (most recent call last):
    workbench.errors.CheckpointError: config.json is of type 'llama'; this needs one of ('phi3', 'phimoe')
    """
    _check_type(config, where)
    _check_sizes(config, where)
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if rope is not None:
        _check_rope(config, rope, where)


def settle_longrope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checked config with LongRoPE's name and window in both places where transformers 5 looks for them.

    From one place alone it takes 4,096 (Phi3) or the whole window (Phimoe) as the original window, and it has lost the
    name "su" that Phi3 checkpoints of 2024 give LongRoPE.

    >>> old = {"model_type": "phi3", "original_max_position_embeddings": 4096, "rope_scaling": {"type": "su"}}
    >>> settle_longrope(old)["rope_parameters"]["original_max_position_embeddings"]
    4096
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return dict(config)
    window = rope.get(WINDOW) or config[WINDOW]
    settled = {name: value for name, value in config.items() if name != "rope_scaling"}
    settled["rope_parameters"] = {
        **rope,
        "rope_type": "longrope",
        "type": "longrope",
        WINDOW: window,
    }
    return {**settled, WINDOW: window}


def _check_type(config: Mapping[str, Any], where: str) -> None:
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        own_code = (
            ", and code that comes with a checkpoint (auto_map) is never run"
            if config.get("auto_map")
            else ""
        )
        raise CheckpointError(
            f"{where} is of type {model_type!r}; this needs one of {MODEL_TYPES}{own_code}"
        )
    held = config.get("quantization_config")
    if held is not None:
        method = held.get("quant_method") if isinstance(held, Mapping) else held
        raise CheckpointError(
            f"{where} says that its weights are quantized ({method}): take the checkpoint as it was published, and "
            "load it with quantization='8bit' or '4bit'"
        )
    if config.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{where} names another weight file in transformers_weights; remove that line and call the file "
            "model.safetensors"
        )


def _check_sizes(config: Mapping[str, Any], where: str) -> None:
    for name in (*SIZES, *OPTIONAL_SIZES):
        value = config.get(name)
        if value is None and name in OPTIONAL_SIZES:
            continue
        if not _is_whole(value):
            raise _wrong(where, name, value, "a whole number from 1 to 10**15")
    vocabulary = config["vocab_size"]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        given = config.get(name)
        for token in given if isinstance(given, list) else [given]:
            if token is not None and not (_is_whole(token, lowest=0) and token < vocabulary):
                raise _wrong(where, name, token, f"a token below vocab_size={vocabulary}")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size {hidden} does not divide by num_attention_heads {heads}; {RESTORE}"
        )
    shared = config.get("num_key_value_heads") or heads
    if heads % shared:
        raise CheckpointError(
            f"{where}: num_attention_heads {heads} does not divide by num_key_value_heads {shared}; {RESTORE}"
        )
    chosen = config.get("num_experts_per_tok")
    if config["model_type"] == "phimoe" and chosen not in (None, 2):
        raise CheckpointError(
            f"{where} asks for {chosen} experts a token; sparsemixer takes 2: {RESTORE}"
        )
    experts = config.get("num_local_experts")
    if config["model_type"] == "phimoe" and experts is not None and not 2 <= experts <= 256:
        raise _wrong(where, "num_local_experts", experts, "from 2 to 256")


def _check_rope(config: Mapping[str, Any], rope: Any, where: str) -> None:
    if not isinstance(rope, Mapping):
        raise _wrong(where, "rope_scaling", rope, "an object of LongRoPE values")
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    for name, value in {
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "partial_rotary_factor": share,
    }.items():
        if not _is_positive(value):
            raise _wrong(where, name, value, "a finite number above 0")
    if share > 1:
        raise _wrong(where, "partial_rotary_factor", share, "at most 1")
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = int(head * share)
    if rotated < 2 or rotated % 2:
        raise CheckpointError(
            f"{where}: {rotated} of {head} values of a head are rotated, which must be an even number; {RESTORE}"
        )
    if kind == "default":
        return
    if kind not in LONGROPE_NAMES[config["model_type"]]:
        raise _wrong(where, "the rope type", kind, "'default' or 'longrope'")
    window = _original_window(config, rope, where)
    if window > config["max_position_embeddings"]:
        raise CheckpointError(
            f"{where}: original_max_position_embeddings {window} exceeds max_position_embeddings "
            f"{config['max_position_embeddings']}; {RESTORE}"
        )
    for name in ("short_factor", "long_factor"):
        _check_factors(rope.get(name), rotated // 2, name, where)
    scales = ["short_mscale", "long_mscale"] if config["model_type"] == "phimoe" else []
    scales += [name for name in ("attention_factor", "factor") if rope.get(name) is not None]
    for name in scales:
        if not _is_positive(rope.get(name)):
            raise _wrong(where, name, rope.get(name), "a finite number above 0")


def _original_window(config: Mapping[str, Any], rope: Mapping[str, Any], where: str) -> int:
    name = WINDOW
    found = [place[name] for place in (config, rope) if place.get(name) is not None]
    if not found:
        raise CheckpointError(
            f"{where} has LongRoPE but no {name}, up to which the short factors hold (4096 in Phi-3.5); "
            f"{RESTORE}"
        )
    for value in found:
        if not _is_whole(value, lowest=2):
            raise _wrong(where, name, value, "a whole number of at least 2")
    if found[0] != found[-1]:
        raise CheckpointError(f"{where} gives {name} twice, {found[0]} and {found[1]}; {RESTORE}")
    return int(found[0])


def _check_factors(factors: Any, pairs: int, name: str, where: str) -> None:
    if factors is None:
        raise CheckpointError(f"{where} has LongRoPE without {name}; {RESTORE}")
    if not isinstance(factors, list) or len(factors) != pairs:
        found = f"{len(factors)} values" if isinstance(factors, list) else repr(factors)
        raise CheckpointError(
            f"{where}: {name} has {found}, the heads need {pairs}, one for each rotated pair; {RESTORE}"
        )
    for place, value in enumerate(factors):
        if not _is_positive(value):
            raise _wrong(where, f"{name}[{place}]", value, "a finite number above 0")


def _wrong(where: str, name: str, value: Any, must: str) -> CheckpointError:
    shown = "missing" if value is None else repr(value)[:60]
    return CheckpointError(f"{where}: {name} is {shown}, it must be {must}; {RESTORE}")


def _is_whole(value: Any, *, lowest: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= LARGEST


def _is_positive(value: Any) -> bool:
    """JSON as Python reads it may hold NaN, which is in no order, Infinity, and integers too large for a float."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= LARGEST
