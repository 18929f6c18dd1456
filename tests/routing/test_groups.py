"""Oracles: counting loops, the mean of very many shuffles, scikit-learn's mutual information, a hand-worked table."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.routing.groups import expected_usage, group_usage, log_odds
from workbench.routing.statistics import group_counts, weighted_counts

EXPERTS = 6


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts [tokens, layers, k], a group of three and a word of four for each token."""
    tokens, layers, k = draw(st.integers(1, 14)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    experts = generator.random((tokens, layers, EXPERTS)).argsort(axis=2)[:, :, :k]
    return (
        experts.astype(np.uint8),
        generator.integers(0, 3, tokens),
        generator.integers(40, 44, tokens),
    )


def planted(
    by: str, tokens: int = 4000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two groups with partly different words; the second layer is routed by the word or by the group."""
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 2, tokens)
    words = generator.integers(0, 20, tokens) + 8 * groups
    experts = generator.random((tokens, 2, EXPERTS)).argsort(axis=2)[:, :, :1].astype(np.uint8)
    if by == "word":
        experts[:, 1, 0] = words % EXPERTS
    if by == "group":
        experts[:, 1, 0] = np.where(generator.random(tokens) < 0.4, groups, experts[:, 1, 0])
    return experts, groups, words


@settings(deadline=None)
@given(labelled())
def test_usage_is_the_share_of_a_groups_tokens(made) -> None:
    experts, groups, words = made
    found = group_usage(experts, groups, n_groups=3, n_experts=EXPERTS, token_ids=words)
    for group, layer, expert in product(range(3), range(experts.shape[1]), range(EXPERTS)):
        own = [token for token, g in zip(experts, groups, strict=True) if g == group]
        assert found.tokens[group] == len(own)
        if own:
            share = sum(expert in token[layer].tolist() for token in own) / len(own)
            assert found.usage[group, layer, expert] == pytest.approx(share)
            assert found.lift[group, layer, expert] == pytest.approx(
                share * EXPERTS / experts.shape[2]
            )
        else:
            assert np.isnan(found.usage[group, layer, expert])
            assert np.isnan(found.expected[group, layer, expert])


@settings(deadline=None)
@given(labelled())
def test_usage_and_expected_rows_sum_to_k(made) -> None:
    experts, groups, words = made
    found = group_usage(experts, groups, n_groups=3, n_experts=EXPERTS, token_ids=words)
    has = found.tokens > 0
    assert found.usage[has].sum(axis=2) == pytest.approx(experts.shape[2])
    assert found.expected[has].sum(axis=2) == pytest.approx(experts.shape[2])


@settings(deadline=None)
@given(labelled())
def test_expected_usage_is_the_sum_over_words(made) -> None:
    experts, groups, words = made
    found = expected_usage(experts, groups, words, n_groups=3, n_experts=EXPERTS)
    for group in np.unique(groups):
        for layer, expert in product(range(experts.shape[1]), range(EXPERTS)):
            total = 0.0
            for word in np.unique(words):
                own = (words == word) & (groups == group)
                chose = (experts[words == word, layer] == expert).any(axis=1)
                total += own.sum() / (groups == group).sum() * chose.mean()
            assert found[group, layer, expert] == pytest.approx(total)


def test_expected_usage_is_the_mean_over_all_shuffles_within_words() -> None:
    generator = np.random.default_rng(5)
    experts = generator.integers(0, 4, (7, 2, 1))
    groups, words = np.array([0, 0, 1, 1, 0, 1, 1]), np.array([8, 8, 8, 8, 9, 9, 9])
    usages = []
    for first, second in product(permutations(groups[:4]), permutations(groups[4:])):
        counts = group_counts(experts, np.array(first + second), n_groups=2, n_experts=4)
        usages.append(counts / np.bincount(groups)[:, None, None])
    found = expected_usage(experts, groups, words, n_groups=2, n_experts=4)
    np.testing.assert_allclose(found, np.mean(usages, axis=0), atol=1e-12)


def test_many_words_are_added_up_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, groups, words = planted("group")
    whole = expected_usage(experts, groups, words, n_groups=2, n_experts=EXPERTS)
    monkeypatch.setattr("workbench.routing.groups._AT_ONCE", 5)
    blocks = expected_usage(experts, groups, words, n_groups=2, n_experts=EXPERTS)
    np.testing.assert_allclose(blocks, whole, rtol=1e-12)


def test_routing_by_word_alone_is_explained_by_the_words() -> None:
    experts, groups, words = planted("word")
    found = group_usage(experts, groups, n_groups=2, n_experts=EXPERTS, token_ids=words)
    assert found.lift_over_words[:, 1] == pytest.approx(1.0)
    assert np.abs(found.lift[:, 1] - 1).max() > 0.1


def test_routing_by_group_is_left_over() -> None:
    experts, groups, words = planted("group")
    found = group_usage(
        experts, groups, n_groups=2, n_experts=EXPERTS, token_ids=words, permutations=100
    )
    assert found.lift_over_words[0, 1, 0] > 1.2 and found.lift_over_words[1, 1, 1] > 1.2
    assert found.usage[0, 1, 0] > found.high[0, 1, 0] and found.usage[0, 1, 1] < found.low[0, 1, 1]
    assert found.information[1] > 3 * found.information_null[1]
    assert found.information[0] < 2 * found.information_null[0]


def test_the_band_holds_what_is_due_to_words_nineteen_times_in_twenty() -> None:
    outside = []
    for seed in range(20):
        experts, groups, words = planted("none", tokens=600, seed=seed)
        found = group_usage(
            experts, groups, n_groups=2, n_experts=EXPERTS, token_ids=words, permutations=200
        )
        outside.append((found.usage < found.low) | (found.usage > found.high))
    assert 0.01 < np.mean(outside) < 0.09


def test_the_band_is_that_of_shuffles_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, groups, words = planted("group", tokens=200)
    options = {"n_groups": 2, "n_experts": EXPERTS, "token_ids": words, "permutations": 30}
    together = group_usage(experts, groups, **options)
    monkeypatch.setattr("workbench.routing.groups._AT_ONCE", 2)
    apart = group_usage(experts, groups, **options)
    np.testing.assert_array_equal(together.low, apart.low)
    np.testing.assert_array_equal(together.high, apart.high)
    other = group_usage(experts, groups, **options, seed=1)
    assert not np.array_equal(together.low, other.low)
    assert (together.low <= together.expected + 1e-12).mean() > 0.95


def test_information_is_that_of_sklearn() -> None:
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score

    experts, groups, _ = planted("group", tokens=900)
    both = np.concatenate([experts, (experts + 1) % EXPERTS], axis=2)
    found = group_usage(both, groups, n_groups=2, n_experts=EXPERTS).information
    for layer in range(2):
        shared = mutual_info_score(np.repeat(groups, 2), both[:, layer].reshape(-1))
        assert found[layer] == pytest.approx(shared / entropy(np.bincount(groups)))


def test_information_is_one_where_experts_tell_the_group_and_zero_for_one_group() -> None:
    groups = np.array([0, 1, 1, 2])
    options = {"n_groups": 3, "n_experts": 3}
    experts = groups[:, None, None]
    assert group_usage(experts, groups, **options).information == pytest.approx([1.0])
    assert group_usage(experts, np.zeros(4, int), **options).information.tolist() == [0.0]


@settings(deadline=None)
@given(labelled())
def test_weights_of_one_count_as_groups_do(made) -> None:
    experts, groups, _ = made
    counts = group_counts(experts, groups, n_groups=3, n_experts=EXPERTS)
    weights = np.eye(3, dtype=np.float32)[groups]
    assert (weighted_counts(experts, weights, n_experts=EXPERTS) == counts).all()


def test_many_tokens_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, groups, _ = planted("group")
    expected = np.zeros((2, 2, EXPERTS), int)
    np.add.at(expected, (groups[:, None, None], np.arange(2)[None, :, None], experts), 1)
    monkeypatch.setattr("workbench.routing.statistics._BLOCK", 24)
    assert (group_counts(experts, groups, n_groups=2, n_experts=EXPERTS) == expected).all()
    weights = np.stack([groups == 0, groups == 1], axis=1) * 0.5
    found = weighted_counts(experts, weights, n_experts=EXPERTS)
    np.testing.assert_allclose(found, expected * 0.5)


def test_log_odds_are_those_of_the_paper_by_hand() -> None:
    x, y, alpha = [12, 3, 85], [5, 9, 186], [1.0, 0.5, 8.5]
    found = log_odds(np.array(x), np.array(y), prior=np.array(alpha))
    for item in range(3):
        a, b = x[item] + alpha[item], y[item] + alpha[item]
        rest_a, rest_b = 110 - a, 210 - b  # n + α₀ less the item
        expected = (np.log(a / rest_a) - np.log(b / rest_b)) / np.sqrt(
            1 / a + 1 / rest_a + 1 / b + 1 / rest_b
        )
        assert found[item] == pytest.approx(expected)


def test_log_odds_are_normal_by_chance() -> None:
    generator = np.random.default_rng(0)
    share = generator.dirichlet(np.full(16, 4.0))
    x, y = (generator.multinomial(5000, share, size=2000) for _ in range(2))
    z = log_odds(x, y, prior=10 * share)
    assert z.mean() == pytest.approx(0.0, abs=0.05) and z.std() == pytest.approx(1.0, abs=0.05)


@given(
    st.lists(st.integers(0, 1000), min_size=4, max_size=4),
    st.lists(st.integers(0, 1000), min_size=4, max_size=4),
)
def test_log_odds_change_sign_with_the_groups(x, y) -> None:
    one = log_odds(np.array(x), np.array(y), prior=0.5)
    other = log_odds(np.array(y), np.array(x), prior=0.5)
    np.testing.assert_allclose(one, -other, atol=1e-9)


def test_a_frame_has_one_row_per_group_layer_and_expert() -> None:
    experts, groups, words = planted("group", tokens=300)
    found = group_usage(
        experts, groups, n_groups=2, n_experts=EXPERTS, token_ids=words, permutations=9
    )
    frame = found.to_frame(["en", "de"])
    assert len(frame) == 2 * 2 * EXPERTS
    row = frame[(frame.group == "de") & (frame.layer == 1) & (frame.expert == 4)].iloc[0]
    assert row.usage == found.usage[1, 1, 4] and row.tokens == found.tokens[1]
    assert row.lift_over_words == found.lift_over_words[1, 1, 4]
    assert (row.low, row.high) == (found.low[1, 1, 4], found.high[1, 1, 4])
    plain = group_usage(experts, groups, n_groups=2, n_experts=EXPERTS).to_frame("ab")
    assert list(plain) == ["group", "layer", "expert", "tokens", "usage", "lift"]
    assert "2 groups × 2 layers × 6 experts, 300 tokens" in repr(found)


def test_wrong_arguments_are_named() -> None:
    experts, groups, words = planted("none", tokens=50)
    options = {"n_groups": 2, "n_experts": EXPERTS}
    with pytest.raises(ValueError, match=r"groups \[3\] must have one row for each of 50"):
        group_usage(experts, groups[:3], **options)
    with pytest.raises(ValueError, match=r"token_ids \[4\] must have"):
        group_usage(experts, groups, token_ids=words[:4], **options)
    with pytest.raises(ValueError, match="groups run from 2 to 3"):
        group_usage(experts, groups + 2 - groups.min() * 2, **options)
    with pytest.raises(ValueError, match="give token_ids"):
        group_usage(experts, groups, permutations=5, **options)
    with pytest.raises(ValueError, match="but there are 2 experts"):
        group_usage(experts, groups, n_groups=2, n_experts=2)
    with pytest.raises(ValueError, match="no token has chosen"):
        group_usage(experts[:0], groups[:0], **options)
    with pytest.raises(ValueError, match="nothing is known of the words"):
        _ = group_usage(experts, groups, **options).lift_over_words
    with pytest.raises(ValueError, match="3 names for 2 groups"):
        group_usage(experts, groups, **options).to_frame("abc")
    with pytest.raises(ValueError, match="must be above 0"):
        log_odds(np.ones(3), np.ones(3), prior=0.0)
    with pytest.raises(ValueError, match="two items or more"):
        log_odds(np.ones((3, 1)), np.ones((3, 1)), prior=1.0)
    with pytest.raises(ValueError, match="count is negative"):
        log_odds(np.array([-1, 2]), np.ones(2), prior=2.0)
