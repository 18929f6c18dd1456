"""Answers → how much of them, and of how they are routed, is due to the evidence.

Each answer is given to the model again, token by token, after other evidence: none; the same sentences with their words
in random order (the same words, marks and nearly the same length, but no sense); sentences of other questions'
documents of about the same length. What differs between the first of these and the evidence is not yet due to what it
says: the positions differ too. What differs between shuffled or foreign evidence and the right one is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from workbench.answer import Answer
from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.effects.cases import case_of, check_answers
from workbench.errors import InputError
from workbench.evaluation.retrieval import Comparison, compare
from workbench.generation.phi import Generator
from workbench.generation.prompts import Prompt, Source, replaced_evidence
from workbench.routing.compare import RoutingComparison, compare_routing
from workbench.routing.trace import RoutingTrace

if TYPE_CHECKING:
    import pandas as pd

Condition = Literal["without", "shuffled", "distractor"]


@dataclass(frozen=True, slots=True, eq=False)
class ContextContrast:
    """The evidence against one other `condition`, on the same answers. Made by :func:`contrast_contexts`.

    ``gain`` is what the evidence adds to the answers' log-probability (nats) over the condition, with its interval.
    ``answer`` and ``question`` compare how the tokens of the answer and of the question are routed after the evidence
    (a) and after the condition (b): one minus their ``agreement`` is the context routing shift.
    """

    condition: Condition
    gain: Comparison
    answer: RoutingComparison
    question: RoutingComparison

    def __repr__(self) -> str:
        return (
            f"ContextContrast({self.condition}: gain in nats {self.gain}; {1 - self.answer.agreement.mean():.1%} of "
            f"the answer's experts change, {1 - self.question.agreement.mean():.1%} of the question's; "
            "next: .to_frame())"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and segment: the share of experts that change, with its interval."""
        import pandas as pd

        parts = []
        for name, found in (("question", self.question), ("answer", self.answer)):
            frame = pd.DataFrame(
                {
                    "condition": self.condition,
                    "segment": name,
                    "layer": np.arange(len(found.agreement)),
                    "shift": 1 - found.agreement,
                    "low": 1 - found.agreement_high,
                    "high": 1 - found.agreement_low,
                }
            )
            parts.append(frame)
        return pd.concat(parts, ignore_index=True)


def contrast_contexts(
    answers: Sequence[Answer],
    *,
    generator: Generator,
    conditions: Sequence[Condition] = ("without", "shuffled", "distractor"),
    seed: int = 0,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> tuple[ContextContrast, ...]:
    """Compare the evidence with other conditions, on the answers that rest on any; one result a condition.

    Raises ``InputError`` if fewer than two answers rest on evidence, or no other question's evidence is there to
    distract with; ``Cancelled``.
    """
    for condition in conditions:
        if condition not in get_args(Condition):
            known = ", ".join(get_args(Condition))
            raise ValueError(f"condition={condition!r} is not known; use {known}")
    check_answers(answers, generator)
    used = [a for a in answers if a.prompt.sources and not a.abstained]
    if len(used) < 2:
        raise InputError(
            f"{len(used)} of {len(answers)} answers rest on evidence; two are the least to tell chance"
        )
    short = [a.question for a in used if len(a.generation.token_ids) < 2]
    if short:
        raise InputError(
            f"the answer to {short[0]!r} is one token, which is never routed; leave it out"
        )
    total, logs, traces = 1 + len(conditions), [], []
    for number, named in enumerate(("evidence", *conditions)):
        # the same draws whatever other conditions are asked for
        draws = np.random.default_rng([seed, *named.encode()])
        own_logs, own_traces = [], []
        for place, answer in enumerate(used):
            prompt = _prompt(named, answer, used, generator, draws)
            scored = generator.score(prompt, answer.generation.token_ids, cancel=cancel)
            if scored.routing is None:
                raise ValueError(f"no routing was recorded: {scored.routing_note}")
            own_logs.append(float(scored.log_probabilities.astype(np.float64).sum()))
            own_traces.append(scored.routing)
            if on_progress:
                done = number * len(used) + place + 1
                on_progress(Progress("contexts", done, total * len(used)))
        logs.append(own_logs)
        traces.append(own_traces)
    return tuple(
        ContextContrast(
            condition=condition,
            gain=compare(logs[0], logs[number], seed=seed),
            answer=_compared(traces[0], traces[number], "answer", seed),
            question=_compared(traces[0], traces[number], "question", seed),
        )
        for number, condition in enumerate(conditions, start=1)
    )


def shuffled_evidence(prompt: Prompt, *, tokenizer: object, seed: int = 0) -> Prompt:
    """The same prompt with the words of each source in random order."""
    return _shuffled(prompt, tokenizer, np.random.default_rng(seed))


def _prompt(
    condition: str,
    answer: Answer,
    others: Sequence[Answer],
    generator: Generator,
    draws: np.random.Generator,
) -> Prompt:
    if condition == "evidence":
        return answer.prompt
    if condition == "without":
        without = case_of(answer, generator=generator).without
        assert without is not None
        return without
    if condition == "shuffled":
        return _shuffled(answer.prompt, generator.tokenizer, draws)
    return _distracted(answer, others, generator.tokenizer, draws)


def _shuffled(prompt: Prompt, tokenizer: object, draws: np.random.Generator) -> Prompt:
    texts = {}
    for source in prompt.sources:
        words = re.findall(r"\S+", source.text)
        drawn = iter([words[i] for i in draws.permutation(len(words))])
        texts[source.n] = "".join(
            next(drawn) if part.strip() else part
            for part in re.split(r"(\s+)", source.text)
            if part
        )
    return replaced_evidence(prompt, texts, tokenizer=tokenizer)


def _distracted(
    answer: Answer, others: Sequence[Answer], tokenizer: object, draws: np.random.Generator
) -> Prompt:
    """Every source replaced by one of another question and document, about as long, and not longer if possible."""
    own = {source.document_id for source in answer.prompt.sources}
    pool: dict[str, Source] = {
        source.text: source
        for other in others
        for source in other.prompt.sources
        if source.document_id not in own
    }
    if not pool:
        raise InputError(
            f"all evidence is of the documents of {answer.question!r}: there is none of another to distract with"
        )
    free = list(pool.values())
    texts = {}
    for source in answer.prompt.sources:
        length = source.token_stop - source.token_start
        sizes = np.array([s.token_stop - s.token_start for s in free])
        # no longer than what it stands for, so that the prompt fits as it did; else the shortest there is
        far = np.where(sizes <= length, length - sizes, np.iinfo(np.int64).max // 2 + sizes)
        near = np.argsort(far, kind="stable")[: 5 if (sizes <= length).sum() >= 5 else 1]
        chosen = int(draws.choice(near))
        texts[source.n] = free[chosen].text
        if len(free) > 1:
            free.pop(chosen)
    return replaced_evidence(answer.prompt, texts, tokenizer=tokenizer)


def _compared(
    a: Sequence[RoutingTrace], b: Sequence[RoutingTrace], segment: str, seed: int
) -> RoutingComparison:
    return compare_routing(a, b, segment=segment, is_paired=True, seed=seed)
