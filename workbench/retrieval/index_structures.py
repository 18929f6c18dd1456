"""Vectors become a structure that finds near ones: exact scans and FAISS's graphs and inverted lists, tuned by measure.

With ``index.py`` the only module that imports faiss; knows rows, no text and no deletions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from workbench.errors import IndexUnusable, InputError

Kind = Literal["flat", "hnsw", "ivf-flat", "ivf-sq8", "ivf-rabitq"]
KINDS: tuple[str, ...] = get_args(Kind)
FLAT_UP_TO = 200_000  # vectors that "auto" still scans one by one
RECALL_AT = 10
TARGET_RECALL = (
    0.98  # of tuning; what real questions find: benchmarks/results/2026-11-22-index-structures.md
)
TUNING_QUERIES = 200  # own vectors, and as many away from them
# How far away, in lengths of the vector: their cosine is 0.66, the median of real questions to the sentence nearest to
# them (NQ, all-MiniLM-L6-v2)
_AWAY = 1.15
_PLATEAU = (
    0.95,
    0.001,
)  # beyond the first, twice the effort for a gain below the second is not worth it
# M = 32 links a node and 40 candidates while building are FAISS's own defaults (Malkov & Yashunin, arXiv:1603.09320);
# RaBitQ with 4 bits a dimension (Gao & Long, arXiv:2405.12497, and its extension arXiv:2409.09913).
_FACTORY = {
    "hnsw": "HNSW32,Flat",
    "ivf-flat": "IVF{lists},Flat",
    "ivf-sq8": "IVF{lists},SQ8",
    "ivf-rabitq": "IVF{lists},RaBitQ4",
}
_KEEPS_VECTORS = frozenset({"hnsw", "ivf-flat"})  # their scores are exact; others are scored again
_REFINE = 4  # candidates of a coded structure for each hit
_TRAINING_PER_LIST = 64  # FAISS's k-means wants 39 to 256 points a centroid
_BLOCK = 1 << 16
_NO_ROW = -2  # -1 is where FAISS found nothing


_SPARE = 16  # rows fetched beyond those wanted where some of them were deleted


class Ranking(NamedTuple):
    """Rows of an index, best first, ties by row; `scores` and `rows` have the same shape.

    Where a search found fewer than asked for, rows are -1 and scores -inf.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Effort:
    """One measured setting: `value` of the structure's parameter, recall@10, and milliseconds a query."""

    value: int
    recall: float
    milliseconds: float


