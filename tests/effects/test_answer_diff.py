"""Answers side by side: what is marked, and that nothing of a document becomes HTML."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.effects.answer_diff import answer_diff_html, word_difference
from workbench.effects.answers import ChangedAnswer


def made(before: str, after: str, **fields) -> ChangedAnswer:
    values = {
        "likelihood_change": -1.5, "marks_kept": 0.5, "overlap": np.nan, "is_right_before": None,
        "is_right_after": None, **fields,
    }  # fmt: skip
    question = "Which <b>valve</b>?"
    return ChangedAnswer(
        before=SimpleNamespace(text=before, question=question),
        after=SimpleNamespace(text=after),
        **values,
    )


def left(text: str, spans) -> list[str]:
    """The words outside the spans."""
    for span in reversed(spans):
        text = text[: span.start] + text[span.stop :]
    return text.split()


words = st.lists(st.sampled_from(["the", "valve", "[1]", "<b>", "failed", "&"]), max_size=12)


@given(words, words, st.sampled_from([" ", "\n", "  "]))
def test_what_is_not_marked_is_the_same_in_both(one, other, blank) -> None:
    before, after = " ".join(one), blank.join(other)
    found = word_difference(before, after)
    assert left(before, found.gone) == left(after, found.new)
    if one == other:
        assert not found.gone and not found.new


def test_words_that_differ_are_marked_on_their_own_side() -> None:
    shown = answer_diff_html(made("[1] the first valve failed", "[2] the second valve failed"))
    assert re.findall(r'<mark title="gone">(.*?)</mark>', shown) == ["[1]", "first"]
    assert re.findall(r'<mark title="new">(.*?)</mark>', shown) == ["[2]", "second"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script> a", '"><img src=x onerror=alert(2)>'])
def test_texts_and_question_are_escaped(text: str) -> None:
    shown = answer_diff_html(made(text, f"{text} more"))
    assert not re.search(r"<(script|img|b>)", shown)
    assert html.unescape(re.sub(r"<[^>]*>", "", shown)).count(text) == 2


def test_the_note_says_what_is_known_and_nothing_else() -> None:
    note = answer_diff_html(made("a", "a")).split('<p class="wb-note">')[-1]
    assert note == "the same text; the first answer -1.50 nats; 50% of its citations kept</p>"
    known = answer_diff_html(
        made("a", "b", marks_kept=np.nan, overlap=0.25, is_right_before=True, is_right_after=False)
    )
    assert known.endswith(
        "the text changed; the first answer -1.50 nats; 25% of the cited characters shared; "
        "cited right before, wrong after</p>"
    )


def test_a_notebook_shows_it_in_the_frame_of_all_answers() -> None:
    changed = made("a", "b")
    shown = changed._repr_html_()
    assert shown.startswith('<div class="wb"><style>') and answer_diff_html(changed) in shown
