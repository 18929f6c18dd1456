"""Text → the language it is written in, as a code of ISO 639, or None where it does not say."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_SAMPLE_CHARACTERS = 2_000
# Below, the best guess on our own short samples is as often wrong as right.
_LEAST_PROBABILITY = 0.3
_LEAST_LETTERS = 12


def language_of(text: str) -> str | None:
    """Language of `text`, judged by 2,000 characters from its start and as many from its middle.

    >>> language_of("Die Pumpe ist gestern Abend ausgefallen.")
    'de'
    >>> language_of("12 34") is None
    True
    """
    middle = len(text) // 2
    sample = text[:_SAMPLE_CHARACTERS]
    sample += (
        " " + text[middle : middle + _SAMPLE_CHARACTERS]
        if len(text) > 2 * _SAMPLE_CHARACTERS
        else ""
    )
    letters = sum(character.isalpha() for character in sample)
    if letters == 0 or (letters < _LEAST_LETTERS and sample.isascii()):
        return None
    language, probability = _identifier().classify(sample)
    return language if probability >= _LEAST_PROBABILITY else None


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
