"""What a generator returns: the text, its tokens, how sure the model was, why it stopped, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.routing.trace import RoutingTrace

FinishReason = Literal["stop", "length", "cancelled", "given"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall time in seconds; `prefill_seconds` ends with the first generated token."""

    prefill_seconds: float
    decode_seconds: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class CacheReport:
    """How many prompt tokens were computed and how many came from a cached prefix."""

    computed_tokens: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One admissible answer of the quote style and the model's log-probability (nats) of choosing it.

    `n` is the source's number; None stands for the abstention sentence.
    """

    n: int | None
    text: str
    log_probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """The answer of a model to one prompt.

    ``token_ids`` hold the stop token if there was one; ``log_probabilities`` [tokens] are those of the chosen tokens
    under the model, before any constraint. ``routing`` is None for a dense model and where capture was off, with the
    reason in ``routing_note``. In the quote style ``quotes`` are the numbers of the sources said, one a line
    of the text, and ``candidates`` all admissible answers, best first. ``warning`` says why to expect less of this
    answer than of others (a prompt longer than the checkpoint was trained on), or is empty.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probabilities: NDArray[np.float32]
    finish_reason: FinishReason
    routing: RoutingTrace | None
    routing_note: str
    timing: Timing
    cache: CacheReport
    regime: str
    generator: str
    candidates: tuple[Candidate, ...] = ()
    quotes: tuple[int, ...] = ()
    warning: str = ""

    def __post_init__(self) -> None:
        if len(self.log_probabilities) != len(self.token_ids):
            raise ValueError(
                f"{len(self.log_probabilities)} log-probabilities for {len(self.token_ids)} tokens"
            )

    def __repr__(self) -> str:
        return (
            f"Generation({self.text[:40]!r}, {len(self.token_ids)} tokens, {self.finish_reason}, "
            f"{self.timing.seconds:.1f} s; next: .routing, .log_probabilities)"
        )