@dataclass(frozen=True, slots=True)
class IndexReport:
    """Which structure was built, why, and what it was measured to find; JSON-able by :meth:`to_dict`.

    `recall` is the share of the exact ten nearest that are found, over `queries` points: vectors of the index itself,
    each left out of its own neighbours, and points as far from them as questions are, whichever find less. `curve`
    holds every setting tried; `effort` the one in use (``nprobe`` lists or ``efSearch`` candidates), 0 for an exact
    scan.
    """

    kind: str
    reason: str
    recall: float = 1.0
    queries: int = 0
    parameter: str = ""
    effort: int = 0
    bytes_per_vector: float = 0.0
    build_seconds: float = 0.0
    curve: tuple[Effort, ...] = ()

    def __str__(self) -> str:
        if self.kind == "flat":
            return f"exact scan ({self.reason})"
        return (
            f"{self.kind} ({self.reason}), {self.parameter}={self.effort}: recall@{RECALL_AT} {self.recall:.3f} "
            f"measured on {self.queries} of its own vectors and points near them, {self.bytes_per_vector:.0f} "
            "bytes a vector"
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON knows it; :meth:`from_dict` is the way back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> IndexReport:
        """The report that :meth:`to_dict` described."""
        return cls(**{**facts, "curve": tuple(Effort(**row) for row in facts["curve"])})


def choose_kind(count: int) -> tuple[Kind, str]:
    """The structure for `count` vectors, and the reason in a few words.

    >>> choose_kind(5_000)
    ('flat', '5,000 vectors, at most 200,000 are scanned one by one')
    """
    if count <= FLAT_UP_TO:
        return "flat", f"{count:,} vectors, at most {FLAT_UP_TO:,} are scanned one by one"
    return "ivf-sq8", f"{count:,} vectors, more than the {FLAT_UP_TO:,} that are scanned one by one"


class Structure:
    """An approximate index of FAISS over the rows of one array. Made by :func:`build_structure`.

    `keeps_vectors` says that its scores are exact inner products, not those of shortened codes.
    """

    def __init__(self, kind: str, index: Any) -> None:
        self.kind = kind
        self.keeps_vectors = kind in _KEEPS_VECTORS
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def parameter(self) -> str:
        """The name that FAISS gives to the effort of a search."""
        return "efSearch" if self.kind == "hnsw" else "nprobe"

    @property
    def most_effort(self) -> int:
        """The effort beyond which nothing more is found."""
        return len(self) if self.kind == "hnsw" else int(self._index.nlist)

    @property
    def bytes_per_vector(self) -> float:
        """Memory of codes, links and row numbers, each over the number of vectors."""
        if self.kind == "hnsw":
            links = 4 * self._index.hnsw.neighbors.size() / max(1, len(self))
            return float(self._index.storage.sa_code_size() + links + 8)
        return float(self._index.code_size + 8)

    def search(
        self,
        queries: NDArray[np.float32],
        count: int,
        *,
        effort: int,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Ranking:
        """Find about the `count` nearest rows of each query, among the rows `allowed` [n]: [queries, count]."""
        faiss = faiss_module()
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        if self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=max(effort, count), sel=selector)
        elif self.kind == "ivf-rabitq":
            options = faiss.IVFRaBitQSearchParameters(nprobe=effort, sel=selector)
        else:
            options = faiss.SearchParametersIVF(nprobe=effort, sel=selector)
        scores, rows = self._index.search(queries, count, params=options)
        scores[rows < 0] = -np.inf
        return Ranking(scores, rows)

    def save(self, path: Path) -> None:
        """Write the structure to one file."""
        faiss_module().write_index(self._index, str(path))

    @classmethod
    def open(cls, kind: str, path: Path, *, dim: int, count: int) -> Structure:
        """Map the file that :meth:`save` wrote into memory: processes that open it share what they read of it.

        Raises
        ------
        IndexUnusable
            The file holds no structure of this `kind` over `count` vectors of `dim` dimensions.
        """
        faiss = faiss_module()
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise IndexUnusable(
                f"{path.name} is no readable vector index; build the index again"
            ) from error
        is_ip = index.metric_type == faiss.METRIC_INNER_PRODUCT
        if not is_ip or (index.d, index.ntotal) != (dim, count) or _kind_of(index) != kind:
            raise IndexUnusable(
                f"{path.name} is not the {kind} index of {count} vectors by inner product that was promised; "
                "build the index again"
            )
        return cls(kind, index)


def build_structure(
    kind: Kind, vectors: NDArray[np.float32], *, seed: int = 0, block: int = _BLOCK
) -> Structure:
    """A structure over `vectors` [n, dim], trained on a sample and filled `block` rows at a time.

    >>> vectors = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    >>> len(build_structure("ivf-sq8", vectors))
    500
    """
    faiss = faiss_module()
    count, dim = vectors.shape
    lists = max(1, min(int(4 * np.sqrt(count)), count // 39))
    if kind not in _FACTORY:
        raise ValueError(f"kind={kind!r} is no structure; use one of {', '.join(_FACTORY)}")
    index = faiss.index_factory(dim, _FACTORY[kind].format(lists=lists), faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        # FAISS would warn on the terminal that so few vectors make poor lists; the tuning measures what they find
        faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1
        rows = np.random.default_rng(seed).permutation(count)[: _TRAINING_PER_LIST * lists]
        index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    for start in range(0, count, block):
        index.add(np.ascontiguousarray(vectors[start : start + block]))
    return Structure(kind, index)


def tune(
    structure: Structure,
    vectors: NDArray[np.float32],
    *,
    target: float = TARGET_RECALL,
    queries: int = TUNING_QUERIES,
    seed: int = 0,
) -> tuple[Effort, ...]:
    """Measure ever more effort until recall@10 reaches `target`: every setting tried, the chosen one last.

    The queries are `queries` rows of `vectors`, each left out of its own neighbours, and as many points away from them,
    as questions are, which find less: both kinds are to reach the target. The truth is an exact scan. Where twice the
    effort hardly finds more, the search for more ends early.
    """
    generator = np.random.default_rng(seed)
    picked = np.sort(generator.permutation(len(vectors))[:queries])
    asked = np.concatenate([vectors[picked], _away(vectors, picked, generator)])
    own = np.concatenate([picked, np.full(len(picked), _NO_ROW)])
    k = min(RECALL_AT, len(vectors) - 1)
    exact = _without(scan(vectors, asked, k + 1), own, k)
    least = exact.scores[:, -1:] if k else np.empty((len(asked), 1), dtype=np.float32)

    def measured(effort: int) -> Effort:
        begun = time.perf_counter()
        found = near_rows(structure, vectors, asked, k + 1, effort=effort)
        seconds = time.perf_counter() - begun
        scores = _without(found, own, k).scores  # a copy of a neighbour is as good as the neighbour
        hits = scores >= least - rounding(least)
        share = min(float(part.mean()) for part in np.split(hits, 2)) if k else 1.0
        return Effort(effort, share, 1e3 * seconds / len(asked))

    most = structure.most_effort
    tried = [measured(min(16 if structure.kind == "hnsw" else 1, most))]
    while tried[-1].recall < target and tried[-1].value < most:
        tried.append(measured(min(2 * tried[-1].value, most)))
        if _PLATEAU[0] <= tried[-1].recall <= tried[-2].recall + _PLATEAU[1]:
            return (*tried[:-2], tried[-1], tried[-2])
    reached = tried[-1]
    below = tried[-2].value if len(tried) > 1 else reached.value
    for value in sorted({below + (reached.value - below) * n // 4 for n in (1, 2, 3)}):
        if below < value < reached.value:
            between = measured(value)
            tried.insert(-1, between)
            if between.recall >= target:
                return (*(e for e in tried if e is not between), between)
    return tuple(tried)


def near_rows(
    structure: Structure,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    *,
    effort: int,
    allowed: NDArray[np.bool_] | None = None,
) -> Ranking:
    """The `k` best of the structure's candidates by their exact inner product with `vectors`: [queries, k]."""
    if structure.keeps_vectors:
        return structure.search(queries, k, effort=effort, allowed=allowed)
    count = min(_REFINE * k, len(structure))
    rows = structure.search(queries, count, effort=effort, allowed=allowed).rows
    scores = np.empty(rows.shape, dtype=np.float32)
    step = max(1, _BLOCK // max(1, count))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores[part] = np.einsum("qd,qkd->qk", queries[part], vectors[np.maximum(rows[part], 0)])
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return Ranking(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))


def scan(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Ranking:
    """The `k` rows of `vectors` with the largest inner products, exact, no index needed: [queries, k]."""
    faiss = faiss_module()
    scores, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return Ranking(scores, rows)


class GpuScanner:
    """Exact scans on the first GPU that FAISS sees, of arrays that are copied there when they are first scanned.

    An array stays there as long as its `owner` lives. Threads take turns: FAISS's GPU resources are for one at a time.

    Raises
    ------
    InputError
        FAISS sees no GPU, or is the build without them.
    """

    most = 2048  # hits of one search on a GPU, a limit of FAISS

    def __init__(self) -> None:
        faiss = faiss_module()
        if not gpu_count():
            raise InputError(
                "FAISS sees no GPU here; install the extra 'gpu' on a machine with an NVIDIA driver, or search "
                "with device='cpu'"
            )
        self._resources = faiss.StandardGpuResources()
        self._held: WeakKeyDictionary[object, Any] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def scan(
        self, owner: object, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int
    ) -> Ranking:
        """As :func:`scan`; `vectors` belong to `owner` and never change."""
        with self._lock:
            if owner not in self._held:
                faiss = faiss_module()
                empty = faiss.IndexFlatIP(vectors.shape[1])
                index = faiss.index_cpu_to_gpu(self._resources, 0, empty)
                for start in range(0, len(vectors), _BLOCK):
                    index.add(np.ascontiguousarray(vectors[start : start + _BLOCK]))
                self._held[owner] = index
            scores, rows = self._held[owner].search(queries, k)
        return Ranking(scores, rows)


def gpu_count() -> int:
    """The GPUs that FAISS can use; 0 where it is the build for processors alone."""
    return int(faiss_module().get_num_gpus())


def scan_rows(
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
) -> Ranking:
    """The `k` best of `rows` alone, exact, read a block at a time: [queries, min(k, rows)]."""
    best: list[Ranking] = []
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        block = np.ascontiguousarray(vectors[part])
        found = fetched(block, queries, min(k, len(part)))
        best.append(Ranking(found.scores, part[found.rows]))
    scores, found_rows = merged(best, queries, lambda found: vectors[found])
    return Ranking(scores[:, :k], found_rows[:, :k])


def fetched(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    *,
    may: NDArray[np.bool_] | None = None,
) -> Ranking:
    """The `k` best rows of `vectors`, of those that `may` be found, by an exact scan: [queries, k].

    Some more are fetched than needed, and twice as many again for queries where that leaves it open which ones are
    best: FAISS returns any of equal scores, and some rows may not be found.
    """
    share = 1.0 if may is None else float(may.mean())
    depth = min(len(vectors), k + 1 if may is None else int((k + _SPARE) / share) + 1)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    pending = np.arange(len(queries))
    while pending.size:
        found = scan(vectors, queries[pending], depth)
        last = found.scores[:, -1]
        found = settled(found, queries[pending], lambda rows: vectors[rows])
        keep = np.ones(found.rows.shape, dtype=bool) if may is None else may[found.rows]
        order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
        gone = ~np.take_along_axis(keep, order, 1)
        best = Ranking(
            np.where(gone, -np.inf, np.take_along_axis(found.scores, order, 1)),
            np.where(gone, -1, np.take_along_axis(found.rows, order, 1)),
        )
        kth = best.scores[:, k - 1]
        is_done = (best.rows[:, k - 1] >= 0) & (kth > last + rounding(last))
        if depth >= len(vectors):
            is_done[:] = True
        scores[pending[is_done]], rows[pending[is_done]] = (part[is_done] for part in best)
        pending = pending[~is_done]
        depth = min(len(vectors), 2 * depth)
    return Ranking(scores, rows)


def settled(
    ranking: Ranking,
    queries: NDArray[np.float32],
    vectors_at: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> Ranking:
    """`ranking` with nearly equal scores computed again in double precision, so that equal vectors tie: by row.

    What single precision makes of one product depends on how many vectors are compared at once.
    """
    close = near_equal(ranking.scores)
    if not close.any():
        return ranking
    scores, rows = ranking.scores.copy(), ranking.rows.copy()
    for query in np.flatnonzero(close):
        found = rows[query] >= 0
        products = vectors_at(rows[query, found]).astype(np.float64) @ queries[query]
        products[np.isneginf(scores[query, found])] = -np.inf
        order = np.lexsort((rows[query, found], -products.astype(np.float32)))
        scores[query, found] = products[order]
        rows[query, found] = rows[query, found][order]
    return Ranking(scores, rows)


def near_equal(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """For which queries two neighbouring scores [queries, n] may differ by rounding alone."""
    if scores.shape[1] < 2:
        return np.zeros(len(scores), dtype=bool)
    with np.errstate(invalid="ignore"):  # two that are -inf
        close = scores[:, :-1] - scores[:, 1:] <= rounding(scores[:, :1])
    return np.asarray(close.any(axis=1))


def rounding(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much two single-precision products of this size may differ from each other by rounding."""
    return np.float32(2e-6) * np.maximum(np.abs(scores), np.float32(1))


def merged(
    rankings: Sequence[Ranking],
    queries: NDArray[np.float32],
    vectors_at: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> Ranking:
    """Several rankings of the same queries as one, settled; rows of -1 come last."""
    scores = np.concatenate([ranking.scores for ranking in rankings], axis=1)
    rows = np.concatenate([ranking.rows for ranking in rankings], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    together = Ranking(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))
    return settled(together, queries, vectors_at)


def faiss_module() -> ModuleType:
    """FAISS, or an ``ImportError`` that names the extras."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "faiss is missing: install the extra 'cpu' or 'gpu' of this project"
        ) from error
    return faiss


def _away(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Points away from `rows` in the directions in which the vectors differ: random sums of 20 of them."""
    others = vectors[generator.integers(0, len(vectors), (len(rows), 20))]
    weights = generator.standard_normal((len(rows), 20), dtype=np.float32)
    steps = np.einsum("qn,qnd->qd", weights, others)
    lengths = np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    steps *= _AWAY * lengths / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-9)
    found: NDArray[np.float32] = vectors[rows] + steps
    return found


def _without(ranking: Ranking, own: NDArray[np.int64], k: int) -> Ranking:
    """`ranking` [queries, k + 1] without each query's own row, or without the last: [queries, k]."""
    others = ranking.rows != own[:, None]
    others[others.all(axis=1), -1] = False
    scores, rows = (part[others].reshape(len(own), -1)[:, :k] for part in ranking)
    return Ranking(scores, rows)


def _kind_of(index: Any) -> str:
    faiss = faiss_module()
    found = faiss.downcast_index(index)
    classes: Iterable[tuple[str, Any]] = (
        ("hnsw", faiss.IndexHNSWFlat),
        ("ivf-flat", faiss.IndexIVFFlat),
        ("ivf-sq8", faiss.IndexIVFScalarQuantizer),
        ("ivf-rabitq", faiss.IndexIVFRaBitQ),
    )
    return next((kind for kind, cls in classes if isinstance(found, cls)), "")
