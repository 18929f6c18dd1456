"""Oracles: scipy's Jensen-Shannon and cosine distances, loops over words, answers of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, jensenshannon

from workbench.routing.distances import evidence_affinity, routing_distances

EXPERTS = 6


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))
def test_distances_are_those_of_scipy_for_every_pair(runs: int, layers: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, (runs, layers, EXPERTS))
    counts[:, :, 0] += 1
    found = routing_distances(counts)
    for layer, one, other in np.ndindex(layers, runs, runs):
        x, y = counts[one, layer], counts[other, layer]
        bits = np.nan_to_num(jensenshannon(x, y, base=2)) ** 2
        assert found.bits_by_layer[layer, one, other] == pytest.approx(bits, abs=1e-9)
        assert found.cosine_by_layer[layer, one, other] == pytest.approx(1 - cosine(x, y))
    np.testing.assert_allclose(found.bits, found.bits_by_layer.mean(axis=0))
    np.testing.assert_allclose(found.cosine, found.cosine_by_layer.mean(axis=0))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32))
def test_distances_are_symmetric_and_a_run_is_not_far_from_itself(runs: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, (runs, 2, EXPERTS)) + 1
    found = routing_distances(counts)
    assert (found.bits == found.bits.T).all() and (np.diag(found.bits) == 0).all()
    np.testing.assert_allclose(found.cosine, found.cosine.T, atol=1e-12)
    assert np.diag(found.cosine) == pytest.approx(1.0)
    assert (found.bits >= 0).all() and (found.bits <= 1).all() and (found.cosine <= 1).all()


def test_length_does_not_matter() -> None:
    counts = np.random.default_rng(0).integers(1, 9, (3, 2, EXPERTS))
    longer = routing_distances(counts * np.array([1, 10, 1000])[:, None, None])
    np.testing.assert_allclose(longer.bits, routing_distances(counts).bits, atol=1e-12)
    np.testing.assert_allclose(longer.cosine, routing_distances(counts).cosine, atol=1e-12)
    assert repr(longer) == "RoutingDistances(3 runs, 2 layers; next: .bits, .cosine)"


def answered(by: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Four sources of the same words and an answer, whose routing is that of source 2 or of its words alone."""
    generator = np.random.default_rng(seed)
    sources = np.append(np.repeat([0, 1, 2, 3, -1], 300), np.full(300, -1))
    is_answer = np.arange(1800) >= 1500
    words = generator.integers(0, 20, 1800)
    if by == "word":  # source 2 has few words, and the answer the same
        words[(sources == 2) | is_answer] = generator.choice([0, 1, 6, 7, 12, 13], 600)
    experts = np.stack([generator.permutation(EXPERTS)[words % EXPERTS] for _ in range(3)], axis=1)
    noise = generator.integers(0, EXPERTS, experts.shape)
    experts = np.where(generator.random(experts.shape) < 0.3, noise, experts)
    if by == "source":
        alike = ((sources == 2) | is_answer) & (generator.random(1800) < 0.5)
        experts[alike] = np.array([1, 4, 2])
    return {
        "experts": experts[:, :, None], "sources": sources, "is_answer": is_answer, "token_ids": words
    }  # fmt: skip


def test_a_source_routed_like_the_answer_stands_out() -> None:
    found = evidence_affinity(**answered("source"), n_sources=4, n_experts=EXPERTS)
    assert found.excess.argmax() == 2 and found.excess[2] > 0.1
    assert (found.excess[[0, 1, 3]] < 0).all()
    assert found.tokens.tolist() == [300] * 4


