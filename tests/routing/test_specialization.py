"""Oracles: scipy's Jensen-Shannon distance, and planted routers of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from workbench.routing.specialization import jensen_shannon_bits, specialization

TOKENS, LAYERS, EXPERTS = 1200, 2, 8


def _planted(kind: str, seed: int = 0):
    """Tokens of 40 documents in two groups with partly different words, routed by the word or by the group."""
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(40), TOKENS // 40)
    groups = documents % 2
    words = rng.integers(0, 30, TOKENS) + 10 * groups  # 10 to 29 are common
    experts = rng.integers(0, EXPERTS, (TOKENS, LAYERS, 2))
    if kind == "word":
        experts[:, 1, 0] = words // 5
    if kind == "group":
        experts[:, 1, 0] = np.where(rng.random(TOKENS) < 0.5, groups, experts[:, 1, 0])
    return experts, groups, documents, words


def test_divergence_of_two_groups_is_the_square_of_scipys_distance() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 50, (2, 3, 6)).astype(float)
    theirs = [jensenshannon(counts[0, layer], counts[1, layer], base=2) ** 2 for layer in range(3)]
    assert jensen_shannon_bits(counts) == pytest.approx(theirs)


def test_divergence_is_nothing_for_equal_usage_and_log2_of_the_groups_at_most() -> None:
    same = np.tile(np.arange(1.0, 7.0), (3, 1, 1))
    assert jensen_shannon_bits(same) == pytest.approx([0.0])
    apart = np.eye(4)[:, None, :]
    assert jensen_shannon_bits(apart) == pytest.approx([2.0])


def test_routing_by_group_is_found_above_both_nulls() -> None:
    experts, groups, documents, words = _planted("group")
    for labels, whole in ((documents, True), (words, False)):
        found = specialization(
            experts, groups, exchangeable=labels, n_experts=EXPERTS, whole=whole, permutations=200
        )
        assert found.p_values[1] < 0.01
        assert found.p_values[0] > 0.01
        assert found.excess_bits[1] > 0.05


def test_routing_by_word_alone_is_explained_by_the_words() -> None:
    experts, groups, documents, words = _planted("word")
    by_document = specialization(
        experts, groups, exchangeable=documents, n_experts=EXPERTS, whole=True, permutations=200
    )
    by_word = specialization(
        experts, groups, exchangeable=words, n_experts=EXPERTS, whole=False, permutations=200
    )
    assert by_document.p_values[1] < 0.01  # the groups have other words, so other experts
    assert by_word.p_values[1] > 0.01
    assert abs(by_word.excess_bits[1]) < 0.01


def test_false_discoveries_are_as_rare_as_promised() -> None:
    below = [
        specialization(
            *_planted("none", seed)[:2],
            exchangeable=_planted("none", seed)[3],
            n_experts=EXPERTS,
            whole=False,
            permutations=39,
        ).p_values
        <= 0.05
        for seed in range(60)
    ]
    assert np.mean(below) <= 0.10  # 120 tests at 5 %: more than 10 % in one run of a hundred


def test_shuffles_are_the_same_for_the_same_seed() -> None:
    experts, groups, _, words = _planted("none")
    first, again = (
        specialization(
            experts, groups, exchangeable=words, n_experts=EXPERTS, whole=False, permutations=5
        )
        for _ in range(2)
    )
    assert np.array_equal(first.null_bits, again.null_bits)


def test_wrong_arguments_are_named() -> None:
    experts, groups, documents, words = _planted("none")
    with pytest.raises(ValueError, match="more than one group"):
        specialization(experts, groups, exchangeable=words, n_experts=EXPERTS, whole=True)
    with pytest.raises(ValueError, match=r"groups \[3\] must have one row for each of 1200 tokens"):
        specialization(experts, groups[:3], exchangeable=words, n_experts=EXPERTS, whole=False)
    with pytest.raises(ValueError, match="no usage to compare"):
        jensen_shannon_bits(np.zeros((2, 1, 4)))
    assert len(documents) == TOKENS
