from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.positions import plot_drift, plot_fragility
from workbench.routing.drift import position_drift


def test_drift_is_shown_with_dots_where_it_is_more_than_chance() -> None:
    generator = np.random.default_rng(0)
    experts = generator.integers(0, 4, (1200, 3, 1))
    experts[800:, 1] = generator.integers(2, 4, (400, 1))  # the end of the text, in layer 1
    found = position_drift(experts, np.arange(1200), n_experts=4, n_buckets=6, block_tokens=10)
    ax = plot_drift(found)
    np.testing.assert_array_equal(ax.images[0].get_array(), found.bits.T)  # layers down
    dots = {(x, y) for x, y in ax.collections[0].get_offsets().astype(int).tolist()}
    assert dots == {(4, 1), (5, 1)} == {tuple(cell) for cell in np.argwhere(found.q_values <= 0.05)}
    assert not plot_drift(found, q=0.0).collections
    assert [t.get_text() for t in ax.get_xticklabels()][:3] == ["0", "200", "400"]
    assert ax.get_xticks().tolist() == [n - 0.5 for n in range(7)] and ax.get_xlim() == (-0.5, 5.5)


def test_fragility_is_the_share_in_each_bucket() -> None:
    is_fragile = np.random.default_rng(1).random((103, 4)) < 0.2
    is_fragile[:, 3] = False
    ax = plot_fragility(is_fragile, buckets=10)
    shown = np.asarray(ax.images[0].get_array())
    edges = np.linspace(0, 103, 11).round().astype(int)
    for bucket, (start, stop) in enumerate(pairwise(edges)):
        np.testing.assert_allclose(shown[:, bucket], is_fragile[start:stop].mean(axis=0))
    dots = ax.collections[0].get_offsets().astype(int).tolist()
    assert [layer for _, layer in dots] == [0, 1, 2]
    assert all(shown[layer, bucket] == shown[layer].max() for bucket, layer in dots)
    assert f"{is_fragile.mean():.1%} of 412" in ax.get_title()


def test_fewer_tokens_than_buckets_have_one_each() -> None:
    shown = plot_fragility(np.array([[True], [False], [True]]), buckets=24).images[0].get_array()
    assert shown.tolist() == [[1.0, 0.0, 1.0]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        plot_fragility(np.zeros((0, 3), bool))
    with pytest.raises(ValueError, match="buckets=0"):
        plot_fragility(np.zeros((3, 3), bool), buckets=0)


def test_they_are_drawn_without_a_warning_even_if_nothing_drifts() -> None:
    ax = new_axes(width=5, height=3)
    same = np.zeros((40 * 64, 32, 1), int)
    still = position_drift(same, np.arange(len(same)), n_experts=2, n_buckets=40, permutations=9)
    assert plot_drift(still, ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
    assert len(png_bytes(plot_fragility(np.zeros((300, 5), bool)), dpi=50)) > 3000
