"""A filter over fields becomes the rows it lets through. Knows columns of values, no index and no text.

The form is the one of MongoDB's queries, which most vector stores share: ``{"language": "de"}``, ``{"year": {"$gte":
2001}}``, and ``$and``, ``$or``, ``$not`` around them. Several fields, or several operators of one, must all hold.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import translate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Where = Mapping[str, Any]
_SIGNS = {"=": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte", "~": "$glob"}
_TERM = re.compile(r"\s*([\w.-]+)\s*(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one field: row i has ``values[codes[i]]``, or none where the code is -1."""

    codes: NDArray[np.int32]
    values: Sequence[Any]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Column:
        """The column of these values, None for a missing one.

        >>> column = Column.of(["de", None, "de"])
        >>> column.codes.tolist(), column.values
        ([0, -1, 0], ['de'])
        """
        seen: dict[Hashable, int] = {}
        kept: list[Any] = []
        codes = []
        for value in values:
            if value is None:
                codes.append(-1)
                continue
            key = (type(value), _key(value))
            if key not in seen:
                seen[key] = len(kept)
                kept.append(value)
            codes.append(seen[key])
        return cls(np.array(codes, dtype=np.int32), kept)

    def where(self, holds: Callable[[Any], bool]) -> NDArray[np.bool_]:
        """Rows whose value, or None, `holds`: each distinct value is looked at once."""
        answers = np.array([*map(holds, self.values), holds(None)], dtype=bool)
        found: NDArray[np.bool_] = answers[self.codes]
        return found


def matching_rows(where: Where, column: Callable[[str], Column], *, rows: int) -> NDArray[np.bool_]:
    """Which of `rows` rows `where` lets through; ``column(field)`` gives the values of a field: [rows].

    Operators of a field are ``$eq`` (a bare value), ``$ne``, ``$in``, ``$nin``, ``$gt``, ``$gte``, ``$lt``, ``$lte``,
    ``$glob`` (a pattern with ``*`` and ``?``) and ``$exists``. A list matches if one of its items does. What is of
    another kind than the operand, text beside a number, does not match; a missing value matches ``$ne``, ``$nin`` and
    ``{"$exists": False}`` alone.

    Raises
    ------
    ValueError
        `where` is no filter, or compares a field with a kind of value that it never has, text with years.

    >>> years = {"year": Column.of([1999, 2004, None, "2004"])}
    >>> matching_rows({"year": {"$gte": 2001}}, years.__getitem__, rows=4).tolist()
    [False, True, False, False]
    >>> matching_rows({"$not": {"year": 2004}}, years.__getitem__, rows=4).tolist()
    [True, False, True, True]
    """
    found = np.ones(rows, dtype=bool)
    for name, operand in _checked(where).items():
        if name in ("$and", "$or"):
            if not isinstance(operand, list | tuple) or not operand:
                raise ValueError(f"{name} takes a list of filters, got {operand!r}")
            parts = [matching_rows(part, column, rows=rows) for part in operand]
            found &= np.logical_and.reduce(parts) if name == "$and" else np.logical_or.reduce(parts)
        elif name == "$not":
            found &= ~matching_rows(operand, column, rows=rows)
        elif name.startswith("$"):
            raise ValueError(f"{name!r} is no operator; around fields use $and, $or and $not")
        else:
            condition, held = _condition(name, operand), column(name)
            _refuse_other_kinds(name, operand, held.values)
            found &= held.where(condition)
    return found


