from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.labels import label, visible


@given(st.text())
def test_what_is_visible_has_the_length_of_the_text_and_no_control_character(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(character).startswith("C") for character in shown)


def test_blanks_breaks_and_tabs_have_signs() -> None:
    assert visible("  ") == "␣␣"
    assert visible(" a\r\n\tb ") == " a↵↵⇥b "
    assert visible("") == ""


@pytest.mark.parametrize("character", ["\u202e", "\u200b", "\x1b", "\x00", "\ud800", "中"])
def test_what_cannot_be_drawn_is_a_box(character: str) -> None:
    assert visible(f"a{character}") == "a▯"


def test_what_a_font_lacks_depends_on_the_font() -> None:
    assert visible("😀", family="sans-serif") == "😀"
    assert visible("😀", family="monospace") == "▯"


@pytest.mark.parametrize("text", ["$x^2$", r"\$5 to $6", "$\\frac$ 中\x07", "a$"])
def test_a_label_is_drawn_as_it_stands(text: str) -> None:
    ax = new_axes(width=3, height=2)
    ax.set_title(label(text))
    assert (
        len(png_bytes(ax)) > 1000
    )  # matplotlib warns of lacking glyphs, and bad mathematics raise
    # Text._preprocess_math tells what would be drawn, and whether as mathematics
    drawn, is_math = ax.title._preprocess_math(ax.title.get_text())
    assert (drawn, is_math) == (visible(text), False)
