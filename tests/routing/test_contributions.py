"""Statistics of contributions against vectors whose norms are taken one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.routing.contributions import (
    cosines,
    expert_norms,
    mean_contributions,
    output_shares,
    rank_agreement,
)

TOKENS, LAYERS, EXPERTS, SIZE = 7, 3, 6, 5


def made(seed: int, k: int = 2):
    """experts, gates and what the experts put out [tokens, layers, k, size]"""
    random = np.random.default_rng(seed)
    experts = np.array(
        [[random.permutation(EXPERTS)[:k] for _ in range(LAYERS)] for _ in range(TOKENS)]
    )
    gates = random.choice([0.25, 0.5, 1.0], (TOKENS, LAYERS, k))
    outputs = random.standard_normal((TOKENS, LAYERS, k, SIZE))
    added = gates[..., None] * outputs
    norms, total = np.linalg.norm(added, axis=3), np.linalg.norm(added.sum(axis=2), axis=2)
    return experts, gates, outputs, added, norms, total


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_shares_and_expert_norms_are_those_of_the_vectors(seed: int, k: int) -> None:
    _, gates, outputs, added, norms, total = made(seed, k)
    shares, before = output_shares(norms, total), expert_norms(norms, gates)
    for place in np.ndindex(norms.shape):
        layer_output = np.linalg.norm(added[place[:2]].sum(axis=0))
        assert shares[place] == pytest.approx(np.linalg.norm(added[place]) / layer_output)
        assert before[place] == pytest.approx(np.linalg.norm(outputs[place]))
    assert (shares.sum(axis=2) >= 1 - 1e-9).all()  # the triangle inequality


@given(st.integers(0, 2**32))
def test_a_cosine_is_that_of_the_two_vectors(seed: int) -> None:
    _, _, _, added, norms, total = made(seed)
    found = cosines(norms, total)
    for t, layer in np.ndindex(found.shape):
        a, b = added[t, layer]
        assert found[t, layer] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_rank_agreement_equals_a_loop_over_pairs(seed: int, k: int) -> None:
    _, gates, _, _, norms, _ = made(seed, k)
    found = rank_agreement(norms, gates)
    for layer in range(LAYERS):
        alike = otherwise = 0
        for t in range(TOKENS):
            for i in range(k):
                for j in range(i + 1, k):
                    product = (norms[t, layer, i] - norms[t, layer, j]) * (
                        gates[t, layer, i] - gates[t, layer, j]
                    )
                    alike += product > 0
                    otherwise += product < 0
        if alike + otherwise:
            assert found[layer] == pytest.approx((alike - otherwise) / (alike + otherwise))
        else:
            assert np.isnan(found[layer])
    np.testing.assert_array_equal(rank_agreement(norms, norms), 1.0)
    np.testing.assert_array_equal(rank_agreement(norms, -norms), -1.0)
    assert np.isnan(rank_agreement(norms, np.ones_like(gates))).all()


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_the_mean_of_an_expert_is_over_where_it_was_chosen(seed: int, k: int) -> None:
    experts, _, _, _, norms, _ = made(seed, k)
    found = mean_contributions(experts.astype(np.uint8), norms.astype(np.float16), EXPERTS + 1)
    for layer in range(LAYERS):
        for expert in range(EXPERTS + 1):
            of = norms.astype(np.float16)[:, layer][experts[:, layer] == expert].astype(float)
            wanted = of.mean() if len(of) else np.nan
            np.testing.assert_allclose(found[layer, expert], wanted, rtol=1e-12)


def test_what_adds_nothing_has_no_share_angle_or_norm_and_takes_no_part_in_an_order() -> None:
    nothing, gates = np.array([[[0.0, 2.0]]]), np.array([[[0.0, 1.0]]])
    assert np.isnan(output_shares(np.zeros((1, 1, 2)), np.zeros((1, 1)))).all()
    assert np.isnan(cosines(nothing, np.array([[2.0]]))).all()
    before = expert_norms(nothing, gates)
    np.testing.assert_array_equal(before, [[[np.nan, 2.0]]])
    assert np.isnan(rank_agreement(before, gates)).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    three = np.ones((4, 2, 3))
    with pytest.raises(ValueError, match=r"must be \[tokens, layers, k\], got \[4, 2\]"):
        output_shares(np.ones((4, 2)), np.ones(4))
    with pytest.raises(ValueError, match=r"output_norms \[4, 3\] should be \[4, 2\]"):
        output_shares(three, np.ones((4, 3)))
    with pytest.raises(ValueError, match="between two experts, contributions has 3 a token"):
        cosines(three, np.ones((4, 2)))
    with pytest.raises(
        ValueError, match=r"gate_weights must be \[tokens, layers, k\], got \[4, 2\]"
    ):
        expert_norms(three, np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"scores \[1, 2, 3\] should be"):
        rank_agreement(three, three[:1])
    with pytest.raises(ValueError, match="expert 9 named, but there are 4"):
        mean_contributions(np.full((4, 2, 3), 9), three, 4)
