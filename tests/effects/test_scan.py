"""Scans against whole passes one by one and against a model whose experts were set by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.cancel import CancelToken
from workbench.effects.cases import Case
from workbench.effects.scan import context_use, scan_experts
from workbench.errors import Cancelled, InputError
from workbench.generation.prompts import build_prompt, plain_prompt
from workbench.routing.intervene import Edit

QUESTIONS = ("Which valve failed first?", "When did the pump trip?", "What did the repair cost?")


@pytest.fixture(scope="session")
def make_cases(small_retriever):
    """Cases of a generator with given answers, or with what it generates."""

    def make(generator, answers=None):
        found = []
        for place, question in enumerate(QUESTIONS):
            parts = {
                "documents": small_retriever.documents,
                "tokenizer": generator.tokenizer,
                "budget_tokens": 900,
            }
            hits = small_retriever.search(question, k=2)
            prompt = build_prompt(question, hits, **parts)
            said = answers[place] if answers else None
            if said is None:
                said = generator.generate(prompt, max_new_tokens=3).token_ids
            found.append(Case(question, prompt, said, build_prompt(question, [], **parts)))
        return found

    return make


@pytest.fixture(scope="module")
def cases(make_cases, tiny_moe):
    return make_cases(tiny_moe)


@pytest.fixture(scope="module")
def planted_cases(make_cases, planted_moe, planted):
    """Each answer: what evidence makes likely, then a token with a digit, then what digits make likely."""
    first = [
        planted_moe.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in (planted.FROM_EVIDENCE, "22", planted.AFTER_DIGIT)
    ]
    return make_cases(planted_moe, [tuple(first)] * 3)


@pytest.mark.parametrize(("action", "segment"), [("ban", None), ("drop", "answer")])
def test_a_scan_is_what_single_passes_say(tiny_moe, cases, action, segment):
    found = scan_experts(tiny_moe, cases[:2], action=action, segment=segment)
    for place, case in enumerate(cases[:2]):
        plain = tiny_moe.score(case.prompt, case.answer)
        counts = plain.routing.counts(segment)
        np.testing.assert_array_equal(found.counts[place], counts)
        logs = plain.log_probabilities.sum()
        assert found.log_probabilities[place] == pytest.approx(logs, abs=1e-4)
        for layer, expert in ((0, 1), (1, 4), (2, 9)):
            of = {"prompt": case.prompt, "segment": segment} if segment else {}
            with tiny_moe.intervened([Edit(action, expert, (layer,))], **of):
                without = tiny_moe.score(case.prompt, case.answer).log_probabilities.sum()
            assert found.effects[place, layer, expert] == pytest.approx(logs - without, abs=5e-4)
    assert (found.effects != 0).any()
    if action == "drop":
        assert (found.effects[found.counts == 0] == 0).all()
    total = found.effects.sum(axis=0)[found.counts.sum(axis=0) > 0]
    np.testing.assert_allclose(
        found.effect_per_token[found.counts.sum(axis=0) > 0],
        total / found.counts.sum(axis=0)[found.counts.sum(axis=0) > 0],
    )
    assert found.passes < found.naive_passes / (1.3 if segment is None else 20)


def test_banning_a_near_tie_that_was_not_chosen_is_computed_too(tiny_moe, cases):
    text = "V-14 failed"
    prompt = plain_prompt(text, tokenizer=tiny_moe.tokenizer, budget_tokens=400)
    case = Case("near", prompt, cases[0].answer)
    found = scan_experts(tiny_moe, [case], segment="question")
    unused = np.argwhere(found.counts[0] == 0)
    plain = tiny_moe.score(case.prompt, case.answer).log_probabilities.sum()
    effects = []
    for layer, expert in unused.tolist():
        with tiny_moe.intervened(
            [Edit("ban", expert, (layer,))], prompt=case.prompt, segment="question"
        ):
            effects.append(plain - tiny_moe.score(case.prompt, case.answer).log_probabilities.sum())
    np.testing.assert_allclose(found.effects[0][tuple(unused.T)], effects, atol=5e-4)
    assert np.abs(effects).max() > 0.001  # the case that this is about


def test_planted_experts_are_found_and_no_others(planted, planted_moe, planted_cases):
    found = scan_experts(planted_moe, planted_cases)
    mean = found.mean_effect
    assert mean[0, planted.EVIDENCE] > 2 and mean[0, planted.DIGITS] > 2
    others = mean.copy()
    others[0, [planted.EVIDENCE, planted.DIGITS]] = 0
    assert np.abs(others).max() < 0.1 and mean[0, planted.DEAD] == 0
    assert np.isnan(found.effect_per_token[0, planted.DEAD])
    frame = found.to_frame()
    assert {tuple(row) for row in frame[["layer", "expert"]].values[:2].tolist()} == {
        (0, planted.EVIDENCE), (0, planted.DIGITS)
    }  # fmt: skip
    beyond = found.beyond_load(neighbours=5)
    assert beyond[0, planted.EVIDENCE] and beyond[0, planted.DIGITS]


def test_the_expert_that_carries_the_evidence_is_told_from_one_that_does_not(
    planted, planted_moe, planted_cases
):
    found = context_use(planted_moe, planted_cases)
    assert found.gains.min() > 2 and found.gain.low > 0  # the evidence matters
    mean = found.delta.mean(axis=0)
    assert mean[0, planted.EVIDENCE] == pytest.approx(found.gain.difference, rel=0.25)
    assert abs(mean[0, planted.DIGITS]) < 0.2 * mean[0, planted.EVIDENCE]
    assert np.unravel_index(mean.argmax(), mean.shape) == (0, planted.EVIDENCE)
    bare = [case.no_evidence() for case in planted_cases]
    gains = [
        planted_moe.score(a.prompt, a.answer).log_probabilities.sum()
        - planted_moe.score(b.prompt, b.answer).log_probabilities.sum()
        for a, b in zip(planted_cases, bare, strict=True)
    ]
    np.testing.assert_allclose(found.gains, gains, atol=1e-3)


def test_only_the_segment_where_a_planted_expert_works_shows_it(
    planted, planted_moe, planted_cases
):
    in_answer = scan_experts(planted_moe, planted_cases, segment="answer").mean_effect
    in_evidence = scan_experts(planted_moe, planted_cases, segment="evidence").mean_effect
    assert in_answer[0, planted.DIGITS] > 2 and in_answer[0, planted.EVIDENCE] == 0
    # headings and marks, which are no evidence, go on to use it
    assert in_evidence[0, planted.EVIDENCE] == in_evidence.max() > 0.2
    assert abs(in_evidence[0, planted.DIGITS]) < 0.15


def test_a_scan_goes_on_where_it_was_cancelled(tiny_moe, cases, tmp_path):
    journal = tmp_path / "scan.jsonl"
    whole = scan_experts(tiny_moe, cases)
    cancel, seen = CancelToken(), []

    def on_progress(step):
        seen.append((step.done, step.total))
        if len(seen) == 4:  # a layer of the second case
            cancel.cancel()

    part = scan_experts(tiny_moe, cases, journal=journal, on_progress=on_progress, cancel=cancel)
    assert part.questions == QUESTIONS[:1] and seen == [(1, 9), (2, 9), (3, 9), (4, 9)]
    assert len(journal.read_bytes().splitlines()) == 4
    rest = scan_experts(tiny_moe, cases, journal=journal)
    np.testing.assert_allclose(rest.effects, whole.effects, atol=1e-4)
    assert rest.passes < whole.passes - 4  # four layers of experts were not computed again
    again = scan_experts(tiny_moe, cases, journal=journal)
    np.testing.assert_array_equal(again.effects, rest.effects)
    # as many passes as answers: what is kept is checked against the answer's likelihood
    assert again.passes == pytest.approx(len(cases))


def test_a_cancelled_scan_without_any_case_says_where_its_work_is(tiny_moe, cases, tmp_path):
    cancel = CancelToken()
    with pytest.raises(
        Cancelled, match=r"before its first answer was done; what was done is in .*s\.jsonl"
    ):
        scan_experts(
            tiny_moe, cases, journal=tmp_path / "s.jsonl", cancel=cancel,
            on_progress=lambda step: cancel.cancel(),
        )  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_a_line_of_a_crash_is_computed_again(tiny_moe, cases, tmp_path, cut):
    journal = tmp_path / "scan.jsonl"
    whole = scan_experts(tiny_moe, cases[:1], journal=journal)
    data = journal.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    journal.write_bytes(data[: last + cut])
    again = scan_experts(tiny_moe, cases[:1], journal=journal)
    np.testing.assert_allclose(again.effects, whole.effects, atol=1e-4)
    assert len([json.loads(line) for line in journal.read_bytes().splitlines()]) == 3


def test_a_journal_of_another_checkpoint_is_not_believed(tiny_moe, make_tiny, cases, tmp_path):
    from dataclasses import replace

    from workbench.generation.loading import load_generator

    journal = tmp_path / "scan.jsonl"
    scan_experts(tiny_moe, cases[:1], journal=journal)
    other = replace(
        load_generator(make_tiny(seed=5), context=1024, device="cpu"), name=tiny_moe.name
    )
    fresh = scan_experts(other, cases[:1])
    kept = scan_experts(other, cases[:1], journal=journal)
    np.testing.assert_allclose(kept.effects, fresh.effects, atol=1e-4)


def test_what_cannot_be_scanned_is_refused(tiny_moe, tiny_dense, cases, tmp_path):
    with pytest.raises(ValueError, match="is a dense model: it has no router to look at"):
        scan_experts(tiny_dense, cases)
    with pytest.raises(ValueError, match="there is no case"):
        scan_experts(tiny_moe, [])
    with pytest.raises(ValueError, match="action='force' takes no expert away"):
        scan_experts(tiny_moe, cases, action="force")
    with pytest.raises(ValueError, match="has no prompt without evidence"):
        context_use(tiny_moe, [cases[0].no_evidence()])
    with pytest.raises(ValueError, match="the answer to 'Why' has no token"):
        Case("Why", cases[0].prompt, ())
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder: name a file"):
        scan_experts(tiny_moe, cases, journal=tmp_path / "folder")
    for text in ("not json\n", '{"case": 1}\n', '{"case": "x", "layer": 0}\n'):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(InputError, match="bad:1 is no line of a scan"):
            scan_experts(tiny_moe, cases, journal=tmp_path / "bad")
        assert (tmp_path / "bad").read_text() == text
    (tmp_path / "notes.txt").write_text("my notes, without an end")
    with pytest.raises(InputError, match="is no line of a scan"):
        scan_experts(tiny_moe, cases, journal=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "my notes, without an end"
