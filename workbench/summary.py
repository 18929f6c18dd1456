"""One long document, whole: plan, parts, sentences chosen or written, each with the characters it rests on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from workbench.cancel import CancelToken
from workbench.corpus.chunks import Chunk, chunk_document, chunk_id
from workbench.corpus.documents import Document, Section
from workbench.generation.phi import Generator
from workbench.generation.prompts import (
    SUMMARY_SYSTEM,
    PassageSize,
    Prompt,
    build_summary_prompt,
    passage_size,
)
from workbench.generation.results import Generation
from workbench.grounding.citations import find_citations
from workbench.markup import Highlight, escape, fragment, highlight, shorten, table

Strategy = Literal["auto", "full", "map-reduce"]
Style = Literal["quote", "free"]
Status = Literal["ok", "truncated", "empty", "cancelled"]
FREE_SUMMARY_SYSTEM = (
    "Summarize the numbered sentences in a few sentences of your own. Begin each with the numbers of the sentences it "
    "rests on, like [2]."
)
CHUNK_TOKENS = 192
PER_MARK_TOKENS = 60  # a heading of its own and a mark for each sentence of a reduction
MAX_LEVELS = 8


@dataclass(frozen=True, slots=True)
class SourceSpan:
    """Half-open characters of a document."""

    document: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SummarySentence:
    """One sentence of a summary and where it comes from; in the quote style it is the one source, verbatim."""

    text: str
    sources: tuple[SourceSpan, ...]


@dataclass(frozen=True, slots=True)
class SummaryNode:
    """One call of the model: what it read (half-open characters), what it gave, and how it ended.

    Level 0 reads the document, higher levels what the nodes in `children` gave.
    """

    id: int
    level: int
    title: str
    start: int
    stop: int
    children: tuple[int, ...]
    status: Status
    sentences: tuple[SummarySentence, ...]


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """What a summary will take, known before the model is called once."""

    document: str
    strategy: Literal["full", "map-reduce"]
    style: Style
    reason: str
    parts: tuple[tuple[Chunk, ...], ...]
    sentences: int
    prompt_tokens: int
    calls: int
    context: int
    regime: str

    def __str__(self) -> str:
        return (
            f"{self.strategy} summary of {self.document} ({self.reason}): parts {len(self.parts)}, "
            f"calls about {self.calls}, {self.prompt_tokens:,} tokens to read, up to {self.sentences} "
            f"sentences, {self.style} style, "
            f"context {self.context:,} ({self.regime} regime)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, parts as character spans."""
        return {
            "strategy": self.strategy,
            "style": self.style,
            "reason": self.reason,
            "parts": [{"start": part[0].start, "stop": part[-1].stop} for part in self.parts],
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "sentences": self.sentences,
            "context": self.context,
            "regime": self.regime,
        }


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a document went in and came out: shares of its characters and parts, 0 to 1."""

    read: float
    parts_cited: float


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """A summary whose every sentence leads back to characters of the document."""

    document: Document
    sentences: tuple[SummarySentence, ...]
    nodes: tuple[SummaryNode, ...]
    coverage: Coverage
    plan: SummaryPlan
    generator: str
    query: str | None
    seconds: float

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(" ".join(sentence.text.split()) for sentence in self.sentences)

    def __repr__(self) -> str:
        return (
            f"Summary({shorten(self.text, 60)!r}, {len(self.sentences)} sentences from {len(self.plan.parts)} parts; "
            "next: .sentences, .nodes, .coverage)"
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``workbench summarize --json`` prints."""
        return {
            "document": self.document.id,
            "summary": self.text,
            "sentences": [_sentence_dict(sentence) for sentence in self.sentences],
            "plan": self.plan.to_dict(),
            "coverage": {"read": self.coverage.read, "parts_cited": self.coverage.parts_cited},
            "nodes": [
                {
                    "id": node.id,
                    "level": node.level,
                    "title": node.title,
                    "start": node.start,
                    "stop": node.stop,
                    "children": list(node.children),
                    "status": node.status,
                    "sentences": [_sentence_dict(sentence) for sentence in node.sentences],
                }
                for node in self.nodes
            ],
            "generator": self.generator,
            "seconds": round(self.seconds, 3),
        }

    def _repr_html_(self) -> str:
        return fragment(self.to_html())

    def to_html(self) -> str:
        """The summary and the passages behind each sentence, escaped, without script or frame."""
        how = "sentences chosen" if self.plan.style == "quote" else "written"
        about = f", about “{escape(self.query)}”" if self.query else ""
        parts = [
            f'<p class="wb-note">Summary of {escape(self.document.title)} ({escape(self.document.id)}){about}, '
            f"{how} by {escape(self.generator)}; {self.coverage.read:.0%} of the text read, "
            f"{self.coverage.parts_cited:.0%} of {len(self.plan.parts)} parts cited</p><ol>"
        ]
        for sentence in self.sentences:
            places = ", ".join(f"{span.start}–{span.stop}" for span in sentence.sources)
            around = "".join(self._context_html(span) for span in sentence.sources)
            parts.append(
                f'<li><span class="wb-text">{escape(sentence.text)}</span> <details><summary class="wb-note">'
                f"characters {places}</summary>{around}</details></li>"
            )
        parts.append("</ol>")
        rows = [
            [
                str(node.level),
                node.title,
                f"{node.start}–{node.stop}",
                node.status,
                str(len(node.sentences)),
            ]
            for node in self.nodes
        ]
        tree = table(["level", "part", "characters", "status", "sentences"], rows)
        parts.append(
            f'<details><summary class="wb-note">all {len(rows)} calls</summary>{tree}</details>'
        )
        return "".join(parts)

    def _context_html(self, span: SourceSpan) -> str:
        start = max(0, span.start - 200)
        text = self.document.text[start : span.stop + 200]
        section = self.document.section_at(span.start)
        heading = f'<p class="wb-note">{escape(section.title)}</p>' if section else ""
        marked = highlight(text, [Highlight(span.start - start, span.stop - start)])
        return f'<div class="wb-card">{heading}<div class="wb-text">…{marked}…</div></div>'


