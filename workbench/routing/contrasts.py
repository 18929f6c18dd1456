"""Do two groups of tokens use experts differently, and is the difference more than chance? NumPy only.

Tokens of one document or one answer are alike, so documents and answers are drawn and shuffled whole ("clusters"), and
each weighs the same whatever its length. A layers × experts table is hundreds of tests at once: the q-values say what
share of the cells called different would be so by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array, check_labels
from workbench.routing.statistics import group_counts

if TYPE_CHECKING:
    import pandas as pd

FEW = 8  # clusters of which a bootstrap's extremes are too near
_AT_ONCE = 1 << 22  # numbers of a block of shuffles


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Usage of group X minus usage of group Y, cell by cell. Made by :func:`contrast`.

    `difference` [layers, experts] is in shares of tokens, from -1 to 1; `low` and `high` bound it with the confidence
    asked for (cluster bootstrap, :func:`interval_edges`); `p_values` are those of a permutation test, two-sided,
    `q_values` the same after Benjamini and Hochberg over all cells that were used at all. `clusters` is how many were
    compared (X, Y), `is_paired` says whether each was compared with itself.
    """

    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p_values: NDArray[np.float64]
    q_values: NDArray[np.float64]
    clusters: tuple[int, int]
    is_paired: bool

    def __repr__(self) -> str:
        layers, experts = self.difference.shape
        found = int((self.q_values <= 0.05).sum())
        how = "paired" if self.is_paired else "unpaired"
        return (
            f"Contrast({layers} layers × {experts} experts, {self.clusters[0]} and {self.clusters[1]} clusters, {how}; "
            f"{found} cells differ at q ≤ 0.05; next: .to_frame())"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a cell, the most surprising first."""
        import pandas as pd

        layer, expert = np.indices(self.difference.shape)
        columns = {
            "layer": layer, "expert": expert, "difference": self.difference, "low": self.low, "high": self.high,
            "p": self.p_values, "q": self.q_values,
        }  # fmt: skip
        frame = pd.DataFrame({n: np.asarray(v).reshape(-1) for n, v in columns.items()})
        order = np.lexsort((-frame["difference"].abs(), frame["p"]))
        return frame.iloc[order].reset_index(drop=True)


def contrast(
    experts: NDArray[np.integer],
    is_x: NDArray[np.bool_],
    clusters: NDArray[np.integer],
    *,
    n_experts: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int | None = None,
    seed: int = 0,
) -> Contrast:
    """Compare the usage of experts by two groups of tokens.

    `experts` [tokens, layers, k]; `is_x` [tokens] says which group a token is of; `clusters` [tokens] numbers the
    documents or questions. Where every cluster has tokens of one group alone, clusters of the two groups are compared
    (permutation of the labels); where every cluster has both, each is compared with itself (flipped signs). With few
    clusters the p-values cannot be small: 1 / 2**(n - 1) at least if paired. `permutations` are by default as many as
    it takes for one cell alone to reach q ≤ 0.05: 40 for each cell, at least 9,999. Phipson and Smyth (2010) for the
    one added to both counts; Benjamini and Hochberg (1995) for q.

    Raises
    ------
    ValueError
        A group has no cluster or one alone, or some clusters have both groups and some have not.

    >>> experts = np.repeat(np.array([0, 1, 0, 1, 0, 1, 1, 1]), 5)[:, None, None]
    >>> is_x = np.repeat([True, False] * 4, 5)
    >>> found = contrast(experts, is_x, np.repeat(np.arange(4), 10), n_experts=2)
    >>> found.difference.tolist(), found.is_paired, found.clusters
    ([[0.75, -0.75]], True, (4, 4))
    """
    check_array("experts", experts, "tokens, layers, k")
    check_labels(experts, is_x=is_x, clusters=clusters)
    x, y = (_usage(experts[rows], clusters[rows], n_experts) for rows in (is_x, ~is_x))
    shared = x.keys() & y.keys()
    is_paired = bool(shared)
    if is_paired and x.keys() != y.keys():
        alone = len(x.keys() ^ y.keys())
        raise ValueError(
            f"{len(shared)} clusters have tokens of both groups and {alone} of one alone; leave those out to compare "
            "each with itself"
        )
    shape = (experts.shape[1], n_experts)
    in_x = np.array(list(x.values())).reshape(len(x), *shape)
    in_y = np.array([y[c] for c in x] if is_paired else list(y.values())).reshape(len(y), *shape)
    return contrast_clusters(
        in_x,
        in_y,
        is_paired=is_paired,
        confidence=confidence,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        largest=1.0,
    )


def contrast_clusters(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    is_paired: bool,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int | None = None,
    seed: int = 0,
    largest: float = np.inf,
) -> Contrast:
    """The same of one table a cluster: `x` [clusters of X, layers, experts] and `y` [clusters of Y, layers, experts].

    The tables hold usage, or whatever else is said of each expert; with `is_paired` row i of both is one cluster.
    Intervals are those of the bootstrap; of less than eight clusters Student's where these are wider, within
    ±`largest`, the most that a difference can be. p-values are exact where `permutations` are as many as there are.
    Raises ``ValueError`` for less than two clusters, and for numbers that are not finite.

    >>> found = contrast_clusters(np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1)), is_paired=True, permutations=99)
    >>> found.difference.tolist(), found.low.round(1).tolist(), found.high.round(1).tolist(), found.p_values.tolist()
    ([[2.0]], [[-10.7]], [[14.7]], [[0.5]])
    """
    for name, table in (("x", x), ("y", y)):
        check_array(name, table, "clusters, layers, experts")
    if x.shape[1:] != y.shape[1:] or (is_paired and len(x) != len(y)):
        raise ValueError(
            f"x {list(x.shape)} and y {list(y.shape)} must both be [clusters, layers, experts]"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0 to 1")
    for name, draws in (("resamples", resamples), ("permutations", permutations)):
        if draws is not None and draws < 1:
            raise ValueError(f"{name}={draws} must be at least 1")
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"{len(x)} and {len(y)} clusters; chance cannot be told from less than two of each group"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a cluster's table holds numbers that are not finite")
    generator = np.random.default_rng(seed)
    shape = x.shape[1:]
    in_x, in_y = (np.asarray(t, dtype=np.float64).reshape(len(t), -1) for t in (x, y))
    edges = interval_edges(confidence, min(len(x), len(y)))
    # so many that one cell alone can be called different
    permutations = max(9999, 40 * in_x.shape[1]) if permutations is None else permutations
    if is_paired:
        each = in_x - in_y
        observed = each.mean(axis=0)
        drawn = _bootstrap(each, resamples, generator)
        p_values = _flipped(each, observed, permutations, generator)
    else:
        observed = in_x.mean(axis=0) - in_y.mean(axis=0)
        drawn = _bootstrap(in_x, resamples, generator) - _bootstrap(in_y, resamples, generator)
        p_values = _relabelled(in_x, in_y, observed, permutations, generator)
    low, high = np.percentile(drawn, edges, axis=0)
    if min(len(x), len(y)) < FEW:
        # no drawn mean lies beyond the least and the largest cluster: here Student's interval is wider, and right
        error = np.sqrt(
            _squared_error(each) if is_paired else _squared_error(in_x) + _squared_error(in_y)
        )
        reach = error * student_quantile(confidence, min(len(x), len(y)) - 1)
        low, high = np.minimum(low, observed - reach), np.maximum(high, observed + reach)
    low, high = np.clip(low, -largest, largest), np.clip(high, -largest, largest)
    is_used = (in_x != 0).any(axis=0) | (in_y != 0).any(axis=0)
    return Contrast(
        difference=observed.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        p_values=p_values.reshape(shape),
        q_values=_q_values(p_values, is_used).reshape(shape),
        clusters=(len(x), len(y)),
        is_paired=is_paired,
    )


def interval_edges(confidence: float, clusters: int) -> tuple[float, float]:
    """The percentiles of a bootstrap that bound a mean over few clusters with `confidence`: two, from 0 to 100.

    Plain percentiles are too narrow for few: of 3 clusters 95 % bounds hold the truth in three cases of four. These are
    as much further out as Student's t with clusters - 1 degrees of freedom is wider than a normal distribution, and as
    n / (n - 1) is larger than 1: Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), the expanded
    percentile interval. Of less than eight clusters the extremes are still too near: see :func:`contrast_clusters`.

    >>> [round(edge, 2) for edge in interval_edges(0.95, 20)]
    [1.59, 98.41]
    """
    far = np.sqrt(clusters / (clusters - 1)) * student_quantile(confidence, clusters - 1)
    below = 100 * NormalDist().cdf(-float(far))
    return below, 100 - below


def student_quantile(confidence: float, degrees: int) -> float:
    """What Student's t with `degrees` of freedom stays within, to both sides, with probability `confidence`.

    >>> round(student_quantile(0.95, 2), 2), round(student_quantile(0.95, 30), 2)
    (4.3, 2.04)
    """
    # with x = √n tan θ Student's density is proportional to cosⁿ⁻¹ θ
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees - 1) if degrees > 1 else np.ones_like(angle)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    reached = float(np.interp(confidence, mass / mass[-1], angle))
    return float(np.sqrt(degrees) * np.tan(min(reached, np.pi / 2 - 1e-9)))


def false_discovery_rate(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each p-value's q-value: the least share of false discoveries at which it would be called one.

    Benjamini and Hochberg, "Controlling the false discovery rate" (1995); same shape as `p_values`.

    >>> false_discovery_rate(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    flat = np.asarray(p_values, dtype=np.float64).reshape(-1)
    order = np.argsort(flat)
    scaled = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    found = np.empty_like(flat)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found.reshape(np.shape(p_values))


def _q_values(p_values: NDArray[np.float64], is_used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """q-values over the cells where there is anything to test: an expert that nobody used is no test."""
    found = np.ones_like(p_values)
    found[is_used] = false_discovery_rate(p_values[is_used])
    return found


def _usage(
    experts: NDArray[np.integer], clusters: NDArray[np.integer], n_experts: int
) -> dict[int, NDArray[np.float64]]:
    """The usage [layers, experts] of each cluster: shares of its tokens."""
    if not len(experts):
        return {}
    names, number = np.unique(clusters, return_inverse=True)
    counts = group_counts(experts, number, n_groups=len(names), n_experts=n_experts)
    shares = counts / np.bincount(number)[:, None, None]
    return dict(zip(names.tolist(), shares, strict=True))


def _bootstrap(
    each: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means over clusters drawn with replacement: [resamples, cells]."""
    count = len(each)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(weights @ each / count)


