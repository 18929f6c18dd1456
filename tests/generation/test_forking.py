"""Answers scored with other experts from the middle of a model, against whole passes with the same edits one by one."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.cancel import CancelToken
from workbench.errors import Cancelled, PromptTooLong
from workbench.generation.forking import open_fork
from workbench.generation.prompts import build_prompt
from workbench.routing.capture import find_routers
from workbench.routing.intervene import Edit

ALTERNATIVES = [
    [Edit("ban", 3, layers=(0,))],
    [],
    [Edit("ban", 5, layers=(2,))],
    [Edit("drop", 5, layers=(2,))],
    [Edit("drop", 1)],
    [Edit("ban", 2, layers=(1,)), Edit("bias", 4, layers=(2,), amount=3.0)],
    [Edit("force", 9, layers=(1, 2))],
    [Edit("bias", 9, layers=(1,), amount=0.0)],
]


@pytest.fixture(scope="module")
def prompt(small_retriever, tiny_moe):
    return build_prompt(
        "Which valve failed first?",
        small_retriever.search("valve", k=2),
        documents=small_retriever.documents,
        tokenizer=tiny_moe.tokenizer,
        budget_tokens=900,
    )


@pytest.fixture(scope="module")
def answer(prompt, tiny_moe):
    return tiny_moe.generate(prompt, max_new_tokens=7).token_ids


def one_by_one(generator, prompt, answer, segment):
    """What whole passes say: [alternatives]."""
    plain = generator.score(prompt, answer).log_probabilities.sum()
    found = []
    for edits in ALTERNATIVES:
        if not edits:
            found.append(0.0)
            continue
        of = {} if segment is None else {"prompt": prompt, "segment": segment}
        with generator.intervened(edits, **of):
            found.append(generator.score(prompt, answer).log_probabilities.sum() - plain)
    return np.array(found)


@pytest.mark.parametrize("most_rows", [2, 3, 16])
@pytest.mark.parametrize("segment", [None, "question", "evidence", "evidence 2", "answer"])
def test_alternatives_are_what_whole_passes_compute(tiny_moe, prompt, answer, segment, most_rows):
    wanted = one_by_one(tiny_moe, prompt, answer, segment)
    with open_fork(tiny_moe, prompt, answer, segment=segment, most_rows=most_rows) as fork:
        found = fork.score(ALTERNATIVES)
        again = fork.score(ALTERNATIVES[::-1])[::-1]
    np.testing.assert_allclose(found, wanted, atol=5e-4)
    np.testing.assert_allclose(again, found, atol=1e-4)
    assert np.abs(wanted).max() > 0.01 and found[1] == 0.0 and abs(found[-1]) < 1e-5
    np.testing.assert_allclose(
        fork.log_probabilities, tiny_moe.score(prompt, answer).log_probabilities, atol=1e-4
    )
    inner = tiny_moe.model.model
    assert len(inner.layers) == 3 and not any(r._forward_hooks for r in find_routers(inner))


@pytest.mark.parametrize("segment", [None, "evidence", "answer"])
def test_counts_are_those_of_the_tokens_meant(tiny_moe, prompt, answer, segment):
    with open_fork(tiny_moe, prompt, answer, segment=segment) as fork:
        found = fork.counts
    trace = tiny_moe.score(prompt, answer).routing
    np.testing.assert_array_equal(found, trace.counts(segment))


def test_only_layers_from_the_edit_on_and_tokens_from_the_segment_on_are_computed(
    tiny_moe, prompt, answer
):
    alternatives = [[Edit("ban", e, layers=(2,))] for e in range(4)]
    with open_fork(tiny_moe, prompt, answer, most_rows=3) as fork:
        fork.score(alternatives)
    # twice two alternatives and the row without, one layer of three
    assert fork.rows == 3 and fork.passes == pytest.approx(1 + 6 / 3)
    with open_fork(tiny_moe, prompt, answer, segment="answer") as fork:
        fork.score(alternatives)
    computed = len(answer) / (len(prompt.token_ids) + len(answer) - 1)
    assert fork.rows > 4 and fork.passes == pytest.approx((1 + 5 / 3) * computed)


def test_an_expert_so_near_that_it_takes_some_of_a_gate_is_counted(tiny_moe, prompt, answer):
    trace = tiny_moe.score(prompt, answer, capture="logits").routing
    with open_fork(tiny_moe, prompt, answer) as fork:
        ties = fork.ties
    found = np.zeros_like(ties)
    rows = np.flatnonzero(trace.routed)
    for row in rows:
        for layer in range(trace.layers):
            logits = trace.router_logits[row, layer].astype(np.float32)
            for expert in set(range(16)) - set(trace.experts[row, layer].tolist()):
                for chosen in trace.experts[row, layer]:
                    top = logits[chosen]
                    if (top - logits[expert]) / max(abs(logits[expert]), top) <= 0.03:
                        found[layer, expert] += 1
                        break
    np.testing.assert_allclose(ties, found, atol=1)
    # whoever shares a gate is among them
    shared = (trace.gate_weights[rows] < 0.999).any(axis=2)
    assert (ties.sum(axis=1) >= 0.5 * shared.sum(axis=0)).all() and ties.sum() < 0.5 * len(
        rows
    ) * 3 * 14


def test_a_prefix_that_is_kept_is_reused_and_kept_again(tiny_moe, prompt, answer):
    tiny_moe.prefixes.clear()
    with open_fork(tiny_moe, prompt, answer, segment="answer") as fork:
        fork.score(ALTERNATIVES)
    said = tiny_moe.score(prompt, answer, capture="logits")  # which a fork records too
    assert said.cache.reused_tokens >= len(prompt.token_ids) - 2
    np.testing.assert_allclose(said.log_probabilities, fork.log_probabilities, atol=1e-4)
    assert said.routing.routed[:-1].all()


def test_a_cancelled_fork_leaves_the_model_whole(tiny_moe, prompt, answer):
    before = tiny_moe.score(prompt, answer)
    cancel = CancelToken()
    with pytest.raises(Cancelled), open_fork(tiny_moe, prompt, answer, cancel=cancel) as fork:
        cancel.cancel()
        fork.score(ALTERNATIVES)
    with pytest.raises(Cancelled), open_fork(tiny_moe, prompt, answer, cancel=cancel):
        pass
    after = tiny_moe.score(prompt, answer)
    np.testing.assert_allclose(before.log_probabilities, after.log_probabilities, atol=1e-4)
    assert len(tiny_moe.model.model.layers) == 3
    assert all(not layer._forward_pre_hooks for layer in tiny_moe.model.model.layers)


def test_what_cannot_be_forked_is_refused(tiny_moe, tiny_dense, prompt, answer, monkeypatch):
    for generator, said, segment, message in (
        (tiny_dense, answer, None, "is a dense model"),
        (tiny_moe, (), None, "the answer has no token"),
        (tiny_moe, answer[:1], "answer", "segment 'answer' has no routed token"),
        (tiny_moe, answer, "history", "no segment 'history'"),
    ):
        with pytest.raises(ValueError, match=message):
            with open_fork(generator, prompt, said, segment=segment):
                pass
    from dataclasses import replace

    small = replace(tiny_moe, whole_tokens=10)
    monkeypatch.setattr("workbench.generation.phi.prefill_tokens", lambda device: 8)
    with pytest.raises(PromptTooLong, match="and 10 fit into one pass here"):
        with open_fork(small, prompt, answer):
            pass
    with open_fork(tiny_moe, prompt, answer) as fork:
        for edits, message in (
            (
                [Edit("ban", 1, layers=(99,))],
                "there is no layer to ban 1 in layers 99; there are 0 to 2",
            ),
            ([Edit("ban", 99, layers=(1,))], "there is no expert to ban 99 in layers 1"),
            ([Edit("ban", e) for e in range(15)], "two must be left"),
        ):
            with pytest.raises(ValueError, match=message):
                fork.score([edits])
    with pytest.raises(ValueError, match="the block of open_fork has ended"):
        fork.score(ALTERNATIVES)
    with tiny_moe.intervened([Edit("ban", 1)]), open_fork(tiny_moe, prompt, answer) as fork:
        with pytest.raises(ValueError, match="intervened in already"):
            fork.score([[Edit("ban", 2)]])


def test_banning_a_planted_expert_does_what_was_planted_and_others_do_nothing(
    planted, planted_moe, small_retriever
):
    prompt = build_prompt(
        "Which valve failed?",
        small_retriever.search("valve", k=2),
        documents=small_retriever.documents,
        tokenizer=planted_moe.tokenizer,
        budget_tokens=900,
    )
    first = {
        word: planted_moe.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in (planted.FROM_EVIDENCE, planted.AFTER_DIGIT, "22")
    }
    evidence, digit = [first[planted.FROM_EVIDENCE]], [first["22"], first[planted.AFTER_DIGIT]]
    every = [[Edit("ban", e, layers=(n,))] for n in range(2) for e in range(16)]
    for answer, expert in ((evidence, planted.EVIDENCE), (digit, planted.DIGITS)):
        with open_fork(planted_moe, prompt, answer) as fork:
            effects = fork.score(every).reshape(2, 16)
        assert effects[0, expert] < -2
        effects[0, [expert, planted.EVIDENCE]] = 0.0  # what the evidence says is likelier moves all
        assert np.abs(effects).max() < 0.02
        assert fork.counts[0, planted.DEAD] == fork.counts[1, planted.DEAD] == 0
