"""Vectors by row, in immutable segments with tombstones: one search over all, exact or tuned. Knows no text.

Nothing in an index changes: one with more segments or fewer rows alive is another index that shares the arrays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.retrieval.index_structures import (
    KINDS,
    TARGET_RECALL,
    TUNING_QUERIES,
    GpuScanner,
    IndexReport,
    Kind,
    Ranking,
    Structure,
    build_structure,
    choose_kind,
    fetched,
    merged,
    near_equal,
    near_rows,
    rounding,
    scan,
    scan_rows,
    settled,
    tune,
)

_EXACT_SUBSET = 100_000  # rows that a filter leaves and that are still scanned one by one
_SOME_DEAD = 0.05  # share of deleted rows beyond which a structure is told of them
_SPARE = 8  # rows fetched beyond those wanted where some of them were deleted
# Of vectors that are copied side by side to be scanned at once: 21,845 of 384 dimensions
_PACKED_BYTES = 1 << 25


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class VectorSegment:
    """Vectors [n, dim] that never change, in memory or mapped from a file; `structure` is None if they are scanned."""

    vectors: NDArray[np.float32]
    report: IndexReport
    structure: Structure | None = None

    def __len__(self) -> int:
        return len(self.vectors)


class _Packed(NamedTuple):
    """Copies of some vectors [n, dim], and their rows [n] in the index, ascending."""

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64]


class VectorIndex:
    """Search by inner product, which is the cosine when the vectors have length one.

    Rows are numbered from 0 through all segments; ``len`` counts those that are `alive` [rows].

    >>> index = VectorIndex.build(np.eye(3, dtype=np.float32))
    >>> asked = np.array([[0.0, 0.8, 0.6]], dtype=np.float32)
    >>> index.search(asked, 2).rows.tolist()
    [[1, 2]]
    >>> alive = np.array([True, False, True])
    >>> VectorIndex(index.segments, dim=3, alive=alive).search(asked, 1).rows.tolist()
    [[2]]
    """

    def __init__(
        self, segments: Sequence[VectorSegment], *, dim: int, alive: NDArray[np.bool_] | None = None
    ) -> None:
        self.segments = tuple(segments)
        self.dim = dim
        sizes = [len(segment) for segment in self.segments]
        self._starts = [0, *accumulate(sizes)]
        self.alive = np.ones(self._starts[-1], dtype=bool) if alive is None else alive
        if len(self.alive) != self._starts[-1]:
            raise ValueError(f"alive must have {self._starts[-1]} rows, got {len(self.alive)}")
        self._alive_counts = [int(self.alive[start:stop].sum()) for start, stop in self._bounds()]
        self._partly_alive = [  # None where every row of a segment is alive
            None if count == stop - start else self.alive[start:stop]
            for count, (start, stop) in zip(self._alive_counts, self._bounds(), strict=True)
        ]

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        *,
        kind: Kind | Literal["auto"] = "auto",
        target_recall: float = TARGET_RECALL,
        seed: int = 0,
    ) -> VectorIndex:
        """Index of `vectors` [n, dim], finite and not zero.

        ``flat`` compares with every vector and is exact. ``hnsw`` (a graph), ``ivf-flat``, ``ivf-sq8`` (8 bits a
        dimension) and ``ivf-rabitq`` (4 bits) look at a part: how much is found out by measuring recall@10 on the
        vectors themselves and on points near them until it reaches `target_recall`; the scores are exact inner products
        all the same. ``auto`` takes flat up to 200,000 vectors. What was chosen, and why, is in :attr:`report`.
        """
        vectors = checked_vectors(vectors)
        segment = build_segment(vectors, kind=kind, target_recall=target_recall, seed=seed)
        return cls([segment], dim=vectors.shape[1])

    def __len__(self) -> int:
        return sum(self._alive_counts)

    def __repr__(self) -> str:
        return (
            f"VectorIndex({len(self)} vectors of {self.dim} dimensions, {self.report.kind}; "
            "next: .search(queries, k), .report)"
        )

    @property
    def rows(self) -> int:
        """Rows ever added, deleted ones included."""
        return self._starts[-1]

    @property
    def report(self) -> IndexReport:
        """What was built for the largest segment, and the recall measured on it."""
        if not self.segments:
            return IndexReport("flat", "empty")
        return max(self.segments, key=len).report

    def vectors(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Copies of the vectors of `rows`: [rows, dim]."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(wanted), self.dim), dtype=np.float32)
        for segment, (start, stop) in zip(self.segments, self._bounds(), strict=True):
            here = (wanted >= start) & (wanted < stop)
            found[here] = segment.vectors[wanted[here] - start]
        return found

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        exact: bool = False,
        gpu: GpuScanner | None = None,
    ) -> Ranking:
        """Find the `k` best rows for each query, among the rows `allowed` [rows] if given: [queries, k].

        With a filter that leaves few rows, these are compared one by one whatever the structure: the answer is exact
        and complete. ``exact=True`` does so always. With a `gpu` every vector is compared there,
        unless a filter is given. Rows are -1 where fewer than `k` are allowed.

        >>> equal = np.ones((4, 2), dtype=np.float32)
        >>> VectorIndex.build(equal).search(equal[:1], 3).rows.tolist()
        [[0, 1, 2]]
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be [n, {self.dim}], got {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise ValueError("a query vector is not finite; check the encoder")
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} is outside 1 to {len(self)}, the vectors in the index")
        if allowed is not None and allowed.shape != (self.rows,):
            raise ValueError(f"allowed must be [{self.rows}] booleans, got {list(allowed.shape)}")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if gpu is not None and 3 * k + _SPARE + 1 > gpu.most:  # what a segment may be asked for
            gpu = None
        if allowed is not None or (exact and gpu is None):
            return self._careful(queries, k, allowed, exact=exact)
        best, is_done = self._quick(queries, k, gpu)
        if not is_done.all():
            scores, rows = best.scores.copy(), best.rows.copy()
            scores[~is_done], rows[~is_done] = self._careful(
                queries[~is_done], k, None, exact=exact or gpu is not None
            )
            best = Ranking(scores, rows)
        return best

    def _bounds(self) -> list[tuple[int, int]]:
        return list(zip(self._starts[:-1], self._starts[1:], strict=True))

    @cached_property
    def _packed(self) -> _Packed | None:
        """What lives in small segments that are scanned, to be scanned at once; None where that saves nothing."""
        is_scanned = all(segment.structure is None for segment in self.segments)
        is_small = 4 * self.rows * self.dim <= _PACKED_BYTES
        is_one = len(self.segments) == 1 and self._partly_alive[0] is None
        if is_one or not (is_scanned and is_small):
            return None
        rows = np.flatnonzero(self.alive)
        return _Packed(self.vectors(rows), rows)

    def _quick(
        self, queries: NDArray[np.float32], k: int, gpu: GpuScanner | None
    ) -> tuple[Ranking, NDArray[np.bool_]]:
        """The `k` best rows among some more of each segment than needed, and for which queries that settles it.

        It does when the last row that was fetched of every scanned segment is clearly worse than the last hit: then no
        row that was not fetched can be better.
        """
        parts: list[Ranking] = []
        floors: list[NDArray[np.float32]] = []
        packed = self._packed if gpu is None else None
        if packed is not None:
            depth = min(len(packed.vectors), k + 1)
            scores, rows = scan(packed.vectors, queries, depth)
            if depth < len(packed.vectors):
                floors.append(scores[:, -1])
            parts.append(Ranking(scores, packed.rows[rows]))
        for number, segment in enumerate(self.segments if packed is None else ()):
            start, alive, count = self._starts[number], self._partly_alive[number], len(segment)
            dead = 0.0 if alive is None else 1 - self._alive_counts[number] / count
            depth = min(count, k + 1 + (0 if alive is None else int(2 * k * dead) + _SPARE))
            if segment.structure is None or gpu is not None:
                scores, rows = (
                    scan(segment.vectors, queries, depth)
                    if gpu is None
                    else gpu.scan(segment, segment.vectors, queries, depth)
                )
                if depth < count:
                    floors.append(scores[:, -1].copy())
                rows += start
            else:
                scores, rows = near_rows(
                    segment.structure,
                    segment.vectors,
                    queries,
                    depth,
                    effort=segment.report.effort,
                    allowed=alive if dead > _SOME_DEAD else None,
                )
                rows[rows >= 0] += start
            if alive is not None:
                scores[~self.alive[rows]] = -np.inf
            parts.append(Ranking(scores, rows))
        scores, rows = parts[0]
        if len(parts) > 1 or (packed is None and self._partly_alive[0] is not None):
            scores = np.concatenate([part.scores for part in parts], axis=1)
            rows = np.concatenate([part.rows for part in parts], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")
            each = np.arange(len(queries))[:, None]
            scores, rows = scores[each, order], rows[each, order]
        close = near_equal(scores[:, : k + 1])
        is_done = scores[:, k - 1] > -np.inf
        for floor in floors:
            is_done &= floor < scores[:, k - 1] - rounding(scores[:, k - 1])
        if close.any():
            scores, rows = settled(Ranking(scores, rows), queries, self.vectors)
        return Ranking(scores[:, :k], rows[:, :k]), is_done

    def _careful(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None,
        *,
        exact: bool,
    ) -> Ranking:
        """The `k` best rows, found segment by segment until each is sure of its own."""
        found = []
        for number, start in enumerate(self._starts[:-1]):
            scores, rows = self._search_segment(number, queries, k, allowed, exact=exact)
            found.append(Ranking(scores, np.where(rows >= 0, rows + start, -1)))
        scores, rows = merged(found, queries, self.vectors)
        gap = ((0, 0), (0, max(0, k - rows.shape[1])))
        return Ranking(
            np.pad(scores[:, :k], gap, constant_values=-np.inf),
            np.pad(rows[:, :k], gap, constant_values=-1),
        )

    def _search_segment(
        self,
        number: int,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None,
        *,
        exact: bool,
    ) -> Ranking:
        segment, (start, stop) = self.segments[number], self._bounds()[number]
        alive = self.alive[start:stop]
        may = alive if allowed is None else alive & allowed[start:stop]
        left = int(may.sum())
        k = min(k, left)
        if not k:
            empty = np.empty((len(queries), 0))
            return Ranking(empty.astype(np.float32), empty.astype(np.int64))
        structure = segment.structure
        if structure is None or exact or left <= (_EXACT_SUBSET if allowed is not None else k):
            if left < len(segment) / 2:
                return scan_rows(segment.vectors, np.flatnonzero(may), queries, k)
            return fetched(segment.vectors, queries, k, may=may if left < len(segment) else None)
        effort = segment.report.effort * min(8, -(-len(segment) // left))
        found = near_rows(
            structure,
            segment.vectors,
            queries,
            k,
            effort=min(structure.most_effort, effort),
            allowed=may,
        )
        short = (found.rows < 0).any(axis=1)
        if short.any():  # too little was looked at: these few are compared with every row
            full = scan_rows(segment.vectors, np.flatnonzero(may), queries[short], k)
            found.scores[short], found.rows[short] = full
        return found


def build_segment(
    vectors: NDArray[np.float32],
    *,
    kind: Kind | Literal["auto"] = "auto",
    target_recall: float = TARGET_RECALL,
    seed: int = 0,
    reason: str = "as asked for",
) -> VectorSegment:
    """A segment of `vectors` [n, dim] with the structure of this `kind`, tuned to `target_recall`; `reason` is why."""
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known; use 'auto' or one of {', '.join(KINDS)}")
    if not 0 < target_recall <= 1:
        raise ValueError(f"target_recall={target_recall} is no share; ask for 0 < recall <= 1")
    dim = vectors.shape[1]
    chosen: Kind = "flat"
    if kind == "auto":
        chosen, reason = choose_kind(len(vectors))
    elif len(vectors):
        chosen = kind
    if chosen == "flat":
        return VectorSegment(vectors, IndexReport("flat", reason, bytes_per_vector=4.0 * dim))
    begun = time.perf_counter()
    structure = build_structure(chosen, vectors, seed=seed)
    curve = tune(structure, vectors, target=target_recall, seed=seed)
    if curve[-1].recall < target_recall:
        reason += f"; recall {target_recall} was not reached"
    report = IndexReport(
        chosen,
        reason,
        recall=curve[-1].recall,
        queries=2 * min(TUNING_QUERIES, len(vectors)),
        parameter=structure.parameter,
        effort=curve[-1].value,
        bytes_per_vector=structure.bytes_per_vector,
        build_seconds=time.perf_counter() - begun,
        curve=curve,
    )
    return VectorSegment(vectors, report, structure)


def checked_vectors(vectors: NDArray[np.float32], *, dim: int | None = None) -> NDArray[np.float32]:
    """`vectors` as contiguous float32 [n, dim].

    Raises
    ------
    ValueError
        They have another shape, or one of them is zero or not finite: it has no direction to compare.
    """
    wanted = dim if dim is not None else "dim"
    if vectors.ndim != 2 or not vectors.shape[1] or (dim is not None and vectors.shape[1] != dim):
        raise ValueError(f"vectors must be [n, {wanted}], got {list(vectors.shape)}")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    for start in range(0, len(vectors), 1 << 16):
        part = vectors[start : start + (1 << 16)]
        lengths = np.einsum("nd,nd->n", part, part, dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if bad.size:
            row = int(bad[0])
            what = "zero" if lengths[row] == 0 else "not finite"
            raise ValueError(f"vector {start + row} of {len(vectors)} is {what}; check the encoder")
    return vectors
