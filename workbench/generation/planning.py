"""A checkpoint by name and a context → the memory plan that loading checks; dtype and device resolved.

Reads a config at most, and waits for no network where the shapes are known. Loads nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.checkpoints.finding import (
    Checkpoint,
    cached_snapshot,
    find_checkpoint,
    load_config,
)
from workbench.checkpoints.weight_files import has_weights
from workbench.generation.alternatives import with_alternatives
from workbench.generation.known_shapes import KNOWN_SHAPES
from workbench.generation.longrope import original_window, regime_for
from workbench.generation.memory import (
    DTYPE_BYTES,
    KV,
    QUANTIZED_BITS,
    RESERVE,
    MemoryPlan,
    check_expert_cache,
    device_memory,
    plan_config,
)
from workbench.generation.options import CacheKind, Decoding

LEAST_DEVICE = 1 << 20  # less was meant as something else than bytes


def plan_memory(
    spec: str | Path,
    *,
    context: int | None = None,
    dtype: str | None = None,
    cache: CacheKind = "reserved",
    quantization: str | None = None,
    expert_cache: int | None = None,
    device: str = "auto",
    device_bytes: int | None = None,
    batch: int = 1,
) -> MemoryPlan:
    """The memory plan of "pocket", a folder or a hub id; reads its config alone, and loads nothing.

    `context`, `dtype`, `quantization`, `expert_cache` and `device` are those of ``load_generator``; `cache` is that of
    ``Decoding``; `batch` rows are decoded together. `device_bytes` plans for a device that is not here. The two
    Phi-3.5 models are planned without a network: by their config in the local Hugging Face cache, else by their
    published shapes.
    Raises ``CheckpointError`` where there is no config, and ``ValueError`` for a context beyond the model's window.

    >>> moe = plan_memory("microsoft/Phi-3.5-MoE-instruct", context=131072, device="cuda", device_bytes=80 * 10**9)
    >>> moe.fits
    False
    >>> print(moe.alternatives[0])
    with quantization='8bit', weights of 39.2 GiB, it fits: 58.8 GiB of 68.5 GiB
    """
    checkpoint = find_checkpoint(spec)
    config, source = find_config(checkpoint)
    context = original_window(config) if context is None else context
    regime_for(config, context)
    return plan_for(
        config,
        context=context,
        dtype=dtype,
        device=device,
        name=checkpoint.name,
        kv=Decoding(cache=cache).kv,
        quantization=quantization,
        expert_cache=expert_cache,
        device_bytes=device_bytes,
        batch=batch,
        source=source,
    )


def plan_for(
    config: Any,
    *,
    context: int,
    dtype: str | None = None,
    device: str = "auto",
    name: str = "model",
    kv: KV = "model",
    quantization: str | None = None,
    expert_cache: int | None = None,
    device_bytes: int | None = None,
    batch: int = 1,
    attention: str = "sdpa",
    source: str = "its config.json",
) -> MemoryPlan:
    """The memory plan that ``load_generator`` checks: dtype and device resolved as it resolves them."""
    named, device = device, pick_device(device)
    if device_bytes is None and named != "auto":
        check_device(device)
    if kv == "offloaded" and not device.startswith("cuda"):
        raise ValueError(
            f"cache='offloaded' moves keys and values from a GPU to host memory, this is {device}: use 'int8'"
        )
    if device_bytes is not None and not (
        isinstance(device_bytes, int) and device_bytes >= LEAST_DEVICE
    ):
        raise ValueError(
            f"device_bytes={device_bytes!r} must be a whole number of bytes, such as 24 * 10**9"
        )
    if quantization is not None and quantization not in list(QUANTIZED_BITS):
        raise ValueError(f"quantization={quantization!r} is none of {', '.join(QUANTIZED_BITS)}")
    check_expert_cache(config, expert_cache)
    available = device_memory(device) if device_bytes is None else device_bytes
    host = None  # of a machine that is not here
    if device_bytes is None and device.startswith("cuda"):
        host = int(device_memory("cpu") * (1 - RESERVE))

    def plan(precision: str) -> MemoryPlan:
        return plan_config(
            config,
            context=context,
            dtype=precision,
            device=device,
            device_bytes=available,
            model=name,
            kv=kv,
            batch=batch,
            attention=attention,
            quantized=quantization,
            expert_cache=expert_cache,
            host_usable=host,
            source=source,
        )

    if dtype is None:
        own = str(config.dtype or "bfloat16").removeprefix("torch.")
        dtype = own if own in DTYPE_BYTES else "float32"
        if device == "cpu" and plan("float32").weight_bytes <= available // 4:
            dtype = "float32"
    return with_alternatives(plan(dtype), config, attention=attention)


def find_config(checkpoint: Checkpoint) -> tuple[Any, str]:
    """A config, and where it comes from: the folder, the local cache, a published shape; the hub for any other name.

    >>> find_config(find_checkpoint("pocket"))[1]
    'its config.json'
    """
    if checkpoint.is_local:
        return load_config(checkpoint), "its config.json"
    if cached_snapshot(checkpoint.source):
        config = load_config(checkpoint, local_files_only=True)
        return config, "its config.json in the local Hugging Face cache"
    if checkpoint.name in KNOWN_SHAPES:
        return KNOWN_SHAPES[checkpoint.name], "its published shape; its config.json is not here"
    return load_config(checkpoint), "its config.json on the Hugging Face hub"


def is_on_disk(checkpoint: Checkpoint) -> bool:
    """Whether all weights are here: a folder's are, a hub id's if the local Hugging Face cache holds every file.

    >>> is_on_disk(find_checkpoint("pocket"))
    True
    """
    if checkpoint.is_local:
        return True
    folder = cached_snapshot(checkpoint.source)
    return folder is not None and has_weights(folder)


def pick_device(device: str) -> str:
    """Resolve "auto": all GPUs, else MPS, else the CPU."""
    if not isinstance(device, str):
        raise ValueError(
            f"device={device!r} is no name: a plan is for one kind of device, as 'cuda' or 'cpu'"
        )
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ``ValueError`` for a device that PyTorch does not see here."""
    import torch

    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    kind, _, number = device.partition(":")
    if kind not in count or not (number or "0").isdecimal():
        raise ValueError(f"device={device!r} is none of auto, cpu, cuda, cuda:0 … and mps")
    if int(number or 0) >= count[kind]:
        raise ValueError(
            f"device={device!r} is not here, PyTorch sees {count[kind]} of {kind}: leave it at 'auto'; "
            "wb.plan_memory(…, device='cuda', device_bytes=24 * 10**9) plans for a card elsewhere"
        )
