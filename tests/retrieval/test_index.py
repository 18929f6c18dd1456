from __future__ import annotations

import builtins
import gc
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IndexUnusable, InputError
from workbench.retrieval.index import VectorIndex, VectorSegment, build_segment, checked_vectors
from workbench.retrieval.index_structures import (
    _NO_ROW,
    KINDS,
    Effort,
    GpuScanner,
    IndexReport,
    Ranking,
    Structure,
    _away,
    _without,
    build_structure,
    choose_kind,
    scan,
    tune,
)

APPROXIMATE = [kind for kind in KINDS if kind != "flat"]


def unit_vectors(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Points of 50 clusters, the same for every seed: questions lie where the documents do."""
    centres = np.random.default_rng(99).standard_normal((50, dim))
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, len(centres), count)]
    vectors = vectors + 0.5 * generator.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int, may: np.ndarray) -> Ranking:
    """The definition: all inner products in double precision, sorted, ties by row, padded."""
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    products[:, ~may] = -np.inf
    rows = np.argsort(-products.astype(np.float32), axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(products, rows, 1)
    return Ranking(scores.astype(np.float32), np.where(np.isfinite(scores), rows, -1))


def assert_same(found: Ranking, expected: Ranking) -> None:
    assert found.rows.shape == expected.rows.shape
    finite = expected.rows >= 0
    assert ((found.rows >= 0) == finite).all()
    np.testing.assert_allclose(found.scores[finite], expected.scores[finite], atol=2e-6)
    differ = found.rows != expected.rows
    assert not differ.any()


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


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_segments_with_deleted_rows_find_what_brute_force_finds(
    data: st.DataObject,
) -> None:
    seed = data.draw(st.integers(0, 10_000))
    generator = np.random.default_rng(seed)
    pool = unit_vectors(20, 6, seed)  # few distinct vectors, so that scores tie
    parts = [
        pool[generator.integers(0, 20, data.draw(st.integers(0, 60)))]
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    vectors = np.concatenate(parts)
    alive = generator.random(len(vectors)) >= data.draw(st.sampled_from([0, 0.1, 0.9]))
    segments = [VectorSegment(part, IndexReport("flat", "test")) for part in parts]
    index = VectorIndex(segments, dim=6, alive=alive)
    assert index.rows == len(vectors) and len(index) == alive.sum()
    if not len(index):
        return
    k = data.draw(st.integers(1, len(index)))
    queries = unit_vectors(3, 6, seed + 1)
    assert_same(index.search(queries, k), brute_force(vectors, queries, k, alive))
    allowed = generator.random(len(vectors)) < data.draw(st.sampled_from([0.0, 0.02, 0.5, 0.97]))
    found = index.search(queries, k, allowed=allowed)
    assert_same(found, brute_force(vectors, queries, k, alive & allowed))
    assert (allowed & alive)[found.rows[found.rows >= 0]].all()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_tuned_structures_reach_their_recall_with_exact_scores(kind: Any) -> None:
    vectors, queries = clustered(3000, 32, 1), clustered(200, 32, 2)
    index = VectorIndex.build(vectors, kind=kind)
    expected = brute_force(vectors, queries, 10, np.ones(3000, dtype=bool))
    found = index.search(queries, 10)
    hits = [len(set(a) & set(b)) for a, b in zip(found.rows, expected.rows, strict=True)]
    assert np.mean(hits) / 10 >= 0.95
    products = np.einsum("qd,qkd->qk", queries, vectors[found.rows])
    np.testing.assert_allclose(found.scores, products, atol=2e-6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    report = index.report
    assert (
        report.kind == kind and report.recall >= 0.98 and report.curve[-1].recall == report.recall
    )
    assert f"recall@10 {report.recall:.3f}" in str(report)
    assert_same(index.search(queries, 10, exact=True), expected)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_measured_recall_is_that_of_an_exact_scan(kind: Any) -> None:
    vectors = clustered(1500, 16, 3)
    structure = build_structure(kind, vectors)
    curve = tune(structure, vectors, target=0.9, queries=50, seed=7)
    generator = np.random.default_rng(7)
    rows = np.sort(generator.permutation(1500)[:50])
    segment = VectorSegment(vectors, IndexReport(kind, "", effort=curve[-1].value), structure)
    index = VectorIndex([segment], dim=16)
    recalls = []
    for asked, own in ((vectors[rows], rows), (_away(vectors, rows, generator), rows * 0 - 2)):
        products = asked.astype(np.float64) @ vectors.astype(np.float64).T
        products[np.arange(50)[own >= 0], own[own >= 0]] = -np.inf
        truth = np.argsort(-products, axis=1)[:, :10]
        found = index.search(asked, 11).rows
        hits = [
            len(set(a[a != row][:10]) & set(b)) for a, b, row in zip(found, truth, own, strict=True)
        ]
        recalls.append(np.mean(hits) / 10)
    assert curve[-1].recall == pytest.approx(min(recalls), abs=0.02)
    assert all(e.recall < 0.9 for e in curve if e.value < curve[-1].value)


def test_tuning_asks_as_far_from_the_vectors_as_questions_are() -> None:
    vectors = 3 * unit_vectors(500, 200, 3)
    rows = np.arange(0, 500, 5)
    away = _away(vectors, rows, np.random.default_rng(0))
    cosines = np.einsum("nd,nd->n", away, vectors[rows]) / np.linalg.norm(away, axis=1) / 3
    assert abs(cosines.mean() - 0.66) < 0.02 and cosines.std() < 0.1
    steps = away - vectors[rows]
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 3 * 1.15, rtol=1e-5)
    assert abs(np.corrcoef(steps) - np.eye(100)).max() < 0.5  # each another way


def test_a_query_that_is_no_row_leaves_out_the_last_neighbour_alone() -> None:
    found = Ranking(np.array([[3, 2, 1]], dtype=np.float32), np.array([[0, 5, 2]]))
    assert _without(found, np.array([_NO_ROW]), 2).rows.tolist() == [[0, 5]]
    assert _without(found, np.array([0]), 2).rows.tolist() == [[5, 2]]


def test_twice_the_effort_for_nothing_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(2000, 16, 4)
    structure = build_structure("ivf-flat", vectors)
    lost = {1: 50, 2: 50, 4: 4, 8: 4}  # of a hundred queries

    def near(_: Any, vectors: Any, queries: Any, k: int, *, effort: int) -> Ranking:
        exact = scan(vectors, queries, k)
        exact.scores[: lost[effort]] -= 1
        return exact

    monkeypatch.setattr("workbench.retrieval.index_structures.near_rows", near)
    curve = tune(structure, vectors, queries=100)
    assert [e.value for e in curve] == [1, 2, 8, 4] and curve[-1].recall < 0.98


def test_tuning_takes_the_least_effort_that_reaches_the_target() -> None:
    vectors = clustered(4000, 16, 4)
    curve = tune(build_structure("ivf-flat", vectors), vectors, target=0.97)
    assert curve[-1].recall >= 0.97
    assert all(e.recall < 0.97 for e in curve if e.value < curve[-1].value)
    assert len(curve) > 2


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_copies_count_as_found_and_keep_the_order_of_rows(kind: Any) -> None:
    distinct = clustered(400, 16, 12)
    vectors = np.repeat(distinct, 5, axis=0)
    index = VectorIndex.build(vectors, kind=kind)
    assert index.report.recall >= 0.98
    allowed = np.random.default_rng(0).random(2000) < 0.9
    found = index.search(distinct[:40], 5, allowed=allowed)
    assert_same(found, brute_force(vectors, distinct[:40], 5, allowed))


def test_one_vector_and_none_can_be_indexed(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        report = VectorIndex.build(unit_vectors(1, 8, 0), kind=kind).report  # type: ignore[arg-type]
        assert report.recall == 1.0 and "not reached" not in str(report)
        assert build_segment(np.empty((0, 8), np.float32), kind=kind).report.kind == "flat"  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")  # FAISS does not warn either


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.999])
def test_a_filter_over_a_structure_is_exact_and_complete(kind: Any, share: float) -> None:
    vectors, queries = clustered(3000, 16, 5), clustered(20, 16, 6)
    index = VectorIndex.build(vectors, kind=kind)
    allowed = np.random.default_rng(0).random(3000) < share
    found = index.search(queries, 10, allowed=allowed)
    assert_same(found, brute_force(vectors, queries, 10, allowed))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_filter_that_leaves_too_much_for_a_scan_keeps_the_recall(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.retrieval.index._EXACT_SUBSET", 100)
    vectors, queries = clustered(4000, 16, 7), clustered(50, 16, 8)
    index = VectorIndex.build(vectors, kind=kind)
    for share in (0.1, 0.5):
        allowed = np.random.default_rng(1).random(4000) < share
        found = index.search(queries, 10, allowed=allowed)
        expected = brute_force(vectors, queries, 10, allowed)
        assert allowed[found.rows].all()
        hits = [len(set(a) & set(b)) for a, b in zip(found.rows, expected.rows, strict=True)]
        assert np.mean(hits) / 10 >= 0.9


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("share", [0.01, 0.4, 0.999])
def test_deleted_rows_of_a_structure_are_never_found(kind: Any, share: float) -> None:
    vectors, queries = clustered(2000, 16, 9), clustered(30, 16, 10)
    gone = np.flatnonzero(np.random.default_rng(2).random(2000) < share)
    alive = np.ones(2000, dtype=bool)
    alive[gone] = False
    index = VectorIndex([build_segment(vectors, kind=kind)], dim=16, alive=alive)
    k = min(10, len(index))
    found = index.search(queries, k)
    assert alive[found.rows].all() and (found.rows >= 0).all()
    expected = brute_force(vectors, queries, k, alive)
    hits = [len(set(a) & set(b)) for a, b in zip(found.rows, expected.rows, strict=True)]
    assert np.mean(hits) / k >= 0.9


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_structure_is_the_same_after_saving(kind: Any, tmp_path: Path) -> None:
    vectors = clustered(1000, 16, 11)
    segment = build_segment(vectors, kind=kind)
    assert segment.structure is not None
    segment.structure.save(tmp_path / "structure.faiss")
    again = Structure.open(kind, tmp_path / "structure.faiss", dim=16, count=1000)
    for effort in (1, segment.report.effort):
        one, two = (s.search(vectors[:50], 5, effort=effort) for s in (segment.structure, again))
        np.testing.assert_array_equal(one.rows, two.rows)
    assert IndexReport.from_dict(segment.report.to_dict()) == segment.report
    assert again.bytes_per_vector == segment.structure.bytes_per_vector


@pytest.mark.parametrize("damage", [b"", b"garbage", b"IwFl" + bytes(8)])
def test_unreadable_file_is_index_unusable(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "structure.faiss"
    path.write_bytes(damage)
    with pytest.raises(IndexUnusable, match=r"structure\.faiss is no readable vector index"):
        Structure.open("hnsw", path, dim=4, count=3)


def test_other_kind_of_index_is_refused(tmp_path: Path) -> None:
    import faiss

    path = tmp_path / "structure.faiss"
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(IndexUnusable, match="is not the hnsw index of 0 vectors"):
        Structure.open("hnsw", path, dim=4, count=0)


def test_auto_scans_small_indexes_and_says_why() -> None:
    assert choose_kind(200_000)[0] == "flat"
    kind, reason = choose_kind(200_001)
    assert kind == "ivf-sq8" and "200,001 vectors" in reason
    report = VectorIndex.build(unit_vectors(50, 4, 0)).report
    assert str(report) == "exact scan (50 vectors, at most 200,000 are scanned one by one)"


def test_a_recall_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.retrieval.index.tune", lambda *_, **__: (Effort(7, 0.5, 0.1),))
    report = build_segment(unit_vectors(200, 8, 1), kind="hnsw").report
    assert report.recall == 0.5 and "recall 0.98 was not reached" in str(report)


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "zero")]
)
def test_vector_without_direction_is_named(value: float, what: str) -> None:
    vectors = unit_vectors(3, 4, 6)
    vectors[1] = value
    with pytest.raises(ValueError, match=f"vector 1 of 3 is {what}"):
        VectorIndex.build(vectors)


def test_vectors_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors must be \[n, 4\], got \[2, 5\]"):
        checked_vectors(unit_vectors(2, 5, 6), dim=4)
    with pytest.raises(ValueError, match=r"vectors must be \[n, dim\], got \[4\]"):
        checked_vectors(np.ones(4, dtype=np.float32))
    with pytest.raises(ValueError, match="kind='tree' is not known"):
        VectorIndex.build(unit_vectors(3, 4, 6), kind="tree")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_index_is_refused(k: int) -> None:
    index = VectorIndex.build(unit_vectors(3, 4, 7))
    with pytest.raises(ValueError, match=f"k={k} is outside 1 to 3"):
        index.search(unit_vectors(1, 4, 8), k)


def test_query_of_another_length_is_refused() -> None:
    index = VectorIndex.build(unit_vectors(3, 4, 9))
    with pytest.raises(ValueError, match=r"queries must be \[n, 4\], got \[1, 5\]"):
        index.search(unit_vectors(1, 5, 9), 1)
    with pytest.raises(ValueError, match="a query vector is not finite"):
        index.search(np.full((1, 4), np.nan, dtype=np.float32), 1)
    with pytest.raises(ValueError, match=r"allowed must be \[3\] booleans, got \[2\]"):
        index.search(unit_vectors(1, 4, 9), 1, allowed=np.ones(2, dtype=bool))


def test_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_faiss(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise ImportError("No module named 'faiss'", name="faiss")
        return real(name, *rest)

    index = VectorIndex.build(unit_vectors(3, 4, 10))
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_faiss)
    with pytest.raises(ImportError, match="faiss is missing: install the extra 'cpu' or 'gpu'"):
        index.search(unit_vectors(1, 4, 10), 1)


class OneGpu:
    """Stands in for FAISS's GPU functions: an index "on the GPU" is one on the processor that counts its searches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copied, self.searches = 0, 0
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", self._to_gpu, raising=False)

    def _to_gpu(self, _: object, device: int, index: Any) -> Any:
        assert device == 0
        self.copied += 1
        outer, search = self, index.search

        def counted(queries: np.ndarray, k: int) -> Any:
            assert k <= 2048  # as FAISS on a GPU
            outer.searches += 1
            return search(queries, k)

        index.search = counted
        return index


@pytest.mark.parametrize("kind", ["flat", "ivf-sq8"])
def test_on_a_gpu_every_vector_is_compared_there_and_the_answers_are_exact(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((3000, 24)).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = vectors[rng.integers(0, 3000, 40)] + np.float32(0.1) * rng.standard_normal(
        (40, 24)
    ).astype("f4")
    parts = [build_segment(vectors[:2000], kind=kind), build_segment(vectors[2000:])]
    alive = rng.random(3000) > 0.1
    index = VectorIndex(parts, dim=24, alive=alive)
    gpu = OneGpu(monkeypatch)
    scanner = GpuScanner()
    scores = (asked.astype(float) @ vectors.astype(float).T).astype(np.float32)
    scores[:, ~alive] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 10, 300):
        found = index.search(asked, k, gpu=scanner)
        np.testing.assert_array_equal(found.rows, expected[:, :k])
    assert gpu.copied == 2 and gpu.searches == 6
    index.search(asked, 900, gpu=scanner)  # more than a GPU gives at once
    index.search(asked, 3, allowed=alive, gpu=scanner)
    assert gpu.searches == 6
    exact = index.search(asked, 900, exact=True, gpu=scanner)
    np.testing.assert_array_equal(exact.rows, expected[:, :900])
    # what nobody searches any more leaves the GPU
    assert len(scanner._held) == 2
    del index, parts
    gc.collect()
    assert len(scanner._held) == 0


def test_without_a_gpu_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(InputError, match="FAISS sees no GPU here; install the extra 'gpu'"):
        GpuScanner()