def plan_summary(
    document: Document,
    *,
    generator: Generator,
    strategy: Strategy = "auto",
    style: Style = "quote",
    sentences: int = 8,
    max_new_tokens: int = 256,
) -> SummaryPlan:
    """Cut `document` into parts that each fit one prompt; every visible character is in exactly one part,
    but for front matter that became metadata.

    "auto" reads everything at once if the context and the marks the checkpoint knows allow it. Parts follow the
    document's sections; a section that is too long is divided evenly.
    """
    if sentences < 1:
        raise ValueError(f"sentences={sentences} must be at least 1")
    if not isinstance(document, Document):
        raise ValueError(f"{document!r} is no document; give read_document(…) or corpus['…']")
    chunks = chunk_document(document, measure=_measure(generator), max_tokens=CHUNK_TOKENS)
    if not chunks:
        raise ValueError(f"{document.id} has no text to summarize")
    sizes = [passage_size(chunk, document, tokenizer=generator.tokenizer) for chunk in chunks]
    limit = PassageSize(
        generator.context - max_new_tokens - _frame_tokens(generator),
        generator.max_marks or sys.maxsize,
    )
    if limit.tokens < CHUNK_TOKENS + 32:
        raise ValueError(
            f"a context of {generator.context} tokens is too small to summarize with; load a larger one"
        )
    whole = PassageSize(sum(s.tokens for s in sizes), sum(s.marks for s in sizes))
    fits = _within(whole, limit)
    if strategy == "full" and not fits:
        raise ValueError(
            f"{document.id} needs about {whole.tokens} tokens and {whole.marks} marks, one prompt takes {limit.tokens} "
            f"tokens and {generator.max_marks or 'any number of'} marks: use strategy 'map-reduce' or a larger context"
        )
    if strategy == "full" or (strategy == "auto" and fits):
        reason = "all of it fits one prompt"
        parts: list[tuple[Chunk, ...]] = [tuple(chunks)]
        chosen: Literal["full", "map-reduce"] = "full"
    else:
        reason = f"{whole.tokens:,} tokens and {whole.marks} sentences, one prompt takes {_limit_words(limit)}"
        parts = _parts(document, chunks, sizes, limit)
        chosen = "map-reduce"
    again = sentences if style == "quote" else 1
    calls = len(parts) + (again if len(parts) > sentences else 0)
    return SummaryPlan(
        document=document.id,
        strategy=chosen,
        style=style,
        reason=reason,
        parts=tuple(parts),
        sentences=sentences,
        prompt_tokens=whole.tokens + len(parts) * _frame_tokens(generator),
        calls=calls,
        context=generator.context,
        regime=generator.regime,
    )


