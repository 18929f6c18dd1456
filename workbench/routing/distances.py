"""Usage of runs or of parts of a prompt → how alike they are, as divergence in bits and as cosine. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array, check_experts, check_labels
from workbench.routing.specialization import jensen_shannon_bits, shuffles_within
from workbench.routing.statistics import expert_counts, group_counts, ratio

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class RoutingDistances:
    """How far runs are from one another in their usage of experts. Made by :func:`routing_distances`.

    `bits_by_layer` [layers, runs, runs] are Jensen-Shannon divergences in bits, from 0 for equal usage to 1 where two
    runs share no expert; `cosine_by_layer` the cosines of the usages, from 1 to 0. Both are symmetric.
    """

    bits_by_layer: NDArray[np.float64]
    cosine_by_layer: NDArray[np.float64]

    def __repr__(self) -> str:
        layers, runs, _ = self.bits_by_layer.shape
        return f"RoutingDistances({runs} runs, {layers} layers; next: .bits, .cosine)"

    @property
    def bits(self) -> NDArray[np.float64]:
        """Divergence in bits, the mean over layers: [runs, runs]."""
        return np.asarray(self.bits_by_layer.mean(axis=0))

    @property
    def cosine(self) -> NDArray[np.float64]:
        """Cosine, the mean over layers: [runs, runs]."""
        return np.asarray(self.cosine_by_layer.mean(axis=0))


def routing_distances(counts: NDArray[Any]) -> RoutingDistances:
    """Compare the usage of every run with that of every other, layer by layer.

    `counts` [runs, layers, experts] of whatever is compared: answers, prompts, documents, checkpoints
    (``np.stack([trace.counts() for trace in traces])``), or usages. Short runs are far apart by chance: two of 20
    tokens of one law may be 0.15 bits apart, two of 2,000 are not.

    Raises
    ------
    ValueError
        A run has no routed token in some layer, or a count is negative.

    >>> found = routing_distances(np.array([[[4, 0]], [[0, 2]], [[3, 3]]]))
    >>> found.bits.round(3).tolist()
    [[0.0, 1.0, 0.311], [1.0, 0.0, 0.311], [0.311, 0.311, 0.0]]
    >>> found.cosine.round(3).tolist()
    [[1.0, 0.0, 0.707], [0.0, 1.0, 0.707], [0.707, 0.707, 1.0]]
    """
    check_array("counts", counts, "runs, layers, experts")
    given = counts.astype(np.float64)
    if np.any(given < 0):
        raise ValueError("a count is negative")
    if np.any(given.sum(axis=2) <= 0):
        raise ValueError("a run has no routed token in some layer; leave it out")
    runs, layers, experts = given.shape
    bits = np.zeros((layers, runs, runs))
    for run in range(runs - 1):
        others = given[run + 1 :]
        pairs = np.stack([np.broadcast_to(given[run], others.shape), others])
        found = jensen_shannon_bits(pairs.reshape(2, -1, experts)).reshape(-1, layers)
        bits[:, run, run + 1 :] = bits[:, run + 1 :, run] = found.T
    by_layer = np.moveaxis(given, 0, 1)  # [layers, runs, experts]
    return RoutingDistances(bits_by_layer=bits, cosine_by_layer=_cosines(by_layer, by_layer))


@dataclass(frozen=True, slots=True, eq=False)
class EvidenceAffinity:
    """How alike the routing of each source and of the answer is, [sources] each. Made by :func:`evidence_affinity`.

    `observed` is the mean over layers of the cosine between the source's usage and the answer's, from 0 to 1;
    `expected` the mean of the same cosine when tokens of one word exchange their sources, between `low` and `high` in
    95 of 100 cases; `tokens` how many the source has. nan for sources without a routed token.
    """

    observed: NDArray[np.float64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"EvidenceAffinity({len(self.tokens)} sources, {self.tokens.sum()} tokens; next: .excess, .to_frame())"

    @property
    def excess(self) -> NDArray[np.float64]:
        """Affinity beyond the words, observed - expected: [sources]."""
        return np.asarray(self.observed - self.expected)

    def to_frame(self) -> pd.DataFrame:
        """One row per source, in their order."""
        import pandas as pd

        columns = {
            "source": np.arange(len(self.tokens)), "tokens": self.tokens, "observed": self.observed,
            "expected": self.expected, "low": self.low, "high": self.high, "excess": self.excess,
        }  # fmt: skip
        return pd.DataFrame(columns)


def evidence_affinity(
    experts: NDArray[np.integer],
    sources: NDArray[np.integer],
    *,
    is_answer: NDArray[np.bool_],
    token_ids: NDArray[np.integer],
    n_sources: int,
    n_experts: int,
    permutations: int = 200,
    seed: int = 0,
) -> EvidenceAffinity:
    """Which source's routing is like the answer's, beyond what its words explain.

    `experts` [tokens, layers, k], `is_answer` [tokens] and `token_ids` [tokens] of the routed tokens of one prompt with
    its answer; `sources` [tokens] numbers the source that a token is of, from 0 to `n_sources` - 1, -1 for none.

    For source d: mean over layers of cos(p_d, p_answer), p being usages. Subtracted is the mean of the same over
    `permutations` shuffles in which the tokens of one id exchange their sources, the answer left out: a source keeps
    its words and its length. Words that stand in d alone explain themselves and add nothing to the excess; where a
    source has few words in common with others, the excess is near 0 whatever its routing.

    Raises
    ------
    ValueError
        The answer or all sources together have no routed token, or a token is of both.

    >>> experts = np.array([0, 1, 2, 1, 0])[:, None, None]
    >>> found = evidence_affinity(
    ...     experts, np.array([0, 0, 1, 1, -1]), is_answer=np.arange(5) == 4, token_ids=np.array([7, 8, 7, 8, 9]),
    ...     n_sources=2, n_experts=3)
    >>> found.observed.round(2).tolist()    # expert 0 reads word 7 in source 0 alone
    [0.71, 0.0]
    >>> bool(found.excess[0] > 0 > found.excess[1])
    True
    """
    check_experts(experts, n_experts=n_experts)
    check_labels(experts, sources=sources, is_answer=is_answer, token_ids=token_ids)
    is_source = sources >= 0
    if np.any(is_source & is_answer):
        raise ValueError("a token is of a source and of the answer; it must be -1 or no answer")
    if not is_answer.any() or not is_source.any():
        raise ValueError(
            f"{is_answer.sum()} routed tokens of the answer and {is_source.sum()} of sources; each needs one"
        )
    if int(sources.max()) >= n_sources:
        raise ValueError(f"source {sources.max()} named, but there are {n_sources} sources")
    answer = expert_counts(experts[is_answer], n_experts)[:, None]  # [layers, 1, experts]
    own, source, ids = experts[is_source], sources[is_source], token_ids[is_source]
    counts = group_counts(own, source, n_groups=n_sources, n_experts=n_experts)
    draws = np.random.default_rng(seed)
    shuffled = [
        group_counts(own, labels, n_groups=n_sources, n_experts=n_experts)
        for labels in shuffles_within(source, ids, permutations=permutations, generator=draws)
    ]
    null = np.stack([_affinity(one, answer) for one in shuffled])
    low, high = np.percentile(null, [2.5, 97.5], axis=0)
    return EvidenceAffinity(
        observed=_affinity(counts, answer),
        expected=null.mean(axis=0),
        low=low,
        high=high,
        tokens=np.bincount(source, minlength=n_sources),
    )


def _affinity(counts: NDArray[Any], answer: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over layers of the cosine of each source's usage with the answer's: [sources]."""
    return np.asarray(_cosines(np.moveaxis(counts, 0, 1), answer)[:, :, 0].mean(axis=0))


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines of the rows of two stacks [layers, n, experts], nan for a row of nothing: [layers, n, m]."""
    first, second = (
        ratio(rows, np.linalg.norm(rows, axis=2, keepdims=True)) for rows in (one, other)
    )
    return np.asarray((first @ np.swapaxes(second, 1, 2)).clip(max=1.0))
