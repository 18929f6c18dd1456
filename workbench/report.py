"""Answers, a heatmap and a summary → one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.answer import Answer
from workbench.markup import escape, page
from workbench.summary import Summary


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG with the sentence that says what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it; `html` must be escaped already."""

    title: str
    html: str


def report_page(title: str, sections: Sequence[Section]) -> str:
    """The whole page, with a table of contents.

    >>> "<h2 id" in report_page("Demo", [Section("One", "<p>text</p>")])
    True
    """
    links = " · ".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    body = [f"<h1>{escape(title)}</h1><p>{links}</p>"]
    body += [f'<h2 id="s{i}">{escape(s.title)}</h2>{s.html}' for i, s in enumerate(sections)]
    return page(title, "".join(body))


def picture_html(picture: Picture) -> str:
    """A figure with its picture inside the page."""
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{escape(picture.caption)}" src="data:image/png;base64,{data}">'
        f'<figcaption class="wb-note">{escape(picture.caption)}</figcaption></figure>'
    )


def answers_section(title: str, answers: Sequence[Answer]) -> Section:
    """Each answer with its marks and highlighted passages."""
    return Section(
        title, "".join(f'<div class="wb-card">{answer.to_html()}</div>' for answer in answers)
    )


def pictures_section(title: str, pictures: Sequence[Picture]) -> Section:
    """Pictures one below the other."""
    return Section(title, "".join(picture_html(picture) for picture in pictures))


def summary_section(title: str, summary: Summary) -> Section:
    """A summary with the passages behind its sentences."""
    return Section(title, summary.to_html())
