"""Several rankings of the same rows become one; and a ranking becomes a varied choice. Arrays alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.retrieval.index_structures import Ranking

RRF_CONSTANT = 60  # Cormack, Clarke & Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet
#                    and individual Rank Learning Methods", SIGIR, section 2


def shares_by_rank(
    rankings: Sequence[Ranking],
    *,
    weights: Sequence[float] | None = None,
    constant: int = RRF_CONSTANT,
) -> list[dict[int, float]]:
    """Reciprocal rank fusion: each ranking adds weight / (constant + rank) to the score of each of its rows.

    >>> one, two = np.array([7, 8]), np.array([8])
    >>> summed(shares_by_rank([Ranking(one, one), Ranking(two, two)])).rows.tolist()
    [8, 7]
    """
    return [
        {row: weight / (constant + rank) for rank, row in enumerate(ranking.rows.tolist(), 1)}
        for ranking, weight in zip(rankings, _checked(weights, len(rankings)), strict=True)
    ]


def shares_by_score(
    rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None
) -> list[dict[int, float]]:
    """A convex combination of scores, those of each ranking scaled so that its best is 1 and its last is 0.

    A row that a ranking does not hold gets 0 from it. Bruch, Gai & Ingber 2023, "An Analysis of Fusion Functions for
    Hybrid Retrieval" (arXiv:2210.11934), section 3: min-max scaling.

    >>> dense = Ranking(np.array([0.9, 0.5, 0.1]), np.array([0, 1, 2]))
    >>> words = Ranking(np.array([12.0, 4.0]), np.array([1, 2]))
    >>> fused = summed(shares_by_score([dense, words]))
    >>> fused.rows.tolist(), fused.scores.tolist()
    ([1, 0, 2], [0.75, 0.5, 0.0])
    """
    given = _checked(weights, len(rankings))
    return [
        {
            row: weight * score / sum(given)
            for row, score in zip(
                ranking.rows.tolist(), scaled(ranking.scores).tolist(), strict=True
            )
        }
        for ranking, weight in zip(rankings, given, strict=True)
    ]


def scaled(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """`scores` moved and stretched so that the least is 0 and the greatest 1; all 1 if they are equal."""
    if not len(scores):
        return np.empty(0)
    least, greatest = float(scores.min()), float(scores.max())
    if greatest == least:
        return np.ones(len(scores))
    found: NDArray[np.float64] = (scores.astype(np.float64) - least) / (greatest - least)
    return found


def varied(
    relevance: NDArray[np.floating], vectors: NDArray[np.float32], k: int, *, diversity: float
) -> list[int]:
    """Maximal marginal relevance: `k` places of `relevance` [n], each next one relevant and unlike those before.

    The next is the one with the greatest (1 - diversity) · relevance - diversity · (greatest inner product with a
    chosen one); `vectors` are [n, dim] of length one. Carbonell & Goldstein 1998, "The Use of MMR, Diversity-Based
    Reranking for Reordering Documents and Producing Summaries", SIGIR.

    >>> east, north = [1.0, 0.0], [0.0, 1.0]
    >>> varied(np.array([1.0, 0.9, 0.5]), np.array([east, east, north], dtype=np.float32), 2, diversity=0.5)
    [0, 2]
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity={diversity} is outside 0 (relevance alone) to 1")
    left = np.ones(len(relevance), dtype=bool)
    likeness = np.full(len(relevance), -np.inf)
    chosen: list[int] = []
    while left.any() and len(chosen) < k:
        penalty = diversity * likeness if chosen else 0.0
        value = np.where(left, (1 - diversity) * relevance - penalty, -np.inf)
        best = int(np.argmax(value))
        chosen.append(best)
        left[best] = False
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return chosen


def _checked(weights: Sequence[float] | None, count: int) -> list[float]:
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not all(0 <= w < np.inf for w in given) or not sum(given):
        raise ValueError(f"weights={given} must be {count} numbers, none below 0 and not all 0")
    return given


def summed(shares: Sequence[dict[int, float]]) -> Ranking:
    """Rows by the sum of their shares, the greatest first, ties by row."""
    scores: dict[int, float] = {}
    for parts in shares:
        for row, share in parts.items():
            scores[row] = scores.get(row, 0.0) + share
    rows = sorted(scores, key=lambda row: (-scores[row], row))
    return Ranking(np.array([scores[row] for row in rows]), np.array(rows, dtype=np.int64))
