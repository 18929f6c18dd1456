"""Oracles: a table worked by hand, and properties that hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.evaluation.answers import (
    is_contained,
    is_exact,
    normalised,
    token_f1,
    typed_span,
)

TABLE = [  # answer, reference, exact, contained, F1 by hand
    ("the Pump", "pump", True, True, 1.0),
    (
        "a pump in the cellar",
        "the cellar",
        False,
        True,
        0.5,
    ),  # 1 of 3 said (pump in cellar), 1 of 1 wanted
    ("12 June 1907", "June 1907", False, True, 0.8),  # 2/3 and 2/2
    ("red red blue", "red blue blue", False, False, 2 / 3),  # one red, one blue
    ("nothing", "pump", False, False, 0.0),
    ("", "pump", False, False, 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "exact", "contained", "f1"), TABLE)
def test_scores_are_those_worked_by_hand(
    answer: str, reference: str, exact: bool, contained: bool, f1: float
) -> None:
    assert is_exact(answer, [reference]) is exact
    assert is_contained(answer, [reference]) is contained
    assert token_f1(answer, [reference]) == pytest.approx(f1)


def test_the_best_reference_counts() -> None:
    assert token_f1("two pumps", ["valve", "two pumps", "pumps"]) == 1.0
    assert is_exact("b", ["a", "b"])
    assert not is_exact("b", [])
    assert token_f1("b", []) == 0.0


@given(st.text())
def test_a_text_is_its_own_best_answer(text: str) -> None:
    assert is_exact(text, [text])
    assert token_f1(text, [text]) == 1.0
    assert is_contained(text, [text]) is bool(normalised(text))
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(), st.text())
def test_f1_is_a_share_and_symmetric(one: str, other: str) -> None:
    assert 0.0 <= token_f1(one, [other]) <= 1.0
    assert token_f1(one, [other]) == pytest.approx(token_f1(other, [one]))


@pytest.mark.parametrize(
    ("question", "sentence", "span"),
    [
        ("When was the fair?", "The fair of 3 May 1921 drew 4,000 guests.", "3 May 1921"),
        ("How many guests came?", "The fair of 3 May 1921 drew thirty-two guests.", "thirty-two"),
        ("Who rang the bell?", "The bell was rung by Sister Maud Green.", "Sister Maud Green"),
        ("where does Maud live", "Maud lives near Port Arno now.", "Port Arno"),
        ("Why was it shut?", "it rained", "it rained"),
    ],
)
def test_typed_span_takes_what_the_question_asks_for(
    question: str, sentence: str, span: str
) -> None:
    assert typed_span(question, sentence) == span
