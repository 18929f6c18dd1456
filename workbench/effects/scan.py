"""Cases → a map of what each expert of each layer does for the answers: how much less likely without it.

The effect of an expert is log P(answer) − log P(answer without the expert) in nats: above 0 it helps. Experts that
cannot change anything have an effect of exactly 0 and are not computed: those that the tokens meant never chose and,
for a ban, that were nowhere so near to a chosen one that they take some of its gate. One pass computes many experts of
a layer, from that layer on (``generation/forking.py``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.effects.cases import Case
from workbench.errors import Cancelled, InputError
from workbench.evaluation.retrieval import Comparison, compare
from workbench.generation.forking import Fork, open_fork
from workbench.generation.phi import Generator
from workbench.generation.weights import weights_digest
from workbench.routing.contrasts import Contrast, contrast_clusters
from workbench.routing.intervene import Edit
from workbench.store import sha256_bytes

if TYPE_CHECKING:
    import pandas as pd

Removal = Literal["ban", "drop"]
_BEGINNING = b'{"case": "'  # of a journal's line


@dataclass(frozen=True, slots=True, eq=False)
class ExpertScan:
    """What every expert of every layer does for the answers of some cases. Made by :func:`scan_experts`.

    ``effects`` [cases, layers, experts] in nats, above 0 where the answer is less likely without the expert; ``counts``
    the same shape, how often the tokens meant chose it. ``log_probabilities`` [cases] are those of the answers,
    ``passes`` the work in passes of prompt and answer through the whole model, ``naive_passes`` what one pass for every
    expert of every layer would have been. Cases that a cancelled scan did not finish are left out.
    """

    questions: tuple[str, ...]
    effects: NDArray[np.float64]
    counts: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    action: Removal
    segment: str | None
    passes: float

    def __repr__(self) -> str:
        cases, layers, experts = self.effects.shape
        mean = self.mean_effect
        layer, expert = np.unravel_index(int(np.abs(mean).argmax()), mean.shape)
        return (
            f"ExpertScan({cases} answers, {layers} layers × {experts} experts, {self.action}, "
            f"{self.segment or 'all tokens'}; largest mean effect {mean[layer, expert]:+.2g} nats of expert "
            f"{expert} in layer {layer}; next: .test(), .to_frame())"
        )

    @property
    def mean_effect(self) -> NDArray[np.float64]:
        """Mean over answers: [layers, experts], nats."""
        return np.asarray(self.effects.mean(axis=0))

    @property
    def effect_per_token(self) -> NDArray[np.float64]:
        """Effect for every time the expert was chosen, nan where it never was: [layers, experts], nats.

        Effects grow with load whatever an expert does; this one does not.
        """
        total, counts = self.effects.sum(axis=0), self.counts.sum(axis=0)
        nothing = np.full(total.shape, np.nan)
        return np.asarray(np.divide(total, counts, out=nothing, where=counts > 0))

    @property
    def naive_passes(self) -> int:
        """Passes of a scan that computes every expert of every layer alone."""
        cases, layers, experts = self.effects.shape
        return int(cases * (1 + layers * experts))

    def test(
        self, *, confidence: float = 0.95, permutations: int | None = None, seed: int = 0
    ) -> Contrast:
        """The mean effect of every cell with its interval, p and q; answers are drawn whole.

        Cells whose effect is 0 for every answer are no tests: their q is 1, and the others' does not suffer for them.
        """
        return contrast_clusters(
            self.effects,
            np.zeros_like(self.effects),
            is_paired=True,
            confidence=confidence,
            permutations=permutations,
            seed=seed,
        )

    def beyond_load(self, *, neighbours: int = 20) -> NDArray[np.bool_]:
        """Cells whose mean effect is outside those of all of the `neighbours` cells of nearest load: [layers, experts].

        Of cells that do nothing particular, 2 in `neighbours` + 1 are called so by chance. Raises ``ValueError`` where
        fewer experts were used.
        """
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours} must be at least 1")
        mean, load = self.mean_effect.reshape(-1), self.counts.sum(axis=0).reshape(-1)
        used = np.flatnonzero(load)
        if len(used) <= neighbours:
            raise ValueError(
                f"{len(used)} experts were used at all; neighbours={neighbours} must be fewer"
            )
        found = np.zeros(len(mean), dtype=bool)
        for cell in used:
            far = np.abs(np.log(load[used]) - np.log(load[cell]))
            near = used[np.argsort(far, kind="stable")]
            others = mean[near[near != cell][:neighbours]]
            found[cell] = mean[cell] < others.min() or mean[cell] > others.max()
        return found.reshape(self.mean_effect.shape)

    def to_frame(self, *, seed: int = 0) -> pd.DataFrame:
        """One row a cell, the most surprising first; intervals where there are two answers or more.

        `effect` is a mean over answers, `count` a sum over all of them, `effect_per_token` the sum of effects over
        `count`.
        """
        import pandas as pd

        layer, expert = np.indices(self.mean_effect.shape)
        columns = {
            "layer": layer,
            "expert": expert,
            "effect": self.mean_effect,
            "effect_per_token": self.effect_per_token,
            "count": self.counts.sum(axis=0),
        }
        frame = pd.DataFrame({n: np.asarray(v).reshape(-1) for n, v in columns.items()})
        if len(self.effects) > 1:
            tested = self.test(seed=seed).to_frame().drop(columns="difference")
            return tested.merge(frame, on=["layer", "expert"])[
                [*frame.columns, "low", "high", "p", "q"]
            ]
        order = frame["effect"].abs().sort_values(ascending=False).index
        return frame.loc[order].reset_index(drop=True)


@dataclass(frozen=True, slots=True, eq=False)
class ContextUse:
    """Which experts turn evidence into an answer: a scan with the evidence and one without. Made by
    :func:`context_use`.

    ``gains`` [cases] are log P(answer | question, evidence) − log P(answer | question) in nats.
    """

    with_evidence: ExpertScan
    without_evidence: ExpertScan

    def __repr__(self) -> str:
        return f"ContextUse(nats that evidence adds to log P(answer): {self.gain}; next: .delta, .test())"

    @property
    def gains(self) -> NDArray[np.float64]:
        """What the evidence adds to the answer's log-probability: [cases], nats."""
        return self.with_evidence.log_probabilities - self.without_evidence.log_probabilities

    @property
    def gain(self) -> Comparison:
        """The mean of it, with its interval."""
        return compare(
            self.with_evidence.log_probabilities.tolist(),
            self.without_evidence.log_probabilities.tolist(),
        )

    @property
    def delta(self) -> NDArray[np.float64]:
        """How much of the gain is lost without the expert: [cases, layers, experts], nats.

        G − G without the expert, which is its effect with evidence less its effect without.
        """
        return self.with_evidence.effects - self.without_evidence.effects

    def test(
        self, *, confidence: float = 0.95, permutations: int | None = None, seed: int = 0
    ) -> Contrast:
        """The mean of ``delta`` in every cell with its interval, p and q."""
        return contrast_clusters(
            self.with_evidence.effects,
            self.without_evidence.effects,
            is_paired=True,
            confidence=confidence,
            permutations=permutations,
            seed=seed,
        )


