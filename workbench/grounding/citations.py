"""An answer with ``[n]`` marks → citations: span in the answer, claim, source, and the document's span behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.corpus.chunks import document_sentences, sentence_spans
from workbench.corpus.documents import Document
from workbench.generation.prompts import Prompt, Source
from workbench.generation.results import Generation
from workbench.grounding.support import Verdict, find_support

MARK = re.compile(r"\[\s*(\d{1,6}(?:\s*[-–,;]\s*\d{1,6})*)\s*\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """One number of one mark, walked back to its document.

    ``answer.text[answer_start:answer_stop]`` is the mark, ``[sentence_start:sentence_stop]`` its claim, and
    ``document.text[start:stop] == text`` the passage's best support for that claim. `verdict` is lexical.
    """

    n: int
    answer_start: int
    answer_stop: int
    sentence_start: int
    sentence_stop: int
    source: Source
    start: int
    stop: int
    text: str
    verdict: Verdict

    @property
    def document_id(self) -> str:
        """The document cited."""
        return self.source.document_id


@dataclass(frozen=True, slots=True)
class UnmatchedMark:
    """A mark that names no source."""

    n: int
    answer_start: int
    answer_stop: int
    reason: str


@dataclass(frozen=True, slots=True)
class CitationReport:
    """Citations in the order of the answer, marks that lead nowhere, and spans of sentences without a mark."""

    citations: tuple[Citation, ...]
    unmatched: tuple[UnmatchedMark, ...]
    uncited: tuple[tuple[int, int], ...]


def find_citations(
    generation: Generation, prompt: Prompt, *, documents: Mapping[str, Document]
) -> CitationReport:
    """Walk every mark of an answer back to characters of a document.

    A quote's marks are known from its making; marks inside the quoted text belong to the document and are left alone.
    Elsewhere ``[1,2]`` and ``[1-3]`` are taken apart, and zero or a number without a source is reported, not dropped.
    """
    if generation.quotes:
        return CitationReport(_quoted(generation, prompt), (), ())
    return parse_citations(generation.text, prompt.sources, documents=documents)


def parse_citations(
    text: str, sources: Sequence[Source], *, documents: Mapping[str, Document]
) -> CitationReport:
    """The same for any text with marks.

    A mark belongs to the sentence it follows; if the answer begins with a mark, to the sentence it precedes.

    >>> parse_citations("Nothing is cited here.", [], documents={}).uncited
    ((0, 22),)
    """
    by_number = {source.n: source for source in sources}
    marks = list(MARK.finditer(text))
    sentences = _sentences_without_marks(text, marks)
    mark_first = bool(marks) and not text[: marks[0].start()].strip()
    citations: list[Citation] = []
    unmatched: list[UnmatchedMark] = []
    cited: set[int] = set()
    for mark in marks:
        owner = _owner(mark, sentences, mark_first)
        if owner is not None:
            cited.add(owner)
        start, stop = sentences[owner] if owner is not None else (mark.start(), mark.end())
        claim = MARK.sub(" ", text[start:stop])
        numbers, beyond = _expand(mark.group(1), by_number)
        for n in numbers:
            citations.append(_cite(n, mark, (start, stop), claim, by_number[n], documents))
        for n in beyond:
            reason = (
                "sources are numbered from 1" if n == 0 else f"there are {len(by_number)} sources"
            )
            unmatched.append(UnmatchedMark(n, mark.start(), mark.end(), reason))
    uncited = tuple(span for i, span in enumerate(sentences) if i not in cited)
    return CitationReport(tuple(citations), tuple(unmatched), uncited)


def _quoted(generation: Generation, prompt: Prompt) -> tuple[Citation, ...]:
    by_number = {source.n: source for source in prompt.sources}
    citations, at = [], 0
    for n in generation.quotes:
        source = by_number[n]
        mark = f"[{n}]"
        start = at + len(mark) + 1
        stop = start + len(source.text)
        if (
            generation.text[at : at + len(mark)] != mark
            or generation.text[start:stop] != source.text
        ):
            raise ValueError(f"the answer does not quote source [{n}] where it says so")
        citations.append(
            Citation(
                n, at, at + len(mark), start, stop, source,
                source.document_start, source.document_stop, source.text, "verbatim",
            )
        )  # fmt: skip
        at = stop + 1
    return tuple(citations)


def _cite(
    n: int,
    mark: re.Match[str],
    sentence: tuple[int, int],
    claim: str,
    source: Source,
    documents: Mapping[str, Document],
) -> Citation:
    document = documents[source.document_id]
    spans = document_sentences(document, source.document_start, source.document_stop)
    support = find_support(
        claim, document.text, spans or [(source.document_start, source.document_stop)]
    )
    return Citation(
        n=n,
        answer_start=mark.start(),
        answer_stop=mark.end(),
        sentence_start=sentence[0],
        sentence_stop=sentence[1],
        source=source,
        start=support.start,
        stop=support.stop,
        text=document.text[support.start : support.stop],
        verdict=support.verdict,
    )


def _sentences_without_marks(text: str, marks: Sequence[re.Match[str]]) -> list[tuple[int, int]]:
    """Sentences of the answer, marks blanked out so that they neither end nor begin one; spans exclude outer marks."""
    blank = list(text)
    for mark in marks:
        blank[mark.start() : mark.end()] = " " * (mark.end() - mark.start())
    spans = []
    bare = "".join(blank)
    for start, stop in sentence_spans(bare):
        inner = bare[start:stop]
        if any(c.isalnum() for c in inner):
            spans.append((start + len(inner) - len(inner.lstrip()), start + len(inner.rstrip())))
    return spans


def _owner(
    mark: re.Match[str], sentences: Sequence[tuple[int, int]], mark_first: bool
) -> int | None:
    for i, (start, stop) in enumerate(sentences):
        if start < mark.start() < stop:
            return i
    if mark_first:
        following = [i for i, (start, _) in enumerate(sentences) if start >= mark.end()]
        return following[0] if following else None
    before = [i for i, (_, stop) in enumerate(sentences) if stop <= mark.start()]
    return before[-1] if before else None


def _expand(inside: str, by_number: Mapping[int, Source]) -> tuple[list[int], list[int]]:
    """Numbers of a mark that have a source, and those that have none (of a range only its ends)."""
    found: list[int] = []
    beyond: list[int] = []
    for part in re.split(r"[,;]", inside):
        ends = [int(number) for number in re.split(r"[-–]", part)]
        low, high = min(ends), max(ends)
        inner = [n for n in by_number if low <= n <= high]
        found += sorted(inner)
        beyond += [n for n in dict.fromkeys(ends) if n not in by_number]
    return list(dict.fromkeys(found)), list(dict.fromkeys(beyond))
