"""What all pictures of routing share: grids with layer 0 at the top, ticks, colours of experts and segments, marks.

Every colour is accompanied by what is left of it in grey: a number, a hatch or a marker.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.figures import new_axes
from workbench.plots.labels import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colorbar import Colorbar
    from matplotlib.image import AxesImage
    from matplotlib.legend import Legend

AMOUNT, DIFFERENCE = "viridis", "PuOr_r"
NOTHING = "#dddddd"  # ground of cells and tokens that hold no number, always hatched
NOTHING_HATCH = "xxxx"
MORE_HATCH, LESS_HATCH = "////", "\\\\\\\\"  # of cells above and below zero
# P. Okabe and K. Ito's colours for readers with any kind of colour vision, each with a hatch for print in grey
SEGMENT_STYLES: Mapping[str, tuple[str, str]] = {
    "system": ("#999999", ""),
    "template": ("#e8e8e8", "..."),
    "history": ("#cc79a7", "++"),
    "question": ("#56b4e9", "///"),
    "evidence": ("#f0e442", ""),
    "answer": ("#009e73", "\\\\\\"),
}
OTHER_SEGMENT = ("#d55e00", "xx")
# colour, marker and line of each series: told apart by any two of the three
SERIES = (
    ("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", "-."), ("#cc79a7", "D", ":"),
    ("#56b4e9", "v", "-"), ("#e69f00", "P", "--"), ("#666666", "X", "-."), ("#f0e442", "p", ":"),
)  # fmt: skip
_INCHES_WIDE, _INCHES_HIGH = 12.0, 7.5  # of a grid, at most


def check_layer(layer: int, layers: int) -> None:
    """Raise ``ValueError`` for a layer that is not there."""
    if not 0 <= layer < layers:
        raise ValueError(f"layer={layer} is outside 0…{layers - 1}")


def grid_axes(ax: Axes | None, *, rows: int, columns: int) -> Axes:
    """`ax`, or new axes of a size at which a grid of `rows` × `columns` cells can be read."""
    if ax is not None:
        return ax
    width = 2.6 + min(0.34 * max(columns, 8), _INCHES_WIDE)
    return new_axes(width=width, height=1.5 + min(0.34 * rows, _INCHES_HIGH))


def series_axes(ax: Axes | None, *, layers: int) -> Axes:
    """`ax`, or new axes for lines or bars over layers, layer 0 at the top."""
    if ax is not None:
        return ax
    return new_axes(width=8.8, height=1.6 + min(max(0.45 * layers, 2.0), _INCHES_HIGH))


def number_ticks(axis: Axis, count: int, *, most: int = 16) -> None:
    """Ticks at 0, step, 2 · step, … of `count` layers or experts, `most` of them, the step a power of two.

    >>> ax = new_axes(width=2, height=2)
    >>> number_ticks(ax.yaxis, 32)
    >>> ax.get_yticks().tolist()[:3]
    [0, 2, 4]
    """
    axis.set_ticks(numbered(count, most=most))


def numbered(count: int, *, most: int) -> list[int]:
    """0, step, 2 · step, … below `count`, `most` of them, the step a power of two.

    >>> numbered(32, most=8)
    [0, 4, 8, 12, 16, 20, 24, 28]
    """
    step = 1
    while count > step * most:
        step *= 2
    return list(range(0, count, step))


def layers_and_experts(ax: Axes, *, layers: int, experts: int, note: str = "") -> None:
    """Label a grid of layers × experts, layer 0 at the top; `note` says what the marks in the cells are."""
    number_ticks(ax.xaxis, experts, most=32)
    number_ticks(ax.yaxis, layers)
    ax.set_xlabel(f"expert ({note})" if note else "expert")
    ax.set_ylabel("layer")


def layers_down(ax: Axes, layers: int) -> None:
    """Put the layers on the vertical axis, layer 0 at the top."""
    number_ticks(ax.yaxis, layers)
    ax.set_ylim(layers - 0.5, -0.5)
    ax.set_ylabel("layer")


def symmetric_limit(values: NDArray[np.floating]) -> float:
    """The largest distance from zero among finite `values`, 1 if there is none: the end of a diverging colour bar.

    >>> symmetric_limit(np.array([0.5, -2.0, np.nan, np.inf]))
    2.0
    """
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max(initial=0.0)) or 1.0


def mark_level(bar: Colorbar, level: float, name: str = "uniform") -> None:
    """A line across a colour bar at a value that has a name."""
    bar.ax.axhline(level, color="white", linewidth=3)
    bar.ax.axhline(level, color="black", linewidth=1)
    bar.ax.text(
        -0.35, level, name, ha="right", va="center", fontsize="small",
        transform=bar.ax.get_yaxis_transform(),
    )  # fmt: skip


def dot_cells(ax: Axes, columns: NDArray[np.integer], rows: NDArray[np.integer]) -> None:
    """A white dot with a black rim in each of these cells, to be seen on every colour."""
    ax.scatter(columns, rows, s=9, color="white", edgecolors="black", linewidths=0.5)


def cross_cells(ax: Axes, columns: NDArray[np.integer], rows: NDArray[np.integer]) -> None:
    """A cross in each of these cells, which are left white: what never happened."""
    ax.scatter(columns, rows, marker="x", s=30, color="black", linewidths=1.2)


def hatch_cells(
    ax: Axes, is_hatched: NDArray[np.bool_], *, hatch: str, ground: str = "none"
) -> None:
    """Outline and hatch the cells of a grid [rows, columns] that are true; `ground` fills them."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in np.argwhere(is_hatched)]
    if not cells:
        return
    # a wide white hatch under a thin black one, for grounds of any darkness
    for color, width in (("white", 2.4), ("black", 0.8)):
        drawn = PatchCollection(
            cells, facecolor=ground, edgecolor=color, linewidth=width, hatch=hatch
        )
        drawn.set_hatch_linewidth(width)
        ax.add_collection(drawn, autolim=False)
        ground = "none"


