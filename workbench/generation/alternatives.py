"""A plan that does not fit → what would, each a sentence with its numbers; only what really helps is listed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workbench.generation.known_shapes import KNOWN_SHAPES, other_model
from workbench.generation.longrope import original_window
from workbench.generation.memory import (
    KV,
    QUANTIZED_BITS,
    MemoryPlan,
    cache_bytes_per_token,
    plan_config,
    size,
)


def with_alternatives(plan: MemoryPlan, config: Any, *, attention: str = "sdpa") -> MemoryPlan:
    """The same plan with its ``alternatives``, found by planning each of them; none where the plan fits.

    >>> shape = KNOWN_SHAPES["microsoft/Phi-3.5-mini-instruct"]
    >>> plan = plan_config(shape, context=65536, dtype="bfloat16", device="cuda", device_bytes=24 * 10**9)
    >>> with_alternatives(plan, shape).alternatives[0][:50]
    'the largest context that fits is 35,630 tokens: 20'
    """
    if plan.fits:
        return plan

    def plan_as(shapes: Any = config, **changes: Any) -> MemoryPlan:
        settings = {
            "context": plan.context,
            "dtype": plan.dtype,
            "device": plan.device,
            "device_bytes": plan.device_bytes,
            "kv": plan.kv,
            "batch": plan.batch,
            "attention": attention,
            "quantized": plan.quantization or None,
            "expert_cache": plan.expert_cache or None,
            "host_usable": plan.host_usable,
            **changes,
        }
        return plan_config(shapes, **settings)

    sentences = [
        *_without_expert_cache(plan, plan_as),
        *_smaller_context(plan, plan_as),
        *_fewer_bits(plan, plan_as),
        *_experts_in_host_memory(plan, config, plan_as),
        *_smaller_cache(plan, plan_as),
        *_other_model(plan, plan_as),
        *_map_reduce(plan, config, plan_as),
    ]
    if plan.model in KNOWN_SHAPES:
        sentences.append(
            "a served Phi behind an endpoint needs none of this memory (planned, not in this version)"
        )
    return replace(plan, alternatives=tuple(sentences))


def _without_expert_cache(plan: MemoryPlan, plan_as: Any) -> list[str]:
    if not plan.expert_cache or plan.device.startswith("cuda"):
        return []
    return [
        f"expert_cache saves memory on a GPU alone; without it, it {_helps(plan_as(expert_cache=None))}"
    ]


def _smaller_context(plan: MemoryPlan, plan_as: Any) -> list[str]:
    """The largest context that fits, and the rows that do."""
    found = []
    if plan.batch > 1:
        rows = next((n for n in range(plan.batch - 1, 0, -1) if plan_as(batch=n).fits), 0)
        if rows:
            found.append(
                f"{rows} {'row' if rows == 1 else 'rows'} at a time: {_needs(plan_as(batch=rows))}"
            )
    if plan.largest_context:
        smaller = plan_as(context=plan.largest_context)
        found.append(
            f"the largest context that fits is {smaller.context:,} tokens: {_needs(smaller)}"
        )
    return found


def _fewer_bits(plan: MemoryPlan, plan_as: Any) -> list[str]:
    found = []
    if plan.dtype == "float32":
        half = plan_as(dtype="bfloat16")
        if half.fits or half.largest_context > plan.largest_context:
            found.append(f"with dtype='bfloat16' it {_helps(half)}")
            if half.fits:
                return found
    before = plan.largest_context
    held = list(QUANTIZED_BITS)
    for name in held[held.index(plan.quantization) + 1 :] if plan.quantization else held:
        fewer = plan_as(quantized=name, dtype="bfloat16")
        if fewer.fits or fewer.largest_context > before:
            weights = f"quantization={name!r}, weights of {size(fewer.weight_bytes)}"
            found.append(f"with {weights}, it {_helps(fewer)}")
            before = fewer.largest_context
        if fewer.fits:
            break
    return found


def _experts_in_host_memory(plan: MemoryPlan, config: Any, plan_as: Any) -> list[str]:
    """The most experts of each layer that fit on the device, with weights as they are and in fewer bits."""
    if config.model_type != "phimoe" or not plan.device.startswith("cuda"):
        return []
    found, most = [], 1
    fewer = [name for name in QUANTIZED_BITS if name != plan.quantization]
    for name in (plan.quantization or None, *fewer):
        dtype = "bfloat16" if name else plan.dtype
        if plan_as(quantized=name, dtype=dtype).fits:
            break  # without a cache
        for slots in range(config.num_local_experts - 1, most, -1):
            other = plan_as(quantized=name, dtype=dtype, expert_cache=slots)
            if other.fits:
                options = f"quantization={name!r}, " if name and name != plan.quantization else ""
                found.append(
                    f"with {options}expert_cache={slots}, experts in host memory ({size(other.host_bytes)}) and "
                    f"{slots} of each layer on the device, it fits: {_needs(other)}"
                )
                most = slots
                break
    return found


def _smaller_cache(plan: MemoryPlan, plan_as: Any) -> list[str]:
    found, before = [], plan.largest_context
    kinds: dict[KV, str] = {"int8": "in 8 bits"}
    if plan.device.startswith("cuda"):
        kinds["offloaded"] = "of two layers, the others in host memory, which is slow"
    for kv, words in kinds.items():
        smaller = plan_as(kv=kv)
        if smaller.cache_bytes < plan.cache_bytes and (
            smaller.fits or smaller.largest_context > before
        ):
            found.append(
                f"with decoding=Decoding(cache={kv!r}), a cache {words}, it {_helps(smaller)}"
            )
            before = smaller.largest_context
        if smaller.fits:
            break
    return found


def _other_model(plan: MemoryPlan, plan_as: Any) -> list[str]:
    name = other_model(plan.model)
    if name is None:
        return []
    shapes = KNOWN_SHAPES[name]
    other = plan_as(shapes, expert_cache=None)
    if not (other.fits or other.largest_context > plan.largest_context):
        return []
    per_token = cache_bytes_per_token(shapes, plan.dtype, plan.kv)
    return [
        f"{name} has weights of {size(other.weight_bytes)} and {per_token // 1024} KiB of cache a token (here "
        f"{plan.cache_bytes_per_token // 1024} KiB) and {_helps(other)}"
    ]


def _map_reduce(plan: MemoryPlan, config: Any, plan_as: Any) -> list[str]:
    window = original_window(config)
    if plan.context <= window or plan.largest_context < window:
        return []
    return [
        f"wb.summarize(…, strategy='map-reduce') reads a document of any length within {window:,} tokens: "
        f"{_needs(plan_as(context=window))}"
    ]


def _helps(plan: MemoryPlan) -> str:
    if plan.fits:
        return f"fits: {_needs(plan)}"
    if not plan.largest_context:
        return f"takes {_needs(plan)}"
    return f"fits up to {plan.largest_context:,} tokens"


def _needs(plan: MemoryPlan) -> str:
    return f"{size(plan.total_bytes)} of {size(plan.usable_bytes)}"
