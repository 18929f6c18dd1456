"""An answered question → a case: the prompt, the answer as tokens, and the same question without evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from workbench.answer import Answer
from workbench.errors import InputError
from workbench.generation.phi import Generator
from workbench.generation.prompts import Prompt, build_prompt
from workbench.grounding.citations import MARK

Part = Literal["answer", "mark"]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A prompt and an answer (token ids) whose likelihood is looked at; `question` names it.

    `without` is the prompt of the same question without any evidence, None where there is none to compare with.
    """

    question: str
    prompt: Prompt
    answer: tuple[int, ...]
    without: Prompt | None = None

    def __post_init__(self) -> None:
        if not self.answer:
            raise ValueError(f"the answer to {self.question!r} has no token")

    def __repr__(self) -> str:
        return (
            f"Case({self.question!r}, {len(self.prompt.token_ids)} prompt tokens, {len(self.answer)} of the answer; "
            "next: scan_experts(generator, [case, …]))"
        )

    def no_evidence(self) -> Case:
        """The same answer after the prompt without evidence."""
        if self.without is None:
            raise ValueError(f"{self.question!r} has no prompt without evidence")
        return replace(self, prompt=self.without, without=None)


def case_of(
    answer: Answer, *, generator: Generator, quoting: int | None = None, part: Part = "answer"
) -> Case:
    """The case of an answer of `generator`, or of the answer that quotes source number `quoting` in its place.

    With ``part="mark"`` only the tokens up to the first mark, like ``[3]``: which source is chosen. Of a whole quote
    most of the likelihood is that of copying. Raises ``ValueError`` for a number without a source, an answer without a
    mark.

    >>> import workbench as wb
    >>> generator = wb.load_generator("pocket")
    >>> retriever = wb.build_retriever(wb.read_corpus("corpora/manual/pump.md"))
    >>> answer = wb.ask("How often are the bearings checked?", k=1, retriever=retriever, generator=generator)
    >>> case = case_of(answer, generator=generator)
    >>> case.answer == answer.generation.token_ids, len(case.without.token_ids) < len(case.prompt.token_ids)
    (True, True)
    """
    if not isinstance(answer, Answer):
        raise ValueError(f"{answer!r} is no Answer; give what wb.ask returned")
    if part not in get_args(Part):
        raise ValueError(f"part={part!r} is not known; use 'answer' or 'mark'")
    prompt = answer.prompt
    without = build_prompt(
        answer.question,
        [],
        documents={},
        tokenizer=generator.tokenizer,
        budget_tokens=prompt.budget_tokens,
        system=prompt.messages[0][1],
        marks=prompt.marks,
    )
    ids = answer.generation.token_ids
    if quoting is not None:
        ids = generator.quote_ids(prompt, quoting)
    if part == "mark":
        ids = ids[: _mark_tokens(generator, ids, answer.question)]
    return Case(answer.question, prompt, ids, without)


def check_answers(answers: object, generator: Generator | None = None) -> None:
    """Raise ``ValueError`` for something else than a list of answers, or for answers of another generator."""
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise ValueError(f"{answers!r} is no list of answers; give [wb.ask(…), …]")
    for answer in answers:
        if not isinstance(answer, Answer):
            raise ValueError(f"{answer!r} is no Answer; give what wb.ask returned")
        if generator is not None and answer.generation.generator != generator.name:
            raise ValueError(
                f"the answer to {answer.question!r} is of {answer.generation.generator}, not of {generator.name}; "
                "ask again"
            )


def cases_of(
    answers: Sequence[Answer], *, generator: Generator, part: Part = "answer"
) -> list[Case]:
    """The cases of all answers that rest on evidence: an abstention has nothing to be compared with."""
    check_answers(answers)
    found = [
        case_of(answer, generator=generator, part=part)
        for answer in answers
        if answer.prompt.sources and not answer.abstained
    ]
    if not found:
        raise InputError(f"none of {len(answers)} answers rests on evidence")
    return found


def _mark_tokens(generator: Generator, ids: Sequence[int], question: str) -> int:
    """How many tokens the first mark takes, with what stands before it."""
    for count in range(1, len(ids) + 1):
        if MARK.search(str(generator.tokenizer.decode(ids[:count]))):
            return count
    raise ValueError(f"the answer to {question!r} has no mark")
