"""Routing trace → positions × layers: which expert was the first choice, from a few tokens to a whole long prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.conventions import (
    NOTHING,
    NOTHING_HATCH,
    expert_colours,
    expert_legend,
    ink_on,
    number_ticks,
    segment_legend,
    segment_style,
)
from workbench.plots.figures import new_axes
from workbench.plots.labels import label
from workbench.routing.statistics import group_counts
from workbench.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 1500  # of 12 inches at 130 dots an inch: more would hide one another
_MOST_NUMBERS = 300  # runs of one expert that are given its number
_INCHES = 12.0
_NUMBER_INCHES, _LETTER_INCHES = 0.14, 0.075


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """What each column of the picture shows: [columns, layers] each, nan shares where no token was routed."""

    expert: NDArray[np.int64]
    share: NDArray[np.float64]
    tokens: int  # of a column


def plot_token_layers(
    trace: RoutingTrace, *, start: int = 0, stop: int | None = None, ax: Axes | None = None
) -> Axes:
    """Positions × layers, coloured by first expert, with its number on long runs; the band above names the segments.

    Up to 1,500 tokens have a column each. More are taken together: a column then shows the expert that most of its
    tokens chose first, the paler the fewer they were. Columns without a routed token are grey and hatched.
    `start` and `stop` look closer.

    >>> from workbench.routing.trace import example_trace
    >>> ax = plot_token_layers(example_trace())
    >>> ax.images[0].get_array().shape    # layers, tokens, colour
    (1, 3, 3)
    """
    from matplotlib.ticker import MaxNLocator

    tokens = len(trace.token_texts)
    stop = tokens if stop is None else stop
    if not 0 <= start < stop <= tokens:
        raise ValueError(
            f"start={start} and stop={stop} are no span of the {tokens} tokens of the trace"
        )
    columns = _columns(trace, start, stop)
    colours = expert_colours(trace.n_experts)
    if ax is None:
        ax = new_axes(width=_INCHES + 1.6, height=1.9 + min(max(0.28 * trace.layers, 1.4), 7.5))
    edges = (start - 0.5, start + len(columns.expert) * columns.tokens - 0.5)
    ax.imshow(
        _painted(columns, colours).transpose(1, 0, 2),
        extent=(*edges, trace.layers - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    is_empty = np.isnan(columns.share[:, 0])
    for begin, end in _runs(is_empty):
        if is_empty[begin]:
            ax.axvspan(
                edges[0] + begin * columns.tokens, edges[0] + end * columns.tokens,
                facecolor="none", edgecolor="black", linewidth=0, hatch=NOTHING_HATCH,
            )  # fmt: skip
    _draw_numbers(ax, columns, colours, edges[0])
    band = _draw_segments(ax, trace, start, stop)
    ax.set_xlim(edges[0], stop - 0.5)
    ax.set_ylim(trace.layers - 0.5, -0.5 - band)
    number_ticks(ax.yaxis, trace.layers)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_ylabel("layer")
    if columns.tokens == 1:
        ax.set_xlabel("position (token)")
    else:
        ax.set_xlabel(
            f"position (token; a column is {columns.tokens} tokens, paler: fewer of them chose this expert)"
        )
    ax.set_title(f"first expert of tokens {start:,} to {stop - 1:,}")
    return ax


def _columns(trace: RoutingTrace, start: int, stop: int) -> _Columns:
    """The expert that most routed tokens of each column chose first, and the share that did."""
    size = -(-(stop - start) // MOST_COLUMNS)
    count = -(-(stop - start) // size)
    routed = np.flatnonzero(trace.routed[start:stop])
    first = trace.experts[start + routed, :, :1]
    counts = group_counts(first, routed // size, n_groups=count, n_experts=trace.n_experts)
    total = counts.sum(axis=2)  # [columns, layers]
    share = np.divide(counts.max(axis=2), total, out=np.full(total.shape, np.nan), where=total > 0)
    return _Columns(expert=counts.argmax(axis=2), share=share, tokens=size)


def _painted(columns: _Columns, colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours of the columns: [columns, layers, 3]; a quarter of the colour is left where usage is uniform."""
    from matplotlib.colors import to_rgb

    uniform = 1 / len(colours)
    strength = 0.25 + 0.75 * ((columns.share - uniform) / (1 - uniform)).clip(0.0, 1.0)[:, :, None]
    painted = strength * colours[columns.expert] + (1 - strength)
    painted[np.isnan(columns.share)] = to_rgb(NOTHING)
    return np.asarray(painted)


def _draw_numbers(ax: Axes, columns: _Columns, colours: NDArray[np.float64], left: float) -> None:
    """The expert's number on the longest runs of columns that show the same one."""
    shown = np.where(np.isnan(columns.share), -1, columns.expert)
    least = len(shown) * _NUMBER_INCHES / _INCHES
    found = [
        (end - begin, layer, begin, end)
        for layer in range(shown.shape[1])
        for begin, end in _runs(shown[:, layer])
        if end - begin >= least and shown[begin, layer] >= 0
    ]
    for _, layer, begin, end in sorted(found, reverse=True)[:_MOST_NUMBERS]:
        expert = int(shown[begin, layer])
        painted = _painted(
            _Columns(shown[begin:end, [layer]], columns.share[begin:end, [layer]], 1), colours
        ).mean(axis=(0, 1))
        ax.text(
            left + (begin + end) / 2 * columns.tokens, layer, str(expert), color=ink_on(painted),
            fontsize="x-small", ha="center", va="center", clip_on=True, in_layout=False,
        )  # fmt: skip


def _draw_segments(ax: Axes, trace: RoutingTrace, start: int, stop: int) -> float:
    """The band of segments above layer 0; gives its height in layers."""
    height = max(min(0.1 * trace.layers, 0.5), 0.03 * trace.layers)
    codes = trace.segments[start:stop]
    places: dict[str, list[tuple[float, float]]] = {}
    for begin, end in _runs(codes):
        name = trace.segment_names[codes[begin]]
        kind, _, number = name.partition(" ")
        places.setdefault(kind, []).append((start + begin - 0.5, end - begin))
        room = (end - begin) / (stop - start) * _INCHES / _LETTER_INCHES
        shown = next((text for text in (name, number) if text and len(text) < room), "")
        if shown:
            ax.text(
                start + (begin + end - 1) / 2, -0.5 - height / 2, label(shown), fontsize="x-small",
                ha="center", va="center", clip_on=True, in_layout=False, gid="segment",
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.4, "linewidth": 0},
            )  # fmt: skip
    for kind, bars in places.items():
        colour, hatch = segment_style(kind)
        ax.broken_barh(
            bars,
            (-0.5 - height, height),
            facecolor=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.3,
        )
    segments = segment_legend(ax, places)
    expert_legend(ax, trace.n_experts)
    ax.add_artist(segments)
    segments.set_clip_on(False)
    return height


def _runs(values: NDArray[np.generic]) -> list[tuple[int, int]]:
    """Half-open spans of equal neighbours."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True))
