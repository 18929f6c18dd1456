"""What a file says of itself, its author, date and keywords, as JSON values by name: what a filter can ask for.

Files are untrusted: what is too much or too deep is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

from workbench.corpus.extracted import in_one_space, without_surrogates
from workbench.corpus.sections import FRONT_MATTER

_MAX_YAML, _MAX_VALUES, _MAX_TEXT = 64_000, 1_000, 2_000
# What programs write for an author when nobody wrote one
_NOBODY = re.compile(
    r"\(?(?:anonymous|unknown|unspecified|author|user|python-docx)\)?\Z", re.IGNORECASE
)
_USUAL = frozenset({"title", "author", "date", "tags", "keywords", "language", "lang"})
_BETWEEN_KEYWORDS = re.compile(r"\s*[,;\n]\s*")


def front_matter(text: str) -> tuple[dict[str, Any], str | None]:
    r"""The fields of the YAML front matter of `text`, and a notice if there is some that cannot be read.

    Days and times become text in ISO 8601, which compares as they do.

    >>> front_matter("---\nauthor: A. Smit\ndate: 1998-03-01\ntags: [pump, lock]\n---\nIt failed.")
    ({'author': 'A. Smit', 'date': '1998-03-01', 'tags': ['pump', 'lock']}, None)
    """
    import yaml

    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, None
    if len(match[1]) > _MAX_YAML:
        return {}, f"front matter not read (more than {_MAX_YAML:,} characters)"
    try:
        facts = yaml.safe_load(match[1])
        return _usual(plain_metadata(facts if isinstance(facts, Mapping) else {})), None
    except RecursionError:
        return {}, "front matter not read (nested too deeply)"
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        said = str(getattr(error, "problem", None) or error).partition("\n")[0][:100]
        return {}, f"front matter not read ({said})"


def _usual(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` with the fields that everybody has as all have them: small letters, lists, a year as text."""
    found = {(n.casefold() if n.casefold() in _USUAL else n): value for n, value in facts.items()}
    for name in ("tags", "keywords"):
        if isinstance(found.get(name), str):
            found[name] = keywords_of(found[name])
    if isinstance(found.get("date"), int):
        found["date"] = str(found["date"])
    return found


def plain_metadata(facts: Mapping[Any, Any]) -> dict[str, Any]:
    """`facts` as JSON values, those that are empty left out.

    Raises
    ------
    ValueError
        They hold more than 1,000 values, or text of more than 2,000 characters.

    >>> plain_metadata({"created": date(1998, 3, 1), "author": "", 3: None, "pages": 12})
    {'created': '1998-03-01', 'pages': 12}
    """
    left = _MAX_VALUES

    def plain(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {_MAX_VALUES:,} values")
        if isinstance(value, Mapping):
            made = {said(name): plain(part) for name, part in value.items()}
            return {name: part for name, part in made.items() if part not in (None, "", [], {})}
        if isinstance(value, list | tuple | set):
            return [part for part in map(plain, value) if part not in (None, "", [], {})]
        if isinstance(value, bool | int) or value is None:
            return value
        if isinstance(value, float):
            return value if abs(value) < float("inf") else str(value)
        return said(value.isoformat() if isinstance(value, datetime | date) else value)

    def said(value: Any) -> str:
        text = in_one_space(without_surrogates(str(value)))
        if len(text) > _MAX_TEXT:
            raise ValueError(f"text of more than {_MAX_TEXT:,} characters")
        return text

    found: dict[str, Any] = plain(facts)
    return found


def told_metadata(
    *, author: Any = None, keywords: Any = None, created: Any = None, date: Any = None
) -> dict[str, Any]:
    """What the properties of a file say, as :func:`plain_metadata`; nothing where they say too much.

    Several authors are a list, keywords always.

    >>> told_metadata(author=["A. Smit", "B. Bakker"], keywords="pump; lock, gate", created=datetime(1998, 3, 1, 12))
    {'author': ['A. Smit', 'B. Bakker'], 'keywords': ['pump', 'lock', 'gate'], 'created': '1998-03-01'}
    """
    told = author if isinstance(author, list | tuple) else re.split(r"\s*;\s*", str(author or ""))
    names = [name for name in told if name]
    names = [name for name in names if not _NOBODY.match(str(name).strip())]
    facts = {
        "author": names if len(names) > 1 else next(iter(names), None),
        "keywords": keywords_of(keywords),
        "created": created.date() if isinstance(created, datetime) else created,
        "date": date,
    }
    try:
        return plain_metadata(facts)
    except ValueError:
        return {}


def keywords_of(told: Any) -> list[str]:
    """Keywords that stand in one text between commas or semicolons, or in several texts."""
    texts: Iterable[Any] = told if isinstance(told, list | tuple) else [told or ""]
    return [word for text in texts for word in _BETWEEN_KEYWORDS.split(str(text).strip()) if word]
