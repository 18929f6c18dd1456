"""A claim and a source → the sentence of the source that supports it best, by words and numbers alone.

A cheap, exact test that needs no model: it finds the place to look at and catches numbers that are not there. It
does not understand; its verdicts are lexical and are named so wherever they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["verbatim", "supported", "unsupported"]
SUPPORTED_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Support:
    """The best half-open span of a document for a claim, the share of the claim's words in it, and the verdict."""

    start: int
    stop: int
    overlap: float
    missing_numbers: tuple[str, ...]
    verdict: Verdict


def find_support(claim: str, text: str, spans: Sequence[tuple[int, int]]) -> Support:
    """Compare `claim` with each of `spans` of `text`; the best is the one with most of the claim's words and numbers.

    "verbatim": the claim stands in the span character by character (white space aside). "supported": every number of
    the claim and at least half of its longer words are there. Else "unsupported".

    >>> find_support("It failed at 22:47.", "All was well. Valve V-14 failed at 22:47.", [(0, 13), (14, 41)]).verdict
    'supported'
    """
    if not spans:
        raise ValueError("there is no span to look for support in")
    return max((_compare(claim, text, start, stop) for start, stop in spans), key=_quality)


def _compare(claim: str, text: str, start: int, stop: int) -> Support:
    span = text[start:stop]
    wanted, there = content_words(claim), content_words(span)
    overlap = len(wanted & there) / len(wanted) if wanted else 0.0
    present = set(_numbers(span))
    missing = tuple(number for number in _numbers(claim) if number not in present)
    if _squeezed(claim) and _squeezed(claim) in _squeezed(span):
        verdict: Verdict = "verbatim"
    elif overlap >= SUPPORTED_OVERLAP and not missing:
        verdict = "supported"
    else:
        verdict = "unsupported"
    return Support(start, stop, overlap, missing, verdict)


def _quality(support: Support) -> tuple[bool, float, float, int]:
    return (
        support.verdict == "verbatim",
        -len(support.missing_numbers),
        support.overlap,
        -support.start,
    )


def content_words(text: str) -> set[str]:
    """Words that carry content: numbers, and words of four letters or more; every character of scripts without spaces.

    >>> sorted(content_words("The pump P3 tripped at 23:05"))
    ['05', '23', 'p3', 'pump', 'tripped']
    """
    words = re.findall(r"[^\W_]+", text.casefold())
    return {
        word
        for word in words
        if len(word) >= 4 or any(c.isdigit() or not c.isascii() for c in word)
    }


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!? ")