def _flipped(
    each: NDArray[np.float64],
    observed: NDArray[np.float64],
    permutations: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """p-values of means whose clusters could as well have the other sign: [cells]; exact where all signs are tried."""
    if 2 ** len(each) <= permutations:
        all_signs = np.array(list(product((-1.0, 1.0), repeat=len(each))))
        return _share_reached(all_signs @ each / len(each), observed)

    def drawn(size: int) -> NDArray[np.float64]:
        signs = generator.choice([-1.0, 1.0], size=(size, len(each)))
        return np.asarray(signs @ each / len(each))

    return _p_values(drawn, observed, permutations)


def _relabelled(
    in_x: NDArray[np.float64],
    in_y: NDArray[np.float64],
    observed: NDArray[np.float64],
    permutations: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """p-values of differences of means whose clusters could as well be of the other group: [cells]."""
    together = np.concatenate([in_x, in_y])
    weights = np.concatenate(
        [np.full(len(in_x), 1 / len(in_x)), np.full(len(in_y), -1 / len(in_y))]
    )

    if comb(len(together), len(in_x)) <= permutations:
        chosen = list(combinations(range(len(together)), len(in_x)))
        is_x = np.zeros((len(chosen), len(together)), dtype=bool)
        np.put_along_axis(is_x, np.array(chosen), True, axis=1)
        every = np.where(is_x, 1 / len(in_x), -1 / len(in_y))
        return _share_reached(every @ together, observed)

    def drawn(size: int) -> NDArray[np.float64]:
        shuffled = generator.permuted(np.tile(weights, (size, 1)), axis=1)
        return np.asarray(shuffled @ together)

    return _p_values(drawn, observed, permutations)


def _share_reached(
    every: NDArray[np.float64], observed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """p-values where every permutation [permutations, cells] is there, the one observed among them: [cells]."""
    return np.asarray((np.abs(every) >= np.abs(observed) - 1e-12).mean(axis=0))


def _squared_error(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """The variance of a mean over clusters: [cells]."""
    return np.asarray(each.var(axis=0, ddof=1) / len(each))


def _p_values(
    drawn: Callable[[int], NDArray[np.float64]], observed: NDArray[np.float64], permutations: int
) -> NDArray[np.float64]:
    """How often what is `drawn` by chance is as large as what was observed, itself counted in: [cells]."""
    reached = np.zeros(len(observed), dtype=np.int64)
    size = max(1, _AT_ONCE // len(observed))
    limit = np.abs(observed) - 1e-12
    for start in range(0, permutations, size):
        block = drawn(min(size, permutations - start))
        reached += (np.abs(block) >= limit).sum(axis=0)
    return np.asarray((1 + reached) / (1 + permutations))
