"""What a statistic was given → nothing, or one sentence on what it should have been given. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_OF_A_TRACE = {
    "experts": "trace.experts[trace.rows()]",
    "counts": "trace.counts(), or np.stack of several",
    "usage": "trace.usage()",
    "gate_weights": "trace.gate_weights[trace.rows()]",
    "router_logits": "trace.router_logits[trace.rows()], recorded with capture='logits'",
    "contributions": "trace.contributions[trace.rows()], recorded with capture='contributions'",
}


def check_array(name: str, value: Any, axes: str) -> None:
    """Raise ``ValueError`` unless `value` is an array with the axes that are named, experts of whole numbers.

    >>> check_array("counts", np.ones((4, 16)), "layers, experts")
    >>> check_array("counts", "trace", "layers, experts")
    Traceback (most recent call last):
    ValueError: counts must be an array [layers, experts], got str; of a trace: trace.counts(), or np.stack of several
    """
    if isinstance(value, np.ndarray):
        if name == "experts" and value.dtype.kind not in "iu":
            raise ValueError(f"experts must be whole numbers, got {value.dtype}")
        if value.ndim == axes.count(",") + 1:
            return
        raise ValueError(f"{name} must be [{axes}], got {list(value.shape)}")
    hint = f"; of a trace: {_OF_A_TRACE[name]}" if name in _OF_A_TRACE else ""
    raise ValueError(f"{name} must be an array [{axes}], got {type(value).__name__}{hint}")


def check_experts(experts: NDArray[np.integer], *, n_experts: int) -> None:
    """Raise ValueError unless `experts` are [tokens, layers, k] of one token or more, from 0 to `n_experts` - 1."""
    check_array("experts", experts, "tokens, layers, k")
    if not len(experts):
        raise ValueError("no token has chosen an expert")
    if int(experts.max()) >= n_experts:
        raise ValueError(f"expert {int(experts.max())} named, but there are {n_experts} experts")
    if experts.shape[2] > 1 and (experts[:, :, 0] == experts[:, :, 1]).any():
        raise ValueError(
            "a token has the same expert twice, as one that was not routed: give trace.experts[trace.rows()]"
        )


def check_labels(experts: NDArray[np.integer], **labels: NDArray[Any] | None) -> None:
    """Raise ValueError unless each array that is given has one row for each token of `experts`."""
    for name, rows in labels.items():
        if rows is not None and rows.shape != (len(experts),):
            raise ValueError(
                f"{name} {list(rows.shape)} must have one row for each of {len(experts)} tokens"
            )
