"""Text of tokens and documents → text that can stand in a picture: no mathematics, no control characters."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_SHOWN = {"\n": "↵", "\r": "↵", "\t": "⇥"}
_LACKING = "▯"


def visible(text: str, *, family: str | None = None) -> str:
    r"""`text` with every character that draws nothing, or that the font lacks, as a sign of the same length.

    A line break is ↵, a tab ⇥, and a text of blanks alone ␣; ▯ stands for other control and format characters (such as
    those that turn the direction of writing) and for what the fonts of `family` cannot draw. None is the family that
    matplotlib is set to.

    >>> visible("a\n\u202eb"), visible(" "), visible(" pump")
    ('a↵▯b', '␣', ' pump')
    """
    if text and not text.strip(" "):
        return "␣" * len(text)
    fonts = _fonts(family)
    return "".join(_sign(character, fonts) for character in text)


def label(text: str, *, family: str | None = None) -> str:
    r"""`text` as :func:`visible` gives it, for titles, ticks, legends and texts: a dollar sign stays a dollar sign.

    >>> label("from $5 to $10")
    'from \\$5 to \\$10'
    """
    return visible(text, family=family).replace("$", r"\$")


def _sign(character: str, fonts: list[FT2Font]) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    if unicodedata.category(character)[0] == "C":
        return _LACKING
    drawn = any(font.get_char_index(ord(character)) for font in fonts)
    return character if drawn else _LACKING


def _fonts(family: str | None) -> list[FT2Font]:
    """The fonts that matplotlib would try, one for each name of the family."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    names = FontProperties(family=None if family is None else [family]).get_family()
    return [get_font(findfont(FontProperties(family=[name]))) for name in names]
