from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.errors import IndexUnusable
from workbench.retrieval.index import VectorIndex


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_search_equals_all_inner_products_sorted(k: int) -> None:
    vectors, queries = unit_vectors(200, 24, 1), unit_vectors(5, 24, 2)
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    scores, rows = VectorIndex.build(vectors).search(queries, k)
    assert (rows == expected).all()
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-6)


def test_equal_scores_keep_the_order_of_rows() -> None:
    distinct = unit_vectors(6, 8, 3)
    vectors = distinct[np.random.default_rng(4).integers(0, 6, 300)]
    index = VectorIndex.build(vectors)
    for k in (1, 2, 49, 150, 299, 300):
        products = (distinct[:2].astype(np.float64) @ vectors.astype(np.float64).T).round(5)
        expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
        assert (index.search(distinct[:2], k).rows == expected).all()


def test_save_and_open_give_the_same_answers(tmp_path: Path) -> None:
    vectors = unit_vectors(20, 8, 5)
    index = VectorIndex.build(vectors)
    index.save(tmp_path / "vectors.faiss")
    again = VectorIndex.open(tmp_path / "vectors.faiss")
    assert len(again) == 20 and again.dim == 8
    assert (again.search(vectors, 3).rows == index.search(vectors, 3).rows).all()


@pytest.mark.parametrize("damage", [b"", b"garbage", b"IxFI" + bytes(8)])
def test_unreadable_file_is_index_unusable(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vectors.faiss"
    path.write_bytes(damage)
    with pytest.raises(IndexUnusable, match=r"vectors\.faiss is no readable vector index"):
        VectorIndex.open(path)


def test_other_kind_of_index_is_refused(tmp_path: Path) -> None:
    import faiss

    path = tmp_path / "vectors.faiss"
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(IndexUnusable, match="inner-product"):
        VectorIndex.open(path)


def test_vector_that_is_not_finite_is_named() -> None:
    vectors = unit_vectors(3, 4, 6)
    vectors[1, 2] = np.nan
    with pytest.raises(ValueError, match="vector 1 of 3 is not finite"):
        VectorIndex.build(vectors)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_index_is_refused(k: int) -> None:
    index = VectorIndex.build(unit_vectors(3, 4, 7))
    with pytest.raises(ValueError, match=f"k={k} is outside 1 to 3"):
        index.search(unit_vectors(1, 4, 8), k)


def test_query_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queries must be \[n, 4\], got \[1, 5\]"):
        VectorIndex.build(unit_vectors(3, 4, 9)).search(unit_vectors(1, 5, 9), 1)


def test_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_faiss(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise ImportError("No module named 'faiss'", name="faiss")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match="faiss is missing: install the extra 'cpu' or 'gpu'"):
        VectorIndex.build(unit_vectors(3, 4, 10))
