from __future__ import annotations

import numpy as np
import pytest

from workbench.plots.conditions import plot_agreement
from workbench.plots.figures import new_axes, png_bytes
from workbench.routing.compare import compare_routing


@pytest.fixture
def comparisons(random_trace):
    """The same tokens, where one layer in three was given other experts."""
    plain = [random_trace(tokens=40, seed=seed) for seed in range(4)]
    moved = [random_trace(tokens=40, seed=seed) for seed in range(4)]
    for trace in moved:
        trace.experts[:20, 1] = (trace.experts[:20, 1] + 1) % 16
    return {
        "once more": compare_routing(plain, plain, permutations=99),
        "moved": compare_routing(plain, moved, permutations=99),
    }


def test_each_layer_has_its_share_and_interval(comparisons) -> None:
    ax = plot_agreement(comparisons)
    every, *lines = ax.get_lines()
    assert list(every.get_xdata()) == [1, 1]
    for line, bars, one in zip(lines, ax.collections, comparisons.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), one.agreement)
        ends = np.array(bars.get_segments())
        np.testing.assert_array_equal(
            ends[:, :, 0], np.stack([one.agreement_low, one.agreement_high], axis=1)
        )
    assert lines[0].get_xdata().tolist() == [1, 1, 1]
    assert lines[1].get_xdata()[1] < 0.8 and lines[1].get_xdata()[0] == 1
    low, high = ax.get_xlim()
    assert low < lines[1].get_xdata().min() and high > 1 and ax.yaxis_inverted()


def test_what_cannot_be_compared_is_refused(comparisons, random_trace) -> None:
    for wrong in ({}, [comparisons["moved"]], comparisons["moved"]):
        with pytest.raises(ValueError, match="give a mapping of names to comparisons"):
            plot_agreement(wrong)
    other = [random_trace(tokens=30, seed=9), random_trace(tokens=31, seed=8)]
    longer = [random_trace(tokens=40, seed=1), random_trace(tokens=40, seed=2)]
    with pytest.raises(ValueError, match="'others' compares different tokens"):
        plot_agreement({"others": compare_routing(other, longer, permutations=99)})
    deep = [random_trace(layers=5, seed=n) for n in range(2)]
    with pytest.raises(ValueError, match=r"layers differ: \[3, 5\]"):
        plot_agreement(comparisons | {"deep": compare_routing(deep, deep, permutations=99)})


def test_it_is_drawn_without_a_warning(comparisons) -> None:
    ax = new_axes(width=5, height=3)
    assert plot_agreement({"$x$ \x00": comparisons["moved"]}, ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
