"""Untrusted text → safe static HTML: escaping, marked spans, and the frame of a page. No script, no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
.wb{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color-scheme:light dark;
 color:var(--jp-ui-font-color1,CanvasText);max-width:60rem}
.wb mark{background:rgba(255,196,0,.38);color:inherit;border-radius:.2em;padding:0 .1em}
.wb .wb-mark{font-weight:600;color:#0b6bcb;color:light-dark(#0b5cad,#7fb8ff);text-decoration:none}
.wb .wb-note{opacity:.75;font-size:.87em}
.wb .wb-card{border:1px solid rgba(128,128,128,.35);border-radius:.5em;padding:.6em .9em;margin:.6em 0}
.wb .wb-text{white-space:pre-wrap;overflow-wrap:anywhere}
.wb table{border-collapse:collapse;font-size:.92em}
.wb th,.wb td{border-bottom:1px solid rgba(128,128,128,.35);padding:.25em .7em;text-align:left;vertical-align:top}
.wb figure{margin:1em 0}.wb img{max-width:100%;height:auto}
"""


@dataclass(frozen=True, slots=True)
class Highlight:
    """A half-open span to mark; `label` appears as its title, `anchor` as its id in the page."""

    start: int
    stop: int
    label: str = ""
    anchor: str = ""


def escape(text: str) -> str:
    """Text that is safe inside HTML elements and quoted attributes.

    >>> escape('<script>"')
    '&lt;script&gt;&quot;'
    """
    return html.escape(text, quote=True)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "page"), counted(2, "page")
    ('1 page', '2 pages')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters, an ellipsis in place of what is cut.

    >>> shorten("check valve", 7)
    'check …'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def highlight(text: str, spans: Sequence[Highlight]) -> str:
    """Escaped `text` with `spans` in ``<mark>``; a span that overlaps one before it is cut short.

    >>> highlight("a < b", [Highlight(0, 1)])
    '<mark>a</mark> &lt; b'
    """
    out, at = [], 0
    for span in sorted(spans, key=lambda s: (s.start, s.stop)):
        start, stop = max(span.start, at), min(span.stop, len(text))
        if start >= stop:
            continue
        attributes = f' id="{escape(span.anchor)}"' if span.anchor else ""
        attributes += f' title="{escape(span.label)}"' if span.label else ""
        out += [escape(text[at:start]), f"<mark{attributes}>", escape(text[start:stop]), "</mark>"]
        at = stop
    return "".join([*out, escape(text[at:])])


def fragment(body: str) -> str:
    """A self-contained piece of HTML: the styles and `body`, which must be escaped already."""
    return f'<div class="wb"><style>{STYLE}</style>{body}</div>'


def page(title: str, body: str) -> str:
    """A whole HTML page; `title` is escaped here, `body` must be escaped already. Nothing is fetched from anywhere."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title>"
        "<style>:root{color-scheme:light dark}body{margin:2rem auto;padding:0 1.2rem;max-width:60rem}</style>"
        f"</head><body>{fragment(body)}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped here.

    >>> table(["k"], [["<"]])
    '<table><thead><tr><th>k</th></tr></thead><tbody><tr><td>&lt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
