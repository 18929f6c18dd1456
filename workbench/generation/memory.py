"""A checkpoint's config and a context → the bytes it will need, before anything is allocated.

Arithmetic only: weights by dtype, the key-value cache by tokens, the workspace of reading a prompt in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from workbench.generation.workspace import Allocation, Reading, head_size, workspace_parts

GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bits of a weight: a byte; 4 bits and, for every 32 of them, a scale of 16 bits.
QUANTIZED_BITS = {"8bit": 8.0, "4bit": 4.5}
# Bytes of each number of a weight that is spelled out: integers, float32, the compute dtype (quantized.py).
SPELLED_BYTES = 10
RESERVE = 0.08
PREFILL_TOKENS = {"cpu": 512, "cuda": 2048}

KV = Literal["model", "int8", "fp8", "offloaded"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a checkpoint needs at one context, and what a device has; all in bytes.

    ``weights`` lists the weights in every dtype, ``workspace`` what the temporary memory is made of. ``loading_bytes``
    is needed beside the weights while they load, before there is a cache. ``quantization`` is how the weights are held,
    "8bit" or "4bit", empty for ``dtype``. With ``expert_cache`` that many experts of each layer lie on the device, and
    ``host_bytes`` are needed in host memory beside it, where ``host_usable`` are (None: not known). Prompts of up to
    ``whole_tokens`` are read in one pass, with a workspace of up to ``whole_bytes`` out of what is left over; longer
    ones in chunks.
    ``largest_context`` is the longest that fits, 0 for none. ``alternatives`` are sentences on what would fit instead,
    empty when the plan fits. ``source`` says where the shapes come from.
    """

    model: str
    dtype: str
    context: int
    parameters: int
    weight_bytes: int
    cache_bytes: int
    workspace_bytes: int
    device: str
    device_bytes: int
    largest_context: int
    kv: KV = "model"
    batch: int = 1
    cache_bytes_per_token: int = 0
    loading_bytes: int = 0
    whole_tokens: int = 0
    whole_bytes: int = 0
    weights: tuple[Allocation, ...] = ()
    workspace: tuple[Allocation, ...] = ()
    quantization: str = ""
    expert_cache: int = 0
    host_bytes: int = 0
    host_usable: int | None = None
    source: str = ""
    alternatives: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """What is needed: weights, and the larger of cache with workspace and what loading takes."""
        return self.weight_bytes + max(self.cache_bytes + self.workspace_bytes, self.loading_bytes)

    @property
    def peak_bytes(self) -> int:
        """What a prompt and answer of the whole context are expected to reach, the spare memory that helps included."""
        running = self.cache_bytes + max(self.workspace_bytes, self.whole_bytes)
        return self.weight_bytes + max(running, self.loading_bytes)

    @property
    def prefix_bytes(self) -> int:
        """What earlier sequences may hold beside the running one: a context, and up to eight more of spare memory.

        A quarter of what the plan leaves free is the limit.
        """
        spare = max(0, self.usable_bytes - self.total_bytes) // 4
        return self.cache_bytes + min(spare, 8 * self.cache_bytes)

    @property
    def usable_bytes(self) -> int:
        """What the device has, less the reserve of 8 %."""
        return int(self.device_bytes * (1 - RESERVE))

    @property
    def fits(self) -> bool:
        """Whether the plan stays within the device, and within host memory what lies there."""
        return self.total_bytes <= self.usable_bytes and not self.host_lack

    @property
    def host_lack(self) -> int:
        """Bytes that host memory has too little."""
        return 0 if self.host_usable is None else max(0, self.host_bytes - self.host_usable)

    @property
    def refusal(self) -> str:
        """The sentence of ``DoesNotFit``: the numbers, and what would do instead; empty when the plan fits."""
        if self.fits:
            return ""
        remedy = "; or ".join(self.alternatives) or "take a smaller model or a larger device"
        return f"{self.shortfall}: {remedy}"

    @property
    def shortfall(self) -> str:
        """The refusal without what would do instead."""
        if self.fits:
            return ""
        where = "in host memory " if self.host_lack else ""
        lack = self.host_lack or self.total_bytes - self.usable_bytes
        return f"{self}, {where}{size(lack)} too little"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        facts = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("weights", "workspace", "alternatives")
        }
        return {
            "sentence": str(self),
            "shortfall": self.shortfall,
            "fits": self.fits,
            **facts,
            "total_bytes": self.total_bytes,
            "peak_bytes": self.peak_bytes,
            "usable_bytes": self.usable_bytes,
            "weights": {part.name: part.bytes for part in self.weights},
            "workspace": {part.name: part.bytes for part in self.workspace},
            "alternatives": list(self.alternatives),
        }

    def __str__(self) -> str:
        cache = "8-bit cache" if self.kv in ("int8", "fp8") else "cache"
        rows = f"{self.batch} rows of " if self.batch > 1 else ""
        held = f" with {bits_in_words(self.quantization)} weights" if self.quantization else ""
        if self.expert_cache:
            host = f" ({size(self.host_bytes)})" if self.host_bytes else ""
            held += f", experts in host memory{host} and {self.expert_cache} of each layer cached,"
        peak = f"{cache} {size(self.cache_bytes)} + workspace {size(self.workspace_bytes)}"
        if self.loading_bytes > self.cache_bytes + self.workspace_bytes:
            peak = f"{size(self.loading_bytes)} while loading (more than cache and workspace later)"
        return (
            f"{self.model} in {self.dtype}{held} at {rows}{self.context:,} tokens: weights {size(self.weight_bytes)} + "
            f"{peak} = {size(self.total_bytes)}; {self.device} has {size(self.usable_bytes)} usable"
        )


