"""A checkpoint by name and a context → the memory plan that loading checks; dtype and device resolved, nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.generation.checkpoints import find_checkpoint, read_pretrained
from workbench.generation.longrope import original_window
from workbench.generation.memory import DTYPE_BYTES, MemoryPlan, device_memory, plan_memory


def plan_for(
    config: Any,
    *,
    context: int,
    dtype: str | None = None,
    device: str = "auto",
    name: str = "model",
) -> MemoryPlan:
    """The memory plan that ``load_generator`` checks: dtype and device resolved as it resolves them."""
    device = pick_device(device)
    available = device_memory(device)

    def plan(precision: str) -> MemoryPlan:
        return plan_memory(
            config,
            context=context,
            dtype=precision,
            device=device,
            device_bytes=available,
            model=name,
        )

    if dtype is not None:
        return plan(dtype)
    own = str(config.dtype or "bfloat16").removeprefix("torch.")
    own = own if own in DTYPE_BYTES else "float32"
    full = plan("float32")
    return full if device == "cpu" and full.weight_bytes <= available // 4 else plan(own)


def plan_checkpoint(
    spec: str | Path, *, context: int | None = None, dtype: str | None = None, device: str = "auto"
) -> MemoryPlan:
    """The memory plan of a checkpoint by name; reads its config alone.

    >>> plan_checkpoint("pocket").fits
    True
    """
    from transformers import AutoConfig

    checkpoint = find_checkpoint(spec)
    config = read_pretrained(AutoConfig.from_pretrained, checkpoint)
    context = original_window(config) if context is None else context
    return plan_for(config, context=context, dtype=dtype, device=device, name=checkpoint.name)


def pick_device(device: str) -> str:
    """Resolve "auto": all GPUs, else MPS, else the CPU."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
