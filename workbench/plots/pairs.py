"""Pairs of experts → matrices: which are chosen together, and which follow one another from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.plots.conventions import (
    AMOUNT,
    DIFFERENCE,
    NOTHING,
    NOTHING_HATCH,
    check_layer,
    colour_bar,
    cross_cells,
    dot_cells,
    hatch_cells,
    mark_level,
    mark_signs,
    number_ticks,
    symmetric_limit,
)
from workbench.plots.figures import new_axes
from workbench.routing.pairs import Coactivation, seriation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_coactivation(coactivation: Coactivation, *, layer: int, ax: Axes | None = None) -> Axes:
    """Expert × expert in one layer: log2 of how often two are chosen together over what independence would give.

    A token chooses different experts, so independent ones meet less often than the product of their shares: zero is
    (k - 1) · E / (k · (E - 1)) of it, see ``Coactivation.lift``. Experts that often meet stand side by side. A plus
    marks pairs that meet more than twice, a minus those that meet less than half as often as independent ones, a cross
    those that never met; experts that were never chosen are grey and hatched, the diagonal is blank.

    >>> from workbench.routing.pairs import coactivation
    >>> found = coactivation(np.array([[[0, 1]], [[0, 1]], [[2, 3]], [[1, 2]]]), n_experts=4)
    >>> [text.get_text() for text in plot_coactivation(found, layer=0).get_xticklabels()]
    ['0', '1', '2', '3']
    """
    layers, n_experts, _ = coactivation.together.shape
    check_layer(layer, layers)
    k = coactivation.together[layer].trace() / coactivation.tokens
    if k <= 1:
        raise ValueError("a token chose one expert alone, so none are chosen together")
    independent = (k - 1) * n_experts / (k * (n_experts - 1))
    lift = coactivation.lift()[layer]  # [experts, experts]
    order = seriation(np.where(np.eye(n_experts, dtype=bool), 0.0, lift))
    lift = lift[np.ix_(order, order)]
    off_diagonal = ~np.eye(n_experts, dtype=bool)
    never_met = (lift == 0) & off_diagonal
    logs = np.log2(
        lift / independent, out=np.full(lift.shape, np.nan), where=(lift > 0) & off_diagonal
    )
    limit = max(symmetric_limit(logs), 1.0)
    ax = _matrix_axes(ax, n_experts)
    image = ax.imshow(
        np.ma.masked_invalid(logs), cmap=DIFFERENCE, vmin=-limit, vmax=limit, aspect="auto"
    )
    mark_signs(ax, logs, above=1.0)
    rows, columns = np.nonzero(never_met)
    cross_cells(ax, columns, rows)
    hatch_cells(ax, np.isnan(lift) & off_diagonal, hatch=NOTHING_HATCH, ground=NOTHING)
    for axis in (ax.xaxis, ax.yaxis):
        number_ticks(axis, n_experts, most=32)
        places = [int(place) for place in axis.get_ticklocs()]
        axis.set_ticks(places, [str(order[place]) for place in places], fontsize="small")
    ax.set_xlabel("expert (+ more than twice, − less than half, × never together)")
    ax.set_ylabel("expert (side by side: often together)")
    ax.set_title(f"experts chosen together, layer {layer} ({coactivation.tokens:,} tokens)")
    colour_bar(ax, image, "log2(together / if independent); 0 is independent")
    return ax


def plot_transitions(
    transitions: NDArray[np.float64], *, layer: int, ax: Axes | None = None
) -> Axes:
    """Expert in `layer` × expert in the next: P(next | this), from ``workbench.routing.pairs.transitions``.

    `transitions` is [layers - 1, experts, experts]. Rows sum to one; the dot marks the likeliest next expert of each
    row, the colour bar the uniform share; rows of experts that were never chosen are grey and hatched.

    >>> from workbench.routing.pairs import transitions
    >>> found = transitions(np.array([[[0, 1], [2, 3]], [[0, 3], [2, 1]]]), n_experts=4)
    >>> plot_transitions(found, layer=0).get_ylabel()
    'expert in layer 0'
    """
    if transitions.ndim != 3 or transitions.shape[1] != transitions.shape[2]:
        raise ValueError(
            f"transitions must be [layers - 1, experts, experts], got {list(transitions.shape)}"
        )
    check_layer(layer, len(transitions))
    share = transitions[layer]
    n_experts = len(share)
    is_known = ~np.isnan(share[:, 0])
    if not is_known.any():
        raise ValueError(f"no token was routed in layer {layer}")
    ax = _matrix_axes(ax, n_experts)
    most = max(float(np.nanmax(share)), 2 / n_experts)
    image = ax.imshow(np.ma.masked_invalid(share), cmap=AMOUNT, vmin=0.0, vmax=most, aspect="auto")
    rows = np.flatnonzero(is_known)
    dot_cells(ax, share[rows].argmax(axis=1), rows)
    hatch_cells(ax, np.isnan(share), hatch=NOTHING_HATCH, ground=NOTHING)
    number_ticks(ax.xaxis, n_experts, most=32)
    number_ticks(ax.yaxis, n_experts, most=32)
    ax.tick_params(labelsize="small")
    ax.set_xlabel(f"expert in layer {layer + 1} (dot: the likeliest)")
    ax.set_ylabel(f"expert in layer {layer}")
    ax.set_title(f"from layer {layer} to layer {layer + 1}")
    bar = colour_bar(ax, image, f"share of choices in layer {layer + 1} (rows sum to 1)")
    mark_level(bar, 1 / n_experts)
    return ax


def _matrix_axes(ax: Axes | None, n_experts: int) -> Axes:
    if ax is not None:
        return ax
    side = min(max(0.3 * n_experts, 2.8), 9.0)
    return new_axes(width=side + 2.2, height=side + 1.2)
