"""A name → a loaded generator: the right class, dtype, device and rotary regime, refused before it cannot fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from workbench.cancel import Progress
from workbench.checkpoints.cache import decompressed
from workbench.checkpoints.cache_places import cache_folder, temporary_folder
from workbench.checkpoints.finding import (
    PHI_IDS,
    POCKET,
    Checkpoint,
    check_hub_index,
    fetched,
    find_checkpoint,
    load_config,
    read_pretrained,
    release_frames,
)
from workbench.checkpoints.json_files import read_json
from workbench.checkpoints.weight_files import compressed_files
from workbench.errors import CheckpointError, DoesNotFit, one_line
from workbench.generation.known_shapes import KNOWN_SHAPES
from workbench.generation.longrope import (
    Regime,
    check_regime,
    original_window,
    pin_regime,
    regime_for,
)
from workbench.generation.memory import weight_bytes
from workbench.generation.options import EXACT, Decoding
from workbench.generation.phi import Generator
from workbench.generation.placement import (
    DeviceMap,
    KeptFiles,
    Placement,
    find_placement,
    parameters_with_values,
    spelled_out,
)
from workbench.generation.planning import is_on_disk, plan_for
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.weights import check_finite
from workbench.routing.capture import find_routers

if TYPE_CHECKING:
    from workbench.generation.quantized import Quantization

Attention = Literal["sdpa", "eager", "flash_attention_2"]

_TOLD_BYTES = 2_000_000_000  # of decompressing, which takes seconds a GB
log = logging.getLogger("workbench")


def load_generator(
    spec: str | Path | None = None,
    *,
    context: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str | DeviceMap = "auto",
    attention: Attention = "sdpa",
    decoding: Decoding = EXACT,
    quantization: Quantization | None = None,
    expert_cache: int | None = None,
) -> Generator:
    """Load "pocket", a Phi3 or Phimoe checkpoint folder, or a hub id; without a name the best Phi already on this disk.

    Weights that ZipNN compressed are decompressed into a cache once, without loss; see docs/checkpoints.md.

    ``context=None`` is the original window (4,096 tokens for Phi-3.5); more selects the long regime. ``dtype=None``
    means float32 on a CPU that has room for it, else the checkpoint's own. `device` "auto" takes all GPUs, else MPS,
    else the CPU; a map of module names to devices, "cpu" and "disk" among them, places each where it says (as
    ``device_map`` of transformers). `attention` names the implementation; "flash_attention_2" needs a GPU and the
    package flash-attn. `decoding` is what the generator uses by default: ``Decoding(cache="int8")`` halves the memory
    of keys and values.
    `quantization` "8bit" or "4bit" holds linear layers and experts so, which changes answers a little or a lot
    (docs/memory.md); they are computed in `dtype`. With `expert_cache` the experts of a MoE stay in host memory, and
    that many of each layer lie on the device too: the ones used most of late. Nothing changes but speed and memory.

    Raises ``CheckpointError`` for a folder that cannot be loaded and ``DoesNotFit`` before allocating. After any error
    nothing of the model is left in memory, even while the error itself is kept.

    >>> load_generator("pocket").regime
    'short'
    """
    if attention not in get_args(Attention):
        raise ValueError(f"attention={attention!r} is none of {', '.join(get_args(Attention))}")
    placed = _placement(device, quantization, expert_cache)
    checkpoint, reason = (find_checkpoint(spec), "") if spec is not None else _default_checkpoint()
    if checkpoint.name in KNOWN_SHAPES and not is_on_disk(checkpoint):
        # 80 GB are not worth fetching, nor a hub worth waiting for, where the model cannot fit
        _refuse_unless_fits(
            checkpoint.name, context, dtype, placed, attention, decoding, quantization, expert_cache
        )
    config = load_config(checkpoint)
    context = original_window(config) if context is None else context
    regime = regime_for(config, context)
    plan = plan_for(
        config,
        context=context,
        dtype=dtype,
        device=placed.main,
        device_bytes=placed.bytes,
        name=checkpoint.name,
        kv=decoding.kv,
        attention=attention,
        quantization=quantization,
        expert_cache=expert_cache,
    )
    _check_flash(attention, placed.main, plan.dtype)
    if not plan.fits:
        raise DoesNotFit(plan.refusal)
    placed = spelled_out(config, placed)
    checkpoint = fetched(checkpoint)
    try:
        model, tokenizer = _load(
            checkpoint, config, plan.dtype, placed, regime, attention, quantization, expert_cache
        )
    except BaseException as error:
        release_frames(error)
        raise
    prefixes = PrefixCache(plan.prefix_bytes)
    return Generator(
        checkpoint.name,
        model,
        tokenizer,
        context,
        regime,
        reason,
        prefixes,
        plan.whole_tokens,
        decoding,
    )


def _placement(
    device: str | DeviceMap, quantization: str | None, expert_cache: int | None
) -> Placement:
    """Where the model is to lie; raises ``ValueError`` for what does not go together."""
    placed = find_placement(device)
    if quantization and placed.uses_disk:
        raise ValueError(
            f"quantization={quantization!r} and a map with 'disk' do not go together: weights are read from there as "
            "the checkpoint has them; with 'cpu' or expert_cache they stay as they were quantized"
        )
    if not expert_cache:
        return placed
    if not isinstance(device, str):
        raise ValueError("expert_cache places the experts itself: give device a name, not a map")
    if not placed.main.startswith("cuda"):
        log.warning(
            f"expert_cache saves memory on a GPU alone, and this computes on {placed.main}: leave it out unless you "
            "are trying it"
        )
    # one card and host memory, however many cards there are
    return find_placement("cuda:0") if placed.main == "cuda" else placed


def _refuse_unless_fits(
    name: str,
    context: int | None,
    dtype: str | None,
    placed: Placement,
    attention: str,
    decoding: Decoding,
    quantization: str | None,
    expert_cache: int | None,
) -> None:
    shape = KNOWN_SHAPES[name]
    context = original_window(shape) if context is None else context
    regime_for(shape, context)
    plan = plan_for(
        shape,
        context=context,
        dtype=dtype,
        device=placed.main,
        device_bytes=placed.bytes,
        name=name,
        kv=decoding.kv,
        attention=attention,
        quantization=quantization,
        expert_cache=expert_cache,
    )
    if not plan.fits:
        raise DoesNotFit(plan.refusal)


def _load(
    checkpoint: Checkpoint,
    config: Any,
    dtype: str,
    placed: Placement,
    regime: Regime,
    attention: str,
    quantization: Quantization | None,
    expert_cache: int | None,
) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _load_tokenizer(checkpoint, config)
    if not checkpoint.is_local:
        check_hub_index(checkpoint)
    config.sliding_window = (
        None  # as wide as the whole window in Phi-3.5; None keeps the ordinary cache
    )
    beside = {}
    if checkpoint.is_local:
        beside["generation_config"] = _generation_config(checkpoint, config)
    if quantization is not None:
        from workbench.generation.quantized import QuantizationConfig, check_quantizable

        check_quantizable(config, quantization)
        beside["quantization_config"] = QuantizationConfig(quantization)
    with ExitStack() as reading:
        held = reading.enter_context(_plain_weights(checkpoint, config))
        if placed.uses_disk:  # for what is joined while loading; other weights stay where they are
            beside["offload_folder"] = str(reading.enter_context(temporary_folder()))
        model, info = read_pretrained(
            AutoModelForCausalLM.from_pretrained,
            held,
            config=config,
            dtype=getattr(torch, dtype),
            device_map={"": "cpu"} if expert_cache else placed.device_map,
            attn_implementation=attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with the names
            output_loading_info=True,
            **beside,
        )
        if placed.uses_disk:
            model.files = KeptFiles(reading.pop_all().close)
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{checkpoint.name}: {len(wrong)} weights missing or of a wrong shape, first {wrong[0]}; take config.json "
            "and weights from the same source"
        )
    if config.model_type == "phimoe" and not find_routers(model):
        raise CheckpointError(f"{checkpoint.name} is a Phimoe without routers")
    check_finite(parameters_with_values(model), checkpoint.name)
    if expert_cache:
        from workbench.generation.expert_cache import cache_experts

        cache_experts(model, expert_cache, placed.main)
    pin_regime(model, regime)
    check_regime(model, regime)
    own = model.generation_config
    # beams, penalties and caches of a checkpoint's own would get into every call; what is asked for is in the call
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    return model.eval(), tokenizer


@contextmanager
def _plain_weights(checkpoint: Checkpoint, config: Any) -> Iterator[Checkpoint]:
    """Where transformers reads the weights: the checkpoint itself, or what the cache holds of a compressed one."""
    folder = Path(checkpoint.source)
    if not checkpoint.is_local or not compressed_files(folder):
        yield checkpoint
        return

    told: list[int] = []

    def tell(step: Progress) -> None:
        if step.done - sum(told[-1:]) >= _TOLD_BYTES:
            told.append(step.done)
            log.warning(
                f"{one_line(checkpoint.name)}: {step.done / 1e9:.1f} of {step.total / 1e9:.1f} GB decompressed"
            )

    log.info(
        f"{one_line(checkpoint.name)} is compressed; its plain weights are kept in {cache_folder()}"
    )
    most = 2 * weight_bytes(config, "float32")
    with decompressed(folder, name=checkpoint.name, most_bytes=most, on_progress=tell) as plain:
        yield Checkpoint(checkpoint.name, str(plain), True)


def _generation_config(checkpoint: Checkpoint, config: Any) -> Any:
    """What stands beside the weights, or follows from the config; transformers would pass over what is no JSON."""
    from transformers import GenerationConfig

    path = Path(checkpoint.source) / "generation_config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return GenerationConfig.from_model_config(config)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no JSON ({error}); restore it from the source of the checkpoint"
        ) from error
    return read_pretrained(lambda *_, **__: GenerationConfig.from_dict(raw), checkpoint)


def _load_tokenizer(checkpoint: Checkpoint, config: Any) -> Any:
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    tokenizer = read_pretrained(AutoTokenizer.from_pretrained, checkpoint, config=config)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{checkpoint.name} has no fast tokenizer (tokenizer.json), which spans need"
        )
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{checkpoint.name} has no chat template; copy tokenizer_config.json from its source"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.name} has a chat template that fails ({error}); copy it from its source"
        ) from error
    tokenizer.model_max_length = int(1e30)  # our own sentence says what is too long
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer has {tokens} tokens, the model {config.vocab_size}: not a pair; take "
            "both from the same source"
        )
    return tokenizer


def _check_flash(attention: str, device: str, dtype: str) -> None:
    """Refuse what cannot run here; for want of the package the library would fetch a kernel, code, from the hub."""
    if attention != "flash_attention_2":
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not device.startswith("cuda"):
        raise ValueError(
            f"attention='flash_attention_2' needs an NVIDIA GPU, this is {device}: leave it at 'sdpa'"
        )
    if not is_flash_attn_2_available():
        raise ImportError(
            "attention='flash_attention_2' needs the package flash-attn: pip install flash-attn, or leave it at 'sdpa'"
        )
    if dtype == "float32":
        raise ValueError(
            "attention='flash_attention_2' has no float32: add dtype='bfloat16', or leave it at 'sdpa'"
        )


def _default_checkpoint() -> tuple[Checkpoint, str]:
    """The best Phi in the local Hugging Face cache that fits, else the pocket model, and why in one line."""
    from huggingface_hub import try_to_load_from_cache

    passed = []
    for hub_id in PHI_IDS:
        if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            continue
        checkpoint = Checkpoint(hub_id, hub_id, False)
        try:
            if not is_on_disk(checkpoint):
                passed.append(f"{hub_id} lies in the local cache without all of its weights")
                continue
            config = load_config(checkpoint, local_files_only=True)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        plan = plan_for(config, context=original_window(config), name=hub_id)
        if plan.fits:
            reason = f"{hub_id} is in the local cache and fits: {plan}"
            log.warning(reason)
            return checkpoint, reason
        passed.append(f"{hub_id} does not fit ({plan})")
    reason = "; ".join(passed) or "no Phi-3.5 in the local Hugging Face cache"
    reason += ": using the pocket model, which shows how things work and is no match for Phi"
    log.warning(reason)
    return find_checkpoint(POCKET), reason
