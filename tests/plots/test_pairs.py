from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PatchCollection

from workbench.plots.conventions import NOTHING_HATCH
from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.pairs import plot_coactivation, plot_transitions
from workbench.routing.pairs import coactivation, transitions


def hatched_cells(ax) -> set[tuple[int, int]]:
    found = [
        c for c in ax.collections if isinstance(c, PatchCollection) and c.get_hatch() == NOTHING_HATCH
    ]  # fmt: skip
    corners = (path.get_extents().min for c in found for path in c.get_paths())
    return {(round(y + 0.5), round(x + 0.5)) for x, y in corners}


def test_pairs_are_shown_against_what_independence_gives(random_trace) -> None:
    trace = random_trace(tokens=400, layers=2, n_experts=8)
    found = coactivation(trace.experts[trace.rows()], n_experts=8)
    ax = plot_coactivation(found, layer=1)
    shown = ax.images[0].get_array()
    order = [int(text.get_text()) for text in ax.get_xticklabels()]
    assert order == [int(text.get_text()) for text in ax.get_yticklabels()]
    assert sorted(order) == list(range(8))
    lift = found.lift()[1]
    for i, one in enumerate(order):
        for j, other in enumerate(order):
            if i == j or lift[one, other] == 0:
                assert shown.mask[i, j]
            else:  # two of eight, all alike, meet with lift 8 / (2 * 7)
                assert shown[i, j] == pytest.approx(np.log2(lift[one, other] / (4 / 7)))
    low, high = ax.images[0].get_clim()
    assert -low == high == pytest.approx(max(np.abs(shown).max(), 1))


def test_pairs_that_never_met_are_crossed_and_experts_never_chosen_hatched() -> None:
    experts = np.array([[[0, 1]], [[1, 2]], [[0, 1]]])
    ax = plot_coactivation(coactivation(experts, n_experts=4), layer=0)
    order = [int(text.get_text()) for text in ax.get_xticklabels()]
    assert order == [0, 1, 2, 3]
    crosses = {tuple(offset) for offset in ax.collections[4].get_offsets().astype(int).tolist()}
    assert crosses == {(0, 2), (2, 0)}
    assert hatched_cells(ax) == {(3, 0), (3, 1), (3, 2), (0, 3), (1, 3), (2, 3)}


def test_experts_that_meet_stand_side_by_side() -> None:
    pairs = np.array([[0, 2], [2, 4], [0, 4], [1, 3], [3, 5], [1, 5]])
    ax = plot_coactivation(coactivation(pairs[:, None], n_experts=6), layer=0)
    order = [int(text.get_text()) for text in ax.get_xticklabels()]
    assert {frozenset(order[:3]), frozenset(order[3:])} == {
        frozenset({0, 2, 4}),
        frozenset({1, 3, 5}),
    }


def test_transitions_are_shown_as_they_are(random_trace) -> None:
    trace = random_trace(tokens=30, layers=3)
    experts = trace.experts[trace.rows()].copy()
    experts[:, 1][experts[:, 1] == 5] = 6  # nobody chooses 5 in layer 1
    found = transitions(experts, n_experts=16)
    ax = plot_transitions(found, layer=1)
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(np.nan), found[1])
    assert hatched_cells(ax) == {(5, column) for column in range(16)}
    for column, row in ax.collections[0].get_offsets().astype(int):
        assert found[1, row, column] == found[1, row].max()
    assert len(ax.collections[0].get_offsets()) == 15
    assert 1 / 16 in [line.get_ydata()[0] for line in ax.images[0].colorbar.ax.lines]
    assert (ax.get_ylabel(), ax.get_title()) == ("expert in layer 1", "from layer 1 to layer 2")


def test_what_has_no_pairs_is_refused() -> None:
    one = np.zeros((3, 2, 1), int)
    with pytest.raises(ValueError, match="one expert alone"):
        plot_coactivation(coactivation(one, n_experts=4), layer=0)
    with pytest.raises(ValueError, match="layer=1 is outside 0…0"):
        plot_transitions(transitions(one, n_experts=4), layer=1)
    with pytest.raises(ValueError, match=r"got \[4, 4\]"):
        plot_transitions(np.ones((4, 4)), layer=0)
    with pytest.raises(ValueError, match="no token was routed in layer 0"):
        plot_transitions(np.full((1, 4, 4), np.nan), layer=0)


@pytest.mark.parametrize("n_experts", [4, 64])
def test_they_are_drawn_without_a_warning(random_trace, n_experts: int) -> None:
    trace = random_trace(n_experts=n_experts)
    experts = trace.experts[trace.rows()]
    ax = new_axes(width=4, height=4)
    found = coactivation(experts, n_experts=n_experts)
    assert plot_coactivation(found, layer=0, ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
    ax = plot_transitions(transitions(experts, n_experts=n_experts), layer=0)
    assert len(png_bytes(ax, dpi=50)) > 3000
