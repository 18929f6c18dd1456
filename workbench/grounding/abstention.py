"""Whether an answer declines to answer."""

from __future__ import annotations

import re

from workbench.generation.prompts import ABSTENTION


def is_abstention(text: str) -> bool:
    """Whether `text` is the abstention sentence, whatever its marks, case and final stop.

    >>> is_abstention("[3] the passages do not say")
    True
    >>> is_abstention("The passages do not say when, but [2] names a year.")
    False
    """
    bare = re.sub(r"\[[\d\s,–-]*\]", " ", text)
    return _words(bare) == _words(ABSTENTION)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