def summarize(
    document: Document,
    *,
    generator: Generator,
    strategy: Strategy = "auto",
    style: Style = "quote",
    query: str | None = None,
    sentences: int = 8,
    max_new_tokens: int = 256,
    progress: bool = True,
    cancel: CancelToken | None = None,
) -> Summary:
    """Summarize `document`; each sentence of the result names the characters it rests on.

    ``style="quote"`` picks the sentences that the model finds most likely to sum up each part, and of these again the
    best; ``style="free"`` lets the model write, with marks. A part that gives nothing is reported, never passed on.
    The plan and a progress bar go to stderr; cancelling keeps the parts that are done.

    >>> import workbench as wb
    >>> document = wb.read_document("corpora/manual/pump.md")
    >>> summary = wb.summarize(document, generator=wb.load_generator("pocket"), sentences=2, progress=False)
    >>> all(document.text[p.start:p.stop] == s.text for s in summary.sentences for p in s.sources)
    True
    """
    from tqdm.auto import tqdm

    plan = plan_summary(
        document,
        generator=generator,
        strategy=strategy,
        style=style,
        sentences=sentences,
        max_new_tokens=max_new_tokens,
    )
    started = time.perf_counter()
    if progress:
        tqdm.write(str(plan), file=sys.stderr)
    work = _Work(document, generator, style, query, max_new_tokens, cancel)
    wanted = (
        sentences if plan.strategy == "full" else max(1, math.ceil(sentences / len(plan.parts)))
    )
    with tqdm(total=plan.calls, disable=not progress, desc="summarize", file=sys.stderr) as bar:
        for part in plan.parts:
            work.read_part(part, wanted)
            bar.update()
        final = work.reduce(sentences, bar.update)
    cited = {span for sentence in final for span in sentence.sources}
    hit = [any(part[0].start <= s.start < part[-1].stop for s in cited) for part in plan.parts]
    read = sum(
        node.stop - node.start
        for node in work.nodes
        if node.level == 0 and node.status != "cancelled"
    )
    return Summary(
        document=document,
        sentences=final,
        nodes=tuple(work.nodes),
        coverage=Coverage(min(1.0, read / len(document.text)), sum(hit) / len(hit)),
        plan=plan,
        generator=generator.name,
        query=query,
        seconds=time.perf_counter() - started,
    )


def _within(size: PassageSize, limit: PassageSize) -> bool:
    return size.tokens <= limit.tokens and size.marks <= limit.marks


