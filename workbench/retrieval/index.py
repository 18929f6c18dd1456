"""Vectors become an exact index. The only module that imports faiss; knows no text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.errors import IndexUnusable


class Ranking(NamedTuple):
    """Rows of an index, best first, ties by row; `scores` and `rows` have the same shape."""

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class VectorIndex:
    """Exact search by inner product, which is the cosine when the vectors have length one.

    >>> index = VectorIndex.build(np.eye(3, dtype=np.float32))
    >>> scores, rows = index.search(np.array([[0.0, 0.8, 0.6]], dtype=np.float32), 2)
    >>> rows.tolist()
    [[1, 2]]
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> VectorIndex:
        """Index of `vectors`: [n, dim], finite."""
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise ValueError(f"vectors must be [n, dim], got {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(f"vector {row} of {len(vectors)} is not finite; check the encoder")
        index = _faiss().IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def __repr__(self) -> str:
        return (
            f"VectorIndex({len(self)} vectors of {self.dim} dimensions; next: .search(queries, k))"
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def search(self, queries: NDArray[np.float32], k: int) -> Ranking:
        """Find the `k` best rows for each query: scores and rows are [queries, k].

        >>> equal = np.ones((4, 2), dtype=np.float32)
        >>> VectorIndex.build(equal).search(equal[:1], 3).rows.tolist()
        [[0, 1, 2]]
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be [n, {self.dim}], got {list(queries.shape)}")
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} is outside 1 to {len(self)}, the vectors in the index")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        depth = k
        while True:  # which of equal scores faiss returns is left open: look past the tie at k
            depth = min(depth + 1, len(self))
            scores, rows = self._index.search(queries, depth)
            if depth == len(self) or (scores[:, k - 1] > scores[:, -1]).all():
                break
            depth *= 2
        if (scores[:, :-1] == scores[:, 1:]).any():
            order = np.lexsort((rows, -scores), axis=-1)
            scores = np.take_along_axis(scores, order, 1)
            rows = np.take_along_axis(rows, order, 1)
        return Ranking(scores[:, :k], rows[:, :k])

    def save(self, path: Path) -> None:
        """Write the index to one file."""
        _faiss().write_index(self._index, str(path))

    @classmethod
    def open(cls, path: Path) -> VectorIndex:
        """Read an index that :meth:`save` wrote; anything else raises ``IndexUnusable``."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise IndexUnusable(
                f"{path.name} is no readable vector index; build the index again"
            ) from error
        is_exact = isinstance(faiss.downcast_index(index), faiss.IndexFlat)  # a view: owns nothing
        if not is_exact or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexUnusable(
                f"{path.name} is not an exact inner-product index; build the index again"
            )
        return cls(index)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "faiss is missing: install the extra 'cpu' or 'gpu' of this project"
        ) from error
    return faiss
