from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from workbench.plots.conventions import NOTHING, expert_colours
from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.layers import MOST_COLUMNS, plot_token_layers


def test_each_token_has_the_colour_of_its_first_expert(random_trace) -> None:
    trace = random_trace(tokens=80, layers=4)
    image = plot_token_layers(trace).images[0]
    shown = np.asarray(image.get_array())
    colours = expert_colours(16)
    np.testing.assert_allclose(shown[:, :-1], colours[trace.experts[:-1, :, 0]].transpose(1, 0, 2))
    assert (shown[:, -1] == to_rgb(NOTHING)).all()  # the last token is not routed
    assert image.get_extent() == [-0.5, 79.5, 3.5, -0.5]


def test_many_tokens_show_the_expert_that_most_of_them_chose(random_trace) -> None:
    trace = random_trace(tokens=2 * MOST_COLUMNS + 100, layers=2)  # three tokens a column
    ax = plot_token_layers(trace)
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (2, -(-len(trace.experts) // 3), 3)
    colours = expert_colours(16)
    for column in (0, 17, 500):
        for layer in range(2):
            chosen = trace.experts[3 * column : 3 * column + 3, layer, 0]
            numbers = np.bincount(chosen, minlength=16)
            strength = 0.25 + 0.75 * (numbers.max() / 3 - 1 / 16) / (15 / 16)
            wanted = strength * colours[numbers.argmax()] + (1 - strength)
            np.testing.assert_allclose(shown[layer, column], wanted)
    assert "a column is 3 tokens" in ax.get_xlabel()


def test_tokens_that_were_not_routed_are_not_counted(random_trace) -> None:
    trace = random_trace(tokens=2 * MOST_COLUMNS, layers=1)
    routed = np.arange(2 * MOST_COLUMNS) % 2 == 0
    routed[10:14] = False
    shown = np.asarray(plot_token_layers(replace(trace, routed=routed)).images[0].get_array())[0]
    np.testing.assert_allclose(shown[0], expert_colours(16)[trace.experts[0, 0, 0]])
    assert (shown[5:7] == to_rgb(NOTHING)).all() and (shown[7] != to_rgb(NOTHING)).any()


def test_a_part_keeps_its_positions(random_trace) -> None:
    trace = random_trace(tokens=80)
    ax = plot_token_layers(trace, start=20, stop=50)
    assert ax.get_xlim() == (19.5, 49.5)
    whole = np.asarray(plot_token_layers(trace).images[0].get_array())
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()), whole[:, 20:50])
    (hatched,) = [p for p in plot_token_layers(trace, start=20).patches if p.get_hatch()]
    assert (hatched.get_x(), hatched.get_width()) == (78.5, 1.0)  # the last, not routed
    with pytest.raises(ValueError, match="start=50 and stop=20 are no span of the 80 tokens"):
        plot_token_layers(trace, start=50, stop=20)


def test_long_runs_have_the_number_of_their_expert(random_trace) -> None:
    trace = random_trace(tokens=90, layers=1)
    experts = trace.experts.copy()
    experts[:30, 0], experts[30:89, 0] = (7, 1), (12, 1)
    ax = plot_token_layers(replace(trace, experts=experts))
    found = {t.get_text(): t.get_position() for t in ax.texts if t.get_gid() is None}
    assert found == {"7": (14.5, 0), "12": (59.0, 0)}


def test_segments_stand_above_layer_0(random_trace) -> None:
    ax = plot_token_layers(random_trace(tokens=80))
    names = [t.get_text() for t in ax.texts if t.get_gid() == "segment"]
    assert names == ["question", "evidence 1", "evidence 2", "answer"]
    assert all(t.get_position()[1] < -0.5 for t in ax.texts if t.get_gid() == "segment")
    question = ax.collections[0].get_paths()[0].get_extents()
    assert (question.x0, question.x1) == (-0.5, 19.5) and question.y1 == -0.5
    assert ax.get_ylim()[0] == 2.5 and ax.get_ylim()[1] == question.y0


def test_both_legends_are_there(random_trace) -> None:
    from matplotlib.legend import Legend

    legends = [c for c in plot_token_layers(random_trace()).get_children() if isinstance(c, Legend)]
    texts = [[t.get_text() for t in legend.get_texts()] for legend in legends]
    assert [str(n) for n in range(16)] in texts and ["question", "evidence", "answer"] in texts


def test_a_whole_context_is_drawn_in_two_seconds(random_trace) -> None:
    trace = random_trace(tokens=131_072, layers=32)
    png_bytes(plot_token_layers(random_trace()), dpi=50)  # fonts are read once
    started = time.process_time()
    assert len(png_bytes(plot_token_layers(trace))) > 10_000
    assert time.process_time() - started < 2


def test_it_is_drawn_without_a_warning(random_trace) -> None:
    ax = new_axes(width=6, height=3)
    trace = random_trace(n_experts=64, segment_names=("$a$ 1", "\x00b", "answer"))
    assert plot_token_layers(trace, ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
