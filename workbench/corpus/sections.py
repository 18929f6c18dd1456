"""Headings → sections: where each begins and how far it reaches. Finds the headings of Markdown itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.corpus.documents import Section

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]|\Z)")
_UNDERLINE = re.compile(r" {0,3}(?:(=)=*|-+)[ \t]*\Z")
_FENCE = re.compile(r" {0,3}(?:(`{3,})[^`]*|(~{3,}).*)\Z")
# What is no text of an underlined heading: list items, quotations, table rows, HTML, indented code
_NO_PROSE = re.compile(r"[ \t]*(?:[>|<=]|[-+*](?:[ \t]|\Z)|\d+[.)](?:[ \t]|\Z))| {4}| {0,3}\t")
# --- around YAML at the very beginning, closed by --- or ..., as in Jekyll, pandoc and Quarto
FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n((?=[\w-]+[ \t]*:)(?:[^\n]*\n)*?)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)"
)
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}\Z")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading found at the offset `start`; level 1 is the highest."""

    title: str
    level: int
    start: int


def sections_from(headings: Iterable[Heading], length: int) -> tuple[Section, ...]:
    """Sections of a text of `length` characters: each runs to the next heading of the same or a higher level.

    >>> [(s.title, s.start, s.stop) for s in sections_from([Heading("A", 1, 0), Heading("B", 2, 9)], 20)]
    [('A', 0, 20), ('B', 9, 20)]
    """
    found = list(headings)
    stops = [length] * len(found)
    still_open: list[int] = []
    for i, heading in enumerate(found):
        while still_open and found[still_open[-1]].level >= heading.level:
            stops[still_open.pop()] = heading.start
        still_open.append(i)
    return tuple(
        Section(h.title, h.level, h.start, stop) for h, stop in zip(found, stops, strict=True)
    )


def markdown_headings(text: str, *, offset: int = 0) -> Iterator[Heading]:
    r"""Headings of Markdown, ``# so`` or a single line underlined; `offset` is added to every start.

    None is found in fenced code, comments or front matter.

    >>> [h.title for h in markdown_headings("One\n===\n~~~\n# no\n~~~\n## Two ##\n")]
    ['One', 'Two']
    """
    fence = ""
    in_comment = False
    block = ""  # "" between blocks, "line" after the first line of a paragraph, "more" within anything longer
    above: Heading | None = None  # that first line, a heading if it turns out to be underlined
    front = FRONT_MATTER.match(text)
    for match in LINE.finditer(text, front.end() if front else 0):
        line = match.group().rstrip("\r\n")
        start = match.start() + offset
        underline = _UNDERLINE.match(line) if block == "line" else None
        if fence or in_comment:
            in_comment = in_comment and "-->" not in line
            fence = "" if fence and closes_fence(line, fence) else fence
        elif opening := opened_fence(line):
            fence, block = opening, ""
        elif line.lstrip(" ").startswith("<!--"):
            in_comment, block = "-->" not in line, ""
        elif atx := _ATX.match(line):
            yield Heading(_without_closing_marks(line[atx.end() :]), len(atx.group(1)), start)
            block = ""
        elif underline and above:
            yield Heading(above.title, 1 if underline.group(1) else 2, above.start)
            block = ""
        elif not line.strip() or _RULE.match(line):
            block = ""
        elif block or _NO_PROSE.match(line):
            block = "more"
        else:
            block, above = "line", Heading(line.strip(), 0, start)


def opened_fence(line: str) -> str:
    """The backticks or tildes that open fenced code on this line, or nothing.

    >>> opened_fence("```python")
    '```'
    """
    match = _FENCE.match(line)
    return (match.group(1) or match.group(2)) if match else ""


def closes_fence(line: str, fence: str) -> bool:
    """Whether `line` ends the code that `fence` opened: the same mark, at least as long, and nothing behind it.

    >>> closes_fence("````", "```"), closes_fence("```python", "```")
    (True, False)
    """
    mark = line.strip(" \t")
    return (
        mark.startswith(fence) and not mark.strip(fence[0]) and not line.startswith(("    ", "\t"))
    )


def _without_closing_marks(title: str) -> str:
    title = title.strip(" \t")
    bare = title.rstrip("#")
    return bare.rstrip(" \t") if not bare or bare[-1] in " \t" else title
