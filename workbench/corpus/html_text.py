"""HTML → the text a reader sees, with headings as sections. Scripts, styles and navigation are left out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workbench.corpus.encodings import decode_text
from workbench.corpus.extracted import (
    Extracted,
    TextWriter,
    fenced,
    in_one_space,
    table_row,
    without_surrogates,
)
from workbench.corpus.metadata import told_metadata
from workbench.corpus.sections import sections_from

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from bs4.element import PageElement

_LEFT_OUT = frozenset(
    "head title script style template noscript nav iframe object svg canvas audio video select button dialog".split()
)
_INLINE = frozenset(
    """a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark math meter output q rp
    rt ruby s samp small span strike strong sub sup textarea time tt u var wbr""".split()
)
_MAX_META = 200
_AUTHORS = "citation_author dc.creator dcterms.creator author article:author"
_KEYWORDS = "keywords citation_keywords dc.subject article:tag"
_DATES = (
    "citation_publication_date dc.date dcterms.date dcterms.created article:published_time date"
)
_DAY = re.compile(r"\s*\d{4}(?:([-/])\d{2}(?:\1\d{2})?)?(?=\s*\Z|[T ])")
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\n\r\f]+")
_SPACE_RUN = re.compile(r"[ \t]{2,}")
_AROUND_BREAK = re.compile(r"[ \t]*\n[ \t]*")
# A table that holds these lays out a page: its rows are no rows.
_LAYOUT = ["table", "pre", "ul", "ol", *_HEADINGS]


def extract_html(data: bytes) -> Extracted:
    r"""Text of an HTML page in blocks: paragraphs, ``- `` list items, ``| a | b |`` table rows, fenced ``pre``.

    >>> page = b"<title>T</title><nav>Menu</nav><h1>Pump</h1><p>It\n<b>failed</b>.<ul><li>late</ul>"
    >>> extracted = extract_html(page)
    >>> extracted.text, extracted.sections[0].title
    ('Pump\n\nIt failed.\n\n- late', 'Pump')
    """
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    decoded = decode_text(data, declared=declared)
    with (
        warnings.catch_warnings()
    ):  # a page that looks like XML, or like an address, is still a page
        warnings.simplefilter("ignore", UserWarning)
        soup = BeautifulSoup(without_surrogates(decoded.text), "html.parser")
    page = _Page()
    for node, is_entered in _walk(soup):
        if is_entered:
            page.enter(node)
        else:
            page.leave(node)
    page.end_block()
    text = page.writer.text
    return Extracted(
        text,
        title=in_one_space(soup.title.get_text()) or None if soup.title else None,
        sections=sections_from(page.writer.headings, len(text)),
        encoding=decoded.encoding,
        notices=(decoded.notice,) if decoded.notice else (),
        metadata=_metadata(soup),
    )


def _metadata(soup: BeautifulSoup) -> dict[str, Any]:
    """What ``meta`` tags say: those of HTML itself, of Dublin Core, of Open Graph and of journals."""
    told: dict[str, list[str]] = {}
    for tag in soup.find_all("meta", limit=_MAX_META):
        name, content = tag.get("name") or tag.get("property"), tag.get("content")
        if isinstance(name, str) and isinstance(content, str) and content.strip():
            told.setdefault(name.casefold(), []).append(content)

    def first_of(names: str) -> list[str]:
        return next((told[name] for name in names.split() if name in told), [])

    day = _DAY.match("".join(first_of(_DATES)[:1]))
    return told_metadata(
        author=first_of(_AUTHORS),
        keywords=first_of(_KEYWORDS),
        date=day and re.sub("/", "-", day[0]),
    )


def _walk(root: Tag) -> Iterator[tuple[PageElement, bool]]:
    """Every node that a reader sees, when it is entered (True) and left (False), without recursion.

    Code and tables are given whole.
    """
    from bs4.element import NavigableString, Tag

    stack = [(root, iter(root.contents))]
    while stack:
        tag, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            yield tag, False
        elif isinstance(child, Tag):
            if child.name not in _LEFT_OUT and not child.has_attr("hidden"):
                yield child, True
                if child.name != "pre" and not _is_table(child):
                    stack.append((child, iter(child.contents)))
        elif (
            type(child) is NavigableString
        ):  # its subclasses are comments, declarations and the like
            yield child, True


class _Page:
    """What has been written of a page, and what is open."""

    def __init__(self) -> None:
        self.writer = TextWriter()
        self._inline: list[str] = []  # the text of the block so far
        self._lists: list[
            int | None
        ] = []  # the open lists: their last number, or None if they have none
        self._mark = ""  # of a list item that has no text yet
        self._level = 0  # of the heading that is open
        self._last = ""  # the kind of the block before

    def enter(self, node: PageElement) -> None:
        from bs4 import Tag

        if not isinstance(node, Tag):
            self._inline.append(_SPACE.sub(" ", str(node)))
        elif node.name == "br":
            self._inline.append("\n")
        elif node.name not in _INLINE:
            self.end_block()
            self._begin_block(node)

    def leave(self, tag: PageElement) -> None:
        name = getattr(tag, "name", None)
        if name in _INLINE or name == "br":
            return
        self.end_block()
        if name in ("ul", "ol") and self._lists:
            self._lists.pop()
        if name in _HEADINGS:
            self._level = 0

    def end_block(self) -> None:
        """Write the text so far as a block of its own."""
        text = _AROUND_BREAK.sub("\n", _SPACE_RUN.sub(" ", "".join(self._inline))).strip()
        self._inline = []
        if not text:
            return
        if self._level:
            self.writer.heading(text, self._level)
            self._last = "heading"
        else:
            kind = "item" if self._mark else "paragraph"
            self._write(kind, self._mark + text)
            self._mark = ""

    def _begin_block(self, tag: Tag) -> None:
        name = tag.name
        if name == "pre":
            code = "".join(_strings(tag)).strip("\r\n")
            self._write("code", fenced(code) if code.strip() else "")
        elif _is_table(tag):
            for row in _rows(tag):
                self._write("row" if len(row) > 1 else "paragraph", table_row(row))
        elif name in _HEADINGS:
            self._level = _HEADINGS[name]
        elif name in ("ul", "ol"):
            self._lists.append(0 if name == "ol" else None)
        elif name == "li":
            number = self._lists[-1] if self._lists else None
            if number is None:
                self._mark = "- "
            else:
                self._lists[-1] = number + 1
                self._mark = f"{number + 1}. "

    def _write(self, kind: str, text: str) -> None:
        """A block; items of a list and rows of a table stand in lines right below each other."""
        is_next = kind == self._last and kind in ("item", "row")
        self.writer.block(text, separator="\n" if is_next else "\n\n")
        self._last = kind


def _is_table(tag: Tag) -> bool:
    """Whether this is a table of facts; one that holds headings, lists or tables only lays out the page."""
    return tag.name == "table" and tag.find(_LAYOUT) is None


def _rows(table: Tag) -> list[list[str]]:
    """The cells of each row, a caption being a row of one; end tags may be missing."""
    from bs4.element import NavigableString, Tag

    rows: list[list[str]] = [[""]]
    for node in table.descendants:
        if isinstance(node, Tag):
            if node.name == "tr":
                rows.append([])
            elif node.name in ("td", "th"):
                rows[-1].append("")
            elif node.name not in _INLINE and rows[-1]:
                rows[-1][-1] += " "
        elif type(node) is NavigableString and rows[-1]:
            rows[-1][-1] += str(node)
    return [row for row in rows if any(cell.strip() for cell in row)]


def _strings(tag: Tag) -> Iterator[str]:
    from bs4.element import NavigableString, Tag

    for node in tag.descendants:
        if isinstance(node, Tag):
            yield "\n" if node.name == "br" else ""
        elif type(node) is NavigableString:
            yield str(node)
