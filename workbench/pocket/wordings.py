"""Relations and how people write and ask about them: reads ``texts/<language>_*.relations`` for the fact generator.

A block is a relation: ``name subject-kind object-kind``, then statements (``=``) and questions (``?``); ``[a|b]`` is a
choice, ``[a]`` may be left out. The LAST statement and the LAST question of every block are never trained on: they are
the held-out wordings. Relations whose name starts with ``x_`` are held out whole.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TEXTS = Path(__file__).with_name("texts")
_CHOICE = re.compile(r" ?\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of one language; statements and questions hold ``{s}`` (subject) and ``{o}`` (object)."""

    name: str
    subject: str
    object: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the whole relation is kept for evaluation."""
        return self.name.startswith("x_")


@cache
def relations(language: str) -> tuple[Relation, ...]:
    """All relations of a language ("en", "de", "fr", "es").

    >>> next(r for r in relations("en") if r.name == "founded").questions[0]
    'When was {s} founded?'
    """
    return tuple(map(_parse, blocks(f"{language}_*.relations")))


def blocks(pattern: str) -> Iterator[str]:
    """The blocks of all text files of a pattern, in the order of their names; an empty line parts blocks."""
    for path in sorted(TEXTS.glob(pattern)):
        yield from path.read_text(encoding="utf-8").strip().split("\n\n")


def chosen(rng: random.Random, text: str) -> str:
    """`text` with one alternative of every ``[a|b]``, and every ``[a]`` there or not.

    >>> chosen(random.Random(1), "[old|worn] tools") in ("old tools", "worn tools")
    True
    >>> chosen(random.Random(0), "They ate it [with salt].") in ("They ate it.", "They ate it with salt.")
    True
    """

    def one(match: re.Match[str]) -> str:
        options = match[1].split("|") if "|" in match[1] else [match[1], ""]
        option = rng.choice(options)
        return f" {option}" if option and match[0].startswith(" ") else option

    return _CHOICE.sub(one, text).strip()


def _parse(block: str) -> Relation:
    head, *lines = block.strip().splitlines()
    name, subject, obj = head.split()
    statements = tuple(line[2:] for line in lines if line.startswith("= "))
    questions = tuple(line[2:] for line in lines if line.startswith("? "))
    return Relation(name, subject, obj, statements, questions)
