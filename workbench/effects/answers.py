"""Answers and an edit of experts → how answers, likelihood and citations change, beside random experts of like load.

An effect means something only beside a control arm: taking any experts away that carry as much load changes answers
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.answer import Answer, answer_prompt
from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.corpus.documents import Document
from workbench.effects.answer_diff import answer_diff_html
from workbench.effects.cases import check_answers
from workbench.effects.controls import ExpertPlace, load_matched
from workbench.errors import InputError
from workbench.evaluation.retrieval import Comparison, compare
from workbench.generation.phi import Generator
from workbench.markup import fragment
from workbench.routing.intervene import Edit, check_edits

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a question's answer stands: characters `start` to `stop` of a document."""

    document_id: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class ChangedAnswer:
    """One question answered as ever (`before`) and with the edits (`after`).

    ``likelihood_change`` is how much more likely (nats) the first answer became; ``marks_kept`` the share of its
    citations that are still there, ``overlap`` the characters cited both times over those cited in either, both nan if
    nothing was cited. ``is_right_before`` and ``is_right_after`` say whether a citation overlaps the known evidence,
    None where none is known.
    """

    before: Answer
    after: Answer
    likelihood_change: float
    marks_kept: float
    overlap: float
    is_right_before: bool | None
    is_right_after: bool | None

    @property
    def is_other(self) -> bool:
        """Whether the text changed."""
        return self.before.text != self.after.text

    def _repr_html_(self) -> str:
        return fragment(answer_diff_html(self))


MEASURES = ("changed", "likelihood_change", "marks_kept", "overlap", "abstained", "right")


