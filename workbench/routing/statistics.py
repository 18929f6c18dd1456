"""Routing trace → numbers about how evenly experts are used. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def usage_entropy(usage: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy of each layer's expert usage in bits: [layers].

    `usage` is [layers, experts] with non-negative rows of any positive sum; log2(experts) means perfectly even.

    >>> usage_entropy(np.array([[0.5, 0.5, 0.5, 0.5], [2.0, 0.0, 0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    total = usage.sum(axis=1, keepdims=True)
    if np.any(total <= 0):
        raise ValueError("a layer without any routed token has no entropy")
    share = usage / total
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.abs((share * logs).sum(axis=1)))


def uniform_usage(n_experts: int, k: int) -> float:
    """The share of tokens each expert would get if all were used alike: k / experts.

    >>> uniform_usage(16, 2)
    0.125
    """
    return k / n_experts
