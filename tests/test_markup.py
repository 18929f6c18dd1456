"""Escaping and highlighting of any text."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from workbench.markup import Highlight, highlight, page, shorten


@given(
    st.text(max_size=60),
    st.lists(st.tuples(st.integers(-5, 70), st.integers(-5, 70)), max_size=6),
)
def test_highlighting_adds_marks_and_changes_no_character(text, spans):
    marked = highlight(text, [Highlight(a, b) for a, b in spans])
    assert html.unescape(re.sub(r"</?mark[^>]*>", "", marked)) == text
    assert marked.count("<mark") == marked.count("</mark>")
    assert not re.search(r"<(?!/?mark)", marked)


def test_labels_are_escaped():
    assert highlight("x", [Highlight(0, 1, '"><script>', '" onclick="')]).count("<") == 2


def test_titles_are_escaped_and_nothing_may_be_loaded():
    whole = page("</title><script>", "<p>body</p>")
    assert "<script>" not in whole
    assert "default-src 'none'" in whole


@given(st.text(max_size=30), st.integers(1, 20))
def test_shortened_text_is_no_longer_than_asked(text, length):
    assert len(shorten(text, length)) <= max(length, 1)