def scan_experts(
    generator: Generator,
    cases: Sequence[Case],
    *,
    action: Removal = "ban",
    segment: str | None = None,
    journal: str | Path | None = None,
    most_rows: int = 17,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> ExpertScan:
    """Take every expert of every layer away, one at a time, and see how likely each answer remains.

    ``action="ban"`` gives its tokens to the next best expert, ``"drop"`` to none. With `segment` ("evidence",
    "question", "answer") it is taken from those tokens alone; what decides on an answer's first token is the last token
    of the prompt, which is not of "answer". `journal` is a file that keeps each layer as it is done: the same scan goes
    on from there. Cancelling keeps the cases that are done. Raises ``Cancelled`` if none is, ``InputError`` for a file
    that is no journal, ``ValueError`` for a dense model or no case.

    >>> import workbench as wb
    >>> from workbench.effects.cases import case_of
    >>> generator = wb.load_generator("pocket")
    >>> retriever = wb.build_retriever(wb.read_corpus("corpora/manual/pump.md"))
    >>> answer = wb.ask("How often are the bearings checked?", k=1, retriever=retriever, generator=generator)
    >>> scan = scan_experts(generator, [case_of(answer, generator=generator)], segment="answer", action="drop")
    >>> scan.effects.shape, bool((scan.effects[scan.counts == 0] == 0).all())
    ((1, 5, 16), True)
    """
    if action not in ("ban", "drop"):
        raise ValueError(f"action={action!r} takes no expert away; use 'ban' or 'drop'")
    generator.check_routes()
    if not cases:
        raise ValueError("there is no case to scan")
    for case in cases:
        if not isinstance(case, Case):
            raise ValueError(
                f"{case!r} is no Case; make cases of answers by cases_of(answers, generator=…)"
            )
    kept = _Journal(Path(journal)) if journal is not None else None
    layers = int(generator.model.config.num_hidden_layers)
    done: list[_Scanned] = []
    was_cancelled = False
    for place, case in enumerate(cases):

        def on_layer(done: int, before: int = place * layers) -> None:
            if on_progress:
                on_progress(Progress("experts", before + done, len(cases) * layers))

        try:
            with open_fork(
                generator,
                case.prompt,
                case.answer,
                segment=segment,
                most_rows=most_rows,
                cancel=cancel,
            ) as fork:
                key = _key(generator, case, action, segment)
                done.append(_scan_one(fork, action, key, kept, on_layer))
        except Cancelled:
            was_cancelled = True
            break
    if was_cancelled and not done:
        where = f"; what was done is in {journal}" if journal is not None else ""
        raise Cancelled(f"the scan was cancelled before its first answer was done{where}")
    return ExpertScan(
        questions=tuple(case.question for case in cases[: len(done)]),
        effects=np.stack([one.effects for one in done]),
        counts=np.stack([one.counts for one in done]),
        log_probabilities=np.array([one.log_probability for one in done]),
        action=action,
        segment=segment,
        passes=sum(one.passes for one in done),
    )


def context_use(
    generator: Generator,
    cases: Sequence[Case],
    *,
    action: Removal = "ban",
    segment: Literal["question", "answer"] | None = None,
    journal: str | Path | None = None,
    most_rows: int = 17,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> ContextUse:
    """Scan the same answers with and without their evidence: which experts make the evidence count?

    The arguments are those of :func:`scan_experts`; `segment` must be one that both prompts have. A cancelled one keeps
    the cases that both scans have done.
    """
    bare = [case.no_evidence() for case in cases]
    scans: list[ExpertScan] = []
    for some in (bare, cases):

        def report(step: Progress, before: int = len(scans)) -> None:
            if on_progress:
                done = before * step.total + step.done
                on_progress(Progress(step.stage, done, 2 * step.total))

        scan = scan_experts(
            generator,
            some,
            action=action,
            segment=segment,
            journal=journal,
            most_rows=most_rows,
            on_progress=report,
            cancel=cancel,
        )
        scans.append(scan)
    done = min(len(scan.questions) for scan in scans)
    without, with_evidence = (_first(scan, done) for scan in scans)
    return ContextUse(with_evidence=with_evidence, without_evidence=without)


def _first(scan: ExpertScan, cases: int) -> ExpertScan:
    return replace(
        scan,
        questions=scan.questions[:cases],
        effects=scan.effects[:cases],
        counts=scan.counts[:cases],
        log_probabilities=scan.log_probabilities[:cases],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scanned:
    """One case: effects and counts [layers, experts]."""

    effects: NDArray[np.float64]
    counts: NDArray[np.int64]
    log_probability: float
    passes: float


def _scan_one(
    fork: Fork,
    action: Removal,
    key: str,
    journal: _Journal | None,
    on_layer: Callable[[int], None],
) -> _Scanned:
    log_probability = float(fork.log_probabilities.astype(np.float64).sum())
    effects = np.zeros(fork.counts.shape)
    known = journal.layers(key, log_probability, fork.counts.shape[1]) if journal else {}
    for layer in range(len(fork.counts)):
        if layer in known:
            effects[layer] = known[layer]
        else:
            effects[layer] = _layer_effects(fork, layer, action)
            if journal:
                journal.add(key, layer, effects[layer], log_probability)
        on_layer(layer + 1)
    return _Scanned(effects, fork.counts, log_probability, fork.passes)


def _layer_effects(fork: Fork, layer: int, action: Removal) -> NDArray[np.float64]:
    found = np.zeros(fork.counts.shape[1])
    matters = fork.counts[layer] + (fork.ties[layer] if action == "ban" else 0)
    used = np.flatnonzero(matters)
    found[used] = -fork.score([[Edit(action, int(e), layers=(layer,))] for e in used])
    return found


def _key(generator: Generator, case: Case, action: Removal, segment: str | None) -> str:
    """What a line of a journal is about: the model as it computes, the tokens, what is taken away from which."""
    about = {
        "origin": generator.origin(),
        "weights": weights_digest(generator.model),
        "prompt": case.prompt.token_ids,
        "answer": case.answer,
        "action": action,
        "segment": segment,
        "segments": case.prompt.segment_codes()[0].tolist() if segment else None,
    }
    return sha256_bytes(json.dumps(about, sort_keys=True).encode())


class _Journal:
    """A file of one JSON object a line, one line a layer of a case; half a line at its end is what a crash left.

    A line holds for the same weights, tokens and device, and as long as the answer is as likely as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[tuple[str, int], tuple[list[float], float]] = {}
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                held = json.loads(line)
                place = str(held["case"]), int(held["layer"])
                effects = [float(effect) for effect in held["effects"]]
                self._lines[place] = effects, float(held["log_probability"])
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path}:{number} is no line of a scan; give another journal"
                ) from None

    def layers(
        self, key: str, log_probability: float, experts: int
    ) -> dict[int, NDArray[np.float64]]:
        """The effects of the layers of a case that are known."""
        return {
            layer: np.array(effects)
            for (case, layer), (effects, then) in self._lines.items()
            if case == key
            and len(effects) == experts
            and math.isclose(then, log_probability, rel_tol=1e-4, abs_tol=0.01)
        }

    def add(
        self, key: str, layer: int, effects: NDArray[np.float64], log_probability: float
    ) -> None:
        """Keep one layer: on the disk when this returns."""
        held = {"case": key, "layer": layer, "effects": effects.tolist()}
        line = json.dumps({**held, "log_probability": log_probability}).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[bytes]:
        """The lines of the file; what a crash left of the last one is cut off."""
        if self._path.is_dir():
            raise InputError(f"the journal {self._path} is a folder: name a file")
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and data[whole:].startswith(_BEGINNING[: len(data) - whole]):
            with self._path.open("r+b") as file:
                file.truncate(whole)
            data = data[:whole]
        return data.splitlines()
