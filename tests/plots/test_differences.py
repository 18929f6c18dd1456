from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PatchCollection

from workbench.plots.conventions import LESS_HATCH, MORE_HATCH
from workbench.plots.differences import plot_usage_difference, plot_usage_versus_uniform
from workbench.plots.figures import new_axes, png_bytes
from workbench.routing.contrasts import Contrast


def made_contrast(*, is_paired: bool = False) -> Contrast:
    difference = np.array([[0.3, -0.2, 0.05], [0.0, -0.1, 0.1]])
    q_values = np.array([[0.01, 0.05, 0.9], [1.0, 0.2, 0.06]])
    return Contrast(
        difference=difference, low=difference - 1, high=difference + 1, p_values=q_values / 100, q_values=q_values,
        clusters=(7, 9), is_paired=is_paired,
    )  # fmt: skip


def hatched(ax, hatch: str) -> set[tuple[int, int]]:
    """Cells (row, column) under a hatch."""
    found = [c for c in ax.collections if isinstance(c, PatchCollection) and c.get_hatch() == hatch]
    corners = (path.get_extents().min for c in found for path in c.get_paths())
    return {(round(y + 0.5), round(x + 0.5)) for x, y in corners}


def test_a_difference_is_shown_around_zero_and_hatched_by_its_sign() -> None:
    found = made_contrast()
    ax = plot_usage_difference(found, x="A", y="B")
    np.testing.assert_array_equal(ax.images[0].get_array(), found.difference)
    assert ax.images[0].get_clim() == (-0.3, 0.3)
    assert hatched(ax, MORE_HATCH) == {(0, 0)}
    assert hatched(ax, LESS_HATCH) == {(0, 1)}
    assert ax.yaxis_inverted()


def test_q_widens_what_is_hatched() -> None:
    ax = plot_usage_difference(made_contrast(), q=0.25)
    assert hatched(ax, MORE_HATCH) == {(0, 0), (1, 2)}
    assert hatched(ax, LESS_HATCH) == {(0, 1), (1, 1)}
    assert "q ≤ 0.25" in ax.get_title() and "4 of 6 cells" in ax.get_title()
    with pytest.raises(ValueError, match="q=5 is outside 0 to 1"):
        plot_usage_difference(made_contrast(), q=5)


def test_the_title_says_what_was_compared() -> None:
    title = plot_usage_difference(made_contrast(is_paired=True), x="$a$", y="b").get_title()
    assert (
        title.startswith(r"usage by \$a\$ minus usage by b") and "7 and 9 clusters, paired" in title
    )
    assert "unpaired" in plot_usage_difference(made_contrast()).get_title()


def test_uniform_usage_is_zero_and_experts_nobody_chose_are_crossed(random_trace) -> None:
    trace = random_trace(tokens=60, layers=3, n_experts=16)
    ax = plot_usage_versus_uniform(trace, segment="question")
    usage = trace.usage("question")
    shown = ax.images[0].get_array()
    crosses = {(int(y), int(x)) for x, y in ax.collections[-1].get_offsets()}
    assert crosses == set(zip(*(i.tolist() for i in np.nonzero(usage == 0)), strict=True))
    assert crosses
    for cell, value in np.ndenumerate(usage):
        if cell in crosses:
            assert shown.mask[cell]
        else:
            assert shown[cell] == pytest.approx(np.log2(value * 16 / 2))
    low, high = ax.images[0].get_clim()
    assert -low == high == pytest.approx(np.abs(shown).max())
    assert f"({int(trace.rows('question').sum())} routed tokens)" in ax.get_title()


def test_signs_are_where_usage_is_twice_or_half_of_uniform(random_trace) -> None:
    trace = random_trace(tokens=60, layers=3, n_experts=16)
    ax = plot_usage_versus_uniform(trace)
    logs = np.log2(np.maximum(trace.usage(), 1e-9) / 0.125)
    plus, minus = ax.collections[0].get_offsets(), ax.collections[2].get_offsets()
    assert len(plus) == (logs > 1).sum() and len(minus) == ((logs < -1) & (trace.usage() > 0)).sum()


@pytest.mark.parametrize(("layers", "n_experts"), [(5, 16), (32, 64)])
def test_they_are_drawn_without_a_warning(random_trace, layers: int, n_experts: int) -> None:
    trace = random_trace(tokens=50, layers=layers, n_experts=n_experts)
    assert len(png_bytes(plot_usage_versus_uniform(trace), dpi=50)) > 5000
    ax = new_axes(width=5, height=3)
    assert plot_usage_difference(made_contrast(), ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 5000