def test_a_source_whose_words_are_those_of_the_answer_does_not() -> None:
    found = evidence_affinity(**answered("word"), n_sources=4, n_experts=EXPERTS)
    assert found.observed.argmax() == 2 and np.ptp(found.observed) > 0.1
    assert np.abs(found.excess).max() < 0.02


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_affinity_is_the_cosine_less_that_of_shuffled_sources_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    experts = generator.random((30, 2, EXPERTS)).argsort(axis=2)[:, :, :2]
    sources, words = generator.integers(-1, 3, 30), generator.integers(0, 6, 30)
    is_answer = (sources < 0) & (np.arange(30) % 2 == 0)
    sources[0], is_answer[0], sources[1], is_answer[1] = -1, True, 0, False
    found = evidence_affinity(
        experts, sources, is_answer=is_answer, token_ids=words, n_sources=3, n_experts=EXPERTS,
        permutations=1000,
    )  # fmt: skip
    chose = (experts[..., None] == np.arange(EXPERTS)).any(axis=2).astype(float)  # one-hot
    for source in range(3):
        own = sources == source
        if not own.any():
            assert np.isnan(found.observed[source]) and np.isnan(found.expected[source])
            continue
        answer = chose[is_answer].mean(axis=0)

        def alike(rows, answer=answer):
            usage = chose[rows].mean(axis=0)
            return np.mean([1 - cosine(usage[la], answer[la]) for la in range(2)])

        assert found.observed[source] == pytest.approx(alike(own))
        null = []
        for _ in range(300):
            labels = sources.copy()
            for word in range(6):
                same = np.flatnonzero((sources >= 0) & (words == word))
                labels[same] = generator.permutation(sources[same])
            null.append(alike(labels == source))
        assert found.expected[source] == pytest.approx(np.mean(null), abs=0.02)
        assert found.low[source] <= found.expected[source] <= found.high[source]
    np.testing.assert_array_equal(found.excess, found.observed - found.expected)


def test_a_short_source_is_not_called_less_alike_for_its_length() -> None:
    excess = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        sources = np.repeat([0, 1, 2, -1], [15, 60, 240, 60])
        words = generator.integers(0, 8, len(sources))
        # the word decides, and nothing else
        experts = np.where(generator.random(len(sources)) < 0.6, words % EXPERTS, 0)
        found = evidence_affinity(
            experts[:, None, None], sources, is_answer=sources < 0, token_ids=words, n_sources=3,
            n_experts=max(EXPERTS, 8), permutations=100, seed=seed,
        )  # fmt: skip
        excess.append(found.excess)
    assert np.abs(np.mean(excess, axis=0)).max() < 0.02


def test_a_frame_has_one_row_per_source() -> None:
    found = evidence_affinity(**answered("source"), n_sources=5, n_experts=EXPERTS)
    frame = found.to_frame()
    assert list(frame) == ["source", "tokens", "observed", "expected", "low", "high", "excess"]
    assert frame.excess[2] == found.excess[2] and np.isnan(frame.excess[4])
    assert "5 sources, 1200 tokens" in repr(found)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[runs, layers, experts\], got \[2, 3\]"):
        routing_distances(np.ones((2, 3)))
    with pytest.raises(ValueError, match="no routed token in some layer"):
        routing_distances(np.array([[[1, 1], [0, 0]]]))
    with pytest.raises(ValueError, match="negative"):
        routing_distances(np.array([[[1, -1]]]))
    made = answered("source")
    options = {"n_sources": 4, "n_experts": EXPERTS}
    with pytest.raises(ValueError, match="of a source and of the answer"):
        evidence_affinity(**{**made, "is_answer": made["sources"] >= 0}, **options)
    with pytest.raises(ValueError, match="0 routed tokens of the answer and 1200 of sources"):
        evidence_affinity(**{**made, "is_answer": np.zeros(1800, bool)}, **options)
    with pytest.raises(ValueError, match="300 routed tokens of the answer and 0 of sources"):
        evidence_affinity(**{**made, "sources": np.full(1800, -1)}, **options)
    with pytest.raises(ValueError, match="source 3 named, but there are 2 sources"):
        evidence_affinity(**made, n_sources=2, n_experts=EXPERTS)
    with pytest.raises(ValueError, match=r"token_ids \[5\] must have"):
        evidence_affinity(**{**made, "token_ids": np.arange(5)}, **options)
