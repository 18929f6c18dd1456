from __future__ import annotations

import numpy as np
import pytest

from workbench.plots.balance import plot_balance
from workbench.plots.figures import new_axes, png_bytes
from workbench.routing.statistics import effective_experts_by_segment


def test_each_layer_has_its_number_and_interval(random_trace) -> None:
    found = effective_experts_by_segment(random_trace(tokens=90, layers=4), block_tokens=5)
    ax = plot_balance(found)
    every, *lines = ax.get_lines()
    assert every.get_xdata() == [16, 16] and every.get_linestyle() == "--"
    assert len(lines) == len(ax.collections) == 3
    for line, bars, one in zip(lines, ax.collections, found.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), one.number)
        assert np.abs(line.get_ydata() - np.arange(4)).max() < 0.5
        ends = np.array(bars.get_segments())  # [layers, ends, x and y]
        np.testing.assert_array_equal(ends[:, :, 0], np.stack([one.low, one.high], axis=1))
        np.testing.assert_array_equal(ends[:, 0, 1], line.get_ydata())
    assert ax.yaxis_inverted() and "95% interval" in ax.get_xlabel()


def test_lines_are_told_apart_without_colour(random_trace) -> None:
    lines = plot_balance(effective_experts_by_segment(random_trace())).get_lines()[1:]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines)


def test_what_cannot_share_a_picture_is_refused(random_trace) -> None:
    one, other = (effective_experts_by_segment(random_trace(layers=n)) for n in (2, 3))
    with pytest.raises(ValueError, match="layers, experts and confidence differ"):
        plot_balance({"one": one["answer"], "other": other["answer"]})
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_balance({})


def test_it_is_drawn_without_a_warning_even_if_intervals_are_missing(random_trace) -> None:
    ax = new_axes(width=5, height=3)
    found = effective_experts_by_segment(random_trace(layers=32), block_tokens=1000)
    assert plot_balance({"$x$ \x00": found["answer"]}, ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
