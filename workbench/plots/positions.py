"""What changes along a long prompt → positions × layers: drift of expert usage, and choices that hang by a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.conventions import (
    AMOUNT,
    colour_bar,
    dot_cells,
    grid_axes,
    number_ticks,
    numbered,
)
from workbench.routing.drift import PositionDrift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def plot_drift(found: PositionDrift, *, q: float = 0.05, ax: Axes | None = None) -> Axes:
    """Buckets of positions × layers: how far each bucket's expert usage is from that of the first, in bits.

    A dot marks cells beyond what shuffled blocks of neighbours would show, with a q-value of at most `q` over all
    cells.

    >>> from workbench.routing.drift import position_drift
    >>> experts = np.repeat([0, 1], 320)[:, None, None]
    >>> ax = plot_drift(position_drift(experts, np.arange(640), n_experts=2, n_buckets=2))
    >>> ax.collections[0].get_offsets().tolist()    # the second bucket, layer 0
    [[1.0, 0.0]]
    """
    most = max(float(np.nanmax(found.bits)), 1e-9)
    ax, image = _position_grid(found.bits, found.edges, most=most, ax=ax)
    buckets, layers = np.nonzero(found.q_values <= q)
    if len(buckets):
        dot_cells(ax, buckets, layers)
    ax.set_xlabel(f"position in tokens (dot: more than by chance, q ≤ {q:g})")
    ax.set_title("drift of expert usage along the prompt")
    colour_bar(ax, image, "divergence from the first bucket (bits)")
    return ax


def plot_fragility(
    is_fragile: NDArray[np.bool_], *, buckets: int = 24, ax: Axes | None = None
) -> Axes:
    """Buckets of positions × layers: the share of choices that a rounding error of the router could change.

    `is_fragile` [tokens, layers] is ``fragile(trace.router_logits[trace.rows()])`` of ``workbench.routing.margins``,
    tokens in their order; they are cut into at most `buckets` of nearly equal size. The dot marks each layer's most
    fragile bucket, if it has any.

    >>> ax = plot_fragility(np.array([[True], [False], [False], [False]]), buckets=2)
    >>> ax.images[0].get_array().tolist()
    [[0.5, 0.0]]
    """
    if is_fragile.ndim != 2 or not len(is_fragile):
        raise ValueError(
            f"is_fragile must be [tokens, layers] of at least one token, got {list(is_fragile.shape)}"
        )
    if buckets < 1:
        raise ValueError(f"buckets={buckets} is no number of buckets")
    tokens = len(is_fragile)
    edges = np.linspace(0, tokens, min(buckets, tokens) + 1).round().astype(np.int64)
    sums = np.add.reduceat(is_fragile.astype(np.int64), edges[:-1], axis=0)
    share = sums / np.diff(edges)[:, None]  # [buckets, layers]
    ax, image = _position_grid(share, edges, most=max(float(share.max()), 0.01), ax=ax)
    layers = np.flatnonzero(share.max(axis=0) > 0)
    dot_cells(ax, share.argmax(axis=0)[layers], layers)
    ax.set_xlabel("routed token (dot: the layer's most fragile)")
    ax.set_title(f"fragile choices: {is_fragile.mean():.1%} of {is_fragile.size:,}")
    colour_bar(ax, image, "share of fragile choices")
    return ax


def _position_grid(
    values: NDArray[np.floating], edges: NDArray[np.integer], *, most: float, ax: Axes | None
) -> tuple[Axes, AxesImage]:
    """Layers × buckets in colour from 0 to `most`, with the positions of the buckets' edges below."""
    if values.ndim != 2 or len(edges) != len(values) + 1:
        raise ValueError(
            f"there are {len(edges)} edges for values {list(values.shape)}; give [buckets, layers] and "
            "buckets + 1 edges"
        )
    buckets, layers = values.shape
    ax = grid_axes(ax, rows=layers, columns=buckets)
    image = ax.imshow(
        np.ma.masked_invalid(values.T), cmap=AMOUNT, vmin=0.0, vmax=most, aspect="auto"
    )
    # a label of a position is as wide as two narrow cells
    shown = numbered(buckets + 1, most=12)
    ax.set_xticks([place - 0.5 for place in shown], [f"{int(edges[place]):,}" for place in shown])
    ax.set_xlim(-0.5, buckets - 0.5)
    number_ticks(ax.yaxis, layers)
    ax.set_ylabel("layer")
    return ax, image