def mark_signs(ax: Axes, values: NDArray[np.floating], *, above: float) -> None:
    """A plus in cells of more than `above`, a minus in those of less than -`above`: the sign, where colour is lost."""
    for is_marked, marker in ((values > above, "+"), (values < -above, "_")):
        rows, columns = np.nonzero(is_marked)
        for color, width in (("white", 2.6), ("black", 1.0)):
            ax.scatter(columns, rows, s=22, marker=marker, color=color, linewidths=width)


def expert_colours(n_experts: int) -> NDArray[np.float64]:
    """A colour for each expert: [experts, 3], red, green and blue from 0 to 1. Numbers stand beside it everywhere.

    Hues a golden section of the circle apart, in three lightnesses, so that neighbours in number differ in both.

    >>> expert_colours(16).shape
    (16, 3)
    """
    golden = 0.618033988749895
    levels = ((0.50, 0.62), (0.72, 0.55), (0.33, 0.70))  # lightness, saturation
    return np.array(
        [
            colorsys.hls_to_rgb(expert * golden % 1, *levels[expert % len(levels)])
            for expert in range(n_experts)
        ]
    )


def ink_on(colour: NDArray[np.floating]) -> str:
    """Black or white, whichever is read better on `colour` [3] (relative luminance of WCAG 2.2).

    >>> ink_on(np.array([1.0, 1.0, 0.0])), ink_on(np.array([0.0, 0.0, 0.5]))
    ('black', 'white')
    """
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "black" if luminance > 0.179 else "white"


def segment_style(name: str) -> tuple[str, str]:
    """Colour and hatch of a segment; "evidence 3" has those of "evidence".

    >>> segment_style("evidence 3") == segment_style("evidence")
    True
    """
    return SEGMENT_STYLES.get(name.split(" ")[0], OTHER_SEGMENT)


def segment_legend(ax: Axes, names: Iterable[str]) -> Legend:
    """A row below `ax`: which colour and hatch is which kind of segment."""
    from matplotlib.patches import Patch

    handles = []
    for name in dict.fromkeys(name.split(" ")[0] for name in names):
        colour, hatch = segment_style(name)
        handles.append(
            Patch(
                facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=label(name)
            )
        )
    below = 0.5 / ax.get_window_extent().height * ax.figure.dpi  # of half an inch, in axes
    return ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -below if ax.axison else 0.0),
        ncols=len(handles), fontsize="small", frameon=False,
    )  # fmt: skip


def expert_legend(ax: Axes, n_experts: int) -> Legend:
    """Columns to the right of `ax`: which colour is which expert's number."""
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=tuple(colour), label=str(expert))
        for expert, colour in enumerate(expert_colours(n_experts))
    ]
    return ax.legend(
        handles=handles, title="expert", loc="upper left", bbox_to_anchor=(1.005, 1.0), ncols=-(-n_experts // 16),
        fontsize="x-small", title_fontsize="small", frameon=False, labelspacing=0.2, handlelength=1.2,
        columnspacing=0.8, borderaxespad=0.0,
    )  # fmt: skip


def colour_bar(ax: Axes, image: AxesImage, meaning: str) -> Colorbar:
    """A colour bar beside `ax` that says what colour means."""
    return ax.figure.colorbar(image, ax=ax, label=meaning)
