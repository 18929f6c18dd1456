"""Oracles: counting loops, planted routers of which the truth is known, scipy's odds ratio, hand-written pieces."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.routing.vocabulary import (
    TOKEN_CLASSES,
    token_classes,
    top_tokens,
    vocabulary_specialization,
)

EXPERTS = 6


@st.composite
def texts_routed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Experts [tokens, layers, k] and token ids [tokens] of few words."""
    tokens, layers, k = draw(st.integers(1, 25)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    experts = generator.random((tokens, layers, EXPERTS)).argsort(axis=2)[:, :, :k]
    return experts.astype(np.uint8), generator.choice([3, 70, 31_999], tokens)


def planted(tokens: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Layer 0 is routed by this token, layer 1 by the next, layer 2 by nothing; forty words."""
    generator = np.random.default_rng(0)
    words = generator.integers(0, 40, tokens)
    experts = generator.integers(0, EXPERTS, (tokens, 3, 1))
    experts[:, 0, 0] = words % EXPERTS
    experts[:-1, 1, 0] = words[1:] % EXPERTS
    return experts.astype(np.uint8), words


@settings(deadline=None)
@given(texts_routed(), st.integers(1, 6), st.floats(0.5, 50))
def test_share_is_what_the_formula_says(made, min_count: int, strength: float) -> None:
    experts, words = made
    found = vocabulary_specialization(
        experts, words, n_experts=EXPERTS, min_count=min_count, prior_strength=strength
    )
    often = [w for w in sorted(set(words.tolist())) if (words == w).sum() >= min_count]
    assert found.token_ids.tolist() == often and found.total == len(words)
    for row, word in enumerate(often):
        own = experts[words == word]
        assert found.tokens[row] == len(own)
        for layer, expert in product(range(experts.shape[1]), range(EXPERTS)):
            chosen = int((own[:, layer] == expert).sum())
            usage = (experts[:, layer] == expert).sum() / len(experts)
            assert found.chosen[row, layer, expert] == chosen
            assert found.share[row, layer, expert] == pytest.approx(
                (chosen + strength * usage) / (len(own) + strength), rel=1e-5
            )


@settings(deadline=None)
@given(texts_routed())
def test_shares_of_a_word_sum_to_k(made) -> None:
    experts, words = made
    found = vocabulary_specialization(experts, words, n_experts=EXPERTS, min_count=1)
    assert found.share.sum(axis=2) == pytest.approx(experts.shape[2], rel=1e-5)
    assert found.chosen.sum(axis=(0, 2)).tolist() == [experts[:, 0].size] * experts.shape[1]


def test_a_rare_word_is_drawn_further_to_the_layer_than_a_frequent_one() -> None:
    experts, words = planted()
    words = np.where((words == 6) & (np.cumsum(words == 6) > 12), 40, words)
    found = vocabulary_specialization(experts, words, n_experts=EXPERTS)
    rare, frequent = (found.token_ids.tolist().index(word) for word in (6, 12))
    assert found.tokens[rare] == 12 and found.tokens[frequent] > 100
    assert 0.5 < found.share[rare, 0, 0] < 0.7 < 0.9 < found.share[frequent, 0, 0] < 1.0


@pytest.mark.parametrize("shift", [0, 1])
def test_the_word_counted_is_the_one_that_the_caller_aligns(shift: int) -> None:
    experts, words = planted()
    rows = len(words) - shift
    found = vocabulary_specialization(experts[:rows], words[shift:], n_experts=EXPERTS)
    own = np.take_along_axis(found.share, found.token_ids[:, None, None] % EXPERTS, axis=2)[..., 0]
    assert (own[:, shift] > 0.9).all()
    assert (own[:, 1 - shift] < 0.4).all() and (own[:, 2] < 0.4).all()


def test_top_tokens_are_the_words_that_a_router_sends_to_the_expert() -> None:
    experts, words = planted()
    found = vocabulary_specialization(experts, words, n_experts=EXPERTS)
    top = top_tokens(found, layer=0, expert=4, n=6)
    assert sorted(t.token_id for t in top) == [4, 10, 16, 22, 28, 34]
    assert all(t.chosen == t.tokens and t.z > 5 for t in top)
    assert [t.z for t in top] == sorted((t.z for t in top), reverse=True)
    assert len(top_tokens(found, layer=0, expert=4, n=100)) == 6  # of others it took none
    by_chance = top_tokens(found, layer=2, expert=4, n=100)
    assert by_chance[0].z < 4 and all(t.z > 0 for t in by_chance)


def test_z_is_the_odds_ratio_of_scipy_over_its_error() -> None:
    from scipy.stats.contingency import odds_ratio

    experts, words = planted()
    found = vocabulary_specialization(experts, words, n_experts=EXPERTS, prior_strength=1e-9)
    for token in top_tokens(found, layer=2, expert=1, n=3):
        took, all_took = token.chosen, int((experts[:, 2] == 1).sum())
        table = np.array(
            [[took, token.tokens - took], [all_took - took, 6000 - all_took - token.tokens + took]]
        )
        ratio = odds_ratio(table, kind="sample").statistic
        assert token.z == pytest.approx(np.log(ratio) / np.sqrt((1 / table).sum()), rel=1e-5)


def test_words_with_few_tokens_still_weigh_in_the_usage_of_the_layer() -> None:
    experts = np.array([0] * 12 + [1] * 36)[:, None, None]
    words = np.array([5] * 12 + list(range(100, 136)))
    found = vocabulary_specialization(experts, words, n_experts=2, prior_strength=4.0)
    assert found.token_ids.tolist() == [5] and found.usage.tolist() == [[0.25, 0.75]]
    assert found.share[0, 0, 0] == pytest.approx((12 + 4 * 0.25) / 16)
    (token,) = top_tokens(found, layer=0, expert=0)
    own, rest = (
        (13, 3),
        (1, 39),
    )  # with 4 tokens, a quarter of them taken, added to 12, 0 and to 0, 36
    error = np.sqrt(sum(1 / n for n in (*own, *rest)))
    assert token.z == pytest.approx((np.log(13 / 3) - np.log(1 / 39)) / error)


def test_an_expert_that_was_never_chosen_takes_no_word() -> None:
    found = vocabulary_specialization(np.zeros((20, 1, 1), int), np.zeros(20, int), n_experts=2)
    assert top_tokens(found, layer=0, expert=0) == top_tokens(found, layer=0, expert=1) == ()


def test_no_word_may_be_frequent_enough() -> None:
    found = vocabulary_specialization(np.zeros((3, 2, 1), int), np.arange(3), n_experts=4)
    assert found.share.shape == (0, 2, 4) and top_tokens(found, layer=1, expert=0) == ()
    assert "0 words × 2 layers × 4 experts, 0 of 3 tokens" in repr(found)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("control or space", ["<|end|>", "<s>", "</s>", "<unk>", "▁", "ĠĠ", "\n", "<0x0A>", "", "\u200b"]),
        ("punctuation or symbol", [".", "▁(", "Ġ—", "<0x2C>", "€", "+=", "<", "|>", "‚…", "_"]),
        ("digits", ["7", "▁1984", "½", "٣", "3rd", "(4)", "²"]),
        ("capitalised", ["The", "▁USA", "ĠÉcole", "X2", "'S", "ǅ", "<0x41>"]),
        ("lower case", ["ing", "▁über", "Ġstraße", "n't", "iPhone", "ﬁn", "<b>"]),
        ("other script", ["где", "▁Где", "漢", "الم", "λ", "<0xE2>", "ा", "한"]),
    ],
)  # fmt: skip
def test_pieces_have_the_class_of_their_first_letter(name: str, pieces: list[str]) -> None:
    assert [TOKEN_CLASSES[n] for n in token_classes(pieces)] == [name] * len(pieces)


@given(st.lists(st.text(max_size=6), max_size=8))
def test_every_text_has_a_class_and_a_space_before_it_changes_none(texts: list[str]) -> None:
    found = token_classes(texts)
    assert found.dtype == np.uint8 and found.shape == (len(texts),)
    assert (found < len(TOKEN_CLASSES)).all()
    plain = [text for text in texts if "<" not in text]
    assert token_classes(["▁" + t for t in plain]).tolist() == token_classes(plain).tolist()


def test_wrong_arguments_are_named() -> None:
    experts, words = planted(50)
    with pytest.raises(ValueError, match=r"token_ids \[4\] must have one row for each of 50"):
        vocabulary_specialization(experts, words[:4], n_experts=EXPERTS)
    with pytest.raises(ValueError, match="min_count=0"):
        vocabulary_specialization(experts, words, n_experts=EXPERTS, min_count=0)
    with pytest.raises(ValueError, match="prior_strength=0 must be above 0"):
        vocabulary_specialization(experts, words, n_experts=EXPERTS, prior_strength=0)
    with pytest.raises(ValueError, match="but there are 2 experts"):
        vocabulary_specialization(experts, words, n_experts=2)
    found = vocabulary_specialization(experts, words, n_experts=EXPERTS, min_count=1)
    with pytest.raises(ValueError, match="layer=3, expert=0: there are layers 0 to 2"):
        top_tokens(found, layer=3, expert=0)
    with pytest.raises(ValueError, match="n=0"):
        top_tokens(found, layer=0, expert=0, n=0)
