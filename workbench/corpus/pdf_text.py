"""PDF → text with its pages, and the entries of its outline as sections. Knows no OCR: pictures of text stay silent."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.corpus.documents import Page
from workbench.corpus.extracted import Extracted, TextWriter, in_one_space, without_surrogates
from workbench.corpus.metadata import told_metadata
from workbench.corpus.sections import Heading, sections_from
from workbench.errors import InputError

if TYPE_CHECKING:
    from datetime import datetime

    from pypdf import DocumentInformation, PdfReader

# What pypdf lets through on damaged files, besides its own PyPdfError
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError,
    NotImplementedError, EOFError, struct.error, zlib.error,
)  # fmt: skip
# What programs write for a title when nobody wrote one
_NO_TITLE = re.compile(
    r"\(?(?:untitled|anonymous|unspecified)\)?\Z|microsoft word|.*\.\w{2,4}\Z", re.IGNORECASE
)
_MAX_OUTLINE = 10_000


def extract_pdf(data: bytes) -> Extracted:
    """Text of a PDF, page after page; a page that cannot be read is left empty, with a notice.

    Raises
    ------
    InputError
        The file is broken, protected by a password, or holds no text.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # the notices say what matters
    try:
        reader = PdfReader(io.BytesIO(data))
        _unlock(reader)
        count = len(reader.pages)
        title = (
            in_one_space(without_surrogates(str(reader.metadata.title or "")))
            if reader.metadata
            else ""
        )
    except (PyPdfError, *_DAMAGE) as error:
        raise InputError(f"broken PDF ({_first_line(error)})") from error
    texts, notices = _page_texts(reader, count)
    silent = texts.count("")
    if silent == count:
        raise InputError("; ".join(notices[:1]) or "no text layer; run OCR first")
    if silent > len(notices):
        notices.append(
            f"{silent - len(notices)} of {count} pages hold no text; run OCR first if they are scans"
        )
    text, pages = _joined(texts)
    try:
        headings = list(_outline_headings(reader, text, pages))
    except (PyPdfError, *_DAMAGE) as error:
        headings = []
        notices.append(f"its outline could not be read ({_first_line(error)})")
    return Extracted(
        text,
        title=title if title and not _NO_TITLE.match(title) else None,
        sections=sections_from(headings, len(text)),
        pages=pages,
        notices=tuple(notices),
        metadata=_metadata(reader),
    )


def _metadata(reader: PdfReader) -> dict[str, Any]:
    from pypdf.errors import PyPdfError

    try:
        told = reader.metadata
        return told_metadata(
            author=told and told.author,
            keywords=told and told.keywords,
            created=told and _day(told),
        )
    except (PyPdfError, *_DAMAGE):
        return {}


def _day(told: DocumentInformation) -> datetime | None:
    try:
        return told.creation_date
    except ValueError:  # it is no date
        return None


def _unlock(reader: PdfReader) -> None:
    """Many files are encrypted with an empty password, to say what a reader may do; they open like any other."""
    from pypdf.errors import DependencyError

    if not reader.is_encrypted:
        return
    try:
        is_open = reader.decrypt("") != 0
    except DependencyError as error:
        raise InputError(
            "encrypted with AES, which needs the package cryptography: pip install cryptography, or save a copy "
            "without encryption"
        ) from error
    if not is_open:
        raise InputError("protected by a password; save a copy without one")


def _page_texts(reader: PdfReader, count: int) -> tuple[list[str], list[str]]:
    from pypdf.errors import PyPdfError

    texts, notices = [], []
    for number in range(1, count + 1):
        try:
            texts.append(without_surrogates(reader.pages[number - 1].extract_text()).strip())
        except (PyPdfError, *_DAMAGE) as error:
            texts.append("")
            notices.append(f"page {number} could not be read ({_first_line(error)})")
    return texts, notices


def _joined(texts: list[str]) -> tuple[str, tuple[Page, ...]]:
    """The whole text and the pages, which leave no gap: a blank line between two pages belongs to the first.

    Where a sentence visibly runs on, only a line end stands between them.
    """
    writer = TextWriter()
    starts = []
    before = ""
    for text in texts:
        if before and text:
            runs_on = (before[-1].isalnum() or before[-1] in ",-") and text[0].islower()
            writer.write("\n" if runs_on else "\n\n")
        starts.append(len(writer))
        writer.write(text)
        before = text or before
    edges = [*starts, len(writer)]
    return writer.text, tuple(
        Page(number, *edge) for number, edge in enumerate(pairwise(edges), start=1)
    )


def _outline_headings(reader: PdfReader, text: str, pages: tuple[Page, ...]) -> Iterator[Heading]:
    """Entries of the outline, in order: at the line that shows their title, else at the top of their page."""
    last = -1
    for destination, level in _flat(reader.outline):
        number = reader.get_destination_page_number(destination)
        title = in_one_space(without_surrogates(str(destination.title or "")))
        if number is None or not 0 <= number < len(pages) or not title:
            continue
        page = pages[number]
        words = r"\s+".join(re.escape(word) for word in title.split())
        line = re.compile(
            rf"^[ \t]*(?:[\dA-Z][\dA-Z.]*[ \t]+)?({words})", re.IGNORECASE | re.MULTILINE
        )
        found = line.search(text, max(page.start, last + 1), page.stop)
        start = found.start() if found else page.start
        if start > last and start < page.stop:
            yield Heading(title, level, start)
            last = start


def _flat(outline: list[Any]) -> Iterator[tuple[Any, int]]:
    """Entries and their levels from 1, of an outline whose lists nest."""
    stack = [iter(outline)]
    for _ in range(_MAX_OUTLINE):
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            if not stack:
                return
        elif isinstance(entry, list):
            stack.append(iter(entry))
        else:
            yield entry, len(stack)


def _first_line(error: Exception) -> str:
    """What pypdf says of a fault; of an error that it did not foresee the name alone."""
    from pypdf.errors import PyPdfError

    said = str(error).strip().partition("\n")[0] if isinstance(error, PyPdfError) else ""
    return said[:120] or type(error).__name__
