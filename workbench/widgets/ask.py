"""A panel to ask questions in a notebook: question, k, mode, style, Ask or Stop, and the answer with its evidence."""

from __future__ import annotations

import threading
from typing import Any

import ipywidgets

from workbench.answer import Answer, ask
from workbench.cancel import CancelToken
from workbench.errors import WorkbenchError
from workbench.generation.phi import Generator
from workbench.jobs import Job
from workbench.markup import escape, fragment
from workbench.retrieval.retrievers import Retriever


class AskView(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """Ask in a notebook; the last line of a cell shows the panel.

    ``view.answer`` is the last Answer. The work runs on a thread of its own, so Stop works and other cells run.

    >>> view = AskView(retriever=None, generator=None)
    >>> view.answer is None
    True
    """

    def __init__(self, retriever: Retriever, generator: Generator, *, k: int = 5) -> None:
        self.retriever = retriever
        self.generator = generator
        self.answer: Answer | None = None
        self._job: Job[Answer] | None = None
        self._lock = threading.RLock()
        wide = ipywidgets.Layout(width="100%")
        self.question = ipywidgets.Text(
            description="Question", placeholder="Which valve failed first?", layout=wide
        )
        self.k = ipywidgets.BoundedIntText(value=k, min=1, max=50, description="Passages")
        self.mode = ipywidgets.Dropdown(
            options=["hybrid", "dense", "lexical"], description="Search"
        )
        self.style_choice = ipywidgets.Dropdown(options=["quote", "free"], description="Answer")
        self.button = ipywidgets.Button(description="Ask", button_style="primary")
        self.status = ipywidgets.Label()
        self.output = ipywidgets.HTML()
        for part, name in [
            (self.button, "wb-ask"),
            (self.output, "wb-answer"),
            (self.status, "wb-status"),
        ]:
            part.add_class(name)
        self.button.on_click(self._click)
        options = ipywidgets.HBox([self.k, self.mode, self.style_choice, self.button])
        super().__init__([self.question, options, self.status, self.output], layout=wide)

    def _click(self, _sender: Any) -> None:
        with self._lock:
            if self._job is not None and self._job.state == "running":
                self._job.cancel()
                self.status.value = "stopping …"
                return
            question, k, mode, style = (
                self.question.value,
                self.k.value,
                self.mode.value,
                self.style_choice.value,
            )
            self.status.value = "searching and reading …"
            self.button.description = "Stop"

            def work(cancel: CancelToken) -> Answer:
                return ask(
                    question,
                    retriever=self.retriever,
                    generator=self.generator,
                    k=k,
                    mode=mode,
                    style=style,
                    cancel=cancel,
                )

            self._job = Job(work, self._end)

    def _end(self, job: Job[Answer]) -> None:
        with self._lock:
            self.button.description = "Ask"
            if isinstance(job.error, (WorkbenchError, ValueError)):
                self.status.value = str(job.error)
            elif job.error is not None:
                self.status.value = f"{type(job.error).__name__}: {job.error}"
            else:
                self.answer = job.result()
                seconds = self.answer.generation.timing.seconds
                state = "stopped" if job.state == "cancelled" else "done"
                self.status.value = f"{state} in {seconds:.1f} s; the Answer is in view.answer"
                self.output.value = self.answer._repr_html_()

    def wait(self, timeout: float | None = None) -> Answer | None:
        """Wait for the running question; for scripts and tests."""
        if self._job is not None:
            self._job.result(timeout)
        return self.answer

    def snapshot(self) -> str:
        """The panel's answer as static HTML that needs no kernel."""
        if self.answer is None:
            return fragment(f'<p class="wb-note">{escape("nothing was asked yet")}</p>')
        return self.answer._repr_html_()