def bits_in_words(quantization: str) -> str:
    """How a quantization is written in a sentence.

    >>> bits_in_words("8bit")
    '8-bit'
    """
    return quantization.replace("bit", "-bit")


def size(count: int) -> str:
    """Bytes in the unit that leaves a readable number.

    >>> size(83_746_000_000), size(30_800_000)
    ('78.0 GiB', '29.4 MiB')
    """
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def prefill_tokens(device: str) -> int:
    """How many tokens of a prompt are fed at a time on `device`, those of all rows together.

    >>> prefill_tokens("cuda:0"), prefill_tokens("cpu")
    (2048, 512)
    """
    return PREFILL_TOKENS["cuda" if device.startswith("cuda") else "cpu"]


def count_parameters(config: Any) -> int:
    """Parameters of a Phi3 or Phimoe config, by its shapes.

    >>> from transformers import PhimoeConfig
    >>> round(count_parameters(PhimoeConfig(attention_bias=True, lm_head_bias=True)) / 1e9, 2)  # Phi-3.5-MoE
    41.87
    """
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    head = head_size(config)
    query, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = hidden * (query + 2 * keys) + query * hidden
    is_moe = config.model_type == "phimoe"
    if is_moe and config.attention_bias:
        attention += query + 2 * keys + hidden
    experts = config.num_local_experts if is_moe else 1
    feed_forward = experts * 3 * hidden * config.intermediate_size + (
        experts * hidden if is_moe else 0
    )
    norm = 2 * hidden if is_moe else hidden  # LayerNorm has a bias, RMSNorm has none
    heads = vocabulary * hidden * (1 if config.tie_word_embeddings else 2)
    heads += vocabulary if is_moe and config.lm_head_bias else 0
    return int(layers * (attention + feed_forward + 2 * norm) + heads + norm)


def weight_bytes(config: Any, dtype: str, *, kept: str = "bfloat16") -> int:
    """Bytes of the weights in a dtype, or in "8bit" or "4bit": then embeddings and head are in the dtype `kept`.

    >>> from transformers import PhimoeConfig
    >>> moe = PhimoeConfig(attention_bias=True, lm_head_bias=True)
    >>> [size(weight_bytes(moe, dtype)) for dtype in ("bfloat16", "8bit", "4bit")]
    ['78.0 GiB', '39.2 GiB', '22.3 GiB']
    """
    parameters = count_parameters(config)
    if dtype in DTYPE_BYTES:
        return parameters * DTYPE_BYTES[dtype]
    own = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return int(DTYPE_BYTES[kept] * own + (parameters - own) * QUANTIZED_BITS[dtype] / 8)


