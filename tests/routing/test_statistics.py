from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from workbench.routing.statistics import (
    balance,
    balance_loss,
    effective_experts,
    effective_experts_by_segment,
    entropy_bits,
    shannon_bits,
    uniform_usage,
)
from workbench.routing.trace import example_trace

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9))
counts_of_layers = arrays(np.int64, shapes, elements=st.integers(0, 50)).filter(
    lambda counts: (counts.sum(axis=1) > 0).all()
)


@given(counts_of_layers)
def test_balance_is_what_the_definitions_say(counts: np.ndarray) -> None:
    found = balance(counts)
    experts = counts.shape[1]
    for layer, row in enumerate(counts):
        share = [Fraction(int(n), int(row.sum())) for n in row]
        assert found.entropy[layer] == pytest.approx(stats.entropy(row, base=2), abs=1e-12)
        assert found.cv[layer] == pytest.approx(stats.variation(row), abs=1e-12)
        assert found.max_violation[layer] == pytest.approx(float(max(share) * experts - 1))
        # Gini: the mean absolute difference of all pairs over twice the mean
        pairs = sum(abs(a - b) for a in share for b in share)
        assert found.gini[layer] == pytest.approx(float(pairs / (2 * experts)))
        assert found.dead[layer] == sum(n == 0 for n in row)
        assert found.rare[layer] == sum(s < Fraction(1, 10 * experts) for s in share)
        assert 1 <= found.effective_experts[layer] <= experts + 1e-9
        assert found.entropy[layer] <= found.entropy_corrected[layer] + 1e-12
    assert list(found.to_frame().columns)[:2] == ["entropy", "entropy_corrected"]
    assert len(found.to_frame()) == len(counts)


def test_the_correction_takes_most_of_the_bias_away() -> None:
    generator = np.random.default_rng(0)
    share = generator.dirichlet(np.ones(16))
    truth = stats.entropy(share, base=2)
    drawn = generator.multinomial(60, share, size=2000)
    plain = entropy_bits(drawn, correct=False).mean() - truth
    corrected = entropy_bits(drawn, correct=True).mean() - truth
    assert plain < -0.08 and abs(corrected) < 0.25 * abs(plain)


def test_even_use_is_even() -> None:
    found = balance(np.full((2, 16), 7))
    assert found.entropy.tolist() == [4.0, 4.0] and np.allclose(found.effective_experts, 16)
    assert not found.gini.any() and not found.cv.any() and np.allclose(found.max_violation, 0)
    assert uniform_usage(16, 2) == 0.125


def test_entropy_of_any_distribution() -> None:
    assert shannon_bits(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).tolist() == [1.0, 0.0]


