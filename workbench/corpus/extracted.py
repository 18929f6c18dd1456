"""What a reader of one format gives back, and the writer with which such a reader puts it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.corpus.documents import Page, Section
from workbench.corpus.sections import Heading


@dataclass(frozen=True, slots=True)
class Extracted:
    """Text of a file and the spans of its parts. `title` is None where the file names none."""

    text: str
    title: str | None = None
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    encoding: str | None = None
    notices: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


class TextWriter:
    r"""Blocks of text put together, with the offset of every heading.

    >>> writer = TextWriter()
    >>> writer.heading("Pump", 1)
    >>> _ = writer.block("It failed.")
    >>> writer.text, writer.headings
    ('Pump\n\nIt failed.', [Heading(title='Pump', level=1, start=0)])
    """

    def __init__(self) -> None:
        self.headings: list[Heading] = []
        self._parts: list[str] = []
        self._length = 0

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._parts)

    def __len__(self) -> int:
        return self._length

    def write(self, text: str) -> int:
        """Add `text` as it is, and return the offset at which it begins."""
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        return start

    def block(self, text: str, *, separator: str = "\n\n") -> int:
        """Add `text` without white space at its ends behind a blank line; return where it begins, empty or not."""
        bare = text.strip("\r\n").rstrip()
        if not bare.strip():
            return self._length
        if self._length:
            self.write(separator)
        return self.write(bare)

    def heading(self, title: str, level: int) -> None:
        """Add a heading in a block of its own; an empty one is left out."""
        if title := in_one_space(title):
            self.headings.append(Heading(title, level, self.block(title)))


def in_one_space(text: str) -> str:
    r"""`text` with every run of white space as one space, none at its ends.

    >>> in_one_space(" a\n  b ")
    'a b'
    """
    return " ".join(text.split())


def table_row(cells: list[str]) -> str:
    """A line that reads as the row of a table, or the text of its only cell.

    >>> table_row(["pump", "3 bar"])
    '| pump | 3 bar |'
    """
    bare = [in_one_space(cell) for cell in cells]
    return f"| {' | '.join(bare)} |" if len(bare) > 1 else "".join(bare)


def fenced(code: str, language: str = "") -> str:
    """`code` between lines of backticks that it does not hold itself.

    >>> print(fenced("x = 1", "python"))
    ```python
    x = 1
    ```
    """
    mark = "```"
    while mark in code:
        mark += "`"
    return f"{mark}{language}\n{code}\n{mark}"


def without_surrogates(text: str) -> str:
    r"""`text` as UTF-8 can hold it: pairs of surrogates joined, lone ones U+FFFD, and no NUL.

    >>> without_surrogates("\ud83d\ude00 \ud83d")
    '😀 \ufffd'
    """
    text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    return text
