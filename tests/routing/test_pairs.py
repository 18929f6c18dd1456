from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.routing.pairs import (
    cache_hits,
    coactivation,
    locality,
    seriation,
    transition_information,
    transitions,
)

EXPERTS = 5


@st.composite
def choices(draw: st.DrawFn) -> np.ndarray:
    """Experts [tokens, layers, k], the k of a token all different."""
    tokens, layers, k = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    drawn = generator.random((tokens, layers, EXPERTS)).argsort(axis=2)[:, :, :k]
    return drawn.astype(np.uint8)


@settings(deadline=None)
@given(choices())
def test_coactivation_counts_all_pairs(experts: np.ndarray) -> None:
    found = coactivation(experts, n_experts=EXPERTS)
    for layer in range(experts.shape[1]):
        sets = [set(token[layer].tolist()) for token in experts]
        for i, j in product(range(EXPERTS), repeat=2):
            together = sum(i in s and j in s for s in sets)
            assert found.together[layer, i, j] == together
            n_i, n_j = (sum(e in s for s in sets) for e in (i, j))
            if n_i:
                assert found.conditional()[layer, i, j] == together / n_i
            else:
                assert np.isnan(found.conditional()[layer, i, j])
            if n_i and n_j:
                assert found.lift()[layer, i, j] == pytest.approx(
                    together * len(sets) / (n_i * n_j)
                )
    k = experts.shape[2]
    assert (found.together.sum(axis=(1, 2)) == k * k * len(experts)).all()


def test_lift_of_even_independent_sets_is_what_the_docstring_says() -> None:
    pairs = np.array([[i, j] for i in range(16) for j in range(16) if i != j])
    lift = coactivation(pairs[:, None, :], n_experts=16).lift()[0]
    assert (
        lift[0, 1] == pytest.approx((2 - 1) * 16 / (2 * (16 - 1))) == pytest.approx(0.53, abs=0.01)
    )


@settings(deadline=None)
@given(choices())
def test_transitions_are_conditional_shares(experts: np.ndarray) -> None:
    found = transitions(experts, n_experts=EXPERTS)
    k = experts.shape[2]
    for layer in range(experts.shape[1] - 1):
        for i, j in product(range(EXPERTS), repeat=2):
            after = [token[layer + 1].tolist() for token in experts if i in token[layer]]
            if after:
                assert found[layer, i, j] == pytest.approx(
                    sum(j in s for s in after) / (k * len(after))
                )
            else:
                assert np.isnan(found[layer, i, j])


def test_transition_information_is_that_of_sklearn() -> None:
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score

    generator = np.random.default_rng(0)
    first = generator.integers(0, 4, 500)
    second = np.where(generator.random(500) < 0.5, (first + 1) % 4, generator.integers(0, 4, 500))
    third = np.zeros(500, dtype=int)
    experts = np.stack([first, second, third], axis=1)[:, :, None]
    found = transition_information(experts, n_experts=4)
    expected = mutual_info_score(first, second) / entropy(np.bincount(second))
    assert found[0] == pytest.approx(expected) and found[1] == 0.0


@settings(deadline=None)
@given(choices(), st.integers(0, 2**32))
def test_locality_counts_what_repeats(experts: np.ndarray, seed: int) -> None:
    tokens = len(experts)
    follows = np.random.default_rng(seed).random(tokens) < 0.7
    follows[0] = False
    if not follows.any():
        with pytest.raises(ValueError, match="no token follows another"):
            locality(experts, n_experts=EXPERTS, follows=follows)
        return
    found = locality(experts, n_experts=EXPERTS, follows=follows)
    for layer in range(experts.shape[1]):
        sets = [set(token[layer].tolist()) for token in experts]
        first = [int(token[layer, 0]) for token in experts]
        after = np.flatnonzero(follows)
        assert found.first_repeats[layer] == pytest.approx(
            np.mean([first[t] == first[t - 1] for t in after])
        )
        assert found.any_repeats[layer] == pytest.approx(
            np.mean([bool(sets[t] & sets[t - 1]) for t in after])
        )
        others = [(a, b) for a in range(tokens) for b in range(tokens) if a != b]
        assert found.first_by_chance[layer] == pytest.approx(
            np.mean([first[a] == first[b] for a, b in others])
        )
        assert found.any_by_chance[layer] == pytest.approx(
            np.mean([bool(sets[a] & sets[b]) for a, b in others])
        )


