"""New axes and the bytes of a picture, without pyplot's global state when no notebook is there to show it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes(*, width: float, height: float) -> Axes:
    """Axes on a figure of `width` × `height` inches.

    In a notebook the figure is registered with pyplot, so that the cell shows it; elsewhere it is a plain Figure
    that is freed with its last reference.
    """
    if _is_in_notebook():
        from matplotlib import pyplot

        return pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _is_in_notebook() -> bool:
    """Whether this process is a kernel, not one that merely imported its library."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def png_bytes(ax: Axes, *, dpi: int = 130) -> bytes:
    """The figure of `ax` as a PNG on a white ground.

    >>> png_bytes(new_axes(width=1, height=1))[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes were removed from their figure")
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()
