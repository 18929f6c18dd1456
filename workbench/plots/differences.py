"""Differences of expert usage, between two groups of tokens or from uniform usage → pictures around zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.plots.conventions import (
    DIFFERENCE,
    LESS_HATCH,
    MORE_HATCH,
    colour_bar,
    cross_cells,
    grid_axes,
    hatch_cells,
    layers_and_experts,
    mark_signs,
    symmetric_limit,
)
from workbench.plots.labels import label
from workbench.routing.contrasts import Contrast
from workbench.routing.statistics import uniform_usage
from workbench.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_usage_difference(
    contrast: Contrast, *, x: str = "X", y: str = "Y", q: float = 0.05, ax: Axes | None = None
) -> Axes:
    r"""Layers × experts: usage by group `x` minus usage by group `y`; cells whose q-value is at most `q` are hatched.

    Hatched upwards (/) where `x` uses the expert more, downwards (\) where `y` does, for print in grey.

    >>> from workbench.routing.contrasts import contrast
    >>> experts = np.repeat(np.array([0, 1, 0, 1, 0, 1, 1, 1]), 5)[:, None, None]
    >>> found = contrast(experts, np.repeat([True, False] * 4, 5), np.repeat(np.arange(4), 10), n_experts=2)
    >>> print(plot_usage_difference(found, x="question", y="answer").get_title())
    usage by question minus usage by answer
    4 and 4 clusters, paired; 0 of 2 cells differ at q ≤ 0.05
    """
    if not 0 < q < 1:
        raise ValueError(f"q={q} is outside 0 to 1")
    difference = contrast.difference  # [layers, experts]
    layers, experts = difference.shape
    differs = contrast.q_values <= q
    limit = symmetric_limit(difference)
    ax = grid_axes(ax, rows=layers, columns=experts)
    image = ax.imshow(difference, cmap=DIFFERENCE, vmin=-limit, vmax=limit, aspect="auto")
    hatch_cells(ax, differs & (difference > 0), hatch=MORE_HATCH)
    hatch_cells(ax, differs & (difference <= 0), hatch=LESS_HATCH)
    first, second = label(x), label(y)
    layers_and_experts(
        ax, layers=layers, experts=experts,
        note=f"hatched at q ≤ {q:g}: / more by {first}, \\ more by {second}",
    )  # fmt: skip
    how = "paired" if contrast.is_paired else "unpaired"
    ax.set_title(
        f"usage by {first} minus usage by {second}\n"
        f"{contrast.clusters[0]} and {contrast.clusters[1]} clusters, {how}; "
        f"{int(differs.sum())} of {differs.size} cells differ at q ≤ {q:g}"
    )
    colour_bar(ax, image, "difference (share of tokens)")
    return ax


def plot_usage_versus_uniform(
    trace: RoutingTrace, *, segment: str | None = None, ax: Axes | None = None
) -> Axes:
    """Layers × experts: log2 of usage over the uniform usage k / experts; 1 is twice, -1 half as much.

    A plus marks cells of more than twice, a minus those of less than half of it, a cross experts that no token
    chose. `segment` limits the tokens, as in ``trace.usage``.

    >>> from workbench.routing.trace import example_trace
    >>> ax = plot_usage_versus_uniform(example_trace())    # usage 1, 1/2, 1/2, 0 where 1/2 is uniform
    >>> ax.images[0].get_array().tolist()
    [[1.0, 0.0, 0.0, None]]
    """
    usage = trace.usage(segment)  # [layers, experts]
    is_dead = usage == 0
    ratio = usage / uniform_usage(trace.n_experts, trace.k)
    logs = np.log2(ratio, out=np.full(usage.shape, np.nan), where=~is_dead)
    limit = max(symmetric_limit(logs), 1.0)
    ax = grid_axes(ax, rows=trace.layers, columns=trace.n_experts)
    image = ax.imshow(
        np.ma.masked_invalid(logs), cmap=DIFFERENCE, vmin=-limit, vmax=limit, aspect="auto"
    )
    mark_signs(ax, logs, above=1.0)
    rows, columns = np.nonzero(is_dead)
    cross_cells(ax, columns, rows)
    layers_and_experts(
        ax, layers=trace.layers, experts=trace.n_experts,
        note="+ more than twice, − less than half, × never chosen",
    )  # fmt: skip
    tokens = int(trace.rows(segment).sum())
    ax.set_title(
        f"usage against uniform, {label(segment or 'all segments')} ({tokens:,} routed tokens)"
    )
    uniform = f"{trace.k}/{trace.n_experts}"
    colour_bar(ax, image, f"log2(usage / {uniform}); 0 is uniform")
    return ax
