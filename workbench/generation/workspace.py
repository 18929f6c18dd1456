"""A config, a context and a chunk → the temporary memory of reading a prompt, by what it is made of.

Follows the tensors that are alive together in transformers 5.23's modeling_phi3.py, modeling_phimoe.py,
integrations/sdpa_attention.py and integrations/moe.py, for the last chunk of a prompt, which sees all earlier tokens.
Attention and feed-forward come one after the other, so the larger of the two counts. Knows no device memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HEAP_BLOCK = 32 << 20  # glibc serves smaller blocks from its heap, which grows (M_MMAP_THRESHOLD)
DECODED = "one layer of keys and values out of 8 bits"


@dataclass(frozen=True, slots=True)
class Allocation:
    """A named part of the memory, in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How a prompt is read: `rows` of `context` tokens over their cache, `chunk` tokens of all rows at a time."""

    context: int
    chunk: int
    rows: int = 1
    itemsize: int = 2  # bytes of a number in the compute dtype
    kv: str = "model"
    attention: str = "sdpa"
    device: str = "cpu"


def head_size(config: Any) -> int:
    """Numbers in one head.

    >>> from transformers import Phi3Config
    >>> head_size(Phi3Config(hidden_size=3072, num_attention_heads=32))
    96
    """
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def workspace_parts(config: Any, reading: Reading) -> tuple[Allocation, ...]:
    """What the peak beside weights and cache is made of, the largest first.

    >>> from transformers import PhimoeConfig
    >>> moe = PhimoeConfig(attention_bias=True, lm_head_bias=True)  # the sizes of Phi-3.5-MoE
    >>> parts = workspace_parts(moe, Reading(context=131072, chunk=2048, device="cuda"))
    >>> parts[0].name, parts[0].bytes >> 20
    ('keys and values repeated for every head', 2048)
    """
    always = _always(config, reading)
    peaks = [[*always, *later(config, reading)] for later in (_attention, _feed_forward)]
    if reading.device == "cpu":
        for parts in peaks:
            kept = _kept_by_heap(parts)
            parts.append(Allocation("freed blocks that the heap keeps", kept))
    parts = max(peaks, key=_sum)
    return tuple(sorted((part for part in parts if part.bytes), key=lambda part: -part.bytes))


def _always(config: Any, reading: Reading) -> list[Allocation]:
    """What lives through a whole layer: embeddings, the layer's input, its normed copy, cosine and sine, the mask."""
    tokens = min(reading.chunk, reading.rows * reading.context)
    hidden = 3 * tokens * config.hidden_size + 2 * tokens * head_size(config)
    mask_size = reading.itemsize if reading.attention == "eager" else 1  # sdpa's is of bools
    mask = tokens * reading.context * mask_size if _is_masked(reading) else 0
    logits = reading.rows * config.vocab_size * (reading.itemsize + 8)  # and twice in float32
    library = 32 << 20 if reading.device.startswith("cuda") else 8 << 20  # of cuBLAS, of oneDNN
    return [
        Allocation("hidden states", hidden * reading.itemsize),
        Allocation("attention mask", mask),
        Allocation("logits of the last token", logits),
        Allocation("the matrix library", library),
    ]


def _attention(config: Any, reading: Reading) -> list[Allocation]:
    tokens, size = min(reading.chunk, reading.rows * reading.context), reading.itemsize
    query, keys = (
        heads * head_size(config)
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    held = reading.rows * reading.context  # tokens of all rows that the cache holds
    is_eager, is_masked = reading.attention == "eager", _is_masked(reading)
    projected = tokens * (query + 2 * keys)
    if config.model_type != "phimoe":
        projected += tokens * (query + keys)  # fused; the rotated ones are copies beside it
    repeated = 0
    if query != keys and (is_eager or (is_masked and reading.attention == "sdpa")):
        repeated = 2 * held * query * size
    decoded = 2 * held * keys * size if reading.kv in ("int8", "fp8") else 0
    packed = 0
    if (
        reading.device == "cpu" and size == 2
    ):  # torch's flash attention for CPUs with 16-bit products
        packed = 2 * held * query * size
    output, scores = 2 * tokens * query * size, 0
    if (
        is_eager
    ):  # two of [heads, tokens, context]: float32 and another, see eager_attention_forward
        scores = config.num_attention_heads * tokens * reading.context * 8
    elif is_masked:  # numbers to add, made from the bools inverted
        scores = tokens * reading.context * size
        output = max(output, tokens * reading.context)
    parts = [
        Allocation("queries, keys and values of the chunk", projected * size),
        Allocation("keys and values repeated for every head", repeated),
        Allocation(DECODED, decoded),
        Allocation("keys and values reordered for 16-bit products", packed),
        Allocation(
            "attention scores" if is_eager else "attention mask in the compute dtype", scores
        ),
        Allocation("attention output", output),
    ]
    if reading.kv in ("int8", "fp8"):  # keys are decoded, then values: float32 twice on the way
        decoding = Allocation(DECODED, held * keys * (size + 8))
        parts = max(parts, [parts[0], decoding], key=_sum)
    return parts


def _feed_forward(config: Any, reading: Reading) -> list[Allocation]:
    tokens = min(reading.chunk, reading.rows * reading.context)
    hidden, inner = config.hidden_size, config.intermediate_size
    if config.model_type == "phimoe":  # rows [tokens · k]: gate and up, act(gate), product
        rows = tokens * config.num_experts_per_tok
        numbers = rows * max(hidden + 4 * inner, 2 * hidden + inner, 4 * hidden)
        name = f"feed-forward of {config.num_experts_per_tok} experts a token"
    else:
        numbers, name = tokens * 4 * inner, "feed-forward"
    return [
        Allocation("hidden states after attention", tokens * hidden * reading.itemsize),
        Allocation(name, numbers * reading.itemsize),
    ]


def _is_masked(reading: Reading) -> bool:
    """Whether a mask is made: a chunk that follows others is not a plain causal square."""
    if reading.attention == "flash_attention_2":
        return False
    return reading.attention == "eager" or reading.rows * reading.context > reading.chunk


def _kept_by_heap(parts: list[Allocation]) -> int:
    """Measured, not derived (benchmarks/planner_error.py): most parts grow with every chunk, so that the hole which one
    leaves is too small for the next. Larger blocks are given back. Decoding an 8-bit cache leaves the most holes.
    """
    small = sum(min(part.bytes, 2 * HEAP_BLOCK) for part in parts)  # most parts are two tensors
    decoded = sum(part.bytes for part in parts if part.name == DECODED)  # of three
    return small * 3 // 4 + min(decoded, 3 * HEAP_BLOCK) * 7 // 4


def _sum(parts: list[Allocation]) -> int:
    return sum(part.bytes for part in parts)
