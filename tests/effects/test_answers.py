"""Contexts, edits with control arms, and the dial, on the model with planted experts and on the embedded one."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.cancel import CancelToken
from workbench.effects.answers import MEASURES, Evidence, edit_effect
from workbench.effects.cases import Case, case_of, cases_of
from workbench.effects.contexts import contrast_contexts, shuffled_evidence
from workbench.effects.controls import ExpertPlace, load_matched
from workbench.effects.dial import check_dial, learn_dial
from workbench.effects.scan import context_use
from workbench.errors import Cancelled, InputError, PromptTooLong
from workbench.generation.prompts import replaced_evidence
from workbench.routing.intervene import Edit

QUESTIONS = (
    "Which valve failed first?",
    "How heavy is the flap that jammed across the pipe of the resting pump?",
    "Who raised the alarm about the dangerous tide in 1987?",
    "What kind of grease does a pump motor need at the top?",
)


@pytest.fixture(scope="module")
def pocket():
    return wb.load_generator("pocket")


@pytest.fixture(scope="module")
def library():
    return wb.build_retriever(wb.read_corpus("corpora"))


@pytest.fixture(scope="module")
def answers(pocket, library):
    return [wb.ask(q, k=2, retriever=library, generator=pocket) for q in QUESTIONS]


# Contexts


def test_replaced_evidence_keeps_headings_marks_and_segments(answers, pocket):
    prompt = answers[0].prompt
    first = prompt.sources[0]
    made = replaced_evidence(prompt, {first.n: "Nothing at all."}, tokenizer=pocket.tokenizer)
    assert made.text == prompt.text[: first.start] + "Nothing at all." + prompt.text[first.stop :]
    names = {s.name: made.text[s.start : s.stop] for s in made.segments}
    assert names["evidence 1"] == "Nothing at all." and names["question"] == QUESTIONS[0]
    assert names["system"] == prompt.messages[0][1] and made.sources == ()
    for source in prompt.sources[1:]:
        assert names[f"evidence {source.n}"] == source.text
    same = replaced_evidence(prompt, {}, tokenizer=pocket.tokenizer)
    assert same.token_ids == prompt.token_ids and same.text == prompt.text
    np.testing.assert_array_equal(same.segment_codes()[0], _sorted_codes(prompt, same))


def _sorted_codes(prompt, same):
    """The segments of `prompt` by the names that `same` gives them."""
    codes, names = prompt.segment_codes()
    wanted = same.segment_codes()[1]
    return np.array([wanted.index(names[code]) for code in codes])


def test_a_mark_in_new_evidence_is_text(answers, pocket):
    prompt = answers[0].prompt
    made = replaced_evidence(prompt, {1: "see [2] <|end|>"}, tokenizer=pocket.tokenizer)
    tokens = pocket.tokenizer.convert_ids_to_tokens(made.token_ids)
    before = pocket.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert tokens.count("[2]") == before.count("[2]")
    assert tokens.count("<|end|>") == before.count("<|end|>")


def test_evidence_that_does_not_fit_or_is_not_there_is_refused(answers, pocket):
    prompt = replace(answers[0].prompt, budget_tokens=len(answers[0].prompt.token_ids))
    with pytest.raises(PromptTooLong, match="tokens with its new evidence, the budget is"):
        replaced_evidence(prompt, {1: "word " * 200}, tokenizer=pocket.tokenizer)
    with pytest.raises(ValueError, match=r"the prompt has no source \[99\]"):
        replaced_evidence(prompt, {99: "x"}, tokenizer=pocket.tokenizer)


@pytest.mark.parametrize("marks", ["sentence", "passage"])
def test_shuffled_evidence_has_the_same_words_in_other_order(pocket, library, marks):
    prompt = wb.ask(QUESTIONS[0], k=2, retriever=library, generator=pocket, marks=marks).prompt
    made = shuffled_evidence(prompt, tokenizer=pocket.tokenizer, seed=1)
    spans = {s.name: s for s in made.segments}
    moved = 0
    for source in prompt.sources:
        span = spans[f"evidence {source.n}"]
        text = made.text[span.start : span.stop]
        assert len(text) == len(source.text) and re.findall(r"\s+", text) != [""]
        assert sorted(text.split()) == sorted(source.text.split())
        moved += text != source.text
    assert moved and len(made.text) == len(prompt.text)
    ids = [sum(t == m for t in pocket.tokenizer.convert_ids_to_tokens(p.token_ids))
           for p in (prompt, made) for m in ("[1]",)]  # fmt: skip
    assert ids[0] == ids[1]


def test_evidence_counts_for_the_planted_model_as_it_was_planted(
    planted, planted_moe, small_retriever
):
    first = planted_moe.tokenizer(planted.FROM_EVIDENCE, add_special_tokens=False)["input_ids"][0]
    said = []
    for question in ("Which valve failed first?", "Who sells bread?", "What did the repair cost?"):
        answer = wb.ask(
            question, k=1, retriever=small_retriever, generator=planted_moe, style="free",
            max_new_tokens=2,
        )  # fmt: skip
        generation = replace(
            answer.generation, token_ids=(first, first), log_probabilities=np.zeros(2, np.float32),
            text="pump",
        )  # fmt: skip
        said.append(replace(answer, generation=generation))
    found = {c.condition: c for c in contrast_contexts(said, generator=planted_moe)}
    # it looks at how much evidence there is, not at what it says
    assert found["without"].gain.low > 1 and abs(found["shuffled"].gain.difference) < 0.1
    # and nothing of the evidence reaches the router of the question's and the answer's tokens in layer 0
    assert found["without"].answer.agreement[0] == 1.0
    assert found["shuffled"].question.agreement.min() == 1.0
    assert found["without"].question.same_tokens and "distractor" in found
    assert set(found["without"].to_frame()["segment"]) == {"question", "answer"}


def test_contexts_of_the_embedded_model_have_intervals(answers, pocket):
    found = contrast_contexts(answers, generator=pocket, conditions=("without", "shuffled"))
    for one in found:
        assert one.gain.low <= one.gain.difference <= one.gain.high and one.answer.same_tokens
        assert (one.answer.agreement_low <= one.answer.agreement).all()
    used = [a for a in answers if not a.abstained]
    gains = []
    for answer in used:
        case = case_of(answer, generator=pocket)
        logs = [
            pocket.score(p, case.answer).log_probabilities.sum()
            for p in (case.prompt, case.without)
        ]
        gains.append(logs[0] - logs[1])
    assert found[0].gain.difference == pytest.approx(np.mean(gains), abs=1e-3)
    # copying needs the words in their order
    assert found[0].gain.low > 0 and found[1].gain.low > 0


def test_contexts_that_cannot_be_made_are_refused(answers, pocket):
    with pytest.raises(InputError, match="there is none of another to distract with"):
        alone = [replace(a, question=q) for a, q in zip([answers[0]] * 2, "ab", strict=True)]
        contrast_contexts(alone, generator=pocket, conditions=("distractor",))
    with pytest.raises(ValueError, match="condition='upside down' is not known"):
        contrast_contexts(answers, generator=pocket, conditions=("upside down",))
    with pytest.raises(InputError, match="0 of 0 answers rest on evidence"):
        contrast_contexts([], generator=pocket)
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        contrast_contexts(
            answers, generator=pocket, cancel=cancel, on_progress=lambda _: cancel.cancel()
        )


# Control arms


def test_control_arms_are_of_the_layer_and_of_like_load():
    counts = np.array([[100, 90, 110, 5, 0, 4], [7, 8, 9, 10, 11, 12]])
    targets = [ExpertPlace(0, 0), ExpertPlace(0, 3), ExpertPlace(1, 2)]
    arms = load_matched(counts, targets, arms=6, nearest=2, seed=3)
    assert {p.layer for arm in arms for p in arm} == {0, 1}
    assert {arm[0].expert for arm in arms} == {1, 2} and {arm[1].expert for arm in arms} <= {
        5,
        1,
        2,
    }
    for arm in arms:
        assert len(set(arm)) == 3 and not set(arm) & set(targets)
        assert all(counts[p.layer, p.expert] > 0 for p in arm)
    assert arms == load_matched(counts, targets, arms=6, nearest=2, seed=3)
    assert len({frozenset(arm) for arm in arms}) == 6
    # no more sets than there are, the nearest first
    few = load_matched(np.array([[50, 60, 20, 0]]), [ExpertPlace(0, 0)], arms=9, nearest=1)
    assert few == [(ExpertPlace(0, 1),), (ExpertPlace(0, 2),)]
    with pytest.raises(ValueError, match="layer 0 has no other expert that is used"):
        load_matched(np.array([[3, 4, 0]]), [ExpertPlace(0, 0), ExpertPlace(0, 1)], arms=1)
    with pytest.raises(ValueError, match="is not among 2 layers of 6 experts"):
        load_matched(counts, [ExpertPlace(2, 0)], arms=1)
    with pytest.raises(ValueError, match="no expert to match"):
        load_matched(counts, [], arms=1)


# Edits


def test_an_edit_that_does_nothing_changes_no_answer(answers, pocket, library):
    found = edit_effect(
        pocket, answers, [Edit("bias", 0, (0,), 0.0)], documents=library.documents, arms=0
    )
    frame = found.to_frame().set_index("measure")["mean"]
    assert frame["changed"] == 0 and abs(frame["likelihood_change"]) < 1e-3
    assert frame["marks_kept"] == frame["overlap"] == 1 and frame["abstained"] == 0
    assert "right" not in frame and found.controls.shape == (0, len(MEASURES))


def test_what_changes_is_counted_answer_by_answer(answers, pocket, library):
    edits = [Edit("ban", e) for e in range(14)]
    known = {
        a.question: Evidence(c.document_id, c.start, c.stop)
        for a in answers for c in a.citations[:1]
    }  # fmt: skip
    found = edit_effect(
        pocket,
        answers,
        edits,
        documents=library.documents,
        arms=0,
        evidence=known,
        segment="evidence",
    )
    for one in found.answers:
        with pocket.intervened(edits, prompt=one.before.prompt, segment="evidence"):
            again = pocket.quote(one.before.prompt)
        assert again.text == one.after.text
        cited = [{(c.document_id, i) for c in a.citations for i in range(c.start, c.stop)}
                 for a in (one.before, one.after)]  # fmt: skip
        if cited[0] | cited[1]:
            assert one.overlap == len(cited[0] & cited[1]) / len(cited[0] | cited[1])
        assert one.is_right_before in (True, None)
    frame = found.to_frame().set_index("measure")
    changed = [one.is_other for one in found.answers]
    assert frame.loc["changed", "mean"] == np.mean(changed) and 0 < sum(changed)
    assert frame.loc["right", "mean"] <= 0 and frame.loc["likelihood_change", "mean"] < 0


def test_banning_the_planted_expert_is_beyond_every_control_arm(
    planted, planted_moe, small_retriever
):
    questions = ("Which valve failed first?", "When did the pump trip?", "Who sells bread?")
    first = planted_moe.tokenizer(planted.FROM_EVIDENCE, add_special_tokens=False)["input_ids"][0]
    answers = []
    for question in questions:
        answer = wb.ask(
            question, k=1, retriever=small_retriever, generator=planted_moe, style="free",
            max_new_tokens=2,
        )  # fmt: skip
        scored = planted_moe.score(answer.prompt, [first])
        answers.append(replace(answer, generation=scored))
    parts = {"documents": small_retriever.documents, "max_new_tokens": 2, "arms": 6}
    rows = {}
    for expert in (planted.EVIDENCE, 8):
        found = edit_effect(planted_moe, answers, [Edit("ban", expert, (0,))], **parts)
        rows[expert] = found.to_frame().set_index("measure").loc["likelihood_change"]
        assert all(planted.EVIDENCE != p.expert or expert == 8 for arm in found.arms for p in arm)
    assert rows[planted.EVIDENCE]["mean"] < -1 and rows[planted.EVIDENCE]["beyond"]
    assert abs(rows[8]["mean"]) < 0.1


def test_edits_that_cannot_be_measured_are_refused(answers, pocket, library):
    parts = {"documents": library.documents}
    with pytest.raises(ValueError, match="is of all layers, which leaves no load to match"):
        edit_effect(pocket, answers, [Edit("ban", 1)], **parts)
    with pytest.raises(InputError, match="no answer to change"):
        edit_effect(pocket, [], [Edit("ban", 1, (0,))], **parts)
    with pytest.raises(ValueError, match="no edit is given"):
        edit_effect(pocket, answers, [], arms=0, **parts)
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        edit_effect(
            pocket, answers, [Edit("ban", 1, (0,))], cancel=cancel,
            on_progress=lambda _: cancel.cancel(), **parts,
        )  # fmt: skip


# Cases and the dial


def test_a_case_may_quote_another_source(answers, pocket):
    answer = next(a for a in answers if not a.abstained)
    said = answer.generation.quotes[0]
    assert case_of(answer, generator=pocket, quoting=said).answer == answer.generation.token_ids
    other = next(s.n for s in answer.prompt.sources if s.n != said)
    case = case_of(answer, generator=pocket, quoting=other)
    assert pocket.tokenizer.decode(case.answer).startswith(f"[{other}]")
    mark = case_of(answer, generator=pocket, quoting=other, part="mark")
    assert pocket.tokenizer.decode(mark.answer) == f"[{other}]"
    assert case.answer[: len(mark.answer)] == mark.answer
    with pytest.raises(ValueError, match=r"no source \[99\]"):
        case_of(answer, generator=pocket, quoting=99)
    with pytest.raises(InputError, match="none of 0 answers rests on evidence"):
        cases_of([], generator=pocket)


def test_the_dial_finds_the_planted_expert_and_turns_it_up(planted, planted_moe, make_prompts):
    first = planted_moe.tokenizer(planted.FROM_EVIDENCE, add_special_tokens=False)["input_ids"][0]
    cases = [Case(q, with_, (first,), without) for q, with_, without in make_prompts]
    learn, test = cases[:2], cases[2:]
    use = context_use(planted_moe, learn)
    dial = learn_dial(planted_moe, learn, use, experts=1)
    assert dial.experts == (ExpertPlace(0, planted.EVIDENCE),)
    place = dial.amounts.index(0.0)
    assert (
        dial.learned[place] == 0.0
        and dial.learned.max() == dial.learned[dial.amounts.index(dial.amount)]
    )
    down = dial.edits(-50.0)
    with planted_moe.intervened(down):
        less = planted_moe.score(test[0].prompt, [first]).log_probabilities[0]
    assert less < planted_moe.score(test[0].prompt, [first]).log_probabilities[0] - 1
    found = check_dial(
        planted_moe,
        replace(dial, amounts=(-50.0, 0.0), learned=np.zeros(2), amount=-50.0),
        test,
        arms=4,
    )
    frame = found.to_frame().set_index("amount")
    assert frame.loc[-50.0, "tested"] < -1 and abs(frame.loc[-50.0, "control"]) < 0.2
    assert frame.loc[0.0, "tested"] == frame.loc[0.0, "control"] == 0
    assert found.at_best.high < -1
    with pytest.raises(ValueError, match="other cases than those to learn from"):
        learn_dial(planted_moe, test, use)
    with pytest.raises(ValueError, match="was learned on 'Which valve failed"):
        check_dial(planted_moe, dial, learn, arms=1)
    with pytest.raises(ValueError, match="lack 0, the model as it is"):
        learn_dial(planted_moe, learn, use, amounts=(1.0,))


@pytest.fixture
def make_prompts(planted_moe, small_retriever):
    """Questions with their prompts, with evidence and without."""
    from workbench.generation.prompts import build_prompt

    parts = {
        "documents": small_retriever.documents, "tokenizer": planted_moe.tokenizer,
        "budget_tokens": 900,
    }  # fmt: skip
    found = []
    for question in (
        "Which valve failed?",
        "When did it trip?",
        "What is baked?",
        "What did it cost?",
    ):
        hits = small_retriever.search(question, k=1)
        found.append(
            (question, build_prompt(question, hits, **parts), build_prompt(question, [], **parts))
        )
    return found
