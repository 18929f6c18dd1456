"""A token that asks long work to stop, and the event that tells how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from workbench.errors import Cancelled


class CancelToken:
    """Set from any thread; long work looks at it between steps.

    >>> token = CancelToken()
    >>> token.cancel()
    >>> token.is_cancelled
    True
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop at its next step."""
        self._event.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def raise_if_cancelled(self, what: str) -> None:
        """Raise ``Cancelled`` naming `what` if somebody asked."""
        if self.is_cancelled:
            raise Cancelled(f"{what} was cancelled")


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work: `done` of `total` items of `stage`."""

    stage: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]