def test_the_balance_loss_is_that_of_transformers_layer_by_layer() -> None:
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    generator = np.random.default_rng(1)
    logits = generator.standard_normal((40, 8)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen = np.argsort(-logits, axis=1)[:, :2]
    counts = np.bincount(chosen.reshape(-1), minlength=8)[None]
    theirs = load_balancing_loss_func((torch.from_numpy(logits),), num_experts=8, top_k=2)
    ours = balance_loss(counts, probabilities.mean(axis=0)[None], k=2)
    assert ours[0] == pytest.approx(float(theirs) / 2, rel=1e-5)  # theirs sums over the k choices


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((1, 3), int), "without any routed token"),
        (np.array([[1, -1]]), "a count is negative"),
        (np.ones(3, int), r"counts must be \[layers, experts\]"),
    ],
)
def test_what_cannot_be_described_is_refused(counts: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balance(counts)


def test_a_loss_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        balance_loss(np.ones((2, 4), int), np.ones((1, 4)), k=2)
    with pytest.raises(ValueError, match="k=0"):
        balance_loss(np.ones((1, 4), int), np.ones((1, 4)), k=0)


def drawn_in_clusters(
    share: np.ndarray, *, clusters: int, tokens: int, concentration: float, seed: int
) -> np.ndarray:
    """Choices [clusters * tokens, 1, 1] of clusters that each have their own shares, `share` on average."""
    generator = np.random.default_rng(seed)
    own = generator.dirichlet(concentration * share, size=clusters)
    return np.concatenate([generator.choice(len(share), tokens, p=p) for p in own])[:, None, None]


def test_the_interval_holds_the_true_number_as_often_as_it_says() -> None:
    share = np.arange(1, 9) / 36
    truth = 2 ** stats.entropy(share, base=2)
    clusters = np.repeat(np.arange(40), 20)
    held = 0
    for seed in range(300):
        experts = drawn_in_clusters(share, clusters=40, tokens=20, concentration=8, seed=seed)
        found = effective_experts(experts, clusters, n_experts=8, resamples=400, seed=seed)
        held += found.low[0] <= truth <= found.high[0]
    assert 0.90 <= held / 300 <= 0.98


def test_clusters_that_are_alike_within_widen_the_interval() -> None:
    share = np.arange(1, 9) ** 2 / 204
    clusters = np.repeat(np.arange(30), 20)
    alike = drawn_in_clusters(share, clusters=30, tokens=20, concentration=1, seed=1)
    whole = effective_experts(alike, clusters, n_experts=8)
    single = effective_experts(alike, np.arange(600), n_experts=8)
    assert (whole.high - whole.low)[0] > 1.5 * (single.high - single.low)[0]
    assert (
        whole.number == single.number == balance(np.bincount(alike.ravel())[None]).effective_experts
    )


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 3))
def test_an_interval_lies_between_one_expert_and_all(seed: int, clusters: int, layers: int) -> None:
    generator = np.random.default_rng(seed)
    experts = generator.integers(0, 5, (30, layers, 2))
    found = effective_experts(
        experts, generator.integers(0, clusters, 30), n_experts=5, resamples=20
    )
    if found.clusters == 1:
        assert np.isnan(found.low).all() and np.isnan(found.high).all()
    else:
        assert (1 - 1e-9 <= found.low).all() and (found.high <= 5 + 1e-9).all()
        assert (found.low <= found.high).all()
    assert found.number.shape == found.low.shape == found.high.shape == (layers,)


def test_more_confidence_is_a_wider_interval() -> None:
    experts = np.random.default_rng(0).integers(0, 4, (200, 1, 1)) ** 2 // 3
    widths = []
    for confidence in (0.5, 0.95):
        found = effective_experts(experts, np.arange(200) // 5, n_experts=4, confidence=confidence)
        widths.append(found.high[0] - found.low[0])
    assert widths[0] < widths[1]


def test_segments_have_the_effective_experts_of_their_own_counts() -> None:
    generator = np.random.default_rng(0)
    tokens = 90
    trace = replace(
        example_trace(),
        experts=generator.integers(0, 4, (tokens, 2, 2)).astype(np.uint8),
        gate_weights=None,
        token_ids=np.arange(tokens),
        token_texts=("a",) * tokens,
        phases=np.zeros(tokens, np.uint8),
        segments=(np.arange(tokens) // 20).clip(max=3).astype(np.int16),
        segment_names=("question", "evidence 1", "evidence 2", "answer", "system"),
        spans=np.zeros((tokens, 2), np.int32),
        routed=np.arange(tokens) < 85,
    )
    found = effective_experts_by_segment(trace, block_tokens=8)
    assert list(found) == ["question", "evidence", "answer"]
    for name, one in found.items():
        np.testing.assert_array_equal(one.number, balance(trace.counts(name)).effective_experts)
    assert [(f.tokens, f.clusters) for f in found.values()] == [(20, 3), (40, 5), (25, 4)]


def test_what_no_interval_can_be_made_of_is_refused() -> None:
    experts = np.zeros((4, 1, 1), int)
    with pytest.raises(ValueError, match=r"clusters \[3\] must have one row for each of 4 tokens"):
        effective_experts(experts, np.arange(3), n_experts=2)
    with pytest.raises(ValueError, match="confidence=95 is outside"):
        effective_experts(experts, np.arange(4), n_experts=2, confidence=95)
    with pytest.raises(ValueError, match="block_tokens=0"):
        effective_experts_by_segment(example_trace(), block_tokens=0)
