"""Norms of what chosen experts add to a layer's output → whose output it is. NumPy only.

`contributions` are [tokens, layers, k]: ‖gate weight × expert output‖ of each choice; `output_norms` [tokens, layers]
that of their sum. Rows of tokens that were not routed belong left out: ``trace.contributions[trace.rows()]``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array


def output_shares(
    contributions: NDArray[np.floating], output_norms: NDArray[np.floating]
) -> NDArray[np.float64]:
    """How long each contribution is beside the layer's output: [tokens, layers, k]; nan where the output is 0.

    Contributions of one direction sum to 1, at right angles their squares do; above that experts cancel each other.

    >>> output_shares(np.array([[[3.0, 4.0]]]), np.array([[5.0]])).tolist()    # at right angles
    [[[0.6, 0.8]]]
    """
    _check(contributions, output_norms=output_norms)
    norms = output_norms.astype(np.float64)[:, :, None]
    return _divided(contributions.astype(np.float64), norms)


def cosines(
    contributions: NDArray[np.floating], output_norms: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Cosine of the angle between what a token's two experts add: [tokens, layers]; nan where one adds nothing.

    From the law of cosines, ‖a + b‖² = ‖a‖² + ‖b‖² + 2 ‖a‖ ‖b‖ cos. The three digits of a trace leave an error of about
    0.002 where both are equally long, and of as much times ‖a‖ / ‖b‖ where a is the longer one.

    >>> cosines(np.array([[[3.0, 4.0]], [[1.0, 1.0]]]), np.array([[5.0], [2.0]])).tolist()
    [[0.0], [1.0]]
    """
    _check(contributions, output_norms=output_norms)
    if contributions.shape[2] != 2:
        raise ValueError(
            f"an angle is between two experts, contributions has {contributions.shape[2]} a token"
        )
    first, second = np.moveaxis(contributions.astype(np.float64), 2, 0)
    left = output_norms.astype(np.float64) ** 2 - first**2 - second**2
    return np.asarray(np.clip(_divided(left, 2 * first * second), -1, 1))


def expert_norms(
    contributions: NDArray[np.floating], gate_weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Norms of what experts put out before the gate: [tokens, layers, k]; nan where the gate weight is 0.

    >>> expert_norms(np.array([[[3.0, 1.0]]]), np.array([[[1.0, 0.5]]])).tolist()
    [[[3.0, 2.0]]]
    """
    _check(contributions, gate_weights=gate_weights)
    return _divided(contributions.astype(np.float64), gate_weights.astype(np.float64))


def rank_agreement(
    norms: NDArray[np.floating], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Whether the expert that the router prefers also says more: [layers], 1 always, -1 never, nan if all is tied.

    Both are [tokens, layers, k]: `norms` those of ``expert_norms``, `scores` gate weights or, where most of these are 1
    as with sparsemixer, the router logits of the chosen experts. Lo et al. (arXiv:2406.18219) ask it of all experts by
    rank; here it is Goodman and Kruskal's gamma of those that were chosen: over all pairs of a token's choices,
    (ordered alike - ordered otherwise) / both, ties and nan left out.

    >>> rank_agreement(np.array([[[3.0, 2.0]], [[1.0, 2.0]], [[5.0, 1.0]]]),
    ...                np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.5, 0.5]]])).tolist()    # the third is a tie
    [0.0]
    """
    _check(norms, scores=scores)
    alike, ordered = np.zeros(norms.shape[1]), np.zeros(norms.shape[1])
    values, others = norms.astype(np.float64), scores.astype(np.float64)
    for i in range(norms.shape[2]):
        for j in range(i):
            value = np.sign(values[:, :, i] - values[:, :, j])
            both = value * np.sign(others[:, :, i] - others[:, :, j])  # [tokens, layers]
            alike += np.nansum(both, axis=0)
            ordered += np.nansum(np.abs(both), axis=0)
    return _divided(alike, ordered)


def mean_contributions(
    experts: NDArray[np.integer], contributions: NDArray[np.floating], n_experts: int
) -> NDArray[np.float64]:
    """Mean contribution of each expert where it was chosen: [layers, experts]; nan where it never was.

    >>> mean_contributions(np.array([[[0, 1]], [[0, 2]]]), np.array([[[3.0, 1.0]], [[1.0, 4.0]]]), 4).tolist()
    [[2.0, 1.0, 4.0, nan]]
    """
    _check(contributions, experts=experts)
    if experts.size and int(experts.max()) >= n_experts:
        raise ValueError(f"expert {int(experts.max())} named, but there are {n_experts} experts")
    layers = contributions.shape[1]
    places = np.arange(layers)[None, :, None] * n_experts + experts.astype(np.int64)
    size = layers * n_experts
    times = np.bincount(places.ravel(), minlength=size)
    sums = np.bincount(
        places.ravel(), weights=contributions.astype(np.float64).ravel(), minlength=size
    )
    return _divided(sums.astype(np.float64), times).reshape(layers, n_experts)


def _divided(above: NDArray[np.float64], below: NDArray[np.number]) -> NDArray[np.float64]:
    """Quotients, nan where they would be of 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.full(shape, np.nan), where=below > 0))


def _check(contributions: NDArray[np.floating], **others: NDArray[np.number]) -> None:
    """Raise ``ValueError`` unless all arrays are of the same tokens, layers and, but for `output_norms`, choices."""
    check_array("contributions", contributions, "tokens, layers, k")
    for name, array in others.items():
        is_sum = name == "output_norms"
        check_array(name, array, "tokens, layers" if is_sum else "tokens, layers, k")
        shape = contributions.shape[:2] if is_sum else contributions.shape
        if array.shape != shape:
            raise ValueError(f"{name} {list(array.shape)} should be {list(shape)}")