def test_even_use_repeats_as_mixtral_says() -> None:
    found = locality(np.array([[[0, 1]], [[2, 3]]]), n_experts=16)
    assert found.uniform_first == 0.0625 and found.uniform_any == pytest.approx(0.242, abs=1e-3)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5])
def test_a_cache_of_the_last_used_is_what_a_list_would_be(capacity: int) -> None:
    experts = np.random.default_rng(3).integers(0, EXPERTS, (200, 2, 2))
    found = cache_hits(experts, capacity=capacity)
    for layer in range(2):
        held: list[int] = []
        hits = 0
        for expert in experts[:, layer].reshape(-1).tolist():
            hits += expert in held
            held = [*[e for e in held if e != expert], expert][-capacity:]
        assert found[layer] == hits / 400


def test_a_cache_may_hold_more_experts_than_a_number_has_bits() -> None:
    experts = np.random.default_rng(5).integers(0, 150, (400, 1, 2))
    for capacity in (20, 100):
        held: list[int] = []
        hits = 0
        for expert in experts.reshape(-1).tolist():
            hits += expert in held
            held = [*[e for e in held if e != expert], expert][-capacity:]
        assert cache_hits(experts, capacity=capacity).tolist() == [hits / 800]


def test_sets_are_told_apart_where_an_integer_cannot_number_them() -> None:
    """Nine of 256 experts: 2 ** 72 sets. The first two differ in their first expert alone, the third shares that."""
    rest, other = list(range(10, 18)), list(range(20, 28))
    experts = np.array([[0, *rest], [1, *rest], [0, *other]])[:, None, :]
    found = locality(experts, n_experts=256).any_by_chance[0]
    assert found == pytest.approx(2 / 3)  # of three pairs the second and the third do not meet


def test_many_tokens_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = np.random.default_rng(4).random((1000, 2, EXPERTS)).argsort(axis=2)[:, :, :2]
    whole = coactivation(experts, n_experts=EXPERTS).together
    hits = cache_hits(experts, capacity=2)
    monkeypatch.setattr("workbench.routing.pairs._STEPS", 9)
    np.testing.assert_array_equal(cache_hits(experts, capacity=2), hits)
    monkeypatch.setattr("workbench.routing.pairs._BLOCK", 7)
    assert (coactivation(experts, n_experts=EXPERTS).together == whole).all()


def test_what_cannot_be_counted_is_refused() -> None:
    nothing = np.zeros((0, 2, 2), np.uint8)
    for call in (coactivation, transitions, transition_information, locality):
        with pytest.raises(ValueError, match="no token has chosen"):
            call(nothing, n_experts=4)
        with pytest.raises(ValueError, match="expert 9 named, but there are 4"):
            call(np.full((3, 2, 1), 9), n_experts=4)
        with pytest.raises(ValueError, match=r"experts must be \[tokens, layers, k\]"):
            call(np.zeros((3, 2), int), n_experts=4)
    with pytest.raises(ValueError, match="capacity=0"):
        cache_hits(np.zeros((1, 1, 1), int), capacity=0)
    with pytest.raises(ValueError, match="the first token follows none"):
        locality(np.zeros((2, 1, 1), int), n_experts=4, follows=np.array([True, True]))


@given(st.integers(3, 12), st.integers(0, 2**32))
def test_seriation_gives_back_the_order_in_which_likeness_falls_with_distance(
    count: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(count)
    likeness = np.exp(-np.abs(order[:, None] - order[None]) / 3.0)
    found = order[seriation(likeness)].tolist()
    assert found in (list(range(count)), list(range(count))[::-1])


@given(st.integers(2, 4), st.integers(2, 5), st.integers(0, 2**32))
def test_seriation_keeps_groups_together(groups: int, size: int, seed: int) -> None:
    of = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), size))
    ordered = of[seriation((of[:, None] == of[None]) * 1.0)]
    assert (np.diff(ordered) != 0).sum() == groups - 1


def test_seriation_is_an_order_whatever_is_missing() -> None:
    likeness = np.full((5, 5), np.nan)
    assert sorted(seriation(likeness).tolist()) == list(range(5))
    assert seriation(np.ones((2, 2))).tolist() == [0, 1]
    for wrong in (np.ones((2, 3)), np.arange(9.0).reshape(3, 3)):
        with pytest.raises(ValueError, match="n, n"):
            seriation(wrong)
    with pytest.raises(ValueError, match="negative"):
        seriation(-np.ones((3, 3)))
