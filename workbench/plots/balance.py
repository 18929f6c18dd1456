"""Effective experts of each layer → a picture of how evenly experts are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.conventions import SERIES, layers_down, series_axes
from workbench.plots.labels import label
from workbench.routing.statistics import EffectiveExperts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_by_layer(
    ax: Axes,
    values: NDArray[np.float64],
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    number: int,
    of: int,
    title: str,
) -> None:
    """One line of values [layers] with intervals to both `ends`, layers downwards; the `number`-th `of` as many."""
    colour, marker, style = SERIES[number % len(SERIES)]
    offset = np.linspace(-0.25, 0.25, of)[number] if of > 1 else 0.0
    places = np.arange(len(values)) + offset
    ax.hlines(places, *ends, color=colour, linewidth=1.4)
    ax.plot(
        values, places, color=colour, marker=marker, linestyle=style, linewidth=1, markersize=5,
        markeredgecolor="black", markeredgewidth=0.5, label=title,
    )  # fmt: skip


def plot_balance(found: Mapping[str, EffectiveExperts], *, ax: Axes | None = None) -> Axes:
    """Effective experts by layer, one line a name (such as a segment), with intervals; the dashed line is all experts.

    The farther left of it, the fewer experts do the work. A line without whiskers is of one cluster alone. Short
    segments have few choices to tell experts by, and wide intervals.

    >>> from workbench.routing.statistics import effective_experts_by_segment
    >>> from workbench.routing.trace import example_trace
    >>> ax = plot_balance(effective_experts_by_segment(example_trace()))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['all 4 experts', 'question (1 token)', 'answer (1 token)']
    """
    if not found:
        raise ValueError("there is nothing to plot; give a mapping of names to effective_experts()")
    shapes = {(len(one.number), one.n_experts, one.confidence) for one in found.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"layers, experts and confidence differ: {sorted(shapes)}; plot them one by one"
        )
    layers, n_experts, confidence = shapes.pop()
    ax = series_axes(ax, layers=layers)
    ax.axvline(
        n_experts, color="black", linestyle="--", linewidth=1, label=f"all {n_experts} experts"
    )
    for number, (name, one) in enumerate(found.items()):
        title = f"{label(name)} ({one.tokens:,} token{'' if one.tokens == 1 else 's'})"
        draw_by_layer(
            ax, one.number, (one.low, one.high), number=number, of=len(found), title=title
        )
    layers_down(ax, layers)
    ax.set_xlim(0.5, n_experts * 1.03)
    ax.set_xlabel(f"effective experts, 2 to the entropy in bits (bars: {confidence:.0%} interval)")
    ax.set_title("how many experts do the work")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    return ax
