"""Text → sentences as half-open character spans. Knows the marks and habits of writing, no language and no document.

First the lines: blank lines, headings, list items, table rows, speaker turns and fenced code end what stands before
them; any other line end is only a wrapped line. Then the marks within: . ! ? and their kin in other scripts, unless an
abbreviation, an initial, a number or the next word says otherwise. Time grows linearly with the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workbench.corpus.abbreviations import (
    AFTER_ORDINAL,
    BEFORE_MORE,
    BEFORE_NAME,
    BEFORE_NUMBER,
    PERHAPS_LAST,
    PERHAPS_LAST_NAME,
    STARTERS,
)
from workbench.corpus.lines import nonblank_lines, units_between

Span = tuple[int, int]

_WESTERN = ".!?…‽"
_OTHER = "。！？｡．؟۔।॥።။។։"
# A run of western marks, which white space must follow; or marks that end a sentence wherever they stand
_STOP = re.compile(
    rf"(?<![{_WESTERN}])(?P<western>[{_WESTERN}]++)"
    r"""(?P<closers>["'”’»›)\]}」』】》〉）*_`¹²³⁰-⁹]*+(?:\[[^\]\s]{1,12}\])*(?:\s{1,4}»(?!\w))?)(?=\s)"""
    rf"|(?<![{_OTHER}])[{_OTHER}]++(?P<quoted>[」』】》〉）”’»)\]]*+)"
)
_NEXT = re.compile(r"""\s*+(?:[–—-]\s*+)?[«‹"'“‘„‚(\[{「『【《〈（*_`¿¡]*+(?P<word>\w{0,24}+)""")
_SPACE = re.compile(r"\s*+")
_ENUMERATOR = re.compile(
    r"[\s(\[>*_]*+(?:\d{1,3}(?:\.\d{1,3}){0,4}|[a-zA-Z]|[IVXLC]{1,6}|[ivxlc]{1,6})\Z"
)
_INITIALS = re.compile(r"(?:[^\W\d_]\.-?){0,6}[^\W\d_]\Z")


def sentence_spans(text: str, *, by_line: bool = False) -> list[Span]:
    r"""Half-open spans of the sentences of `text`, in order; together they hold every character that is not space.

    A sentence never crosses a blank line, and neither begins nor ends with white space. ``by_line=True`` takes every
    line for a sentence, which is right for code, tables and logs; lines of fenced code are taken so in any case.

    >>> text = "Dr. Ito measured 3.5 bar.  The valve\nheld.\n- a list item\n"
    >>> [text[start:stop] for start, stop in sentence_spans(text)]
    ['Dr. Ito measured 3.5 bar.', 'The valve\nheld.', '- a list item']
    """
    return list(sentences_between(text, 0, len(text), by_line=by_line))


def sentences_between(
    text: str, start: int, stop: int, *, by_line: bool = False, fences: bool = True, fence: str = ""
) -> Iterator[Span]:
    """Spans of the sentences in ``text[start:stop]``, as offsets into `text`; what lies outside is not looked at.

    ``fences=False`` takes the marks of fenced code for ordinary text. `fence` is the mark that opened the code in which
    `start` lies, if it lies in one.

    >>> list(sentences_between("One. Two.", 4, 9))
    [(5, 9)]
    """
    if by_line:
        yield from nonblank_lines(text, start, stop)
        return
    for unit in units_between(text, start, stop, fences=fences, fence=fence):
        at = unit.start
        if unit.is_prose:
            for end, following in _ends(text, unit.body_start, unit.body_stop):
                yield at, end
                at = following
        yield at, unit.stop


def trimmed_span(text: str, start: int, stop: int) -> Span | None:
    """The span without the white space at its ends; None if nothing is left.

    >>> trimmed_span("One. Two.", 4, 9), trimmed_span("One. Two.", 4, 5)
    ((5, 9), None)
    """
    part = text[start:stop]
    bare = part.lstrip()
    return (stop - len(bare), stop - len(bare) + len(bare.rstrip())) if bare else None


def _ends(text: str, start: int, stop: int) -> Iterator[Span]:
    """Where a sentence of the prose ``text[start:stop]`` ends and where the next one begins, for all but the last."""
    for match in _STOP.finditer(text, start, stop):
        following = _NEXT.match(text, match.end(), stop)
        begins = _first_not_space(text, match.end(), stop)
        if following is None or begins == stop:
            return
        western = match.group("western")
        if western is None:
            is_end = _ends_elsewhere(text, match, begins)
        else:
            is_end = _ends_western(text, start, match, following.group("word"))
        if is_end:
            yield match.end(), begins
            start = begins


def _ends_elsewhere(text: str, match: re.Match[str], begins: int) -> bool:
    """Marks of other scripts always end a sentence, but in a number or in quoted speech within the sentence."""
    following = text[begins]
    if match.group().startswith("．") and following.isdigit():
        return False
    return following not in "、，,；：）」』" and not (
        match.group("quoted") and following in "とって"
    )


def _ends_western(text: str, start: int, match: re.Match[str], word: str) -> bool:
    """Whether the marks of `match` end the sentence that began at `start`, if `word` comes next ("" for no word)."""
    marks, closers = match.group("western"), match.group("closers")
    if word[:1].islower():
        return not closers and marks.strip(".…") != ""
    if marks != ".":
        return True
    before = text[max(start, match.start() - 40) : match.start()]
    if _ENUMERATOR.fullmatch(before):
        return False
    token = before.rpartition(" ")[2].rpartition("\n")[2].lstrip("([{\"'“‘„«*_>/")
    name, next_name = token[:1].isupper(), word.casefold()
    token = token.casefold()
    if token in BEFORE_MORE or (name and token in BEFORE_NAME):
        return False
    if token in BEFORE_NUMBER:
        return not word[:1].isdigit()
    if token.isdigit():
        return len(token) > 2 or next_name not in AFTER_ORDINAL
    if token in PERHAPS_LAST or (name and (token in PERHAPS_LAST_NAME or _INITIALS.match(token))):
        return next_name in STARTERS
    return True


def _first_not_space(text: str, start: int, stop: int) -> int:
    match = _SPACE.match(text, start, stop)
    return match.end() if match else start
