"""Pieces of a sentencepiece tokenizer → text that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def readable(pieces: Iterable[str]) -> str:
    """Pieces of a tokenizer as the text they spell: marks of a space become spaces, byte pieces their characters.

    Bytes that spell no character stay pieces.

    >>> readable(["▁valve", "<0xC3>", "<0xA9>", "s", "<0xE2>"])
    ' valveés<0xE2>'
    """
    out: list[str] = []
    held: list[str] = []
    for piece in pieces:
        if _BYTE.fullmatch(piece):
            held.append(piece)
            continue
        out += [_spelled(held), piece.replace("▁", " ")]
        held = []
    return "".join([*out, _spelled(held)])


def shown(text: str) -> str:
    r"""Text on one line: a line break is ↵, a tab ⇥, blanks alone ␣.

    >>> shown("a\n"), shown(" ")
    ('a↵', '␣')
    """
    if text and not text.strip(" "):
        return "␣" * len(text)
    return text.replace("\r\n", "↵").translate({10: "↵", 13: "↵", 9: "⇥"})


def _spelled(pieces: Sequence[str]) -> str:
    try:
        return bytes(int(piece[3:5], 16) for piece in pieces).decode()
    except UnicodeDecodeError:
        return "".join(pieces)
