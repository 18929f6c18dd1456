from __future__ import annotations

import colorsys

import numpy as np
import pytest
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.colors import to_rgb

from workbench.plots.conventions import (
    SEGMENT_STYLES,
    expert_colours,
    hatch_cells,
    ink_on,
    layers_down,
    mark_signs,
    number_ticks,
    segment_style,
    symmetric_limit,
)
from workbench.plots.figures import new_axes


@pytest.mark.parametrize(("count", "step"), [(1, 1), (5, 1), (16, 1), (17, 2), (32, 2), (64, 4)])
def test_ticks_are_few_and_begin_at_zero(count: int, step: int) -> None:
    ax = new_axes(width=3, height=2)
    number_ticks(ax.xaxis, count)
    assert ax.get_xticks().tolist() == list(range(0, count, step))


def test_layer_0_is_at_the_top() -> None:
    ax = new_axes(width=3, height=2)
    layers_down(ax, 5)
    assert ax.get_ylim() == (4.5, -0.5)


@pytest.mark.parametrize("n_experts", [16, 64])
def test_experts_have_different_colours(n_experts: int) -> None:
    colours = expert_colours(n_experts)
    assert colours.shape == (n_experts, 3) and colours.min() >= 0 and colours.max() <= 1
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2) + np.eye(n_experts)
    assert apart.min() > 0.02 if n_experts == 64 else apart.min() > 0.15


def test_experts_beside_each_other_differ_in_lightness() -> None:
    lightness = [colorsys.rgb_to_hls(*colour)[1] for colour in expert_colours(16)]
    assert np.abs(np.diff(lightness)).min() > 0.15


def test_ink_has_the_contrast_that_wcag_asks_of_text() -> None:
    for colour in expert_colours(64):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        ratio = (
            (luminance + 0.05) / 0.05 if ink_on(colour) == "black" else 1.05 / (luminance + 0.05)
        )
        assert ratio >= 4.5


def test_segments_share_no_style() -> None:
    styles = [segment_style(name) for name in (*SEGMENT_STYLES, "something else")]
    assert len(set(styles)) == len(styles)
    assert segment_style("history 4") == SEGMENT_STYLES["history"]
    assert all(to_rgb(colour) for colour, _ in styles)


def test_a_limit_is_never_zero() -> None:
    assert symmetric_limit(np.zeros((2, 2))) == symmetric_limit(np.array([np.nan])) == 1.0
    assert symmetric_limit(np.array([1.0, -3.0, -np.inf])) == 3.0


def test_hatched_cells_are_those_that_are_true() -> None:
    ax = new_axes(width=3, height=2)
    hatch_cells(ax, np.array([[False, True], [False, False]]), hatch="//")
    hatch_cells(ax, np.zeros((2, 2), bool), hatch="xx")
    assert all(isinstance(c, PatchCollection) and c.get_hatch() == "//" for c in ax.collections)
    path = ax.collections[0].get_paths()[0]
    assert path.get_extents().bounds == (0.5, -0.5, 1.0, 1.0)  # column 1, row 0


def test_signs_stand_where_values_are_far_from_zero() -> None:
    ax = new_axes(width=3, height=2)
    mark_signs(ax, np.array([[2.0, -2.0, 0.5, np.nan]]), above=1.0)
    marks = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert [m.get_offsets().tolist() for m in marks] == [[[0, 0]]] * 2 + [[[1, 0]]] * 2
