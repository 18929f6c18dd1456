"""Rankings against judgements: nDCG, reciprocal rank, recall, average precision, and paired comparisons.

A ranking is the ids that were found, best first; judgements map ids to relevance, 0 or missing for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.routing.contrasts import contrast_clusters

Judgements = Mapping[str, int]


def ndcg(ranking: Sequence[str], judgements: Judgements, *, k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first `k`: gains as judged, discount 1 / log2(rank + 1).

    Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with the gains of trec_eval's
    ``ndcg_cut``. 0 when nothing is relevant.

    >>> round(ndcg(["a", "x", "b"], {"a": 1, "b": 2}), 4)
    0.7602
    """
    gains = np.array([max(0, judgements.get(id, 0)) for id in ranking[:k]], dtype=float)
    ideal = np.sort([max(0, gain) for gain in judgements.values()])[::-1][:k]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def reciprocal_rank(ranking: Sequence[str], judgements: Judgements) -> float:
    """1 / the rank of the first relevant one, 0 if there is none.

    >>> reciprocal_rank(["x", "a"], {"a": 1})
    0.5
    """
    ranks = (rank for rank, id in enumerate(ranking, start=1) if judgements.get(id, 0) > 0)
    return next((1.0 / rank for rank in ranks), 0.0)


def recall(ranking: Sequence[str], judgements: Judgements, *, k: int = 10) -> float:
    """Share of the relevant ones that are among the first `k`; 0 when nothing is relevant.

    >>> recall(["x", "a"], {"a": 1, "b": 1}, k=2)
    0.5
    """
    relevant = {id for id, gain in judgements.items() if gain > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0


def average_precision(ranking: Sequence[str], judgements: Judgements) -> float:
    """Mean over the relevant ones of the precision at their ranks, 0 for those not found.

    >>> round(average_precision(["a", "x", "b"], {"a": 1, "b": 1}), 4)
    0.8333
    """
    relevant = sum(gain > 0 for gain in judgements.values())
    found, total = 0, 0.0
    for rank, id in enumerate(ranking, start=1):
        if judgements.get(id, 0) > 0:
            found += 1
            total += found / rank
    return total / relevant if relevant else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same questions: mean difference, its bootstrap interval, and a permutation p-value."""

    difference: float
    low: float
    high: float
    p: float
    questions: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), p = {self.p:.4f}, "
            f"n = {self.questions}"
        )


def compare(
    one: Sequence[float], other: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """The mean of ``one - other`` over the same questions, with a 95 % bootstrap interval.

    `p` is two-sided, from `resamples` random changes of sign of the differences (Fisher's randomization test; Smucker,
    Allan & Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation"), or
    from all where they are fewer: see :func:`workbench.routing.contrasts.contrast_clusters`. One question alone has no
    interval: `low` and `high` are nan, `p` is 1.

    >>> compare([1, 1, 1, 0], [0, 1, 0, 0]).difference
    0.5
    """
    if not len(one) == len(other) > 0:
        raise ValueError(
            f"{len(one)} and {len(other)} scores: give one of each system for every question"
        )
    x, y = (np.asarray(scores, dtype=float)[:, None, None] for scores in (one, other))
    if len(one) == 1:
        return Comparison(float((x - y).mean()), np.nan, np.nan, 1.0, 1)
    found = contrast_clusters(
        x, y, is_paired=True, resamples=resamples, permutations=resamples, seed=seed
    )
    difference, low, high, p = (
        float(table[0, 0]) for table in (found.difference, found.low, found.high, found.p_values)
    )
    return Comparison(difference, low, high, p, len(one))


def _discounted(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())
