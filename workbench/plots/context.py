"""Answer → a picture of what the prompt was made of and where the model found its answer."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from workbench.answer import Answer
from workbench.markup import shorten
from workbench.plots.figures import new_axes
from workbench.plots.labels import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_context(answer: Answer, *, top: int = 8, ax: Axes | None = None) -> Axes:
    """The `top` admissible quotes by the model's log-probability, the abstention sentence among them.

    Raises ``ValueError`` for an answer of the free style, which chooses no quote.
    """
    if not answer.generation.candidates:
        raise ValueError("plot_context shows the choice among quotes; ask with style='quote'")
    best = answer.generation.candidates[:top]
    ax = ax if ax is not None else new_axes(width=8.5, height=1.2 + 0.36 * len(best))
    cited = set(answer.generation.quotes)
    said = [c.n in cited or (c.n is None and answer.abstained) for c in best]
    places = np.arange(len(best))
    ax.barh(
        places,
        [c.log_probability for c in best],
        color=["#21918c" if chosen else "#b8c4cc" for chosen in said],
    )
    ax.set_yticks(places, [label(shorten(" ".join(c.text.split()), 58)) for c in best])
    ax.invert_yaxis()
    ax.set_xlabel("log-probability of the choice (nats)")
    lines = textwrap.wrap(shorten(answer.question, 150), 46)
    ax.set_title("\n".join(label(line) for line in lines), fontsize="medium")
    return ax
