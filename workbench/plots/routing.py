"""Routing trace → pictures of which experts were used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.markup import shorten
from workbench.plots.conventions import (
    AMOUNT,
    check_layer,
    colour_bar,
    dot_cells,
    grid_axes,
    layers_and_experts,
    mark_level,
    number_ticks,
)
from workbench.plots.labels import label
from workbench.routing.statistics import uniform_usage
from workbench.routing.trace import RoutingTrace, check_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_expert_usage(
    trace: RoutingTrace, *, segment: str | None = None, ax: Axes | None = None
) -> Axes:
    """Layers × experts: the share of tokens each layer sent to each expert; the colour bar marks the uniform level.

    `segment` limits the tokens: "question", "evidence", "answer", "evidence 3", … The dot in a cell marks the layer's
    most used expert.

    >>> from workbench.routing.trace import example_trace
    >>> plot_expert_usage(example_trace()).get_xlabel()
    "expert (dot: the layer's most used)"
    """
    check_trace(trace)
    usage = trace.usage(segment)  # [layers, experts]
    uniform = uniform_usage(trace.n_experts, trace.k)
    ax = grid_axes(ax, rows=trace.layers, columns=trace.n_experts)
    image = ax.imshow(
        usage, cmap=AMOUNT, vmin=0.0, vmax=max(float(usage.max()), 2 * uniform), aspect="auto"
    )
    dot_cells(ax, usage.argmax(axis=1), np.arange(trace.layers))
    layers_and_experts(
        ax, layers=trace.layers, experts=trace.n_experts, note="dot: the layer's most used"
    )
    tokens = int(trace.rows(segment).sum())
    edited = f"\n{label(shorten(trace.origin['edits'], 80))}" if "edits" in trace.origin else ""
    what = label(segment or "all segments")
    ax.set_title(f"expert usage, {what} ({tokens:,} routed tokens){edited}")
    bar = colour_bar(ax, image, f"share of tokens (k = {trace.k}, rows sum to {trace.k})")
    mark_level(bar, uniform)
    return ax


def plot_segment_usage(trace: RoutingTrace, *, layer: int, ax: Axes | None = None) -> Axes:
    """Segments × experts in one layer: how question, evidence and answer differ in what they use.

    Evidence is taken together; segments without a routed token are left out.

    >>> from workbench.routing.trace import example_trace
    >>> [text.get_text() for text in plot_segment_usage(example_trace(), layer=0).get_yticklabels()]
    ['question (1)', 'answer (1)']
    """
    check_layer(layer, trace.layers)
    names = list(dict.fromkeys(name.split(" ")[0] for name in trace.segment_names))
    names = [name for name in names if trace.rows(name).any()]
    usage = np.stack([trace.usage(name)[layer] for name in names])  # [segments, experts]
    uniform = uniform_usage(trace.n_experts, trace.k)
    ax = grid_axes(ax, rows=len(names), columns=trace.n_experts)
    image = ax.imshow(
        usage, cmap=AMOUNT, vmin=0.0, vmax=max(float(usage.max()), 2 * uniform), aspect="auto"
    )
    number_ticks(ax.xaxis, trace.n_experts, most=32)
    ax.set_yticks(
        np.arange(len(names)), [f"{label(name)} ({int(trace.rows(name).sum())})" for name in names]
    )
    ax.set_xlabel("expert")
    ax.set_ylabel("segment (routed tokens)")
    ax.set_title(f"expert usage by segment, layer {layer}")
    mark_level(colour_bar(ax, image, "share of the segment's tokens"), uniform)
    return ax
