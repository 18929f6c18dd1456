from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from workbench.generation.loading import load_generator  # noqa: E402 (after importorskip)
from workbench.generation.prompts import ABSTENTION  # noqa: E402
from workbench.pocket import evaluate  # noqa: E402
from workbench.pocket.data import Example, Turn, example  # noqa: E402
from workbench.pocket.evaluate import HeldOutSet, counterfactual, tables  # noqa: E402
from workbench.pocket.tokenizer import FIRST_MARK  # noqa: E402

MADE = Example(
    "quote",
    "facts",
    "Mill\n[1] The mill opened in 1843.\n[2] It closed in 1911.\n\nPump\n[3] The pump is red.",
    ("The mill opened in 1843.", "It closed in 1911.", "The pump is red."),
    (
        Turn("Question: When did the mill open?", "[1] The mill opened in 1843.", 1),
        Turn("Question: What colour is the pump?", "[3] The pump is red.", 3),
        Turn("Question: Who owns the fan?", ABSTENTION, None),
    ),
)


@pytest.fixture(scope="module")
def generator():  # type: ignore[no-untyped-def]
    return load_generator("pocket")


def test_all_questions_in_one_pass_have_the_logits_each_has_alone(generator) -> None:  # type: ignore[no-untyped-def]
    """Oracle: transformers itself on each chat prompt."""
    together, silent = evaluate._first_logits(generator, MADE)
    assert generator.tokenizer.decode([silent]) == "The"
    for row, turn in zip(together, MADE.turns, strict=True):
        messages = [
            {"role": "system", "content": MADE.system},
            {"role": "user", "content": f"{MADE.evidence}\n\n{turn.line}"},
        ]
        ids = generator.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            alone = generator.model(ids).logits[0, -1]
        assert np.allclose(row, alone.numpy(), atol=1e-3)


def test_judgement_of_choices_worked_by_hand(generator, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    silent = 1000
    logits = np.zeros((3, 2000), dtype=np.float32)
    logits[0, FIRST_MARK] = 3.0  # right: [1]
    logits[1, [silent, FIRST_MARK + 2]] = 3.0, 2.0  # abstains, though [3] is its best mark
    logits[2, FIRST_MARK + 1] = 1.0  # answers what it should not
    logits[:, FIRST_MARK + 3] = 9.0  # a mark that the evidence has not
    monkeypatch.setattr(evaluate, "_first_logits", lambda *_: (logits, silent))
    first, second, third = evaluate._judged(
        generator, HeldOutSet("s", "facts", "entities"), 2, MADE
    )
    assert (first.cited, first.chosen, first.abstained, first.exact, first.f1) == (1, 1, 0, 1, 1)
    assert (second.cited, second.chosen, second.abstained, second.exact) == (0, 1, 1, 0)
    assert (third.cited, third.abstained, third.is_answerable) == (0, 0, False)
    assert (first.place, second.place) == (0.0, 1.0)
    assert (first.overlap, second.overlap, third.overlap) == (1, 1, 0)
    text = "\n".join(tables([first, second, third]))
    assert "citation precision 50.0%, recall 50.0%" in text
    assert "abstention accuracy (mean of both kinds) 25.0%" in text


def test_swapped_facts_are_counted_where_the_answer_follows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "_say", lambda _, asked: [turn.answer for _, turn in asked])
    right, again, asked = counterfactual("pocket", questions=12)
    assert right == again == asked == 12
    first: list[list[str]] = []

    def stubborn(_: object, asked) -> list[str]:  # type: ignore[no-untyped-def]
        first.append([turn.answer for _, turn in asked])
        return first[0]  # what it said before the facts changed

    monkeypatch.setattr(evaluate, "_say", stubborn)
    assert counterfactual("pocket", questions=12) == (12, 0, 12)


def test_swapped_fact_stands_in_the_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[tuple[Example, Turn]]] = []
    monkeypatch.setattr(
        evaluate, "_say", lambda _, asked: calls.append(list(asked)) or [""] * len(asked)
    )
    counterfactual("pocket", questions=12)
    for (before, old), (after, new) in zip(*calls, strict=True):
        assert old.line == new.line
        assert evaluate._form(evaluate._words(old)) == evaluate._form(evaluate._words(new))
        assert evaluate._words(new) in after.evidence
        assert evaluate._words(new) not in before.evidence


def test_form_of_a_span_keeps_digits_and_capitals_apart() -> None:
    assert evaluate._form("12 May 1907") == "9 Aa 9"
    assert evaluate._form("KX-209") == "A-9"


@pytest.mark.parametrize("passages", [1, 3, 8])
def test_evidence_has_the_number_of_passages_asked_for(passages: int) -> None:
    for family in ("scenes", "facts", "events", "table"):
        made = example(seed=f"several-{family}", passages=passages, family=family, style="quote")
        blocks = made.evidence.split("\n\n")
        assert len(blocks) == passages
        assert all(1 <= block.count("\n[") <= 6 for block in blocks)
