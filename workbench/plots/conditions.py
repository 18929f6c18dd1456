"""Comparisons of routing under several conditions → a picture of where each moves the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from workbench.plots.balance import draw_by_layer
from workbench.plots.conventions import layers_down, series_axes
from workbench.plots.labels import label
from workbench.routing.compare import RoutingComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_agreement(found: Mapping[str, RoutingComparison], *, ax: Axes | None = None) -> Axes:
    """The share of their experts that tokens keep, by layer, one line a condition, with intervals over clusters.

    `found` has a name for each comparison of the same tokens, such as weights in 8 bits against float32. The farther
    left of the dashed line, the more of the tokens' experts are others; errors of one layer move those after it.

    >>> from workbench.routing.compare import compare_routing
    >>> from workbench.routing.trace import example_trace
    >>> trace = example_trace()
    >>> ax = plot_agreement({"once more": compare_routing([trace, trace], [trace, trace])})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['all kept', 'once more (100.0%)']
    """
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            "there is nothing to plot; give a mapping of names to comparisons, as "
            "{'8bit': compare_routing(plain, other)}"
        )
    for name, one in found.items():
        if not one.same_tokens:
            raise ValueError(f"{name!r} compares different tokens: no token can keep its experts")
    counts = {len(one.agreement) for one in found.values()}
    if len(counts) > 1:
        raise ValueError(f"layers differ: {sorted(counts)}; plot them one by one")
    layers = counts.pop()
    ax = series_axes(ax, layers=layers)
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1, label="all kept")
    for number, (name, one) in enumerate(found.items()):
        title = f"{label(name)} ({one.agreement.mean():.1%})"
        ends = one.agreement_low, one.agreement_high
        draw_by_layer(ax, one.agreement, ends, number=number, of=len(found), title=title)
    layers_down(ax, layers)
    least = min(float(np.nanmin([one.agreement, one.agreement_low])) for one in found.values())
    margin = max(0.01, 0.05 * (1 - least))
    ax.set_xlim(least - margin, 1 + margin)
    ax.set_xlabel("share of its experts that a token keeps (bars: its interval)")
    ax.set_title("where the router is moved")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    return ax
