"""An answer before and after an edit of experts → both texts side by side as HTML, what differs marked word by word."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.markup import Highlight, escape, highlight

if TYPE_CHECKING:
    from workbench.effects.answers import ChangedAnswer

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class WordDifference:
    """What two texts do not share: half-open spans of characters, `gone` of the one, `new` of the other."""

    gone: tuple[Highlight, ...]
    new: tuple[Highlight, ...]


def word_difference(before: str, after: str) -> WordDifference:
    """The words of `before` that `after` lacks, and the other way; white space alone is no difference.

    >>> found = word_difference("the first valve", "the second valve")
    >>> [(one.start, one.stop) for one in (*found.gone, *found.new)]
    [(4, 9), (4, 10)]
    """
    own, other = (list(_WORD.finditer(text)) for text in (before, after))
    matcher = difflib.SequenceMatcher(
        None, [m.group() for m in own], [m.group() for m in other], autojunk=False
    )
    blocks = [block for block in matcher.get_opcodes() if block[0] != "equal"]
    return WordDifference(
        gone=tuple(_span(own, i, j, "gone") for _, i, j, _, _ in blocks if i < j),
        new=tuple(_span(other, i, j, "new") for _, _, _, i, j in blocks if i < j),
    )


def answer_diff_html(changed: ChangedAnswer) -> str:
    """The question, both answers side by side with the words that differ marked, and what became of likelihood and
    citations; escaped, without script or frame.
    """
    found = word_difference(changed.before.text, changed.after.text)
    cells = "".join(
        f'<td class="wb-text">{highlight(text, spans)}</td>'
        for text, spans in ((changed.before.text, found.gone), (changed.after.text, found.new))
    )
    notes = [
        "the text changed" if changed.is_other else "the same text",
        f"the first answer {changed.likelihood_change:+.2f} nats",
    ]
    if not math.isnan(changed.marks_kept):
        notes.append(f"{changed.marks_kept:.0%} of its citations kept")
    if not math.isnan(changed.overlap):
        notes.append(f"{changed.overlap:.0%} of the cited characters shared")
    if changed.is_right_before is not None and changed.is_right_after is not None:
        was, now = (
            "right" if right else "wrong"
            for right in (changed.is_right_before, changed.is_right_after)
        )
        notes.append(f"cited {was} before, {now} after")
    return (
        f'<p class="wb-note">Question</p><p><strong>{escape(changed.before.question)}</strong></p>'
        "<table><thead><tr><th>before</th><th>with the edits</th></tr></thead>"
        f"<tbody><tr>{cells}</tr></tbody></table>"
        f'<p class="wb-note">{escape("; ".join(notes))}</p>'
    )


def _span(words: list[re.Match[str]], first: int, stop: int, name: str) -> Highlight:
    return Highlight(words[first].start(), words[stop - 1].end(), name)
