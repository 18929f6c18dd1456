"""Safetensors files → known to be whole before they are read; a loaded model → known to hold numbers.

Reads headers and the index of a folder, never pickle, and each loaded parameter once. Knows no model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_weight_files(folder: Path) -> None:
    """Raise ``CheckpointError`` unless every weight file of a folder is there, is safetensors, and is whole.

    >>> check_weight_files(Path("nowhere"))
    Traceback (most recent call last):
    workbench.errors.CheckpointError: nowhere has no model.safetensors; copy it from the source of the checkpoint
    """
    index, whole = folder / INDEX, folder / WHOLE
    places = read_index(index) if index.is_file() else {}
    if whole.is_file():  # which the library prefers to the shards
        _tensor_names(whole)
        return
    if not places:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        remedy = (
            f"its pickled weights (.bin) are not loaded, first {pickled[0]}: convert them to safetensors"
            if pickled
            else "copy it from the source of the checkpoint"
        )
        raise CheckpointError(f"{folder} has no {WHOLE}; {remedy}")
    shards = sorted(set(places.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}; copy them from the "
            "source of the checkpoint"
        )
    held = {shard: _tensor_names(folder / shard) for shard in shards}
    for tensor, shard in places.items():
        if tensor not in held[shard]:
            raise CheckpointError(
                f"{index} places {tensor!r} in {shard}, which does not hold it; copy both from the same source"
            )


def weights_digest(model: Any) -> str:
    """sha256 of names, shapes, types and 256 evenly spaced values of every parameter: whether two models are one.

    Takes milliseconds for a small model and reads next to nothing of a large one; a change of single values elsewhere
    is not noticed.
    """
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 256)][:256].float().cpu().numpy()
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        found.update(some.tobytes())
    return found.hexdigest()


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → shard of a ``model.safetensors.index.json``; only safetensors beside it are allowed."""
    try:
        index = json.loads(path.read_text("utf-8"))
        places, _ = index["weight_map"], index["metadata"]  # transformers reads both
        names = set(places.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors index ({type(error).__name__}); copy it from the source of the checkpoint"
        ) from error
    if not names:
        raise CheckpointError(f"{path} names no weight file; copy it from the source")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise CheckpointError(
                f"{path} names {name!r}, a file outside the folder; take the checkpoint from a source you trust"
            )
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {name!r}; only safetensors are loaded, never pickle: convert the weights"
            )
    return dict(places)


def check_links(folder: Path) -> None:
    """Refuse an entry that is a symbolic link out of the folder: a checkpoint is what its folder holds.

    The folder itself may be a link. In the layout of the Hugging Face cache, ``snapshots/<revision>`` links to
    ``blobs`` beside ``snapshots``; those links are the cache's own and are followed.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be listed ({error.strerror}); allow reading it, or copy it"
        ) from error
    for path in entries:
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError):  # broken, or a circle
                raise CheckpointError(
                    f"{path} is a link that leads nowhere; put the file itself there"
                ) from None
            if not any(target.is_relative_to(place) for place in allowed):
                raise CheckpointError(
                    f"{path} is a link to {target}, outside the model folder; put the file itself there"
                )


def check_finite(parameters: Iterable[tuple[str, Any]], model: str) -> None:
    """Raise ``CheckpointError`` naming the first parameter with NaN or infinity.

    One pass over each parameter and no copy of it: ``torch.aminmax`` carries NaN through to both results.

    >>> import torch
    >>> check_finite([("w", torch.tensor([1.0, float("nan")]))], "tiny")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    workbench.errors.CheckpointError: tiny: weight w has NaN or infinite values in float32; copy ...
    """
    import torch

    for name, parameter in parameters:
        if parameter.is_meta or not parameter.numel() or not parameter.is_floating_point():
            continue
        if parameter.element_size() < 2:
            continue  # torch reduces no float8
        low, high = torch.aminmax(parameter.detach())
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{model}: weight {name} has NaN or infinite values in {dtype}; copy the checkpoint again from its "
                "source, or load it with another dtype"
            )


def _tensor_names(path: Path) -> set[str]:
    """Names in the header of a safetensors file, which is compared with the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path} is truncated, damaged or not safetensors ({text}); copy it from its source"
        ) from error
