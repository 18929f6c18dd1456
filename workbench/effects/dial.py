"""A faithfulness dial: some experts biased up or down by one number, learned on some cases and tested on others.

Learned: the experts whose loss takes most of what the evidence adds (``ContextUse.delta``), and how far to turn.
Turning up adds to their router logits, in units of the spread of each layer's logits; 0 is the model as it is. SteerMoE
(arXiv:2509.09660) steers by activation differences instead; here the experts are chosen by what they cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.effects.cases import Case
from workbench.effects.controls import ExpertPlace, load_matched
from workbench.effects.scan import ContextUse
from workbench.evaluation.retrieval import Comparison, compare
from workbench.generation.forking import open_fork
from workbench.generation.phi import Generator
from workbench.routing.intervene import Edit

if TYPE_CHECKING:
    import pandas as pd

AMOUNTS = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True, eq=False)
class Dial:
    """Experts to bias together. Made by :func:`learn_dial`.

    ``spread`` [layers] is the mean standard deviation of a token's router logits, which ``amounts`` are multiples of.
    ``learned`` [amounts] are the mean changes of the answers' log-probability (nats) on the cases it was learned on,
    and ``amount`` is where that is largest; ``questions`` are those cases'.
    """

    experts: tuple[ExpertPlace, ...]
    spread: NDArray[np.float64]
    amounts: tuple[float, ...]
    learned: NDArray[np.float64]
    amount: float
    segment: str | None
    questions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Dial({len(self.experts)} experts, amount {self.amount:+g}; "
            "next: check_dial(generator, dial, other cases), generator.intervened(dial.edits()))"
        )

    def edits(
        self, amount: float | None = None, *, experts: Sequence[ExpertPlace] | None = None
    ) -> tuple[Edit, ...]:
        """The edits of the dial at `amount`, by default where it was best; of other `experts` for a control arm.

        >>> dial = Dial((ExpertPlace(0, 3),), np.array([0.5]), (0.0, 1.0), np.array([0.0, 0.2]), 1.0, None)
        >>> dial.edits()
        (Edit(action='bias', expert=3, layers=(0,), amount=0.5),)
        """
        turned = self.amount if amount is None else amount
        return tuple(
            Edit("bias", p.expert, (p.layer,), turned * float(self.spread[p.layer]))
            for p in (self.experts if experts is None else experts)
        )


@dataclass(frozen=True, slots=True, eq=False)
class DialTest:
    """A dial on cases that it did not learn from. Made by :func:`check_dial`.

    ``changes`` [cases, amounts] are those of each answer's log-probability (nats); ``controls`` [arms, amounts] the
    means of load-matched random experts turned alike.
    """

    dial: Dial
    changes: NDArray[np.float64]
    controls: NDArray[np.float64]

    def __repr__(self) -> str:
        return (
            f"DialTest(at {self.dial.amount:+g} {self.at_best} nats, control arms {self._control_range()}; "
            "next: .to_frame())"
        )

    @property
    def at_best(self) -> Comparison:
        """The change where the dial was best on the cases it learned from, with its interval here."""
        own = self.changes[:, self.dial.amounts.index(self.dial.amount)]
        return compare(own.tolist(), [0.0] * len(own))

    def to_frame(self) -> pd.DataFrame:
        """One row an amount: learned, tested with its interval, mean and range of the control arms."""
        import pandas as pd

        rows = []
        for place, amount in enumerate(self.dial.amounts):
            found = compare(self.changes[:, place].tolist(), [0.0] * len(self.changes))
            others = self.controls[:, place]
            rows.append(
                {
                    "amount": amount,
                    "learned": self.dial.learned[place],
                    "tested": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "control": others.mean(),
                    "control_low": others.min(),
                    "control_high": others.max(),
                }
            )
        return pd.DataFrame(rows)

    def _control_range(self) -> str:
        own = self.controls[:, self.dial.amounts.index(self.dial.amount)]
        return f"{own.min():+.3f} to {own.max():+.3f}"


def learn_dial(
    generator: Generator,
    cases: Sequence[Case],
    use: ContextUse,
    *,
    experts: int = 8,
    amounts: Sequence[float] = AMOUNTS,
    segment: str | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Dial:
    """Choose the `experts` that carry most of what the evidence adds, and turn them to where answers are likeliest.

    `use` must be of the same cases; test on others with :func:`check_dial`. Raises ``ValueError`` where `use` is of
    other cases or 0 is not among the `amounts`.
    """
    if use.with_evidence.questions != tuple(case.question for case in cases):
        raise ValueError("the scan is of other cases than those to learn from")
    if 0.0 not in amounts:
        raise ValueError(f"amounts={tuple(amounts)} lack 0, the model as it is")
    mean = use.delta.mean(axis=0)
    best = np.argsort(-mean, axis=None, kind="stable")[:experts]
    chosen = tuple(
        ExpertPlace(int(layer), int(expert))
        for layer, expert in zip(*np.unravel_index(best, mean.shape), strict=True)
        if mean[layer, expert] > 0
    )
    if not chosen:
        raise ValueError(
            "no expert carries any of what the evidence adds: there is nothing to turn"
        )
    spread = _spread(generator, cases)
    dial = Dial(chosen, spread, tuple(amounts), np.zeros(len(amounts)), 0.0, segment)
    learned = _changes(generator, dial, cases, [chosen], on_progress, cancel)[0].mean(axis=0)
    best_amount = float(amounts[int(learned.argmax())])
    questions = tuple(case.question for case in cases)
    return Dial(chosen, spread, tuple(amounts), learned, best_amount, segment, questions)


def check_dial(
    generator: Generator,
    dial: Dial,
    cases: Sequence[Case],
    *,
    arms: int = 10,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> DialTest:
    """Turn the dial on cases it did not learn from, and up to `arms` load-matched sets of random experts beside it.

    Raises ``ValueError`` without a case or an arm, or for a case that the dial was learned on.
    """
    known = [case.question for case in cases if case.question in dial.questions]
    if known:
        raise ValueError(f"the dial was learned on {known[0]!r}: test it on other cases")
    if not cases or arms < 1:
        raise ValueError(f"{len(cases)} cases and arms={arms}: a test needs one of each at least")
    generator.check_routes()
    traces = [generator.score(case.prompt, case.answer).routing for case in cases]
    counts = np.sum([trace.counts(dial.segment) for trace in traces if trace is not None], axis=0)
    controls = load_matched(counts, dial.experts, arms=arms, seed=seed)
    found = _changes(generator, dial, cases, [dial.experts, *controls], on_progress, cancel)
    return DialTest(dial, found[0], found[1:].mean(axis=1))


def _changes(
    generator: Generator,
    dial: Dial,
    cases: Sequence[Case],
    sets: Sequence[Sequence[ExpertPlace]],
    on_progress: OnProgress | None,
    cancel: CancelToken | None,
) -> NDArray[np.float64]:
    """Changes of log-probability with each set of experts turned by each amount: [sets, cases, amounts]."""
    found = []
    for place, case in enumerate(cases):
        alternatives = [
            dial.edits(amount, experts=experts) if amount else ()
            for experts in sets
            for amount in dial.amounts
        ]
        with open_fork(
            generator, case.prompt, case.answer, segment=dial.segment, cancel=cancel
        ) as fork:
            found.append(fork.score(alternatives).reshape(len(sets), len(dial.amounts)))
        if on_progress:
            on_progress(Progress("dial", place + 1, len(cases)))
    return np.stack(found, axis=1)


def _spread(generator: Generator, cases: Sequence[Case]) -> NDArray[np.float64]:
    """Mean over tokens of the standard deviation of a token's router logits: [layers]."""
    each = []
    for case in cases:
        trace = generator.read(case.prompt, capture="logits")
        assert trace.router_logits is not None
        each.append(trace.router_logits.astype(np.float64).std(axis=2).mean(axis=0))
    return np.asarray(np.mean(each, axis=0))
