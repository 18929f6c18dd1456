from __future__ import annotations

import numpy as np
import pytest

from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.groups import plot_group_usage, plot_specialization
from workbench.routing.specialization import Specialization


def two_nulls(layers: int = 4) -> dict[str, Specialization]:
    generator = np.random.default_rng(0)
    bits = generator.random(layers)
    return {name: Specialization(bits, generator.random((50, layers))) for name in ("one", "$x$")}


def test_the_bands_are_what_the_shuffles_give() -> None:
    found = two_nulls()
    ax = plot_specialization(found, confidence=0.8)
    observed = next(line for line in ax.get_lines() if line.get_label() == "observed")
    np.testing.assert_array_equal(observed.get_xdata(), found["one"].bits)
    for bars, one in zip(ax.containers, found.values(), strict=True):
        low, high = np.percentile(one.null_bits, (10, 90), axis=0)
        np.testing.assert_allclose([bar.get_x() for bar in bars], low)
        np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in bars], high)
        for layer, bar in enumerate(bars):
            assert layer - 0.5 < bar.get_y() < bar.get_y() + bar.get_height() < layer + 0.5
    hatches = [bars[0].get_hatch() for bars in ax.containers]
    assert len(set(hatches)) == 2 and ax.yaxis_inverted()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "observed", "one (80% of 50)", r"\$x\$ (80% of 50)",
    ]  # fmt: skip


def test_nulls_of_other_observations_are_refused() -> None:
    found = two_nulls()
    other = Specialization(found["one"].bits + 1, found["one"].null_bits)
    with pytest.raises(ValueError, match="of different observations"):
        plot_specialization({**found, "other": other})
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_specialization({})
    with pytest.raises(ValueError, match="confidence=95"):
        plot_specialization(found, confidence=95)


def test_bars_are_the_usage_and_whiskers_what_chance_gives() -> None:
    usage = np.random.default_rng(0).random((3, 16))
    ax = plot_group_usage(
        usage, names=["a", "b", "c"], uniform=0.125, low=usage - 0.1, high=usage + 0.2
    )
    for group, bars in enumerate(ax.containers):
        np.testing.assert_array_equal([bar.get_height() for bar in bars], usage[group])
        middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
        assert np.abs(np.array(middles) - np.arange(16)).max() < 0.5
        for whiskers in ax.collections[2 * group : 2 * group + 2]:
            ends = np.array(whiskers.get_segments())
            np.testing.assert_allclose(ends[:, :, 0], np.array(middles)[:, None].repeat(2, axis=1))
            np.testing.assert_allclose(ends[:, 0, 1], usage[group] - 0.1)
            np.testing.assert_allclose(ends[:, 1, 1], usage[group] + 0.2)
    assert len({bars[0].get_hatch() for bars in ax.containers}) == 3
    assert list(ax.get_lines()[0].get_ydata()) == [0.125, 0.125]


def test_wrong_shapes_of_usage_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of the 1 names, got \[2, 4\]"):
        plot_group_usage(np.ones((2, 4)), names=["a"], uniform=0.5)
    with pytest.raises(ValueError, match="both low and high"):
        plot_group_usage(np.ones((1, 4)), names=["a"], uniform=0.5, low=np.ones((1, 4)))


def test_they_are_drawn_without_a_warning() -> None:
    ax = new_axes(width=5, height=3)
    assert plot_specialization(two_nulls(32), ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 3000
    ax = plot_group_usage(np.ones((10, 64)), names=["$\x00中"] * 10, uniform=0.03, title="$y$")
    assert len(png_bytes(ax, dpi=50)) > 3000
