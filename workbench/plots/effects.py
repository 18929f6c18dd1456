"""Scans of experts → maps of what each expert does for the answers, and for the use that answers make of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.effects.scan import ContextUse, ExpertScan
from workbench.markup import counted
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEIGHBOURS = 20  # cells of nearest load that a dotted cell lies beyond
_CORNER = 0.34  # of a cell, from its middle: where the dot leaves room for a sign


def plot_expert_effects(
    scan: ExpertScan, *, q: float = 0.05, per_token: bool = False, ax: Axes | None = None
) -> Axes:
    r"""Layers × experts: how much less likely answers become without the expert, in nats; above 0 the expert helps.

    Cells whose q-value is at most `q` are hatched, upwards (/) where the expert helps, downwards (\) where it harms;
    that takes two answers at least, and with less than ten hardly any cell can be. A plus or a minus says which side
    of zero the others are that reach a quarter of the colour bar. A cross marks experts that no token meant chose. A
    dot in the corner marks cells that are outside their 20 cells of nearest load, of which chance alone makes 2 in 21;
    there are none where 20 experts or fewer were used. With `per_token` the effect is divided by how often the expert
    was chosen: hatches and dots stay those of the mean effect.

    >>> scan = ExpertScan(("Why?",), np.array([[[0.5, 0.0]]]), np.array([[[3, 0]]]), np.zeros(1), "ban", None, 1.0)
    >>> print(plot_expert_effects(scan).get_title())
    what answers lose without an expert (ban; all tokens)
    1 answer: no test
    """
    load = scan.counts.sum(axis=0)
    beyond = np.zeros(load.shape, dtype=bool)
    if (load > 0).sum() > _NEIGHBOURS:
        beyond = scan.beyond_load(neighbours=_NEIGHBOURS)
    return _effect_map(
        scan.effect_per_token if per_token else scan.mean_effect,
        is_used=load > 0,
        tested=_tested(scan),
        beyond=beyond,
        q=q,
        answers=len(scan.questions),
        title=f"what answers lose without an expert ({_meant(scan)})",
        meaning="effect (nats a choice)" if per_token else "effect (nats)",
        ax=ax,
    )


def plot_context_use(use: ContextUse, *, q: float = 0.05, ax: Axes | None = None) -> Axes:
    r"""Layers × experts: how much of what the evidence adds is lost without the expert, in nats.

    Above 0 the expert makes the evidence count: its effect with evidence is larger than without. The title says what
    the evidence adds in all, with its 95% interval. Hatches, signs and crosses are those of
    :func:`plot_expert_effects`.

    >>> counts, question = np.array([[[3, 0]]]), ("Why?",)
    >>> bare = ExpertScan(question, np.array([[[0.5, 0.0]]]), counts, np.array([-4.0]), "ban", None, 1.0)
    >>> full = ExpertScan(question, np.array([[[2.0, 0.0]]]), counts, np.array([-1.0]), "ban", None, 1.0)
    >>> print(plot_context_use(ContextUse(with_evidence=full, without_evidence=bare)).get_title())
    how much of what evidence adds is lost without an expert (ban; all tokens)
    evidence adds +3.00 nats; 1 answer: no test
    """
    scan, gain = use.with_evidence, use.gain
    interval = f" ({gain.low:+.2f} to {gain.high:+.2f})" if gain.questions > 1 else ""
    return _effect_map(
        use.delta.mean(axis=0),
        is_used=(scan.counts + use.without_evidence.counts).sum(axis=0) > 0,
        tested=_tested(use),
        beyond=np.zeros(scan.effects.shape[1:], dtype=bool),
        q=q,
        answers=gain.questions,
        title=f"how much of what evidence adds is lost without an expert ({_meant(scan)})",
        lead=f"evidence adds {gain.difference:+.2f} nats{interval}; ",
        meaning="lost gain (nats)",
        ax=ax,
    )


def _tested(found: ExpertScan | ContextUse) -> Contrast | None:
    scan = found.with_evidence if isinstance(found, ContextUse) else found
    return found.test() if len(scan.questions) > 1 else None


def _meant(scan: ExpertScan) -> str:
    tokens = "all tokens" if scan.segment is None else f"{label(scan.segment)} tokens"
    return f"{scan.action}; {tokens}"


def _effect_map(
    values: NDArray[np.float64],
    *,
    is_used: NDArray[np.bool_],
    tested: Contrast | None,
    beyond: NDArray[np.bool_],
    q: float,
    answers: int,
    title: str,
    meaning: str,
    ax: Axes | None,
    lead: str = "",
) -> Axes:
    if not 0 < q < 1:
        raise ValueError(f"q={q} is outside 0 to 1")
    layers, experts = values.shape
    shown = np.where(is_used, values, np.nan)
    limit = symmetric_limit(shown)
    ax = grid_axes(ax, rows=layers, columns=experts)
    image = ax.imshow(
        np.ma.masked_invalid(shown), cmap=DIFFERENCE, vmin=-limit, vmax=limit, aspect="auto"
    )
    differs = np.zeros(values.shape, dtype=bool) if tested is None else tested.q_values <= q
    hatch_cells(ax, differs & (shown > 0), hatch=MORE_HATCH)
    hatch_cells(ax, differs & (shown <= 0), hatch=LESS_HATCH)
    mark_signs(ax, np.where(differs, np.nan, shown), above=limit / 4)
    rows, columns = np.nonzero(beyond)
    for color, size in (("white", 26), ("black", 9)):
        ax.scatter(columns + _CORNER, rows - _CORNER, s=size, color=color, linewidths=0, zorder=3)
    rows, columns = np.nonzero(~is_used)
    cross_cells(ax, columns, rows)
    layers_and_experts(ax, layers=layers, experts=experts)
    note = f"expert (× never chosen; + and − beyond {limit / 4:.2g}"
    if tested is not None:
        note += f";\nhatched at q ≤ {q:g}: / above 0, \\ below"
    if beyond.any():
        note += f"; dot: outside its {_NEIGHBOURS} cells of nearest load"
    ax.set_xlabel(f"{note})")
    found = f"{int(differs.sum())} of {differs.size} cells at q ≤ {q:g}" if tested else "no test"
    ax.set_title(f"{title}\n{lead}{counted(answers, 'answer')}: {found}")
    colour_bar(ax, image, meaning)
    return ax
