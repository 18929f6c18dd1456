"""Cards against plain loops over traces, and of experts that were set by hand."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.effects.card import expert_card
from workbench.effects.scan import ExpertScan
from workbench.generation.prompts import build_prompt
from workbench.plots.card import plot_expert_card
from workbench.plots.figures import png_bytes
from workbench.routing.pieces import readable, shown
from workbench.routing.trace import RoutingTrace


def made_trace(
    tokens: int, seed: int, *, texts=("Which", "▁valve", "<0xC3>", "<0xA9>", "▁22")
) -> RoutingTrace:
    """Three layers of six experts, two a token; the last token is not routed, expert 5 of layer 1 never chosen."""
    generator = np.random.default_rng(seed)
    experts = np.stack(
        [[generator.permutation(6 - (layer == 1))[:2] for layer in range(3)] for _ in range(tokens)]
    )
    ids = generator.integers(0, len(texts), tokens)
    return RoutingTrace(
        experts=experts.astype(np.uint8),
        gate_weights=generator.random(experts.shape).astype(np.float16),
        n_experts=6,
        token_ids=ids,
        token_texts=tuple(texts[token] for token in ids),
        phases=np.zeros(tokens, np.uint8),
        segments=generator.integers(0, 4, tokens).astype(np.int16),
        segment_names=("system", "evidence 1", "evidence 2", "answer"),
        spans=np.zeros((tokens, 2), np.int32),
        routed=np.arange(tokens) < tokens - 1,
    )


@pytest.fixture(scope="module")
def traces() -> list[RoutingTrace]:
    return [made_trace(150, 1), made_trace(90, 2)]


def taken(traces, layer: int, expert: int):
    """(trace, position, choice) of every time a token chose the expert."""
    return [
        (trace, at, choice)
        for trace in traces
        for at in range(len(trace.experts))
        for choice in range(2)
        if trace.routed[at] and trace.experts[at, layer, choice] == expert
    ]


def test_load_gates_and_segments_are_those_of_plain_loops(traces) -> None:
    card = expert_card(traces, layer=2, expert=4)
    found = taken(traces, 2, 4)
    assert card.tokens == 149 + 89 and card.chosen == len(found) and card.uniform == 2 / 6
    gates = [float(trace.gate_weights[at, 2, choice]) for trace, at, choice in found]
    assert card.gate_mean == pytest.approx(np.mean(gates))
    kinds = [trace.segment_names[trace.segments[at]].split(" ")[0] for trace, at, _ in found]
    assert {s.name: s.chosen for s in card.segments} == {
        name: kinds.count(name) for name in set(kinds)
    }
    assert sum(s.tokens for s in card.segments) == card.tokens
    assert card.segments[0].share == card.segments[0].chosen / card.segments[0].tokens


def test_companions_are_those_of_plain_loops(traces) -> None:
    card = expert_card(traces, layer=1, expert=2, n=6)
    found = taken(traces, 1, 2)
    rows = [(trace, at) for trace in traces for at in range(len(trace.experts)) if trace.routed[at]]
    for layer, companions in ((0, card.predecessors), (1, card.partners), (2, card.successors)):
        assert companions
        for one in companions:
            assert one.layer == layer
            both = sum(one.expert in trace.experts[at, layer] for trace, at, _ in found)
            assert one.share == pytest.approx(both / len(found))
            usage = sum(one.expert in trace.experts[at, layer] for trace, at in rows) / len(rows)
            # a partner is another expert: 1 of the 5 that are left is chosen, not 2 of 6
            independent = usage * (1 / 5) / (2 / 6) if layer == 1 else usage
            assert one.lift == pytest.approx(one.share / independent)
    assert 2 not in [one.expert for one in card.partners]
    lifts, shares = [c.lift for c in card.partners], [c.share for c in card.successors]
    assert lifts == sorted(lifts, reverse=True) and shares == sorted(shares, reverse=True)
    assert len(card.successors) == 6
    assert len(expert_card(traces, layer=1, expert=2, n=2).successors) == 2


def test_the_first_and_last_layer_have_one_neighbour(traces) -> None:
    first, last = (expert_card(traces, layer=layer, expert=0) for layer in (0, 2))
    assert not first.predecessors and first.successors and last.predecessors and not last.successors


def test_contexts_are_tokens_of_the_expert_with_what_stands_around_them(traces) -> None:
    card = expert_card(traces, layer=0, expert=1, n=5)
    assert len(card.contexts) == 5 and {one.trace for one in card.contexts} == {0, 1}
    for one in card.contexts:
        trace = traces[one.trace]
        assert 1 in trace.experts[one.position, 0] and trace.routed[one.position]
        assert one.segment == trace.segment_names[trace.segments[one.position]]
        pieces = trace.token_texts[max(one.position - 8, 0) : one.position]
        assert one.before == readable(pieces) and "▁" not in one.before
        assert one.place == one.segment


def test_a_segment_of_an_effect_is_that_of_the_scan(traces) -> None:
    effects = np.zeros((3, 3, 6))
    effects[:, 1, 2] = [0.5, 1.0, 1.5]
    scan = ExpertScan(
        ("a", "b", "c"), effects, np.ones((3, 3, 6), int), np.zeros(3), "ban", None, 1.0
    )
    card = expert_card(traces, layer=1, expert=2, scan=scan)
    assert card.effect.difference == 1.0 and card.effect.questions == 3
    assert card.effect_text().startswith("effect on 3 answers: +1.00 nats (")
    assert expert_card(traces, layer=1, expert=2).effect_text() == ""


def test_an_expert_that_nobody_chose_has_an_empty_card(traces) -> None:
    card = expert_card(traces, layer=1, expert=5)
    assert not card.is_used and card.gate_mean is None
    assert card.top == card.contexts == card.partners == card.predecessors == card.successors == ()
    assert "never used by 238 tokens" in card.to_html() and "never used" in repr(card)
    assert len(png_bytes(plot_expert_card(card), dpi=50)) > 2000


def test_gates_that_were_not_recorded_are_not_averaged(traces) -> None:
    mixed = [traces[0], replace(traces[1], gate_weights=None)]
    assert expert_card(mixed, layer=0, expert=1).gate_mean is None


def test_what_has_no_card_is_refused(traces) -> None:
    with pytest.raises(ValueError, match="traces holds no trace"):
        expert_card([], layer=0, expert=0)
    with pytest.raises(
        ValueError, match="layer=3, expert=0: there are layers 0 to 2 and experts 0 to 5"
    ):
        expert_card(traces, layer=3, expert=0)
    with pytest.raises(ValueError, match="of different models"):
        expert_card([*traces, replace(traces[0], n_experts=8)], layer=0, expert=0)
    with pytest.raises(ValueError, match="n=0 is no number of words"):
        expert_card(traces, layer=0, expert=0, n=0)
    scan = ExpertScan(
        ("a",), np.zeros((1, 2, 6)), np.ones((1, 2, 6), int), np.zeros(1), "ban", None, 1.0
    )
    with pytest.raises(ValueError, match=r"the scan is of \[2, 6\] layers and experts"):
        expert_card(traces, layer=0, expert=0, scan=scan)


def test_text_of_documents_becomes_no_html() -> None:
    texts = ("<script>", "▁<img", " src=x>", '"', "\n")
    card = expert_card([made_trace(60, 3, texts=texts)], layer=0, expert=1)
    page = card._repr_html_()
    assert "<script" not in page and "<img" not in page and "▁" not in page
    assert "<script>" in html.unescape(re.sub(r"<[^>]*>", "", page))


def test_bytes_become_characters_where_they_spell_one() -> None:
    assert readable(["▁caf", "<0xC3>", "<0xA9>", "▁", "<0x0A>"]) == " café \n"
    assert readable(["<0xA9>", "x", "<0xC3>"]) == "<0xA9>x<0xC3>"
    assert readable([]) == ""
    assert shown("\r\na\tb\n") == "↵a⇥b↵" and shown("  ") == "␣␣" and shown("") == ""


# On the model with planted experts


@pytest.fixture(scope="module")
def read(planted_moe, small_retriever) -> list[RoutingTrace]:
    """Prompts of some questions with their passages."""
    found = []
    for question in ("Which valve failed first?", "When did the pump trip?", "Who sells bread?"):
        hits = small_retriever.search(question, k=2)
        prompt = build_prompt(
            question,
            hits,
            documents=small_retriever.documents,
            tokenizer=planted_moe.tokenizer,
            budget_tokens=900,
        )
        found.append(planted_moe.read(prompt))
    return found


def test_the_card_of_the_planted_digits_expert_names_digits(planted, read) -> None:
    card = expert_card(read, layer=0, expert=planted.DIGITS)
    assert len(card.top) >= 4 and all(planted.has_digit(one.text) for one in card.top)
    assert all(planted.has_digit(one.text) for one in card.contexts)
    assert all(one.taken.chosen == one.taken.tokens for one in card.top)


def test_the_card_of_the_planted_evidence_expert_shows_it_in_the_evidence(planted, read) -> None:
    card = expert_card(read, layer=0, expert=planted.EVIDENCE)
    share = {one.name: one.share for one in card.segments}
    assert share["evidence"] > 5 * card.uniform
    assert share["system"] == 0 and share["question"] == 0
    documents = {one.document_id for one in card.contexts if one.segment.startswith("evidence")}
    assert documents <= {"report.md", "bread.txt", "evil.txt"} and documents


def test_the_card_of_the_planted_dead_expert_says_that_it_was_never_used(planted, read) -> None:
    card = expert_card(read, layer=0, expert=planted.DEAD)
    assert card.summary() == f"never used by {sum(t.routed.sum() for t in read):,} tokens"


def test_characters_of_a_context_are_those_of_the_document(small_retriever) -> None:
    generator = wb.load_generator("pocket")
    answer = wb.ask(
        "Which valve failed first?", k=2, retriever=small_retriever, generator=generator
    )
    card = expert_card([answer.routing], layer=1, expert=3, n=40)
    known = [one for one in card.contexts if one.document_id is not None]
    assert known
    for one in known:
        text = small_retriever.documents[one.document_id].text
        assert text[one.start : one.stop] == one.text
        assert one.place == f"{one.document_id} {one.start}–{one.stop}"
