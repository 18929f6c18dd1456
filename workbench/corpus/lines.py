"""Lines → units: a paragraph, a list item, a heading, a row of a table, a turn of a speaker, a line of code.

A blank line ends every unit. A line of mere marks, such as an underline or the end of fenced code, belongs to the unit
it stands next to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.corpus.sections import closes_fence, opened_fence

_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_LINE = re.compile(rf"[^{_ENDS}]*+(?:\r\n|[{_ENDS}])|[^{_ENDS}]++")
_MARKS = re.compile(r"[-=_*~+#|:`>\s]+\Z")  # underlines, rules, fences, empty quotations
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]")
# A line that begins something new wherever it stands: a list item, a turn with its time
_OPENS = re.compile(
    r"""[ \t>]*+ (?: [-*+•◦▪‣·] [ \t]
      | \( (?:\d{1,3}|[a-zA-Z]|[ivxlc]{1,6}) \) [ \t]
      | \[? \d{1,2}:\d{2} (?::\d{2})? (?:[.,]\d{1,3})? \]? [ \t] )""",
    re.VERBOSE,
)
# One that does so only where a sentence may begin; elsewhere wrapped prose looks so by chance
_MAY_OPEN = re.compile(
    r"""[ \t>]*+ (?: (?:\d{1,3}|[a-zA-Z]) \) [ \t]
      | \d{1,3} \. [ \t]
      | \d{1,3} (?:\.\d{1,3}){1,4} \.? [ \t]+ [^\W\d_] )""",
    re.VERBOSE,
)
# NAME: what is said; also **NAME:**, and NAME (role):
_TURN = re.compile(
    r"""[ \t>]*+ (?:\*\*)? ( [^\W\d_] [\w.'’-]{0,30} (?:[ ] [\w.'’-]{1,30}){0,3} ) (?:[ ]\([^()]{1,40}\))?
        (?: :\*\* | \*\*: | : (?=[ \t]) | ： )""",
    re.VERBOSE,
)
_MAY_END = tuple(".!?…:;\"'”’»)]*_。！？｡؟۔।」』）")


@dataclass(slots=True)
class Unit:
    """``text[start:stop]``; its words are in ``[body_start:body_stop]``, before and behind them are only marks."""

    start: int
    stop: int
    body_start: int
    body_stop: int
    is_prose: bool  # sentences may end within, and the next line may go on
    is_opened: bool  # begins with a list item or turn, in whose company weaker signs count
    is_closed: bool  # nothing but marks may follow
    may_end: bool  # its last line looks like the end of a sentence

    @property
    def has_body(self) -> bool:
        """Whether it holds more than marks."""
        return self.body_start < self.body_stop

    def takes(self, line: Unit) -> bool:
        """Whether `line`, the next one, belongs to this unit."""
        if not line.has_body:
            return True
        if self.is_closed or not self.has_body:
            return not self.is_closed
        return self.is_prose and line.is_prose and not line.is_opened

    def add(self, line: Unit) -> None:
        """Go on to the end of `line`."""
        if not line.has_body:
            self.is_closed = self.has_body or line.is_closed
        elif self.has_body:
            self.body_stop = line.body_stop
        else:
            self.body_start, self.body_stop = line.body_start, line.body_stop
            self.is_prose, self.is_opened = line.is_prose, line.is_opened
        self.stop, self.may_end = line.stop, line.may_end


def nonblank_lines(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    r"""Spans of the lines of ``text[start:stop]`` without the white space around them; blank ones are left out.

    >>> list(nonblank_lines("a\n\n b\n", 0, 6))
    [(0, 1), (4, 5)]
    """
    for match in _LINE.finditer(text, start, stop):
        line = match.group()
        if bare := line.strip():
            first = match.start() + len(line) - len(line.lstrip())
            yield first, first + len(bare)


def units_between(
    text: str, start: int, stop: int, *, fences: bool = True, fence: str = ""
) -> Iterator[Unit]:
    r"""The units of ``text[start:stop]`` in order. `fence` is the mark of the fenced code that `start` lies in.

    >>> text = "Pump\n----\nIt was\nold.\n- a\n- b\n"
    >>> [text[unit.start:unit.stop] for unit in units_between(text, 0, len(text))]
    ['Pump\n----', 'It was\nold.', '- a', '- b']
    """
    unit: Unit | None = None
    for match in _LINE.finditer(text, start, stop):
        line = match.group().rstrip()
        if not line:
            if unit:
                yield unit
            unit = None
            continue
        opened = opened_fence(line) if fences and not fence else ""
        read = _line(line, match.start(), unit, fence, is_opening=bool(opened))
        if unit and not opened and unit.takes(read):
            unit.add(read)
        else:
            if unit:
                yield unit
            unit = read
        fence = "" if fence and read.is_closed else opened or fence
    if unit:
        yield unit


def fence_at(text: str, start: int, offset: int) -> str:
    r"""The mark of the fenced code that `offset` lies in, or nothing; `start`, a line's start before it, lies in none.

    >>> fence_at("```\nx = 1\n```\n", 0, 4), fence_at("```\nx = 1\n```\n", 0, 14)
    ('```', '')
    """
    fence = ""
    if text.find("```", start, offset) < 0 and text.find("~~~", start, offset) < 0:
        return fence
    for match in _LINE.finditer(text, start, offset):
        line = match.group().rstrip()
        if fence:
            fence = "" if closes_fence(line, fence) else fence
        else:
            fence = opened_fence(line)
    return fence


def _line(line: str, offset: int, above: Unit | None, fence: str, *, is_opening: bool) -> Unit:
    """A unit of the one `line`, which is not blank and stands at `offset`, below the unit `above`."""
    stop = offset + len(line)
    start = stop - len(line.lstrip())
    is_closing = bool(fence) and closes_fence(line, fence)
    has_body = not (is_opening or is_closing) and (bool(fence) or _MARKS.match(line) is None)
    is_prose = has_body and not fence and not _is_alone(line)
    return Unit(
        start,
        stop,
        start,
        stop if has_body else start,
        is_prose=is_prose,
        is_opened=is_prose and _is_opened(line, above),
        is_closed=is_closing,
        may_end=line.endswith(_MAY_END),
    )


def _is_alone(line: str) -> bool:
    """A heading or a row of a table."""
    return _HEADING.match(line) is not None or " | " in line or line.lstrip().startswith("|")


def _is_opened(line: str, above: Unit | None) -> bool:
    if _OPENS.match(line):
        return True
    may_open = above is None or above.is_opened or above.may_end or not above.is_prose
    if _MAY_OPEN.match(line):
        return may_open
    turn = _TURN.match(line)
    if turn is None:
        return False
    name = turn.group(1)
    in_capitals = len(name) > 1 and name.isupper()
    return in_capitals or (may_open and not any(word[0].islower() for word in name.split()))
