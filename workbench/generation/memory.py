"""A checkpoint's config and a context → the bytes it will need, before anything is allocated.

Arithmetic only: weights by dtype, key-value cache by tokens, a workspace. Source of the cache formula: two tensors
(keys, values) of [layers, kv heads, head size] for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WORKSPACE_BYTES = 3 * GIB // 2
RESERVE = 0.08


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a checkpoint needs at one context, and what a device has; all in bytes."""

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

    @property
    def total_bytes(self) -> int:
        """Weights, cache and workspace together."""
        return self.weight_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def usable_bytes(self) -> int:
        """What the device has, less the reserve of 8 %."""
        return int(self.device_bytes * (1 - RESERVE))

    @property
    def fits(self) -> bool:
        """Whether the plan stays within the device."""
        return self.total_bytes <= self.usable_bytes

    def __str__(self) -> str:
        return (
            f"{self.model} in {self.dtype} at {self.context:,} tokens: weights {size(self.weight_bytes)} + "
            f"cache {size(self.cache_bytes)} + workspace {size(self.workspace_bytes)} = "
            f"{size(self.total_bytes)}; {self.device} has {size(self.usable_bytes)} usable"
        )


def size(count: int) -> str:
    """Bytes in the unit that leaves a readable number.

    >>> size(83_746_000_000), size(30_800_000)
    ('78.0 GiB', '29.4 MiB')
    """
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def count_parameters(config: Any) -> int:
    """Parameters of a Phi3 or Phimoe config, by its shapes.

    >>> from transformers import PhimoeConfig
    >>> round(count_parameters(PhimoeConfig(attention_bias=True, lm_head_bias=True)) / 1e9, 2)  # Phi-3.5-MoE
    41.87
    """
    hidden, layers, vocabulary = config.hidden_size, config.num_hidden_layers, config.vocab_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = hidden * (query + 2 * keys) + query * hidden
    is_moe = config.model_type == "phimoe"
    if getattr(config, "attention_bias", False):
        attention += query + 2 * keys + hidden
    experts = config.num_local_experts if is_moe else 1
    feed_forward = experts * 3 * hidden * config.intermediate_size + (
        experts * hidden if is_moe else 0
    )
    norm = 2 * hidden if is_moe else hidden  # LayerNorm has a bias, RMSNorm has none
    heads = vocabulary * hidden * (1 if config.tie_word_embeddings else 2)
    heads += vocabulary if getattr(config, "lm_head_bias", False) else 0
    return int(layers * (attention + feed_forward + 2 * norm) + heads + norm)


def cache_bytes_per_token(config: Any, dtype: str) -> int:
    """Key-value bytes of one token.

    >>> from transformers import Phi3Config
    >>> mini = Phi3Config(hidden_size=3072, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
    >>> cache_bytes_per_token(mini, "bfloat16") // 1024
    384
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(
        2 * config.num_hidden_layers * config.num_key_value_heads * head * DTYPE_BYTES[dtype]
    )


def plan_memory(
    config: Any, *, context: int, dtype: str, device: str, device_bytes: int, model: str = "model"
) -> MemoryPlan:
    """Plan `config` at `context` tokens on a device of `device_bytes`; allocates nothing."""
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    parameters = count_parameters(config)
    weights = parameters * DTYPE_BYTES[dtype]
    per_token = cache_bytes_per_token(config, dtype)
    workspace = min(
        WORKSPACE_BYTES, max(weights, GIB // 8)
    )  # a small model needs no more than its own size
    left = int(device_bytes * (1 - RESERVE)) - weights - workspace
    return MemoryPlan(
        model=model,
        dtype=dtype,
        context=context,
        parameters=parameters,
        weight_bytes=weights,
        cache_bytes=per_token * context,
        workspace_bytes=workspace,
        device=device,
        device_bytes=device_bytes,
        largest_context=max(0, min(int(config.max_position_embeddings), left // per_token)),
    )


def device_memory(device: str) -> int:
    """Total memory of "cpu" (what is available now), "cuda" (all GPUs together) or "mps", in bytes."""
    if device.startswith("cuda"):
        import torch

        return sum(
            torch.cuda.get_device_properties(i).total_memory
            for i in range(torch.cuda.device_count())
        )
    import psutil

    return int(psutil.virtual_memory().available)
