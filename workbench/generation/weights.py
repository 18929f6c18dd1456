"""A loaded model's parameters: hold numbers, and are the same as those of another. Knows no kind of model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

from workbench.errors import CheckpointError
from workbench.generation.placement import parameters_with_values


def weights_digest(model: Any) -> str:
    """sha256 of names, shapes, types and 256 evenly spaced values of every parameter: whether two models are one.

    Takes milliseconds for a small model and reads next to nothing of a large one; a change of single values elsewhere
    is not noticed.
    """
    found = hashlib.sha256()
    for name, parameter in parameters_with_values(model):
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 256)][:256].float().cpu().numpy()
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        found.update(some.tobytes())
    return found.hexdigest()


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
