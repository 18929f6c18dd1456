"""What reading makes of files: documents, their sections and pages as spans, and what was left out."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

from workbench.errors import InputError
from workbench.markup import counted, escape, fragment, table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it, sections of a lower level included.

    ``document.text[start:stop]`` runs from the heading to the next one of the same or a higher level; level 1 is the
    highest.
    """

    title: str
    level: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.stop, f"section {self.title!r}")


@dataclass(frozen=True, slots=True)
class Page:
    """One page, numbered from 1: ``document.text[start:stop]``."""

    number: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.stop, f"page {self.number}")


@dataclass(frozen=True, slots=True, repr=False)
class Document:
    r"""A text and what is known of its parts: that of one file, or any you have. Spans count characters of `text`.

    For plain text, Markdown, code, CSV and JSONL `text` is the decoded file, line ends untouched; for other formats it
    is the extracted text. `id` is the POSIX path below the folder read, or any name; `sha256` is that of the file's
    bytes; `metadata` is what else you know of it, JSON values by name, to filter by.

    >>> text = "# Pump\nIt failed.\n"
    >>> document = Document("pump.md", text, "Pump", sections=(Section("Pump", 1, 0, len(text)),), language="en")
    >>> document
    Document('pump.md', 18 characters, 1 section, en; next: .text, .sections, .to_dict())
    >>> document.section_at(8).title
    'Pump'
    """

    id: str
    text: str
    title: str = ""
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    language: str | None = None
    sha256: str = ""
    encoding: str | None = None
    format: str = "text"
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id.strip():
            raise ValueError(f"the id of a document is {self.id!r}; give it a name")
        if not isinstance(self.text, str) or not isinstance(self.metadata, Mapping):
            wrong = "text" if not isinstance(self.text, str) else "metadata"
            raise ValueError(
                f"the {wrong} of document {self.id!r} is {type(getattr(self, wrong)).__name__}"
            )
        parts: tuple[Sequence[Section | Page], ...] = (self.sections, self.pages)
        for spans in parts:
            for i, span in enumerate(spans):
                if span.stop > len(self.text):
                    raise ValueError(
                        f"{span} ends behind the {len(self.text)} characters of {self.id!r}"
                    )
                if i and span.start < spans[i - 1].start:
                    raise ValueError(
                        f"{span} of {self.id!r} starts before {spans[i - 1]}; sort them by start"
                    )

    def __repr__(self) -> str:
        facts = [repr(self.id), counted(len(self.text), "character")]
        facts += [counted(len(self.pages), "page")] if self.pages else []
        facts += [counted(len(self.sections), "section")] if self.sections else []
        facts += [self.language] if self.language else []
        return f"Document({', '.join(facts)}; next: .text, .sections, .to_dict())"

    def section_at(self, offset: int) -> Section | None:
        """The innermost section that holds the character at `offset`, or None."""
        return _span_at(self.sections, offset)

    def page_at(self, offset: int) -> Page | None:
        """The page that holds the character at `offset`, or None."""
        return _span_at(self.pages, offset)

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON knows it; :meth:`from_dict` is the way back.

        >>> document = Document("a.txt", "Hello.", "a")
        >>> Document.from_dict(document.to_dict()) == document
        True
        """
        facts = {name: getattr(self, name) for name in self.__slots__}
        return {
            **facts,
            "sections": [asdict(s) for s in self.sections],
            "pages": [asdict(p) for p in self.pages],
            "metadata": dict(self.metadata),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Document:
        """The document that :meth:`to_dict` described."""
        sections = tuple(Section(**section) for section in facts["sections"])
        pages = tuple(Page(**page) for page in facts["pages"])
        return cls(**{**facts, "sections": sections, "pages": pages})


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was not read, and why; ``str()`` of it is one line.

    >>> print(Skipped("scan.pdf", "no text layer; run OCR first"))
    scan.pdf: no text layer; run OCR first
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{in_one_line(self.path)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know of a file that was read, such as its guessed encoding; ``str()`` of it is one line."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{in_one_line(self.path)}: {self.message}"


@dataclass(frozen=True, slots=True, repr=False)
class Corpus:
    """The documents of a folder in the order of their ids, and what was skipped. `root` is the folder.

    >>> corpus = Corpus((Document("manual/pump.md", "It failed.", "Pump"),), root="corpora")
    >>> corpus
    Corpus(1 document, 0 skipped; next: build_retriever(corpus), corpus['manual/pump.md'])
    >>> corpus["pump"].title
    'Pump'
    """

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...] = ()
    notices: tuple[Notice, ...] = ()
    root: str = ""

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self.documents)

    def __getitem__(self, name: str) -> Document:
        """The document with this id, or the only one whose id without folder or suffix is `name`.

        Raises
        ------
        InputError
            There is none, or more than one; the message lists what was meant perhaps.
        """
        wanted = id_named(name, [document.id for document in self.documents])
        return next(document for document in self.documents if document.id == wanted)

    def __repr__(self) -> str:
        first = repr(self.documents[0].id) if self.documents else "…"
        return (
            f"Corpus({counted(len(self), 'document')}, {len(self.skipped)} skipped; "
            f"next: build_retriever(corpus), corpus[{first}])"
        )

    def _repr_html_(self) -> str:
        messages: dict[str, str] = {}
        for notice in self.notices:
            messages[notice.path] = "; ".join(
                filter(None, (messages.get(notice.path), notice.message))
            )
        rows = [
            (d.id, d.title, d.format, f"{len(d.text):,}", d.language or "", messages.get(d.id, ""))
            for d in self.documents
        ]
        rows += [(skipped.path, "", "skipped", "", "", skipped.reason) for skipped in self.skipped]
        header = ("id", "title", "format", "characters", "language", "notice")
        return fragment(f"<p>{escape(repr(self))}</p>{table(header, rows)}")


def id_named(name: str, ids: Collection[str]) -> str:
    """The one of `ids` that is `name`, or the only one that is `name` without folder or suffix.

    Raises
    ------
    InputError
        There is none, or more than one; the message lists what was meant perhaps.

    >>> id_named("pump", ["manual/pump.md", "tides.txt"])
    'manual/pump.md'
    """
    if not isinstance(name, str):
        raise InputError(
            f"{name!r} names no document; give an id, such as {next(iter(ids), 'pump.md')!r}"
        )
    matches = [id for id in ids if id == name] or [id for id in ids if name in _stems(id)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{name!r} names {len(matches)} documents; ask for one of {_listed(matches)}"
        )
    by_stem = {stem: id for id in ids for stem in (*_stems(id), id)}
    close = dict.fromkeys(by_stem[stem] for stem in difflib.get_close_matches(name, by_stem))
    hint = f"; perhaps {_listed(close)}" if close else f"; the ids are {_listed(ids)}"
    raise InputError(f"no document {name!r} among {len(ids)}{hint}")


def in_one_line(name: str) -> str:
    r"""`name`, or its repr if it holds a character that does not print in one line.

    >>> in_one_line("a\nb.txt")
    "'a\\nb.txt'"
    """
    return name if name.isprintable() else repr(name)


AnySpan = TypeVar("AnySpan", Section, Page)


def _span_at(spans: Sequence[AnySpan], offset: int) -> AnySpan | None:
    """Spans are sorted by start and nest or follow each other, so the last one to open is the innermost."""
    for i in range(bisect_right(spans, offset, key=lambda span: span.start) - 1, -1, -1):
        if offset < spans[i].stop:
            return spans[i]
    return None


def _check_span(start: int, stop: int, what: str) -> None:
    if not 0 <= start <= stop:
        raise ValueError(
            f"{what} has the span {start}:{stop}; start and stop count from 0, start <= stop"
        )


def _stems(id: str) -> tuple[str, str]:
    path = PurePosixPath(id)
    return path.stem, path.with_suffix("").as_posix()


def _listed(ids: Iterable[str]) -> str:
    found = [repr(id) for id in ids]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more
