"""The picture of a card holds its numbers, and its texts as they stand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.effects.card import expert_card
from workbench.effects.scan import ExpertScan
from workbench.plots.card import plot_expert_card
from workbench.plots.figures import new_axes, png_bytes


@pytest.fixture
def card(random_trace):
    trace = random_trace(
        tokens=80, layers=3, n_experts=16, texts=("▁$valve$", "\n", "中", "pump" * 30)
    )
    scan = ExpertScan(
        ("a", "b"), np.ones((2, 3, 16)), np.ones((2, 3, 16), int), np.zeros(2), "ban", None, 1.0
    )
    return expert_card([trace], layer=1, expert=int(trace.experts[0, 1, 0]), scan=scan)


def test_bars_are_the_shares_of_the_segments_and_the_dashed_line_is_uniform(card) -> None:
    ax = plot_expert_card(card)
    bars = [patch for patch in ax.patches if patch.get_gid() == "bar"]
    shares = [segment.share for segment in card.segments]
    (line,) = ax.lines
    uniform = line.get_xdata()[0] - bars[0].get_x()
    for bar, share in zip(bars, shares, strict=True):
        assert bar.get_width() / uniform == pytest.approx(share / card.uniform)
    assert line.get_linestyle() == "--"


def test_words_companions_and_contexts_are_written(card) -> None:
    ax = plot_expert_card(card)
    texts = [text.get_text() for text in ax.texts]
    assert len([t for t in texts if t.startswith("“")]) == len(card.top) > 0
    tokens = [text.get_text() for text in ax.texts if text.get_gid() == "token"]
    assert len(tokens) == len(card.contexts) > 0 and max(map(len, tokens)) <= 18
    for partner in card.partners:
        assert any(str(partner).replace(" ", "\u00a0") in text for text in texts)
    said = ax.get_title().split("\n")
    assert said[1:] == [card.summary(), card.effect_text()]


def test_no_text_is_mathematics_or_lacks_a_glyph(card) -> None:
    ax = plot_expert_card(card)
    assert any("$valve$" in text.get_text() for text in ax.texts)
    assert not any(text.get_parse_math() for text in ax.texts)
    assert not any("中" in text.get_text() or "\n" in text.get_text() for text in ax.texts)
    assert len(png_bytes(ax, dpi=50)) > 5000


def test_texts_do_not_run_into_one_another(card) -> None:
    ax = plot_expert_card(card)
    png_bytes(ax, dpi=100)  # that of the figure, which extents are measured in
    boxes = [(t.get_window_extent(), t.get_text()) for t in ax.texts if t.get_text()]
    for number, (one, text) in enumerate(boxes):
        for other, also in boxes[number + 1 :]:
            is_beside = one.x1 <= other.x0 + 2 or other.x1 <= one.x0 + 2
            # a line is as high as its letters with what hangs below them
            is_above = one.y1 <= other.y0 + 4 or other.y1 <= one.y0 + 4
            assert is_beside or is_above, (text, also)


def test_a_card_is_drawn_on_the_axes_given_with_text_that_fits(card) -> None:
    ax = new_axes(width=4, height=3)
    assert plot_expert_card(card, ax=ax) is ax
    small = ax.texts[0].get_fontsize()
    assert small < plot_expert_card(card).texts[0].get_fontsize()
    assert len(png_bytes(ax)) > 5000