def plain_filter(where: Where) -> Where:
    """`where` in lists, dicts and scalars of JSON: arrays, sets, NumPy's numbers and days become what they hold.

    >>> plain_filter({"year": {"$in": np.array([1998, 2004])}})
    {'year': {'$in': [1998, 2004]}}
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, set | frozenset):
            return sorted((plain(part) for part in value), key=repr)
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        if value is None or isinstance(value, str | int | float | bool):
            return value
        if isinstance(value, date):
            return value.isoformat()
        raise ValueError(f"a filter holds {value!r}; it takes numbers, text, lists and dicts")

    found: Where = plain(_checked(where))
    return found


def parsed_terms(terms: Sequence[str]) -> Where:
    """The filter of command line terms such as ``language=de``, ``year>=2001`` or ``document~manual/*``; all must hold.

    A value is a number, ``true`` or ``false`` if it reads as one, else text; in double quotes it is text. A term that
    begins with a brace is a filter as JSON.

    >>> parsed_terms(["language=de", "year>=2001"])
    {'$and': [{'language': {'$eq': 'de'}}, {'year': {'$gte': 2001}}]}
    """
    parts = []
    for term in terms:
        if term.lstrip().startswith("{"):
            try:
                parts.append(json.loads(term))
            except ValueError as error:
                raise ValueError(f"the filter {term!r} is no JSON: {error}") from error
            continue
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(
                f"{term!r} is no filter; write FIELD=VALUE, or !=, >, >=, <, <=, ~ (pattern) for ="
            )
        field, sign, text = match.groups()
        if text[:1] in ("=", "<", ">"):
            raise ValueError(
                f"{term!r} is no filter; write = for equal, >= and <= for bounds, and quote a value that begins so"
            )
        parts.append(
            {field: {_SIGNS[sign]: text.strip() if sign == "~" else _scalar(text.strip())}}
        )
    return parts[0] if len(parts) == 1 else {"$and": parts}


def _checked(where: Any) -> Where:
    if not isinstance(where, Mapping) or not all(isinstance(name, str) for name in where):
        raise ValueError(f"where={where!r} is no filter; give a dict such as {{'language': 'de'}}")
    return where


def unknown_field(name: str, known: Iterable[str]) -> ValueError:
    """The error for a filter on a field that no document has."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"perhaps {', '.join(close)}" if close else f"the fields are {', '.join(names)}"
    return ValueError(f"no document has the field {name!r}; {hint}")


def _refuse_other_kinds(field: str, operand: Any, values: Sequence[Any]) -> None:
    """A field that never has a value of the operand's kind would match nothing, or all, without a word."""
    held = {_kind(part) for value in values for part in _and_items(value)}
    for name, value in _operators(operand).items():
        if name == "$exists":
            continue
        options = list(value) if name in ("$in", "$nin") else [value]
        asked = {_kind(option) for option in options}
        if held and asked and not held & asked:
            raise ValueError(
                f"{field} holds {' and '.join(sorted(held))}, such as {values[0]!r}; the filter compares it with "
                f"{' and '.join(sorted(asked))}, {options[0]!r}, which finds nothing"
                + ("; put it in quotes" if asked == {"numbers"} and "text" in held else "")
            )


def _and_items(value: Any) -> Iterable[Any]:
    """A value, and its items if it is a list."""
    return (value, *value) if isinstance(value, list | tuple) else (value,)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, str):
        return "text"
    return "lists" if isinstance(value, list | tuple) else "dicts"


def _operators(operand: Any) -> Mapping[str, Any]:
    """The operators of a field: a bare value is to be equal."""
    is_operators = isinstance(operand, Mapping) and any(str(n).startswith("$") for n in operand)
    return operand if is_operators else {"$eq": operand}


def _condition(field: str, operand: Any) -> Callable[[Any], bool]:
    """Whether a value, or None for a missing one, satisfies `operand`."""
    tests = [_operator(field, name, value) for name, value in _operators(operand).items()]
    return lambda value: all(test(value) for test in tests)


def _operator(field: str, name: str, operand: Any) -> Callable[[Any], bool]:
    def any_item(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: (
            value is not None
            and (test(value) or (isinstance(value, list | tuple) and any(map(test, value))))
        )

    if name == "$exists":
        if not isinstance(operand, bool):
            raise ValueError(f"{field}: $exists takes true or false, got {operand!r}")
        return lambda value: (value is not None) is operand
    if name in ("$in", "$nin"):
        if isinstance(operand, str | Mapping) or not isinstance(operand, Iterable):
            raise ValueError(f"{field}: {name} takes a list, got {operand!r}")
        options = [_present(field, option) for option in operand]
        within = any_item(lambda value: any(_equal(value, option) for option in options))
        return within if name == "$in" else lambda value: not within(value)
    if name in ("$eq", "$ne"):
        wanted = _present(field, operand)
        equal = any_item(lambda value: _equal(value, wanted))
        return equal if name == "$eq" else lambda value: not equal(value)
    if name == "$glob":
        if not isinstance(operand, str):
            raise ValueError(f"{field}: $glob takes a pattern such as 'manual/*', got {operand!r}")
        pattern = re.compile(translate(operand))
        return any_item(lambda value: isinstance(value, str) and bool(pattern.match(value)))
    if name in ("$gt", "$gte", "$lt", "$lte"):
        if isinstance(operand, bool) or not isinstance(operand, int | float | str):
            raise ValueError(f"{field}: {name} compares numbers or text, got {operand!r}")
        return any_item(
            lambda value: _comparable(value, operand) and _ordered(name, value, operand)
        )
    raise ValueError(
        f"{field}: {name!r} is no operator; use $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $glob or $exists"
    )


def _present(field: str, operand: Any) -> Any:
    if operand is None:
        raise ValueError(
            f"{field}: None is no value; ask for a missing one with {{'$exists': False}}"
        )
    return operand


def _equal(value: Any, operand: Any) -> bool:
    return isinstance(value, bool) == isinstance(operand, bool) and bool(value == operand)


def _comparable(value: Any, operand: Any) -> bool:
    if isinstance(operand, str):
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(name: str, value: Any, operand: Any) -> bool:
    if name in ("$gt", "$gte"):
        return bool(value > operand or (name == "$gte" and value == operand))
    return bool(value < operand or (name == "$lte" and value == operand))


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_number = isinstance(value, int | float) and np.isfinite(value)
    return value if is_number or isinstance(value, str) else text


def _key(value: Any) -> Hashable:
    if isinstance(value, Hashable):
        try:
            hash(value)
            return value
        except TypeError:
            pass
    return json.dumps(value, sort_keys=True, default=repr)
