"""Experts that were set by hand: every statistic, contrast and picture must say of them what was planted.

What is expected is counted from the texts of the tokens and their places alone, never from the routing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import PatchCollection

from workbench.generation.prompts import build_prompt
from workbench.plots.balance import plot_balance
from workbench.plots.conventions import LESS_HATCH, MORE_HATCH, NOTHING_HATCH
from workbench.plots.differences import plot_usage_difference, plot_usage_versus_uniform
from workbench.plots.groups import plot_group_usage, plot_specialization
from workbench.plots.layers import plot_token_layers
from workbench.plots.pairs import plot_coactivation, plot_transitions
from workbench.plots.positions import plot_drift, plot_fragility
from workbench.plots.routing import plot_expert_usage, plot_segment_usage
from workbench.routing.agreement import agreement, weighted_agreement
from workbench.routing.compare import compare_routing
from workbench.routing.contrasts import contrast
from workbench.routing.contributions import cosines, mean_contributions, output_shares
from workbench.routing.distances import evidence_affinity, routing_distances
from workbench.routing.drift import position_drift
from workbench.routing.groups import group_usage, log_odds
from workbench.routing.margins import decisiveness, fragile, margins
from workbench.routing.pairs import cache_hits, coactivation, locality, transitions
from workbench.routing.specialization import specialization
from workbench.routing.statistics import balance, effective_experts_by_segment
from workbench.routing.trace import RoutingTrace
from workbench.routing.vocabulary import (
    TOKEN_CLASSES,
    token_classes,
    top_tokens,
    vocabulary_specialization,
)

pytestmark = pytest.mark.slow  # a minute together

QUESTIONS = (
    "Which valve failed first?",
    "When did the pump trip?",
    "What did the repair cost?",
    "Who sells bread on Fridays?",
    "Is the valve open at 22:47?",
    "How long is bread baked?",
)
EXPERTS, K = 16, 2


@dataclass(frozen=True)
class Read:
    """Tokens of some prompts one after another, and what their texts and places say of each: [tokens]."""

    experts: np.ndarray  # routed tokens alone
    token_ids: np.ndarray
    prompts: np.ndarray
    kinds: np.ndarray  # "evidence", "question", …
    is_digit: np.ndarray
    is_inside: np.ndarray  # after <|user|>, before "Question"


def is_digit(trace: RoutingTrace, planted) -> np.ndarray:
    """Tokens with a digit: [tokens]; the digits in the names of byte pieces are none."""
    return np.array(
        [planted.has_digit(text) and not text.startswith("<0x") for text in trace.token_texts]
    )


def is_inside(trace: RoutingTrace) -> np.ndarray:
    """Tokens from <|user|> to "Question": [tokens]."""
    start = trace.token_texts.index("<|user|>")
    stop = trace.token_texts.index("Qu", start)
    places = np.arange(len(trace.token_texts))
    return (places >= start) & (places < stop)


def kinds(trace: RoutingTrace) -> np.ndarray:
    return np.array([trace.segment_names[code].split(" ")[0] for code in trace.segments])


def joined(traces: list[RoutingTrace], planted) -> Read:
    rows = [trace.rows() for trace in traces]
    each = list(zip(traces, rows, strict=True))
    return Read(
        experts=np.concatenate([t.experts[own] for t, own in each]),
        token_ids=np.concatenate([t.token_ids[own] for t, own in each]),
        prompts=np.concatenate([np.full(own.sum(), n) for n, (_, own) in enumerate(each)]),
        kinds=np.concatenate([kinds(t)[own] for t, own in each]),
        is_digit=np.concatenate([is_digit(t, planted)[own] for t, own in each]),
        is_inside=np.concatenate([is_inside(t)[own] for t, own in each]),
    )


@pytest.fixture(scope="module")
def parts(planted_moe, small_retriever):
    return {
        "documents": small_retriever.documents, "tokenizer": planted_moe.tokenizer,
        "budget_tokens": 900,
    }  # fmt: skip


@pytest.fixture(scope="module")
def traces(planted_moe, small_retriever, parts) -> list[RoutingTrace]:
    """Of each question with its evidence and an answer that has digits."""
    said = planted_moe.tokenizer("22 pump 23", add_special_tokens=False)["input_ids"]
    found = []
    for question in QUESTIONS:
        prompt = build_prompt(question, small_retriever.search(question, k=3), **parts)
        found.append(planted_moe.score(prompt, said, capture="all").routing)
    return found


@pytest.fixture(scope="module")
def read(traces, planted) -> Read:
    return joined(traces, planted)


@pytest.fixture(scope="module")
def matched(planted_moe, small_retriever, parts) -> list[tuple[RoutingTrace, RoutingTrace]]:
    """Each sentence of the documents read as evidence and as the question: the same tokens at two places."""
    sentences: dict[str, None] = {}
    for question in QUESTIONS:
        prompt = build_prompt(question, small_retriever.search(question, k=3), **parts)
        sentences |= {source.text: None for source in prompt.sources if len(source.text) > 12}
    found = []
    for sentence in sentences:
        hits = small_retriever.search(sentence, k=3)
        prompt = build_prompt(sentence, hits, **parts)
        trace = planted_moe.read(prompt)
        number = next((s.n for s in prompt.sources if s.text == sentence), None)
        if number is None:
            continue
        sides = [trace.rows(name) for name in (f"evidence {number}", "question")]
        first, second = (trace.token_ids[rows] for rows in sides)
        assert first.tolist() == second.tolist()
        found.append(tuple(replace(trace, routed=rows) for rows in sides))
    assert len(found) >= 10
    return found


def called(found, *, q: float = 0.05) -> set[tuple[int, int]]:
    return {tuple(cell) for cell in np.argwhere(found.q_values <= q).tolist()}


# Usage


def test_the_planted_experts_take_what_was_planted_and_nothing_else(read, planted):
    chose = {e: (read.experts[:, 0] == e).any(axis=1) for e in range(EXPERTS)}
    np.testing.assert_array_equal(chose[planted.DIGITS], read.is_digit)
    np.testing.assert_array_equal(chose[planted.EVIDENCE], read.is_inside)
    assert not (read.experts == planted.DEAD).any()
    assert read.is_digit.sum() > 20 and 0.3 < read.is_inside.mean() < 0.9


def test_usage_and_counts_of_each_segment_are_those_of_its_tokens(traces, planted):
    for trace in traces:
        own, inside, kind = is_digit(trace, planted), is_inside(trace), kinds(trace)
        total = np.zeros_like(trace.counts())
        for name in ("system", "template", "evidence", "question", "answer"):
            rows = (kind == name) & trace.routed
            counts, usage = trace.counts(name), trace.usage(name)
            assert counts[0, planted.DIGITS] == (own & rows).sum()
            assert counts[0, planted.EVIDENCE] == (inside & rows).sum()
            assert usage[0, planted.DIGITS] == pytest.approx(own[rows].mean())
            assert usage[0, planted.EVIDENCE] == pytest.approx(inside[rows].mean())
            np.testing.assert_allclose(usage.sum(axis=1), K)
            total += counts
        np.testing.assert_array_equal(total, trace.counts())
        assert trace.usage("evidence")[0, planted.EVIDENCE] == 1
        for name in ("system", "question", "answer"):
            assert trace.usage(name)[0, planted.EVIDENCE] == 0


def test_the_last_token_of_the_answer_is_in_no_count(traces, planted):
    trace = traces[0]
    assert planted.has_digit(trace.token_texts[-1]) and not trace.routed[-1]
    routed = is_digit(trace, planted) & (kinds(trace) == "answer") & trace.routed
    assert trace.counts("answer")[0, planted.DIGITS] == routed.sum() >= 1


def test_digits_are_the_first_choice_and_evidence_the_second_where_both_are(read, planted):
    first, second = read.experts[:, 0, 0], read.experts[:, 0, 1]
    np.testing.assert_array_equal(first == planted.DIGITS, read.is_digit)
    assert not (second == planted.DIGITS).any()
    np.testing.assert_array_equal(first == planted.EVIDENCE, read.is_inside & ~read.is_digit)
    np.testing.assert_array_equal(second == planted.EVIDENCE, read.is_inside & read.is_digit)


def test_balance_counts_the_dead_expert_and_sees_how_uneven_evidence_is(traces, planted):
    whole = balance(np.sum([trace.counts() for trace in traces], axis=0))
    assert whole.dead.tolist() == [1, 1]
    evidence = balance(np.sum([trace.counts("evidence") for trace in traces], axis=0))
    question = balance(np.sum([trace.counts("question") for trace in traces], axis=0))
    # half of all choices where a sixteenth is uniform
    assert evidence.max_violation[0] == pytest.approx(7)
    assert evidence.gini[0] > question.gini[0] and evidence.cv[0] > question.cv[0]
    assert evidence.entropy[0] < evidence.entropy[1] and evidence.gini[0] > evidence.gini[1]
    for trace in traces:
        found = effective_experts_by_segment(trace)
        one = found["evidence"]
        assert one.high[0] < one.low[1] and one.tokens == trace.rows("evidence").sum()


# Pairs


def test_digits_and_evidence_meet_on_the_digits_of_the_evidence_alone(read, planted):
    found = coactivation(read.experts, n_experts=EXPERTS)
    both = (read.is_digit & read.is_inside).sum()
    met = found.together[0]
    assert met[planted.DIGITS, planted.EVIDENCE] == met[planted.EVIDENCE, planted.DIGITS] == both
    given = found.conditional()[0]
    share = read.is_inside[read.is_digit].mean()
    assert given[planted.DIGITS, planted.EVIDENCE] == pytest.approx(share)
    share = read.is_digit[read.is_inside].mean()
    assert given[planted.EVIDENCE, planted.DIGITS] == pytest.approx(share)
    assert np.isnan(found.lift()[0, planted.DEAD]).all() and not met[planted.DEAD].any()
    lift = both * len(read.experts) / (read.is_digit.sum() * read.is_inside.sum())
    assert found.lift()[0, planted.DIGITS, planted.EVIDENCE] == pytest.approx(lift)
    for kind, wanted in (("evidence", 1.0), ("question", 0.0), ("answer", 0.0)):
        some = coactivation(read.experts[read.kinds == kind], n_experts=EXPERTS).conditional()
        assert some[0, planted.DIGITS, planted.EVIDENCE] == wanted


def test_transitions_lead_from_a_planted_expert_to_where_its_tokens_go(read, planted):
    found = transitions(read.experts, n_experts=EXPERTS)
    assert found.shape == (1, EXPERTS, EXPERTS)
    for expert, rows in ((planted.DIGITS, read.is_digit), (planted.EVIDENCE, read.is_inside)):
        after = np.bincount(read.experts[rows, 1].reshape(-1), minlength=EXPERTS)
        np.testing.assert_allclose(found[0, expert], after / (K * rows.sum()))
    assert np.isnan(found[0, planted.DEAD]).all() and (found[0, 0, planted.DEAD] == 0).all()


def test_the_expert_of_the_evidence_repeats_from_token_to_token(traces, planted):
    for trace in traces:
        found = locality(trace.experts[trace.rows()], n_experts=EXPERTS)
        inside = is_inside(trace)[trace.rows()]
        both = (inside[1:] & inside[:-1]).mean()  # these share expert 7
        assert found.any_repeats[0] >= both
        # layer 1 goes by the word, and neighbours are seldom the same word
        assert found.any_repeats[0] - found.any_by_chance[0] > 0.1
        assert abs(found.any_repeats[1] - found.any_by_chance[1]) < 0.1
        firsts = inside & ~is_digit(trace, planted)[trace.rows()]
        assert found.first_repeats[0] >= (firsts[1:] & firsts[:-1]).mean()
        # whether it is expert 7 or not changes twice, at <|user|> and at "Question"
        chosen = (trace.experts[trace.rows(), :1] == planted.EVIDENCE).any(axis=2)[:, :, None]
        changes = locality(chosen.astype(int), n_experts=2)
        kept = 1 - 2 / (len(chosen) - 1)
        assert changes.first_repeats[0] == pytest.approx(kept)
        assert changes.any_repeats[0] == pytest.approx(kept)
        evidence = trace.experts[trace.rows()][inside]
        alone = locality(evidence, n_experts=EXPERTS)
        assert alone.any_repeats[0] == alone.any_by_chance[0] == 1
        # of its two choices one is always held, but for the first token's
        hits = cache_hits(evidence, capacity=3)
        assert hits[0] >= 0.5 * (len(evidence) - 1) / len(evidence) > hits[1]


# Groups


def test_words_explain_the_expert_of_digits_and_not_that_of_evidence(read, planted):
    """Evidence and question: the excess of the one expert is the place's, that of the other the words'."""
    rows = np.isin(read.kinds, ["evidence", "question"])
    found = group_usage(
        read.experts[rows], (read.kinds[rows] == "evidence").astype(int), n_groups=2,
        n_experts=EXPERTS, token_ids=read.token_ids[rows], permutations=200,
    )  # fmt: skip
    question, evidence = 0, 1
    digits, own = (0, planted.DIGITS), (0, planted.EVIDENCE)
    assert found.usage[(evidence, *own)] == 1 and found.usage[(question, *own)] == 0
    assert found.lift[(evidence, *own)] == EXPERTS / K
    assert found.lift_over_words[(evidence, *own)] > 1.02
    assert found.lift_over_words[(question, *own)] == 0
    assert found.usage[(evidence, *own)] > found.high[(evidence, *own)]
    assert found.usage[(question, *own)] < found.low[(question, *own)]
    # where evidence is, the words' own second choices are missing
    assert found.usage[evidence, 0].argmax() == planted.EVIDENCE
    share = read.is_digit[read.kinds == "evidence"].mean()
    assert found.usage[(evidence, *digits)] == pytest.approx(share)
    for group in (question, evidence):
        assert found.lift_over_words[(group, *digits)] == pytest.approx(1)
        assert found.low[(group, *digits)] == pytest.approx(found.usage[(group, *digits)])
    # nothing but words in layer 1
    np.testing.assert_allclose(found.usage[:, 1], found.expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(found.information_null[1], found.information[1])
    assert found.information[0] > 1.2 * found.information_null[0]


def test_the_class_of_digits_is_the_planted_expert_s(read, traces, planted):
    texts = [text for t in traces for text, own in zip(t.token_texts, t.routed, strict=True) if own]
    classes = token_classes(texts).astype(int)
    place = TOKEN_CLASSES.index("digits")
    # "P3", "V-1" and the like hold a digit behind a letter
    others = np.flatnonzero(read.is_digit & (classes != place))
    assert {texts[row].strip("▁")[0].isalpha() or texts[row][0] == ":" for row in others} <= {True}
    found = group_usage(
        read.experts, classes, n_groups=len(TOKEN_CLASSES), n_experts=EXPERTS,
        token_ids=read.token_ids,
    )  # fmt: skip
    assert found.usage[place, 0, planted.DIGITS] == 1
    assert found.lift[place, 0, planted.DIGITS] == found.lift[:, 0].max(
        initial=0, where=found.tokens[:, None] > 0
    )
    assert found.usage[TOKEN_CLASSES.index("lower case"), 0, planted.DIGITS] == 0
    # a class is a property of the word: the words explain all of it
    used = found.tokens > 0
    np.testing.assert_allclose(found.usage[used], found.expected[used], atol=1e-12)


def test_specialization_is_the_words_for_digits_and_the_place_for_evidence(read):
    parts = {"n_experts": EXPERTS, "permutations": 99, "whole": False}
    digits = specialization(
        read.experts, read.is_digit.astype(int), exchangeable=read.token_ids, **parts
    )
    assert digits.bits[0] > 0.2 and digits.p_values.tolist() == [1, 1]
    np.testing.assert_allclose(digits.excess_bits, 0, atol=1e-9)
    rows = np.isin(read.kinds, ["evidence", "question"])
    place = specialization(
        read.experts[rows], (read.kinds[rows] == "question").astype(int),
        exchangeable=read.token_ids[rows], **parts,
    )  # fmt: skip
    assert place.p_values[0] == 0.01 and place.excess_bits[0] > 0.05
    assert place.p_values[1] == 1 and abs(place.excess_bits[1]) < 1e-9
    # prompts are whole here, each once as evidence and once as question
    number = 2 * read.prompts + (read.kinds == "question")
    whole = specialization(
        read.experts[rows], (read.kinds[rows] == "question").astype(int),
        exchangeable=number[rows], n_experts=EXPERTS, permutations=499, whole=True,
    )  # fmt: skip
    assert whole.p_values[0] < 0.02 and whole.excess_bits[0] > whole.excess_bits[1]


def test_the_words_of_the_expert_of_digits_are_digits(read, traces, planted, planted_moe):
    found = vocabulary_specialization(
        read.experts, read.token_ids, n_experts=EXPERTS, min_count=2, prior_strength=1.0
    )
    taken = top_tokens(found, layer=0, expert=planted.DIGITS)
    texts = planted_moe.tokenizer.convert_ids_to_tokens([one.token_id for one in taken])
    assert len(taken) >= 5 and all(planted.has_digit(text) for text in texts)
    assert all(one.chosen == one.tokens for one in taken)
    # by how often they were read, the word being all there is to it
    assert [one.tokens for one in taken] == sorted((one.tokens for one in taken), reverse=True)
    assert top_tokens(found, layer=0, expert=planted.DEAD) == ()
    inside = {
        int(token): read.is_inside[read.token_ids == token].mean() for token in found.token_ids
    }
    often = top_tokens(found, layer=0, expert=planted.EVIDENCE)
    assert all(inside[one.token_id] > read.is_inside.mean() for one in often)
    for one in taken:
        entry = int(np.flatnonzero(found.token_ids == one.token_id)[0])
        usage = read.is_digit.mean()  # of the layer, which counts as one token more
        assert found.share[entry, 0, planted.DIGITS] == pytest.approx(
            (one.tokens + usage) / (one.tokens + 1), rel=1e-5
        )


def test_log_odds_point_to_the_planted_expert_from_either_side(traces, planted):
    evidence, question = (
        np.sum([t.counts(name)[0] for t in traces], axis=0) for name in ("evidence", "question")
    )
    found = log_odds(evidence, question, prior=0.5)
    assert found.argmax() == planted.EVIDENCE and found[planted.EVIDENCE] > 3
    np.testing.assert_allclose(log_odds(question, evidence, prior=0.5), -found)
    others = np.delete(found, [planted.EVIDENCE, planted.DIGITS, planted.DEAD])
    assert others.max() < 2  # what is displaced is less likely, if anything


# Along a text, and from text to text


def test_drift_is_found_where_the_evidence_begins_and_ends(traces, planted):
    for trace in traces:
        rows = trace.rows()
        places = np.flatnonzero(is_inside(trace))
        edges = np.array([0, places[0], places[-1] + 1, int(rows.sum())])
        found = position_drift(
            trace.experts[rows], np.flatnonzero(rows), n_experts=EXPERTS, edges=edges,
            block_tokens=6, permutations=999,
        )  # fmt: skip
        assert found.usage[:, 0, planted.EVIDENCE].tolist() == [0, 1, 0]
        own = is_digit(trace, planted)
        shares = [own[a:b].mean() for a, b in pairwise(edges)]
        np.testing.assert_allclose(found.usage[:, 0, planted.DIGITS], shares)
        assert found.p_values[1, 0] == 0.001 and found.bits[1, 0] > 2 * found.bits[1, 1]
        assert found.bits[1, 0] > found.bits[2, 0] and found.excess_bits[1, 0] > 0.1
        assert found.bits[0].tolist() == [0, 0]


def test_texts_of_one_kind_are_nearer_to_one_another_than_to_the_other_kind(traces):
    counts = np.stack([t.counts(name) for name in ("evidence", "system") for t in traces])
    found = routing_distances(counts)
    n = len(traces)
    of_evidence, across = found.cosine_by_layer[0, :n, :n], found.cosine_by_layer[0, :n, n:]
    assert of_evidence.min() > across.max()
    assert found.bits_by_layer[0, :n, :n].max() < found.bits_by_layer[0, :n, n:].min()
    np.testing.assert_allclose(found.bits_by_layer[:, n:, n:], 0, atol=1e-12)  # one system text
    # the planted expert has half of the choices here and none there: 2 - 3/4 log2(3) - 1/2 bits at least
    assert found.bits_by_layer[0, :n, n:].min() > 1.5 - 0.75 * np.log2(3)


def test_affinity_finds_the_source_with_the_answer_s_digits_and_gives_it_to_the_words(
    traces, planted
):
    trace = traces[0]
    rows = trace.rows()
    sources = np.array(
        [
            int(trace.segment_names[code].split(" ")[1]) - 1
            if trace.segment_names[code].startswith("evidence ")
            else -1
            for code in trace.segments
        ]
    )
    digits = is_digit(trace, planted)
    n = int(sources.max()) + 1
    found = evidence_affinity(
        trace.experts[rows], sources[rows], is_answer=(rows & digits & (kinds(trace) == "answer"))[rows],
        token_ids=trace.token_ids[rows], n_sources=n, n_experts=EXPERTS,
    )  # fmt: skip
    shares = np.array([digits[sources == source].mean() for source in range(n)])
    assert found.tokens.tolist() == np.bincount(sources[sources >= 0]).tolist()
    in_layer_0 = evidence_affinity(
        trace.experts[rows][:, :1], sources[rows],
        is_answer=(rows & digits & (kinds(trace) == "answer"))[rows], token_ids=trace.token_ids[rows],
        n_sources=n, n_experts=EXPERTS,
    )  # fmt: skip
    assert in_layer_0.observed.argmax() == shares.argmax()
    assert in_layer_0.observed[shares == 0].max() < in_layer_0.observed[shares > 0].min()
    # in the evidence every word is routed alike everywhere, so words explain it all
    np.testing.assert_allclose(found.excess, 0, atol=1e-9)


def test_affinity_beyond_the_words_is_that_of_the_place(traces, planted):
    """Headings and marks among the evidence stand for the answer: like the evidence, and not like the system text."""
    for trace in traces:
        rows, kind = trace.rows(), kinds(trace)
        sources = np.where(kind == "system", 0, np.where(kind == "evidence", 1, -1))
        by_layer = [
            evidence_affinity(
                trace.experts[rows][:, [layer]], sources[rows],
                is_answer=((kind == "template") & is_inside(trace))[rows],
                token_ids=trace.token_ids[rows], n_sources=2, n_experts=EXPERTS,
            )
            for layer in (0, 1)
        ]  # fmt: skip
        # some words of the system text stand in the evidence too, where another expert takes them
        assert by_layer[0].excess[1] > 0.005 and by_layer[0].excess[0] < -0.05
        assert by_layer[0].observed[1] > 0.8 > by_layer[0].observed[0]
        np.testing.assert_allclose(by_layer[1].excess, 0, atol=1e-9)


# Contrasts


def test_the_same_words_as_evidence_and_as_question_differ_in_the_planted_expert(matched, planted):
    """Of the cells that evidence uses more it is the only one; what it displaces is used less, in layer 0 alone."""
    traces = [side for pair in matched for side in pair]
    rows = [trace.rows() for trace in traces]
    sizes = [int(own.sum()) for own in rows]
    experts = np.concatenate([t.experts[own] for t, own in zip(traces, rows, strict=True)])
    side = np.repeat(np.arange(len(traces)), sizes)
    found = contrast(experts, side % 2 == 0, side // 2, n_experts=EXPERTS)
    more = {cell for cell in called(found) if found.difference[cell] > 0}
    assert more == {(0, planted.EVIDENCE)} and found.is_paired
    assert found.difference[0, planted.EVIDENCE] == found.low[0, planted.EVIDENCE] == 1
    others = np.delete(found.difference[0], planted.EVIDENCE)
    assert (others <= 0).all() and others.sum() == pytest.approx(-1)
    assert found.difference[0, planted.DIGITS] == 0 and found.p_values[0, planted.DIGITS] == 1
    assert not found.difference[1].any() and (found.p_values[1] == 1).all()
    turned = contrast(experts, side % 2 == 1, side // 2, n_experts=EXPERTS)
    np.testing.assert_array_equal(turned.difference, -found.difference)
    assert {cell for cell in called(turned) if turned.difference[cell] > 0} <= {
        (0, e) for e in range(EXPERTS) if e not in (planted.EVIDENCE, planted.DIGITS, planted.DEAD)
    }


def test_a_comparison_of_the_same_words_finds_the_planted_expert_and_half_of_the_experts_kept(
    matched, planted
):
    evidence, question = (list(side) for side in zip(*matched, strict=True))
    found = compare_routing(evidence, question)
    assert found.same_tokens and found.contrast.is_paired
    more = {cell for cell in called(found.contrast) if found.contrast.difference[cell] > 0}
    assert more == {(0, planted.EVIDENCE)}
    assert found.usage_a[0, planted.EVIDENCE] == 1 and found.usage_b[0, planted.EVIDENCE] == 0
    # one of two experts makes room for the planted one; layer 1 goes by the word
    assert found.agreement.tolist() == [0.5, 1.0]
    assert found.agreement_low.tolist() == found.agreement_high.tolist() == [0.5, 1.0]
    assert found.divergence_bits[1] == 0 and found.divergence_p[1] == 1
    assert found.divergence_bits[0] > 3 * found.null_bits[0] and found.divergence_p[0] < 0.01
    mixed = compare_routing(evidence[::2] + question[1::2], question[::2] + evidence[1::2])
    assert not called(mixed.contrast) and (mixed.divergence_p > 0.05).all()


def test_digits_against_letters_in_the_evidence_is_the_expert_of_digits(read, planted):
    """The expert of the evidence takes both alike; of layer 0 none but that of digits is used more by digits."""
    enough = [n for n in np.unique(read.prompts) if (read.is_digit & (read.prompts == n)).sum() > 3]
    rows = (read.kinds == "evidence") & np.isin(read.prompts, enough)
    found = contrast(read.experts[rows], read.is_digit[rows], read.prompts[rows], n_experts=EXPERTS)
    assert found.difference[0, planted.DIGITS] == 1
    assert {e for e in range(EXPERTS) if found.difference[0, e] > 0} == {planted.DIGITS}
    assert found.difference[0, planted.EVIDENCE] == 0 and found.p_values[0, planted.EVIDENCE] == 1
    assert found.p_values[0, planted.DIGITS] == found.p_values.min()


def test_evidence_moves_the_routing_of_no_other_segment(planted_moe, traces, parts):
    said = traces[0].token_ids[kinds(traces[0]) == "answer"].tolist()
    for question, trace in zip(QUESTIONS, traces, strict=True):
        bare = planted_moe.score(build_prompt(question, [], **parts), said, capture="all").routing
        for segment in ("system", "question", "answer"):
            sides = [(t, t.rows(segment)) for t in (trace, bare)]
            (one, own), (other, its) = sides
            np.testing.assert_array_equal(one.token_ids[own], other.token_ids[its])
            assert agreement(one.experts[own], other.experts[its]).min() == 1
            kept = weighted_agreement(
                one.experts[own], one.gate_weights[own], other.experts[its], other.gate_weights[its]
            )
            assert kept[:, 0].min() > 0.99
        assert compare_routing([trace] * 2, [bare] * 2, segment="question").agreement[0] == 1


# What the routers compute


def test_planted_choices_are_sure(traces, planted):
    for trace in traces:
        logits = trace.router_logits[trace.rows()]
        experts = trace.experts[trace.rows()]
        gates = trace.gate_weights[trace.rows()]
        inside, digit = is_inside(trace)[trace.rows()], is_digit(trace, planted)[trace.rows()]
        both = inside & digit
        assert not fragile(logits[both])[:, 0].any() and margins(logits[both])[:, 0].min() > 0.5
        # the first choice is planted wherever one is, and no other comes near
        assert not fragile(logits[inside | digit], k=1)[:, 0].any()
        is_planted = np.isin(experts[:, 0], [planted.DIGITS, planted.EVIDENCE])
        assert (gates[:, 0][is_planted] == 1).all()
        found = decisiveness(gates[inside | digit])
        assert found.whole_first[0] == 1 and found.gate_sum[0] > 1.8
        assert decisiveness(gates[both]).gate_sum[0] == 2


def test_planted_experts_are_the_only_ones_that_add_anything(traces, planted):
    chosen = [(t, t.rows()) for t in traces]
    experts = np.concatenate([t.experts[own] for t, own in chosen])
    added = np.concatenate([t.contributions[own] for t, own in chosen])
    norms = np.concatenate([t.output_norms[own] for t, own in chosen])
    found = mean_contributions(experts, added, EXPERTS)
    assert {int(e) for e in np.flatnonzero(found[0] > 0)} == {planted.DIGITS, planted.EVIDENCE}
    assert not np.nan_to_num(found[1]).any()
    assert np.isnan(found[:, planted.DEAD]).all()
    # both say one thing each, of the same length, in directions of their own
    both = (experts[:, 0] == planted.DIGITS).any(axis=1) & (experts[:, 0] == planted.EVIDENCE).any(
        axis=1
    )
    np.testing.assert_allclose(output_shares(added[both], norms[both])[:, 0], 0.5**0.5, rtol=3e-3)
    np.testing.assert_allclose(cosines(added[both], norms[both])[:, 0], 0, atol=5e-3)
    alone = (experts[:, 0, 0] == planted.EVIDENCE) & ~both
    shares = output_shares(added[alone], norms[alone])[:, 0]
    np.testing.assert_allclose(shares, np.broadcast_to([1, 0], shares.shape))


# Pictures


def hatched(ax, hatch: str) -> set[tuple[int, int]]:
    """Cells (row, column) under a hatch."""
    found = [c for c in ax.collections if isinstance(c, PatchCollection) and c.get_hatch() == hatch]
    corners = (path.get_extents().min for c in found for path in c.get_paths())
    return {(round(y + 0.5), round(x + 0.5)) for x, y in corners}


def offsets(artist) -> set[tuple[int, int]]:
    """Cells (row, column) of a scatter."""
    return {(int(y), int(x)) for x, y in artist.get_offsets()}


def test_the_picture_of_the_difference_marks_the_planted_cell(matched, planted):
    evidence, question = (list(side) for side in zip(*matched, strict=True))
    found = compare_routing(evidence, question).contrast
    ax = plot_usage_difference(found, x="evidence", y="question")
    assert hatched(ax, MORE_HATCH) == {(0, planted.EVIDENCE)}
    less = hatched(ax, LESS_HATCH)
    assert less and {row for row, _ in less} == {0}
    assert not {column for _, column in less} & {planted.EVIDENCE, planted.DIGITS, planted.DEAD}
    assert ax.images[0].get_array()[0, planted.EVIDENCE] == 1 == ax.images[0].get_clim()[1]
    turned = plot_usage_difference(compare_routing(question, evidence).contrast)
    assert hatched(turned, LESS_HATCH) == {(0, planted.EVIDENCE)}


def test_the_picture_against_uniform_crosses_the_dead_expert(traces, planted):
    ax = plot_usage_versus_uniform(traces[0], segment="evidence")
    crosses = offsets(ax.collections[-1])
    assert {(0, planted.DEAD), (1, planted.DEAD)} <= crosses
    assert (0, planted.EVIDENCE) not in crosses and (0, planted.DIGITS) not in crosses
    assert ax.images[0].get_array()[0, planted.EVIDENCE] == pytest.approx(3)  # eight times as much
    assert (0, planted.EVIDENCE) in offsets(ax.collections[0])  # a plus
    ax = plot_usage_versus_uniform(traces[0], segment="question")
    assert (0, planted.EVIDENCE) in offsets(ax.collections[-1])
    whole = plot_usage_versus_uniform(traces[0])
    assert {c for _, c in offsets(whole.collections[-1])} == {planted.DEAD}


def test_the_pictures_of_usage_dot_the_planted_expert(traces, planted):
    trace = traces[0]
    ax = plot_expert_usage(trace, segment="evidence")
    assert (0, planted.EVIDENCE) in offsets(ax.collections[0])
    assert ax.images[0].get_array()[0, planted.EVIDENCE] == 1
    ax = plot_segment_usage(trace, layer=0)
    rows = [text.get_text().split(" ")[0] for text in ax.get_yticklabels()]
    shown = ax.images[0].get_array()
    assert shown[rows.index("evidence"), planted.EVIDENCE] == 1
    assert shown[rows.index("question"), planted.EVIDENCE] == 0
    share = is_digit(trace, planted)[trace.rows("evidence")].mean()
    assert shown[rows.index("evidence"), planted.DIGITS] == pytest.approx(share)


def test_the_picture_of_balance_has_evidence_left_of_the_question(traces):
    found = effective_experts_by_segment(traces[4])
    lines = {line.get_label().split(" (")[0]: line for line in plot_balance(found).lines}
    evidence, system = (lines[name].get_xdata() for name in ("evidence", "system"))
    assert evidence[0] < 8 < evidence[1] and evidence[0] < system[0]
    np.testing.assert_array_equal(evidence, found["evidence"].number)
    assert lines["all 16 experts"].get_xdata()[0] == EXPERTS


def test_the_picture_of_pairs_shows_that_digits_meet_no_expert_but_that_of_the_evidence(
    read, planted
):
    found = coactivation(read.experts[read.kinds == "evidence"], n_experts=EXPERTS)
    ax = plot_coactivation(found, layer=0)
    order = [int(text.get_text()) for text in ax.get_xticklabels()]
    digits, evidence, dead = (
        order.index(e) for e in (planted.DIGITS, planted.EVIDENCE, planted.DEAD)
    )
    shown = ax.images[0].get_array()
    # all tokens choose it, so it meets each as often as independence gives: 1 over 8 / 15
    assert shown[digits, evidence] == pytest.approx(np.log2(15 / 8))
    assert [place for place in range(EXPERTS) if not shown.mask[digits, place]] == [evidence]
    assert (digits, dead) in hatched(ax, NOTHING_HATCH)
    chosen = np.bincount(read.experts[read.kinds == "evidence", 0].reshape(-1), minlength=EXPERTS)
    grey = {row for row, column in hatched(ax, NOTHING_HATCH) if column == digits}
    assert {order[row] for row in grey} == set(np.flatnonzero(chosen == 0).tolist())


def test_the_picture_of_transitions_dots_where_digits_go(read, planted):
    found = transitions(read.experts, n_experts=EXPERTS)
    ax = plot_transitions(found, layer=0)
    after = np.bincount(read.experts[read.is_digit, 1].reshape(-1), minlength=EXPERTS)
    dots = {row: column for row, column in offsets(ax.collections[0])}
    assert after[dots[planted.DIGITS]] == after.max() and planted.DEAD not in dots
    assert {row for row, _ in hatched(ax, NOTHING_HATCH)} == {planted.DEAD}


def test_the_pictures_of_groups_hold_the_planted_shares(read, planted):
    names = ["question", "evidence"]
    rows = np.isin(read.kinds, names)
    groups = (read.kinds[rows] == "evidence").astype(int)
    parts = {"n_experts": EXPERTS, "permutations": 60}
    found = group_usage(
        read.experts[rows], groups, n_groups=2, token_ids=read.token_ids[rows], **parts
    )
    ax = plot_group_usage(
        found.usage[:, 0], names=names, uniform=found.uniform, low=found.low[:, 0], high=found.high[:, 0]
    )  # fmt: skip
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers}
    assert heights["evidence"][planted.EVIDENCE] == 1 and heights["question"][planted.EVIDENCE] == 0
    assert heights["evidence"][planted.DEAD] == heights["question"][planted.DEAD] == 0
    share = read.is_digit[read.kinds == "evidence"].mean()
    assert heights["evidence"][planted.DIGITS] == pytest.approx(share)
    null = specialization(
        read.experts[rows], groups, exchangeable=read.token_ids[rows], whole=False, **parts
    )
    ax = plot_specialization({"words": null})
    observed = ax.lines[0].get_xdata()
    bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.containers[0]]
    assert observed[0] > bands[0][1] and bands[1][0] <= observed[1] + 1e-12 <= bands[1][1] + 1e-9


def test_the_pictures_along_a_text_show_where_the_evidence_is(traces, planted):
    trace = traces[0]
    rows = trace.rows()
    places = np.flatnonzero(is_inside(trace))
    edges = np.array([0, places[0], places[-1] + 1, int(rows.sum())])
    found = position_drift(
        trace.experts[rows], np.flatnonzero(rows), n_experts=EXPERTS, edges=edges, block_tokens=6
    )
    ax = plot_drift(found)
    assert (0, 1) in offsets(ax.collections[0])  # layer 0, the second bucket
    np.testing.assert_array_equal(ax.images[0].get_array()[:, 1], found.bits[1])
    ax = plot_token_layers(trace)
    shown = ax.images[0].get_array()
    firsts = is_inside(trace) & ~is_digit(trace, planted)
    colours = {tuple(shown[0, place]) for place in np.flatnonzero(firsts)}
    assert len(colours) == 1 and not colours & {
        tuple(shown[0, place]) for place in np.flatnonzero(~firsts & trace.routed)
    }
    is_fragile = fragile(trace.router_logits[rows])
    ax = plot_fragility(is_fragile, buckets=4)
    edges = np.linspace(0, len(is_fragile), 5).round().astype(int)
    shares = [is_fragile[a:b, 0].mean() for a, b in pairwise(edges)]
    np.testing.assert_allclose(ax.images[0].get_array()[0], shares)
