"""Routing trace → the text itself, every token with the experts that one layer chose for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.markup import shorten
from workbench.plots.conventions import (
    NOTHING,
    NOTHING_HATCH,
    check_layer,
    expert_colours,
    ink_on,
    segment_legend,
    segment_style,
)
from workbench.plots.figures import new_axes
from workbench.plots.labels import label, visible
from workbench.routing.pieces import spelled
from workbench.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TOKENS = 400
_COLUMNS = 110  # characters of a line
_CHARACTER = 0.602  # width of a monospaced character, and below heights, in font sizes
_BAND, _ROW, _GAP = 0.85, 1.25, 0.35
_POINTS = 8.0
_NUMBER = 0.8  # size of a number's characters over that of the text's
_FAMILY = "monospace"


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where each token stands, [tokens] each: characters from the left, font sizes from the top."""

    positions: NDArray[np.int64]
    texts: list[str]
    left: NDArray[np.float64]
    widths: NDArray[np.float64]
    top: NDArray[np.float64]
    bottom: float  # of all lines


def plot_token_experts(
    trace: RoutingTrace,
    *,
    layer: int,
    start: int = 0,
    stop: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The text of tokens `start` to `stop`, tinted by first expert, the numbers of all its experts below each token.

    The first number stands on the tint of the first expert, the next on that of the second. Tokens that were not
    routed are grey and hatched. The band above a line says of which segment its tokens are. A line break is shown as ↵,
    blanks alone as ␣, characters that the font lacks as ▯.

    >>> from workbench.routing.trace import example_trace
    >>> [text.get_text() for text in plot_token_experts(example_trace(), layer=0).texts][:4]
    ['Which', '0', '1', ' valve']
    """
    check_layer(layer, trace.layers)
    tokens = len(trace.token_texts)
    stop = tokens if stop is None else stop
    if not 0 <= start < stop <= tokens:
        raise ValueError(
            f"start={start} and stop={stop} are no span of the {tokens} tokens of the trace"
        )
    if stop - start > MOST_TOKENS:
        raise ValueError(
            f"{stop - start} tokens are more than the {MOST_TOKENS} that can be read; give start and stop, or see all "
            "of them with workbench.plots.layers.plot_token_layers(trace)"
        )
    layout = _laid_out(trace, np.arange(start, stop))
    width, height = 1.04 * _COLUMNS * _CHARACTER, layout.bottom  # in font sizes
    if ax is None:
        points = _POINTS
        ax = new_axes(width=width * points / 72 + 0.1, height=height * points / 72 + 0.9)
    else:
        box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
        points = min(box.width * 72 / width, box.height * 72 / height)
    ax.set_xlim(0, _COLUMNS)
    ax.set_ylim(layout.bottom, 0)
    ax.set_axis_off()
    _draw_tokens(ax, trace, layer, layout, points)
    _draw_bands(ax, trace, layout, points)
    choices = "first" if trace.k == 1 else "first, then second" if trace.k == 2 else "in order"
    ax.set_title(
        f"experts of tokens {start} to {stop - 1} in layer {layer}\n(tint and numbers: {choices} choice)",
        fontsize="medium",
    )
    return ax


def _laid_out(trace: RoutingTrace, positions: NDArray[np.int64]) -> _Layout:
    """Tokens in lines of at most `_COLUMNS` characters, each wide enough for its text and its experts' numbers."""
    pieces = spelled(trace.token_texts[positions[0] : positions[-1] + 1])
    shown = (visible(piece, family=_FAMILY) for piece in pieces)
    texts = [shorten(text, _COLUMNS // 2) for text in shown]
    least = len(str(trace.n_experts - 1)) * _NUMBER + 0.2
    widths = np.array([max(len(text), least) for text in texts])
    left, line = np.zeros(len(texts)), np.zeros(len(texts))
    at, row = 0.0, 0
    for number, width in enumerate(widths.tolist()):
        if at + width > _COLUMNS:
            at, row = 0.0, row + 1
        left[number], line[number] = at, row
        at += width
    height = _BAND + _ROW * (1 + trace.k) + _GAP
    return _Layout(
        positions=positions,
        texts=texts,
        left=left,
        widths=widths,
        top=line * height + _BAND,
        bottom=(row + 1) * height,
    )


def _draw_tokens(ax: Axes, trace: RoutingTrace, layer: int, layout: _Layout, points: float) -> None:
    from matplotlib.patches import Rectangle

    tints = 0.55 + 0.45 * expert_colours(trace.n_experts)
    edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6}
    place: dict[str, Any] = {
        "ha": "center", "va": "center", "family": _FAMILY, "in_layout": False, "parse_math": False,
    }  # fmt: skip
    columns = (layout.texts, layout.positions, layout.left, layout.top, layout.widths)
    for text, position, x, y, width in zip(*columns, strict=True):
        middle = x + width / 2
        if not trace.routed[position]:
            ax.add_patch(
                Rectangle((x, y), width, _ROW, facecolor=NOTHING, hatch=NOTHING_HATCH, **edge)
            )
            ax.text(middle, y + _ROW / 2, text, fontsize=points, **place)
            continue
        for choice, expert in enumerate(trace.experts[position, layer].tolist()):
            rows = 2 if choice == 0 else 1  # the first expert's tint is that of the text, too
            corner = y + _ROW * (choice + 2 - rows)
            ax.add_patch(
                Rectangle((x, corner), width, rows * _ROW, facecolor=tints[expert], **edge)
            )
            ink = ink_on(tints[expert])
            if choice == 0:
                ax.text(middle, y + _ROW / 2, text, fontsize=points, color=ink, **place)
            ax.text(
                middle, y + _ROW * (choice + 1.5), str(expert), fontsize=_NUMBER * points, color=ink, **place
            )  # fmt: skip


def _draw_bands(ax: Axes, trace: RoutingTrace, layout: _Layout, points: float) -> None:
    """A band over each run of tokens of one segment in one line, with its name if there is room."""
    codes = trace.segments[layout.positions]
    begins = np.flatnonzero(np.r_[True, (np.diff(codes) != 0) | (np.diff(layout.top) != 0)])
    ends = np.r_[begins[1:], len(codes)] - 1
    kinds = []
    left, widths, top = layout.left, layout.widths, layout.top
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        name = trace.segment_names[codes[begin]]
        kinds.append(name.split(" ")[0])
        width = left[end] + widths[end] - left[begin]
        colour, hatch = segment_style(name)
        ax.broken_barh(
            [(left[begin], width)], (top[begin] - 0.3, 0.3), facecolor=colour, hatch=hatch, edgecolor="black",
            linewidth=0.4,
        )  # fmt: skip
        if width >= 0.75 * len(name) + 0.5:
            ax.text(
                left[begin], top[begin] - 0.35, label(name), fontsize=0.7 * points, va="bottom", in_layout=False,
                gid="segment",
            )  # fmt: skip
    segment_legend(ax, kinds)
