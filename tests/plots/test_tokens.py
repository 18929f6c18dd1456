from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from workbench.plots.conventions import NOTHING, NOTHING_HATCH, expert_colours
from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.tokens import MOST_TOKENS, plot_token_experts


def strip_texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() != "segment"]


def tiles(ax) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def test_every_token_has_its_text_and_the_numbers_of_its_experts(random_trace) -> None:
    trace = random_trace(tokens=50)
    wanted = []
    for position in range(10, 50):
        wanted.append(trace.token_texts[position])
        if trace.routed[position]:
            wanted += [str(expert) for expert in trace.experts[position, 1]]
    assert strip_texts(plot_token_experts(trace, layer=1, start=10)) == wanted


def test_tiles_are_tinted_by_the_expert_whose_number_they_hold(random_trace) -> None:
    trace = random_trace(tokens=20)
    ax = plot_token_experts(trace, layer=0, stop=5)
    tints = 0.55 + 0.45 * expert_colours(16)
    wanted = [tints[expert] for position in range(5) for expert in trace.experts[position, 0]]
    np.testing.assert_allclose([to_rgb(t.get_facecolor()) for t in tiles(ax)], wanted)
    heights = [tile.get_height() for tile in tiles(ax)]
    assert heights[0::2] == [2 * height for height in heights[1::2]]


def test_a_token_that_was_not_routed_is_hatched_and_has_no_number(random_trace) -> None:
    ax = plot_token_experts(random_trace(tokens=20), layer=0, start=19)
    (tile,) = tiles(ax)
    assert tile.get_hatch() == NOTHING_HATCH and to_rgb(tile.get_facecolor()) == to_rgb(NOTHING)
    assert len(strip_texts(ax)) == 1


def test_tokens_wrap_and_never_overlap(random_trace) -> None:
    texts = ("a", " word", "x" * 300, " ")
    ax = plot_token_experts(random_trace(tokens=200, texts=texts), layer=0)
    rows: dict[float, list[tuple[float, float]]] = {}
    for tile in tiles(ax):
        rows.setdefault(tile.get_y(), []).append((tile.get_x(), tile.get_x() + tile.get_width()))
    assert len(rows) > 4
    for spans in rows.values():
        assert min(spans)[0] == 0 and max(spans)[1] <= ax.get_xlim()[1]
        for (_, stop), (start, _) in pairwise(spans):
            assert start == pytest.approx(stop)
    assert min(ax.get_ylim()) == 0 and max(rows) < max(ax.get_ylim())


def test_segments_are_named_above_their_tokens(random_trace) -> None:
    ax = plot_token_experts(random_trace(tokens=40), layer=0)
    names = [text.get_text() for text in ax.texts if text.get_gid() == "segment"]
    assert set(names) == {"question", "evidence 1", "evidence 2", "answer"}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["question", "evidence", "answer"]


def test_text_of_tokens_is_drawn_as_it_stands(random_trace) -> None:
    trace = random_trace(tokens=20, texts=("$x^2$", "\n", "\x07中", "$", " "))
    ax = plot_token_experts(trace, layer=0)
    assert {"$x^2$", "↵", "▯▯", "$", "␣"} <= set(strip_texts(ax))
    assert not any(text.get_parse_math() for text in ax.texts if "$" in text.get_text())
    assert len(png_bytes(ax, dpi=50)) > 3000


def test_more_than_can_be_read_is_refused_with_what_would_do(random_trace) -> None:
    trace = random_trace(tokens=MOST_TOKENS + 1)
    with pytest.raises(ValueError, match=r"401 tokens are more than the 400 .*plot_token_layers"):
        plot_token_experts(trace, layer=0)
    plot_token_experts(trace, layer=0, start=1)
    with pytest.raises(ValueError, match="layer=3 is outside 0…2"):
        plot_token_experts(trace, layer=3, stop=5)
    for start, stop in ((5, 5), (-1, 4), (0, 500)):
        with pytest.raises(ValueError, match="no span of the 401 tokens"):
            plot_token_experts(trace, layer=0, start=start, stop=stop)


def test_on_axes_that_are_given_the_text_is_as_small_as_they_need(random_trace) -> None:
    small, large = new_axes(width=3, height=2), new_axes(width=9, height=6)
    for ax in (small, large):
        assert plot_token_experts(random_trace(k=1), layer=0, ax=ax) is ax
    assert small.texts[0].get_fontsize() < large.texts[0].get_fontsize()
