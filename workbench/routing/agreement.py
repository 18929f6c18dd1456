"""The same tokens routed twice, under another checkpoint, precision or context: the same experts? NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array


def agreement(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of a token's experts that it has in both: [tokens, layers], from `experts` [tokens, layers, k] twice.

    1 everywhere for a lossless copy of a checkpoint. Muennighoff et al., arXiv:2409.02060, section 5.1, call its mean
    over tokens router saturation. One minus it is how far a context moved the routing of a token.

    >>> agreement(np.array([[[0, 1]], [[2, 3]]]), np.array([[[1, 0]], [[2, 5]]])).tolist()
    [[1.0], [0.5]]
    """
    _check(one, other)
    tokens, layers, k = one.shape
    shared = np.zeros((tokens, layers), dtype=np.int64)
    for mine in range(k):
        is_there = np.zeros((tokens, layers), dtype=bool)
        for theirs in range(k):
            is_there |= one[:, :, mine] == other[:, :, theirs]
        shared += is_there
    return np.asarray(shared / k)


def weighted_agreement(
    one: NDArray[np.integer],
    one_weights: NDArray[np.floating],
    other: NDArray[np.integer],
    other_weights: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Ruzicka's similarity of the gate weights, Σ min / Σ max over experts: [tokens, layers]; nan if all weights are 0.

    All arrays are [tokens, layers, k].

    >>> weighted_agreement(
    ...     np.array([[[0, 1]]]), np.array([[[1.0, 1.0]]]), np.array([[[0, 2]]]), np.array([[[0.5, 1.0]]])
    ... ).tolist()    # 0.5 of 1 + 1 + 1
    [[0.16666666666666666]]
    """
    _check(one, other)
    for experts, weights in ((one, one_weights), (other, other_weights)):
        if weights.shape != experts.shape:
            raise ValueError(f"weights {weights.shape} and experts {experts.shape} differ in shape")
    n_experts = int(max(one.max(initial=0), other.max(initial=0))) + 1
    tokens, layers, _ = one.shape
    first, second = (np.zeros((tokens, layers, n_experts)) for _ in range(2))
    for dense, experts, weights in ((first, one, one_weights), (second, other, other_weights)):
        np.put_along_axis(dense, experts.astype(np.int64), weights.astype(np.float64), axis=2)
    above = np.minimum(first, second).sum(axis=2)
    below = np.maximum(first, second).sum(axis=2)
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _check(one: NDArray[np.integer], other: NDArray[np.integer]) -> None:
    for experts in (one, other):
        check_array("experts", experts, "tokens, layers, k")
    if one.shape != other.shape:
        raise ValueError(
            f"experts must be [tokens, layers, k] of the same tokens twice, got {list(one.shape)} and "
            f"{list(other.shape)}"
        )
