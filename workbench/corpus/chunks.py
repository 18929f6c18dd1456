"""Cut documents into chunks of whole sentences. Knows no tokenizer: takes a measure(text) -> token offsets."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workbench.corpus.documents import Document, Section
from workbench.corpus.lines import fence_at
from workbench.corpus.packing import Measure, pack_sentences
from workbench.corpus.sections import FRONT_MATTER
from workbench.corpus.sentences import Span, sentence_spans, sentences_between, trimmed_span
from workbench.store import sha256_bytes

__all__ = ["Chunk", "chunk_document", "chunk_id", "document_sentences", "sentence_spans"]

BY_LINE = frozenset({"code", "csv", "jsonl", "log"})  # formats whose lines are their sentences
FENCED = frozenset({"markdown", "ipynb", "html"})  # formats whose text may hold fenced code
_CONTEXT_CHARACTERS = 4_000
_LINE_END = re.compile(r"\r\n|[\n\r]")
_BLANK_LINE = re.compile(r"(?>\r\n|[\n\r])[ \t]*+[\n\r]")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document: ``document.text[start:stop] == text``. `id` follows from document and text alone."""

    document_id: str
    start: int
    stop: int
    text: str
    id: str

    def __post_init__(self) -> None:
        if self.start < 0 or self.stop - self.start != len(self.text) or not self.text:
            span = f"{self.start}:{self.stop}"
            raise ValueError(
                f"chunk of {self.document_id!r}: {span} is no span of {len(self.text)} characters"
            )


def chunk_document(document: Document, *, measure: Measure, max_tokens: int = 128) -> list[Chunk]:
    r"""Chunks of at most `max_tokens` tokens, in order, which together hold every character that is not space.

    Front matter that became metadata is left out.

    A chunk holds whole sentences of one section, with the heading, and the bare headings right above it, in the chunk
    that follows them; where more than half of it is full it rather ends with a paragraph. Only a sentence that exceeds
    `max_tokens`, with its headings, is cut: between tokens, at white space if there is any.

    ``measure(text)`` returns the character offsets of the tokens of a text: integers [tokens, 2], ordered, none for
    special tokens. It is called with a neighbourhood of at most some 20,000 characters, and again with every chunk.

    >>> import numpy as np
    >>> words = lambda text: np.array([m.span() for m in re.finditer(r"\w+|[^\w\s]", text)]).reshape(-1, 2)
    >>> document = Document("a.txt", "One two. Three four. Five six.", "a")
    >>> [chunk.text for chunk in chunk_document(document, measure=words, max_tokens=6)]
    ['One two. Three four.', 'Five six.']
    """
    if max_tokens < 1:
        raise ValueError(
            f"max_tokens={max_tokens} leaves no room for text; ask for max_tokens >= 1"
        )
    seen: Counter[str] = Counter()
    chunks = []
    for spans in _passages(document):
        for start, stop in pack_sentences(document.text, spans, measure, max_tokens):
            text = document.text[start:stop]
            seen[text] += 1
            chunks.append(
                Chunk(document.id, start, stop, text, chunk_id(document.id, text, seen[text]))
            )
    return chunks


def chunk_id(document_id: str, text: str, occurrence: int) -> str:
    """16 hex digits that stay the same wherever in the document the text moves.

    `occurrence` tells equal chunks of one document apart: 1 for the first.

    >>> chunk_id("a.txt", "One.", 1)
    '85356a10e3da98f4'
    """
    return sha256_bytes(f"{document_id}\0{text}\0{occurrence}".encode())[:16]


def document_sentences(document: Document, start: int = 0, stop: int | None = None) -> list[Span]:
    r"""Half-open spans of the sentences in ``document.text[start:stop]``, as offsets into the document's text.

    They are the sentences that :func:`chunk_document` saw, clipped to the span: how lines count follows from the
    document's format, and what stands before `start` is taken into account. Front matter that became metadata has none.

    >>> document = Document("a.csv", "x,y\n1,2\n", "a", format="csv")
    >>> document_sentences(document)
    [(0, 3), (4, 7)]
    """
    stop = len(document.text) if stop is None else stop
    if not 0 <= start <= stop <= len(document.text):
        raise ValueError(
            f"{start}:{stop} is no span of the {len(document.text)} characters of {document.id!r}"
        )
    edges = _edges(document)
    spans: list[Span] = []
    for i in range(max(0, bisect_right(edges, start) - 1), len(edges) - 1):
        if edges[i] >= stop:
            break
        first, last = max(edges[i], start), min(edges[i + 1], stop)
        limit = min(edges[i + 1], last + _CONTEXT_CHARACTERS)
        line_end = _LINE_END.search(document.text, last, limit)
        for begin, end in _sentences(
            document, edges[i], first, line_end.start() if line_end else limit
        ):
            clipped = trimmed_span(document.text, max(begin, first), min(end, last))
            if clipped and begin < last and end > first:
                spans.append(clipped)
    return spans


def _edges(document: Document) -> list[int]:
    """Offsets where sections begin or end, with both ends of the text: no sentence and no chunk crosses one.

    The text begins behind front matter that became metadata.
    """
    is_told = document.format == "markdown" and bool(document.metadata)
    match = FRONT_MATTER.match(document.text) if is_told else None
    first = match.end() if match else 0
    edges = {first, len(document.text)}
    for section in document.sections:
        edges |= {max(first, section.start), max(first, section.stop)}
    return sorted(edges)


def _sentences(document: Document, edge: int, start: int, stop: int) -> Iterator[Span]:
    """Sentences of ``text[start:stop]`` behind the section edge `edge`; the first may begin before `start`."""
    text = document.text
    if document.format in BY_LINE:
        return sentences_between(text, start, stop, by_line=True)
    near = max(edge, start - _CONTEXT_CHARACTERS)
    paragraph = max(
        (match.end() for match in _BLANK_LINE.finditer(text, near, start)), default=near
    )
    fences = document.format in FENCED
    fence = fence_at(text, edge, paragraph) if fences and paragraph > edge else ""
    return sentences_between(text, paragraph, stop, fences=fences, fence=fence)


def _passages(document: Document) -> Iterator[list[Span]]:
    """What may share chunks: the sentences of one section, its headings joined to the first of them.

    A section that is nothing but its heading goes on in the section below it, if that belongs to it.
    """
    starting = {section.start: section for section in document.sections}
    headings: list[Span] = []
    owner: Section | None = None  # of the last of these headings
    for start, stop in pairwise(_edges(document)):
        spans = list(_sentences(document, start, start, stop))
        if headings and owner and start >= owner.stop:
            yield _joined(headings)
            headings = []
        section = starting.get(start)
        if section and spans and _is_heading(document.text, spans[0], section):
            headings.append(spans.pop(0))
            owner = section
        if spans:
            yield [*_joined([*headings, spans[0]]), *spans[1:]]
            headings = []
    if headings:
        yield _joined(headings)


def _joined(spans: Sequence[Span]) -> list[Span]:
    return [(spans[0][0], spans[-1][1])]


def _is_heading(text: str, span: Span, section: Section) -> bool:
    first_line = _LINE_END.split(text[span[0] : span[1]], maxsplit=1)[0]
    return first_line.strip("# \t") == section.title.strip("# \t")
