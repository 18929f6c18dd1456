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
    return "".join(spelled(pieces))


def spelled(pieces: Iterable[str]) -> tuple[str, ...]:
    """What each piece adds to the text: the first of the bytes of a character is the character, the others are empty.

    >>> spelled(["▁caf", "<0xC3>", "<0xA9>", "<0xE2>"])
    (' caf', 'é', '', '<0xE2>')
    """
    out: list[str] = []
    held: list[str] = []
    for piece in pieces:
        if _BYTE.fullmatch(piece):
            held.append(piece)
            continue
        out += [*_characters(held), piece.replace("▁", " ")]
        held = []
    return (*out, *_characters(held))


def shown(text: str) -> str:
    r"""Text on one line: a line break is ↵, a tab ⇥, blanks alone ␣.

    >>> shown("a\n"), shown(" ")
    ('a↵', '␣')
    """
    if text and not text.strip(" "):
        return "␣" * len(text)
    return text.replace("\r\n", "↵").translate({10: "↵", 13: "↵", 9: "⇥"})


def _characters(pieces: Sequence[str]) -> list[str]:
    """Byte pieces as the characters they spell, each at its first byte."""
    raw = bytes(int(piece[3:5], 16) for piece in pieces)
    found = list(pieces)
    at = 0
    while at < len(raw):
        length = next((n for n in range(1, 5) if _is_character(raw[at : at + n])), 0)
        if length:
            found[at : at + length] = [raw[at : at + length].decode(), *[""] * (length - 1)]
        at += length or 1
    return found


def _is_character(raw: bytes) -> bool:
    try:
        return len(raw.decode()) == 1
    except UnicodeDecodeError:
        return False