@dataclass(frozen=True, slots=True, eq=False)
class EditEffect:
    """What `edits` did to some answers, and what as many random experts of the same load did. See :func:`edit_effect`.

    ``answers`` holds every question's pair; ``controls`` [arms, measures] the means of each control arm, in the order
    of ``MEASURES``.
    """

    edits: tuple[Edit, ...]
    segment: str | None
    answers: tuple[ChangedAnswer, ...]
    controls: NDArray[np.float64]
    arms: tuple[tuple[ExpertPlace, ...], ...] = field(repr=False)

    def __repr__(self) -> str:
        changed = sum(answer.is_other for answer in self.answers)
        return (
            f"EditEffect({changed} of {len(self.answers)} answers change; {len(self.controls)} control arms; "
            "next: .to_frame(), .answers)"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a measure: its mean with the edits, its interval over questions, mean and range of the control arms.

        `beyond` is True where the edits' mean lies outside the range of all control arms; of edits that do nothing
        particular, 2 in arms + 1 do. With few arms that is often. It is said of these questions: whether others would
        show the same, `low` and `high` tell, which one question alone has not.
        """
        import pandas as pd

        rows = []
        each = _measures(self.answers)
        for place, name in enumerate(MEASURES):
            own = each[:, place][~np.isnan(each[:, place])]
            if not len(own):
                continue
            found: Comparison = compare(own.tolist(), [0.0] * len(own))
            row = {
                "measure": name,
                "mean": found.difference,
                "low": found.low,
                "high": found.high,
                "questions": len(own),
            }
            others = self.controls[:, place]
            others = others[~np.isnan(others)]
            if len(self.controls):
                low, high = (others.min(), others.max()) if len(others) else (np.nan, np.nan)
                row |= {
                    "control": others.mean() if len(others) else np.nan,
                    "control_low": low,
                    "control_high": high,
                    "beyond": bool(found.difference < low or found.difference > high),
                }
            rows.append(row)
        return pd.DataFrame(rows)


def edit_effect(
    generator: Generator,
    answers: Sequence[Answer],
    edits: Sequence[Edit],
    *,
    documents: Mapping[str, Document],
    segment: str | None = None,
    evidence: Mapping[str, Evidence] | None = None,
    arms: int = 10,
    max_new_tokens: int = 256,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> EditEffect:
    """Answer the prompts of `answers` again with `edits` made, and with load-matched random experts in their place.

    `documents` are the retriever's. With `segment` the edits hold for those tokens alone. `evidence` says by question
    where its answer stands. The control arms need edits that name layers; with ``arms=0`` there are none.

    Raises
    ------
    ValueError
        A dense model, edits that cannot be made, edits of all layers with control arms.
    Cancelled
        `cancel` was set.
    """
    check_answers(answers, generator)
    if not answers:
        raise InputError("there is no answer to change")
    if not isinstance(documents, Mapping):
        raise ValueError(f"documents={documents!r} is no mapping of ids; give retriever.documents")
    if not edits:
        raise ValueError("no edit is given; nothing would change")
    check_edits(generator.model, edits)
    targets = _targets(edits) if arms else ()
    arm_places: list[tuple[ExpertPlace, ...]] = []
    if arms:
        counts = np.sum([answer.routing.counts(segment) for answer in answers], 0)
        arm_places = load_matched(counts, targets, arms=arms, seed=seed)
    plain = []
    for answer in answers:
        scored = generator.score(answer.prompt, answer.generation.token_ids, cancel=cancel)
        plain.append(float(scored.log_probabilities.astype(np.float64).sum()))
    runs = [tuple(edits), *(_stand_ins(edits, targets, arm) for arm in arm_places)]
    found = []
    for number, run in enumerate(runs):
        changed = []
        for place, answer in enumerate(answers):
            if cancel is not None:
                cancel.raise_if_cancelled("answering with other experts")
            one = _changed(
                generator, answer, run, segment, documents, evidence or {}, max_new_tokens
            )
            change = one.likelihood_change - plain[place]
            changed.append(replace(one, likelihood_change=change))
            if on_progress:
                done = number * len(answers) + place + 1
                on_progress(Progress("answers", done, len(runs) * len(answers)))
        found.append(changed)
    controls = [_means(_measures(changed)) for changed in found[1:]]
    return EditEffect(
        edits=tuple(edits),
        segment=segment,
        answers=tuple(found[0]),
        controls=np.array(controls).reshape(len(controls), len(MEASURES)),
        arms=tuple(arm_places),
    )


def _targets(edits: Sequence[Edit]) -> tuple[ExpertPlace, ...]:
    found = []
    for edit in edits:
        if edit.layers is None:
            raise ValueError(
                f"{edit} is of all layers, which leaves no load to match; name its layers, or use arms=0"
            )
        found += [ExpertPlace(layer, edit.expert) for layer in edit.layers]
    return tuple(dict.fromkeys(found))


def _stand_ins(
    edits: Sequence[Edit], targets: Sequence[ExpertPlace], arm: Sequence[ExpertPlace]
) -> tuple[Edit, ...]:
    """The same edits of other experts."""
    instead = dict(zip(targets, arm, strict=True))
    return tuple(
        replace(edit, expert=instead[ExpertPlace(layer, edit.expert)].expert, layers=(layer,))
        for edit in edits
        for layer in edit.layers or ()
    )


def _changed(
    generator: Generator,
    answer: Answer,
    edits: Sequence[Edit],
    segment: str | None,
    documents: Mapping[str, Document],
    evidence: Mapping[str, Evidence],
    max_new_tokens: int,
) -> ChangedAnswer:
    with _edited(generator, answer, edits, segment):
        after = answer_prompt(
            answer.prompt,
            question=answer.question,
            hits=answer.hits,
            documents=documents,
            generator=generator,
            style=answer.style,
            max_new_tokens=max_new_tokens,
        )
        scored = generator.score(answer.prompt, answer.generation.token_ids, capture=False)
    before_spans, after_spans = (_cited(one) for one in (answer, after))
    own = {c.source.n for c in answer.citations}
    kept = len(own & {c.source.n for c in after.citations}) / len(own) if own else np.nan
    both, either = len(before_spans & after_spans), len(before_spans | after_spans)
    where = evidence.get(answer.question)
    return ChangedAnswer(
        before=answer,
        after=after,
        likelihood_change=float(scored.log_probabilities.astype(np.float64).sum()),
        marks_kept=kept,
        overlap=both / either if either else np.nan,
        is_right_before=_is_right(answer, where),
        is_right_after=_is_right(after, where),
    )


@contextlib.contextmanager
def _edited(
    generator: Generator, answer: Answer, edits: Sequence[Edit], segment: str | None
) -> Iterator[None]:
    if segment is None:
        with generator.intervened(edits):
            yield
    else:
        with generator.intervened(edits, prompt=answer.prompt, segment=segment):
            yield


def _cited(answer: Answer) -> set[tuple[str, int]]:
    """Every character that is cited."""
    return {(c.document_id, place) for c in answer.citations for place in range(c.start, c.stop)}


def _is_right(answer: Answer, where: Evidence | None) -> bool | None:
    if where is None:
        return None
    return any(
        c.document_id == where.document_id and c.start < where.stop and where.start < c.stop
        for c in answer.citations
    )


def _measures(answers: Sequence[ChangedAnswer]) -> NDArray[np.float64]:
    """[answers, measures] in the order of MEASURES; abstained and right are changes, after less before."""
    rows = []
    for one in answers:
        right = np.nan
        if one.is_right_before is not None and one.is_right_after is not None:
            right = float(one.is_right_after) - float(one.is_right_before)
        rows.append(
            (
                float(one.is_other),
                one.likelihood_change,
                one.marks_kept,
                one.overlap,
                float(one.after.abstained) - float(one.before.abstained),
                right,
            )
        )
    return np.array(rows)


def _means(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over answers without nan, nan where all are: [measures]."""
    known = ~np.isnan(each)
    total = np.where(known, each, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
