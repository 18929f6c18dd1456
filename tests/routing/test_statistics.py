from __future__ import annotations

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
    entropy_bits,
    shannon_bits,
    uniform_usage,
)

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
