"""Other words for a word: reads ``texts/thesaurus.txt`` and rewords questions with it.

A line is one idea, its words parted by `` / ``: v verbs (four forms), n nouns (singular and plural), a, r, p the rest,
d words of one root, t a general term and its kinds. A word with ``*`` is more general: it may stand for the others, not
the others for it. Phrases of several words may replace a word, and are not looked up themselves.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

from workbench.pocket.wordings import TEXTS

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_KEPT = frozenset(  # words of grammar: what replaces them is wrong more often than right
    """
    a an the be am is are was were been being have has had having do does did done doing will would
    can could may might must shall should who whom whose what which when where why how not no and or
    but if in on at to for from by with as of than then there it its he she they them him her his
    their this that these those one two like well just even over under get got go went make made
    take took
    """.split()
)


@cache
def other_words() -> dict[str, tuple[str, ...]]:
    """Word form -> word forms that may stand for it in a question.

    >>> "automobile" in other_words()["car"]
    True
    """
    table: dict[str, list[str]] = {}
    for forms in _ideas():
        for word, general in forms:
            if not general and word not in _KEPT and _WORD.fullmatch(word):
                table.setdefault(word, []).extend(w for w, _ in forms if w != word)
    return {word: tuple(dict.fromkeys(others)) for word, others in table.items() if others}


def reworded(rng: random.Random, text: str, share: float) -> str:
    """`text` with about `share` of its known words replaced; capitalised words are left alone.

    >>> reworded(random.Random(0), "Xu sold it", 0.0)
    'Xu sold it'
    """

    def other(match: re.Match[str]) -> str:
        found = other_words().get(match[0])
        return rng.choice(found) if found and rng.random() < share else match[0]

    return re.sub(r"\b[a-z]{3,}\b", other, text)


@cache
def lines_of() -> dict[str, tuple[int, ...]]:
    """Word form -> numbers of the first three lines of the thesaurus that hold it or another form of its word.

    >>> bool(set(lines_of()["bought"]) & set(lines_of()["purchase"]))
    True
    """
    table: dict[str, list[int]] = {}
    for number, line in enumerate(_lines()):
        kind, _, rest = line.partition(" ")
        for word in re.split(r" / |:|,", rest.replace("*", "")) if kind != "x" else ():
            form = word.strip()
            forms = [form, _third_person(form)] if kind in "vn" and form else [form]
            for found in forms:
                if (
                    _WORD.fullmatch(found)
                    and found not in _KEPT
                    and number not in table.get(found, ())
                ):
                    table.setdefault(found, []).append(number)
    return {word: tuple(numbers[:3]) for word, numbers in table.items()}


def _lines() -> list[str]:
    return (TEXTS / "thesaurus.txt").read_text(encoding="utf-8").splitlines()


def _ideas() -> Iterator[list[tuple[str, bool]]]:
    """Forms that may replace one another, each with whether it is the more general one."""
    for line in _lines():
        kind, _, rest = line.partition(" ")
        if kind == "t":
            term, _, members = rest.partition(":")
            yield [(term.strip(), True), *((m.strip(), False) for m in members.split(","))]
            continue
        if kind == "x":
            continue  # converse verbs need their roles exchanged; scenes and relations do that
        words = [word.strip() for word in rest.split(" / ")]
        general = ["*" in word for word in words]
        forms = [[form.strip() for form in word.replace("*", "").split(",")] for word in words]
        if kind == "v":
            for place in range(4):
                yield [(f[min(place, len(f) - 1)], g) for f, g in zip(forms, general, strict=True)]
            yield [(_third_person(f[0]), g) for f, g in zip(forms, general, strict=True)]
        elif kind == "n":
            yield [(f[0], g) for f, g in zip(forms, general, strict=True)]
            yield [(_plural(f), g) for f, g in zip(forms, general, strict=True)]
        else:
            yield [(form, g) for f, g in zip(forms, general, strict=True) for form in f]


def _third_person(verb: str) -> str:
    first, _, rest = verb.partition(" ")
    if first.endswith(("s", "x", "z", "ch", "sh", "o")):
        first += "es"
    elif re.search(r"[^aeiou]y$", first):
        first = first[:-1] + "ies"
    else:
        first += "s"
    return f"{first} {rest}".strip()


def _plural(forms: list[str]) -> str:
    return (
        forms[1]
        if len(forms) > 1
        else _third_person(forms[0])
        if " " not in forms[0]
        else f"{forms[0]}s"
    )
