"""One worker thread for long work behind an interface: run, cancel, wait. One job at a time: one model is loaded.

Callbacks of widgets may run on any thread and must return at once; they start a job here and read its result later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from workbench.cancel import CancelToken
from workbench.errors import Cancelled

T = TypeVar("T")
State = Literal["running", "done", "cancelled", "failed"]
_slot = threading.Lock()


class Job(Generic[T]):
    """Work on a thread of its own: ``work(cancel)`` returns the result or raises; ``on_end(job)`` runs after it."""

    def __init__(
        self, work: Callable[[CancelToken], T], on_end: Callable[[Job[T]], None] | None = None
    ) -> None:
        self.cancel_token = CancelToken()
        self.state: State = "running"
        self.error: BaseException | None = None
        self._result: T | None = None
        self._thread = threading.Thread(target=self._run, args=(work, on_end), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to stop at its next step."""
        self.cancel_token.cancel()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result; raises what the work raised. An interrupt while waiting cancels the work.

        >>> Job(lambda cancel: 6 * 7).result()
        42
        """
        if threading.current_thread() is not self._thread:
            try:
                self._thread.join(timeout)
            except KeyboardInterrupt:
                self.cancel()
                self._thread.join()
                raise
            if self._thread.is_alive():
                raise TimeoutError(f"the job was not done after {timeout} seconds")
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # set whenever there is no error

    def _run(
        self, work: Callable[[CancelToken], T], on_end: Callable[[Job[T]], None] | None
    ) -> None:
        try:
            with _slot:
                self.cancel_token.raise_if_cancelled("the job")
                self._result = work(self.cancel_token)
            self.state = "cancelled" if self.cancel_token.is_cancelled else "done"
        except Cancelled as error:
            self.state, self.error = "cancelled", error
        except BaseException as error:  # handed to whoever waits for the result
            self.state, self.error = "failed", error
        if on_end is not None:
            on_end(self)
