"""How far several files are, in bytes of them all; and the place where work on them stops when it is cancelled."""

from __future__ import annotations

from workbench.cancel import CancelToken, OnProgress, Progress


class Meter:
    """Counts bytes of `total`, told to `on_progress` as ``Progress(stage, done, total)``.

    >>> told = []
    >>> meter = Meter("verifying", 30, told.append)
    >>> meter.at(5); meter.finish(10); meter.finish(20)
    >>> [(step.done, step.total) for step in told]
    [(5, 30), (10, 30), (30, 30)]
    """

    def __init__(
        self,
        stage: str,
        total: int,
        on_progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._on_progress, self._cancel = on_progress, cancel

    def check(self) -> None:
        """Raise ``Cancelled`` if somebody asked to stop."""
        if self._cancel is not None:
            self._cancel.raise_if_cancelled(self._stage)

    def at(self, written: int) -> None:
        """`written` bytes of the present file are done."""
        if self._on_progress:
            self._on_progress(Progress(self._stage, self._done + written, self._total))

    def finish(self, size: int) -> None:
        """The present file of `size` bytes is done, now or before."""
        self._done += size
        self.at(0)