def expert_bytes(config: Any, held: str) -> int:
    """Bytes of all experts of a Phimoe config in a dtype, "8bit" or "4bit".

    >>> from transformers import PhimoeConfig
    >>> size(expert_bytes(PhimoeConfig(), "bfloat16")), size(expert_bytes(PhimoeConfig(), "4bit"))
    ('75.0 GiB', '21.1 GiB')
    """
    an_expert = 3 * config.hidden_size * config.intermediate_size
    bits = DTYPE_BYTES[held] * 8 if held in DTYPE_BYTES else QUANTIZED_BITS[held]
    return int(config.num_hidden_layers * config.num_local_experts * an_expert * bits / 8)


def check_expert_cache(config: Any, slots: int | None) -> None:
    """Raise ``ValueError`` for a number of cached experts that the model has not got, or a dense model."""
    if slots is None:
        return
    if config.model_type != "phimoe":
        raise ValueError(f"expert_cache={slots} is for a Phi-MoE, and this model is dense")
    if type(slots) is not int or not 1 <= slots <= config.num_local_experts:
        raise ValueError(
            f"expert_cache={slots!r} must be a number of experts from 1 to {config.num_local_experts}"
        )


def cache_bytes_per_token(config: Any, dtype: str, kv: KV = "model") -> int:
    """Key-value bytes of one token: two tensors (keys, values) of [layers, kv heads, head size].

    In "int8" and "fp8" a number takes one byte, and each token and head a float32 scale for keys and one for values.
    "offloaded" keeps room for three layers on the GPU: the current one as it was and as it grows, and the next.

    >>> from transformers import Phi3Config
    >>> mini = Phi3Config(hidden_size=3072, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
    >>> cache_bytes_per_token(mini, "bfloat16") // 1024, cache_bytes_per_token(mini, "bfloat16", "int8") // 1024
    (384, 200)
    """
    a_head = (
        head_size(config) + 4 if kv in ("int8", "fp8") else head_size(config) * DTYPE_BYTES[dtype]
    )
    layers = min(3, config.num_hidden_layers) if kv == "offloaded" else config.num_hidden_layers
    return int(2 * layers * config.num_key_value_heads * a_head)