class _Work:
    """The calls of one summary: nodes in the order they were made, and what is still to be reduced."""

    def __init__(
        self,
        document: Document,
        generator: Generator,
        style: Style,
        query: str | None,
        max_new_tokens: int,
        cancel: CancelToken | None,
    ) -> None:
        self.document = document
        self.generator = generator
        self.style = style
        self.query = query
        self.max_new_tokens = max_new_tokens
        self.cancel = cancel
        self.nodes: list[SummaryNode] = []

    def read_part(self, part: Sequence[Chunk], wanted: int) -> None:
        """Level 0: read chunks of the document."""
        section = self.document.section_at(part[0].start)
        title = section.title if section else self.document.title
        self._call(part, wanted, level=0, title=title, children=(), origin=None)

    def reduce(self, wanted: int, done: Callable[[], Any]) -> tuple[SummarySentence, ...]:
        """Choose among, or rewrite, what the parts gave until at most `wanted` sentences are left.

        Quotes are chosen one from each of `wanted` neighbouring groups, so that the whole document is heard; a written
        summary is written once more from all that fits one prompt. The result is in document order.
        """
        current = [node for node in self.nodes if node.sentences]
        for level in range(1, MAX_LEVELS):
            given = [sentence for node in current for sentence in node.sentences]
            if len(given) <= wanted or self._is_cancelled():
                break
            groups = self._groups(given, wanted if self.style == "quote" else 1)
            if len(groups) == len(given):
                break
            quota = 1 if self.style == "quote" else max(1, wanted // len(groups))
            before = len(self.nodes)
            for group in groups:
                self._reduce_group(group, quota, level, current)
                done()
            current = [node for node in self.nodes[before:] if node.sentences]
        given = [sentence for node in current for sentence in node.sentences]
        return tuple(sorted(given[:wanted], key=_place))

    def _groups(self, given: Sequence[SummarySentence], wanted: int) -> list[list[SummarySentence]]:
        """Neighbouring sentences in `wanted` groups of about equal size, or more where they would not fit a prompt."""
        limit = self.generator.context - self.max_new_tokens - _frame_tokens(self.generator)
        most = self.generator.max_marks or sys.maxsize
        measure = _measure(self.generator)
        sizes = [len(measure(sentence.text)) + PER_MARK_TOKENS for sentence in given]
        pieces = max(wanted, math.ceil(sum(sizes) / limit), math.ceil(len(given) / most))
        edges = [round(i * len(given) / pieces) for i in range(pieces + 1)]
        groups: list[list[SummarySentence]] = []
        for start, stop in pairwise(edges):
            groups.append([])
            used = 0
            for sentence, size in zip(given[start:stop], sizes[start:stop], strict=True):
                if groups[-1] and (used + size > limit or len(groups[-1]) >= most):
                    groups.append([])
                    used = 0
                groups[-1].append(sentence)
                used += size
        return [group for group in groups if group]

    def _reduce_group(
        self,
        group: Sequence[SummarySentence],
        wanted: int,
        level: int,
        below: Sequence[SummaryNode],
    ) -> None:
        children = tuple(node.id for node in below if any(s in group for s in node.sentences))
        title = f"{len(group)} sentences of level {level - 1}"
        if self.style == "quote":
            chunks = [
                _span_chunk(self.document, s.sources[0].start, s.sources[0].stop) for s in group
            ]
            self._call(chunks, wanted, level=level, title=title, children=children, origin=None)
            return
        text = "\n".join(" ".join(sentence.text.split()) for sentence in group)
        written = replace(
            self.document,
            id=f"{self.document.id}#level-{level - 1}",
            text=text,
            sections=(),
            pages=(),
        )
        chunks, at = [], 0
        for sentence in group:
            length = len(" ".join(sentence.text.split()))
            chunks.append(_span_chunk(written, at, at + length))
            at += length + 1
        origin = {(c.start, c.stop): s.sources for c, s in zip(chunks, group, strict=True)}
        self._call(
            chunks, wanted, level=level, title=title, children=children, origin=(written, origin)
        )

    def _call(
        self,
        chunks: Sequence[Chunk],
        wanted: int,
        *,
        level: int,
        title: str,
        children: tuple[int, ...],
        origin: tuple[Document, dict[tuple[int, int], tuple[SourceSpan, ...]]] | None,
    ) -> None:
        start, stop = min(c.start for c in chunks), max(c.stop for c in chunks)
        node = SummaryNode(len(self.nodes), level, title, start, stop, children, "cancelled", ())
        if self._is_cancelled():
            self.nodes.append(node)
            return
        document = origin[0] if origin else self.document
        prompt = build_summary_prompt(
            chunks,
            documents={document.id: document},
            tokenizer=self.generator.tokenizer,
            budget_tokens=self.generator.context - self.max_new_tokens,
            query=self.query,
            system=SUMMARY_SYSTEM if self.style == "quote" else FREE_SUMMARY_SYSTEM,
            max_marks=self.generator.max_marks,
        )
        if prompt.dropped:
            raise ValueError(
                f"a part of {document.id} did not fit its prompt: {prompt.dropped[0].reason}"
            )
        if self.style == "quote":
            generation = self.generator.quote(
                prompt, may_abstain=False, cancel=self.cancel, capture=False
            )
            sentences = _chosen(generation, prompt, wanted)
        else:
            generation = self.generator.generate(
                prompt, max_new_tokens=self.max_new_tokens, cancel=self.cancel, capture=False
            )
            sentences = _written(generation, prompt, document, origin[1] if origin else None)
        self.nodes.append(replace(node, status=_status(generation, sentences), sentences=sentences))

    def _is_cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.is_cancelled


def _chosen(generation: Generation, prompt: Prompt, wanted: int) -> tuple[SummarySentence, ...]:
    """The `wanted` sentences that the model finds most likely, in the order of the document."""
    by_number = {source.n: source for source in prompt.sources}
    best = [by_number[c.n] for c in generation.candidates if c.n is not None][:wanted]
    found = [
        SummarySentence(s.text, (SourceSpan(s.document_id, s.document_start, s.document_stop),))
        for s in best
    ]
    return tuple(sorted(found, key=_place))


def _written(
    generation: Generation,
    prompt: Prompt,
    document: Document,
    origin: dict[tuple[int, int], tuple[SourceSpan, ...]] | None,
) -> tuple[SummarySentence, ...]:
    """The sentences of a written summary with the spans their marks lead to; without a mark there is no span."""
    report = find_citations(generation, prompt, documents={document.id: document})
    claims: dict[tuple[int, int], list[SourceSpan]] = {span: [] for span in report.uncited}
    for c in report.citations:
        spans = claims.setdefault((c.sentence_start, c.sentence_stop), [])
        if origin is None:
            spans.append(SourceSpan(c.document_id, c.start, c.stop))
        else:
            spans += origin.get((c.source.document_start, c.source.document_stop), ())
    return tuple(
        SummarySentence(generation.text[start:stop], tuple(dict.fromkeys(spans)))
        for (start, stop), spans in sorted(claims.items())
    )


def _status(generation: Generation, sentences: Sequence[SummarySentence]) -> Status:
    if generation.finish_reason == "cancelled":
        return "cancelled"
    if not sentences:
        return "empty"
    return "truncated" if generation.finish_reason == "length" else "ok"


def _parts(
    document: Document, chunks: Sequence[Chunk], sizes: Sequence[PassageSize], limit: PassageSize
) -> list[tuple[Chunk, ...]]:
    """Group chunks by main section; divide a section that is too long into parts of about equal size."""
    parts: list[tuple[Chunk, ...]] = []
    mains = _main_sections(document)
    at = 0
    while at < len(chunks):
        section = _section_of(chunks[at], mains)
        end = at
        while end < len(chunks) and _section_of(chunks[end], mains) == section:
            end += 1
        parts += _divide(chunks[at:end], sizes[at:end], limit)
        at = end
    return parts


def _divide(
    chunks: Sequence[Chunk], sizes: Sequence[PassageSize], limit: PassageSize
) -> list[tuple[Chunk, ...]]:
    tokens, marks = sum(s.tokens for s in sizes), sum(s.marks for s in sizes)
    pieces = max(1, math.ceil(tokens / limit.tokens), math.ceil(marks / limit.marks))
    share = PassageSize(
        min(limit.tokens, math.ceil(tokens / pieces)), min(limit.marks, math.ceil(marks / pieces))
    )
    parts: list[list[Chunk]] = [[]]
    used = PassageSize(0, 0)
    for chunk, size in zip(chunks, sizes, strict=True):
        grown = PassageSize(used.tokens + size.tokens, used.marks + size.marks)
        if parts[-1] and (
            not _within(grown, limit) or (used.tokens >= share.tokens or used.marks >= share.marks)
        ):
            parts.append([])
            grown = size
        parts[-1].append(chunk)
        used = grown
    return [tuple(part) for part in parts]


def _main_sections(document: Document) -> list[Section]:
    """Sections of the highest level that has at least two, so that a single title over all is no section."""
    for level in sorted({section.level for section in document.sections}):
        same = [section for section in document.sections if section.level == level]
        if len(same) > 1:
            return same
    return []


def _section_of(chunk: Chunk, sections: Sequence[Section]) -> int | None:
    inside = [
        i for i, section in enumerate(sections) if section.start <= chunk.start < section.stop
    ]
    return inside[-1] if inside else None


def _measure(generator: Generator) -> Callable[[str], Any]:
    import numpy as np

    def measure(text: str) -> Any:
        encoded = generator.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
        )
        return np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    return measure


def _span_chunk(document: Document, start: int, stop: int) -> Chunk:
    text = document.text[start:stop]
    return Chunk(document.id, start, stop, text, chunk_id(document.id, text, 1))


def _frame_tokens(generator: Generator) -> int:
    return (
        len(generator.tokenizer(FREE_SUMMARY_SYSTEM, add_special_tokens=False)["input_ids"]) + 128
    )


def _limit_words(limit: PassageSize) -> str:
    marks = f" and {limit.marks} marks" if limit.marks != sys.maxsize else ""
    return f"{limit.tokens:,} tokens{marks}"


def _place(sentence: SummarySentence) -> int:
    return min((span.start for span in sentence.sources), default=sys.maxsize)


def _sentence_dict(sentence: SummarySentence) -> dict[str, Any]:
    spans = [{"document": s.document, "start": s.start, "stop": s.stop} for s in sentence.sources]
    return {"text": sentence.text, "sources": spans}
