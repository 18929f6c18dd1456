"""Routing trace → pictures of which experts were used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.routing.statistics import uniform_usage
from workbench.routing.trace import RoutingTrace

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
    usage = trace.usage(segment)  # [layers, experts]
    uniform = uniform_usage(trace.n_experts, trace.k)
    ax = _axes(ax, width=2.4 + 0.34 * trace.n_experts, height=1.5 + 0.34 * trace.layers)
    image = ax.imshow(
        usage, cmap="viridis", vmin=0.0, vmax=max(float(usage.max()), 2 * uniform), aspect="auto"
    )
    ax.scatter(
        usage.argmax(axis=1),
        np.arange(trace.layers),
        s=9,
        color="white",
        edgecolors="black",
        linewidths=0.5,
    )
    ax.set_xticks(np.arange(trace.n_experts))
    ax.set_yticks(np.arange(0, trace.layers, max(1, trace.layers // 16)))
    ax.set_xlabel("expert (dot: the layer's most used)")
    ax.set_ylabel("layer")
    tokens = int(trace.rows(segment).sum())
    ax.set_title(f"expert usage, {segment or 'all segments'} ({tokens:,} routed tokens)")
    bar = ax.figure.colorbar(
        image, ax=ax, label=f"share of tokens (k = {trace.k}, rows sum to {trace.k})"
    )
    bar.ax.axhline(uniform, color="white", linewidth=3)
    bar.ax.axhline(uniform, color="black", linewidth=1)
    bar.ax.text(
        -0.35,
        uniform,
        "uniform",
        ha="right",
        va="center",
        fontsize="small",
        transform=bar.ax.get_yaxis_transform(),
    )
    return ax


def plot_segment_usage(trace: RoutingTrace, *, layer: int, ax: Axes | None = None) -> Axes:
    """Segments × experts in one layer: how question, evidence and answer differ in what they use.

    Evidence is taken together; segments without a routed token are left out.

    >>> from workbench.routing.trace import example_trace
    >>> [label.get_text() for label in plot_segment_usage(example_trace(), layer=0).get_yticklabels()]
    ['question (1)', 'answer (1)']
    """
    if not 0 <= layer < trace.layers:
        raise ValueError(f"layer={layer} is outside 0…{trace.layers - 1}")
    names = list(dict.fromkeys(name.split(" ")[0] for name in trace.segment_names))
    names = [name for name in names if trace.rows(name).any()]
    usage = np.stack([trace.usage(name)[layer] for name in names])  # [segments, experts]
    uniform = uniform_usage(trace.n_experts, trace.k)
    ax = _axes(ax, width=3.4 + 0.34 * trace.n_experts, height=1.5 + 0.34 * len(names))
    image = ax.imshow(
        usage, cmap="viridis", vmin=0.0, vmax=max(float(usage.max()), 2 * uniform), aspect="auto"
    )
    ax.set_xticks(np.arange(trace.n_experts))
    ax.set_yticks(
        np.arange(len(names)), [f"{name} ({int(trace.rows(name).sum())})" for name in names]
    )
    ax.set_xlabel("expert")
    ax.set_ylabel("segment (routed tokens)")
    ax.set_title(f"expert usage by segment, layer {layer}")
    bar = ax.figure.colorbar(image, ax=ax, label="share of the segment's tokens")
    bar.ax.axhline(uniform, color="white", linewidth=3)
    bar.ax.axhline(uniform, color="black", linewidth=1)
    return ax


def _axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    if ax is not None:
        return ax
    from workbench.plots.figures import new_axes

    return new_axes(width=width, height=height)