def plan_config(
    config: Any,
    *,
    context: int,
    dtype: str,
    device: str,
    device_bytes: int,
    model: str = "model",
    kv: KV = "model",
    batch: int = 1,
    attention: str = "sdpa",
    quantized: str | None = None,
    expert_cache: int | None = None,
    host_usable: int | None = None,
    source: str = "",
) -> MemoryPlan:
    """Plan a config at `context` tokens for each of `batch` rows on a device of `device_bytes`; allocates nothing.

    `dtype` is what is computed in; `quantized` ("8bit", "4bit") only how the weights are held. With `expert_cache`
    that many experts of each layer lie on the device, and all of them in host memory, where `host_usable` bytes are
    (None: not known). Alternatives are not looked for here: see ``workbench.plan_memory``.

    >>> from workbench.generation.known_shapes import KNOWN_SHAPES
    >>> mini = KNOWN_SHAPES["microsoft/Phi-3.5-mini-instruct"]
    >>> plan = plan_config(mini, context=131072, dtype="bfloat16", device="cuda", device_bytes=48 * 10**9)
    >>> plan.fits, plan.largest_context > 80_000
    (False, True)
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    if kv not in get_args(KV):
        raise ValueError(f"kv={kv!r} is none of {', '.join(get_args(KV))}")
    if batch < 1 or context < 1:
        raise ValueError(f"batch={batch} and context={context} must be at least 1")
    held, host = weight_bytes(config, quantized or dtype, kept=dtype), 0
    spelled = _spelled_bytes(config) if quantized else 0
    per_token = cache_bytes_per_token(config, dtype, kv)
    rows = batch if batch == 1 else batch + 1  # the longest row is read first and stays beside
    loading = _loading_bytes(config, dtype)
    if expert_cache is not None:
        experts = expert_bytes(config, quantized or dtype)
        slots = experts * expert_cache // config.num_local_experts
        if not device.startswith("cuda"):  # which shares its memory with the host
            held += slots
        else:  # all is read into host memory, what does not stay there is moved
            host, held, loading = held + loading, held - experts + slots, 0
    usable = int(device_bytes * (1 - RESERVE))

    def workspace(tokens: int) -> tuple[Allocation, ...]:
        reading = Reading(
            context=tokens,
            chunk=prefill_tokens(device),
            rows=batch,
            itemsize=DTYPE_BYTES[dtype],
            kv=kv,
            attention=attention,
            device=device,
        )
        own = (Allocation("one weight spelled out", spelled),) if spelled else ()
        return (*workspace_parts(config, reading), *own)

    def fits(tokens: int) -> bool:
        running = rows * tokens * per_token + _sum(workspace(tokens))
        return held + max(running, loading) <= usable

    largest = _largest(0, int(config.max_position_embeddings), fits)
    parts = workspace(context)
    spare = usable - held - max(rows * context * per_token + _sum(parts), loading)

    def in_one_pass(tokens: int) -> int:
        reading = Reading(
            context=tokens,
            chunk=tokens,
            itemsize=DTYPE_BYTES[dtype],
            kv=kv,
            attention=attention,
            device=device,
        )
        # what glibc keeps of freed blocks, a fifth more: measured, not derived (benchmarks/planner_error.py)
        parts = _sum(workspace_parts(config, reading))
        return int(parts * (1.2 if device == "cpu" else 1.0)) + spelled

    whole = min(context, prefill_tokens(device))
    if spare > 0:  # one pass without a mask is the faster way, for a quarter of what is left
        most = _sum(parts) + spare // 4
        whole = _largest(whole, context, lambda tokens: in_one_pass(tokens) <= most)
    return MemoryPlan(
        model=model,
        dtype=dtype,
        context=context,
        parameters=count_parameters(config),
        weight_bytes=held,
        cache_bytes=rows * context * per_token,
        workspace_bytes=_sum(parts),
        device=device,
        device_bytes=device_bytes,
        largest_context=largest,
        kv=kv,
        batch=batch,
        cache_bytes_per_token=per_token,
        loading_bytes=loading,
        whole_tokens=whole,
        whole_bytes=max(_sum(parts), in_one_pass(whole)) if spare > 0 else _sum(parts),
        weights=tuple(
            Allocation(name, weight_bytes(config, name, kept=dtype))
            for name in (*DTYPE_BYTES, *QUANTIZED_BITS)
        ),
        workspace=parts,
        quantization=quantized or "",
        expert_cache=expert_cache or 0,
        host_bytes=host,
        host_usable=host_usable,
        source=source,
    )


def device_memory(device: str) -> int:
    """Bytes of "cpu" (what is available now, within the container's limit), of a GPU, or of all (what is free now).

    What this process holds on a GPU without using it counts as free.
    """
    if device.startswith("cuda"):
        import torch

        _, _, number = device.partition(":")
        return sum(
            torch.cuda.mem_get_info(i)[0]
            + torch.cuda.memory_reserved(i)
            - torch.cuda.memory_allocated(i)
            for i in ([int(number)] if number else range(torch.cuda.device_count()))
        )
    import psutil

    return min(int(psutil.virtual_memory().available), _left_by_container())


def _left_by_container(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What the Linux control group still allows (version 2); without one, no limit. File cache can be dropped."""
    try:
        limit = (group / "memory.max").read_text("utf-8").strip()
        used = int((group / "memory.current").read_text("utf-8"))
        lines = (group / "memory.stat").read_text("utf-8").splitlines()
        droppable = int(dict(line.split() for line in lines).get("inactive_file", 0))
        return 1 << 62 if limit == "max" else max(0, int(limit) - used + droppable)
    except (OSError, ValueError):
        return 1 << 62


def _loading_bytes(config: Any, dtype: str) -> int:
    """A Phimoe checkpoint has one file entry for each expert: a layer's are stacked and joined beside each other."""
    if config.model_type != "phimoe":
        return 0
    a_layer = 2 * config.num_local_experts * config.intermediate_size * config.hidden_size
    return int(a_layer * DTYPE_BYTES[dtype])


def _spelled_bytes(config: Any) -> int:
    """The largest weight that is spelled out at once: gate and up of one expert, or of the feed-forward."""
    return int(SPELLED_BYTES * 2 * config.intermediate_size * config.hidden_size)


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, where what is needed grows with it; else `least`."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _sum(parts: tuple[Allocation, ...]) -> int:
    return sum(part.bytes for part in parts)
