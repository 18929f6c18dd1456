"""Pictures hold the numbers they claim to, and leave global state alone."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from workbench.plots.figures import new_axes, png_bytes
from workbench.plots.routing import plot_expert_usage, plot_segment_usage
from workbench.routing.trace import example_trace


def test_the_heatmap_shows_the_usage_and_marks_the_uniform_level():
    trace = example_trace()
    ax = plot_expert_usage(trace)
    np.testing.assert_allclose(ax.images[0].get_array(), trace.usage())
    bar = ax.images[0].colorbar.ax
    assert trace.k / trace.n_experts in [line.get_ydata()[0] for line in bar.lines]


def test_a_segment_limits_the_tokens():
    ax = plot_expert_usage(example_trace(), segment="answer")
    np.testing.assert_allclose(ax.images[0].get_array(), example_trace().usage("answer"))
    assert "answer" in ax.get_title()


def test_pictures_draw_on_the_axes_given():
    ax = new_axes(width=3, height=2)
    assert plot_expert_usage(example_trace(), ax=ax) is ax
    assert plot_segment_usage(example_trace(), layer=0, ax=new_axes(width=3, height=2)).get_title()


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="layer=1 is outside 0…0"):
        plot_segment_usage(example_trace(), layer=1)


def test_drawing_outside_a_notebook_does_not_import_pyplot():
    import subprocess

    code = (
        "import sys, workbench as wb; from workbench.routing.trace import example_trace;"
        "wb.plot_expert_usage(example_trace()); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_png_is_a_picture_of_some_size():
    assert len(png_bytes(plot_expert_usage(example_trace()))) > 5000


def test_only_a_kernel_registers_its_figures_with_pyplot(monkeypatch):
    import ipykernel  # noqa: F401 (importing it makes no kernel of a process)
    from matplotlib import pyplot

    from workbench.plots.figures import _is_in_notebook, new_axes

    before = pyplot.get_fignums()
    new_axes(width=1, height=1)
    assert pyplot.get_fignums() == before
    assert not _is_in_notebook()
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    assert _is_in_notebook()
