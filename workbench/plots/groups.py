"""How groups of tokens (registers, languages, segments) differ in their experts, and what chance gives → bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.conventions import SERIES, layers_down, number_ticks, series_axes
from workbench.plots.figures import new_axes
from workbench.plots.labels import label
from workbench.routing.specialization import Specialization

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUP_HATCHES = ("", "///", "...", "\\\\\\", "xx", "---", "++", "|||")
_NULL_HATCHES = ("////", "....", "\\\\\\\\")


def plot_specialization(
    found: Mapping[str, Specialization], *, confidence: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Jensen-Shannon divergence of the groups' expert usage by layer, with the band that each null hypothesis gives.

    `found` has one entry a null hypothesis, of the same groups: {"documents shuffled": …, "tokens of a word shuffled":
    …}. A point right of a band differs more than that shuffle explains; `confidence` is the share of shuffles in it.

    >>> from workbench.routing.specialization import Specialization
    >>> null = np.array([[0.1, 0.2], [0.2, 0.3]])
    >>> ax = plot_specialization({"documents shuffled": Specialization(np.array([0.5, 0.25]), null)})
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['observed', 'documents shuffled (95% of 2)']
    """
    if not found:
        raise ValueError("there is nothing to plot; give a mapping of names to specialization()")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0 to 1")
    observed = next(iter(found.values())).bits
    if any(not np.array_equal(one.bits, observed) for one in found.values()):
        raise ValueError(
            "the null hypotheses are of different observations; give those of the same tokens and groups"
        )
    layers = len(observed)
    ax = series_axes(ax, layers=layers)
    layer, thick = np.arange(layers), 0.7 / len(found)
    ax.plot(
        observed, layer, color="black", marker="D", markersize=5, linewidth=1, label="observed", zorder=3
    )  # fmt: skip
    for number, (name, one) in enumerate(found.items()):
        low, high = np.percentile(
            one.null_bits, (50 * (1 - confidence), 50 * (1 + confidence)), axis=0
        )
        ax.barh(
            layer - 0.35 + (number + 0.5) * thick, high - low, left=low, height=thick,
            color=SERIES[number % len(SERIES)][0], alpha=0.75, edgecolor="black", linewidth=0.6,
            hatch=_NULL_HATCHES[number % len(_NULL_HATCHES)],
            label=f"{label(name)} ({confidence:.0%} of {len(one.null_bits):,})",
        )  # fmt: skip
    ax.axvline(0.0, color="black", linestyle="--", linewidth=1)
    layers_down(ax, layers)
    ax.set_xlabel("divergence of the groups' usage (bits; 0: all alike)")
    ax.set_title("how far groups differ in their experts")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    return ax


def plot_group_usage(
    usage: NDArray[np.floating],
    *,
    names: Sequence[str],
    uniform: float,
    low: NDArray[np.floating] | None = None,
    high: NDArray[np.floating] | None = None,
    title: str = "expert usage by group",
    ax: Axes | None = None,
) -> Axes:
    """Bars of the share of each group's tokens that each expert of one layer got, with a line at uniform usage.

    `usage` [groups, experts], `names` of the groups; `low` and `high` [groups, experts] bound what chance gives, such
    as percentiles under shuffled labels: the whiskers. A bar that ends beyond its whisker differs.

    >>> ax = plot_group_usage(np.array([[0.5, 1.0, 0.5], [1.0, 0.5, 0.5]]), names=["prose", "code"], uniform=2 / 3)
    >>> [float(bar.get_height()) for bar in ax.containers[1]]
    [1.0, 0.5, 0.5]
    """
    if usage.ndim != 2 or len(usage) != len(names):
        raise ValueError(
            f"usage must be [groups, experts] of the {len(names)} names, got {list(usage.shape)}"
        )
    if (low is None) != (high is None):
        raise ValueError("give both low and high, or none of them")
    groups, n_experts = usage.shape
    if ax is None:
        ax = new_axes(width=3.0 + min(0.16 * (groups + 1) * n_experts, 12.0), height=3.6)
    thick = 0.84 / groups
    for group, name in enumerate(names):
        places = np.arange(n_experts) - 0.42 + (group + 0.5) * thick
        ax.bar(
            places, usage[group], width=0.9 * thick, color=SERIES[group % len(SERIES)][0], edgecolor="black",
            linewidth=0.5, hatch=_GROUP_HATCHES[group % len(_GROUP_HATCHES)], label=label(name),
        )  # fmt: skip
        if low is not None and high is not None:
            name_once = "by chance" if group == groups - 1 else "_nolegend_"
            ax.vlines(places, low[group], high[group], color="white", linewidth=3.5)
            ax.vlines(
                places, low[group], high[group], color="black", linewidth=1.5, label=name_once
            )
    ax.axhline(
        uniform, color="black", linestyle="--", linewidth=1, label=f"uniform ({uniform:.3g})"
    )
    number_ticks(ax.xaxis, n_experts, most=32)
    ax.set_xlim(-0.6, n_experts - 0.4)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("expert")
    ax.set_ylabel("share of the group's tokens")
    ax.set_title(label(title))
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    return ax
