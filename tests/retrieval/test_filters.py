from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.retrieval.filters import Column, matching_rows, parsed_terms, unknown_field

ROWS: list[dict[str, Any]] = [
    {"language": "de", "year": 1999, "tags": ["pump", "lock"], "mixed": 1},
    {"language": "en", "year": 2004, "draft": True, "mixed": True},
    {"language": "en", "year": 2004.5, "tags": []},
    {"year": "2004", "draft": False, "tags": ["eel"]},
    {},
    {"language": "manual/pump", "year": 1, "where": {"deep": [1]}},
]


def column(name: str) -> Column:
    return Column.of(row.get(name) for row in ROWS)


def rows_of(where: Any) -> list[int]:
    return np.flatnonzero(matching_rows(where, column, rows=len(ROWS))).tolist()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"language": "en"}, [1, 2]),
        ({"language": {"$ne": "en"}}, [0, 3, 4, 5]),
        ({"language": {"$in": ["de", "en"]}}, [0, 1, 2]),
        ({"language": {"$nin": ["de", "en"]}}, [3, 4, 5]),
        ({"language": {"$in": []}}, []),
        ({"year": {"$gte": 2004}}, [1, 2]),
        ({"year": {"$gt": 2004}}, [2]),
        ({"year": {"$gte": 1999, "$lt": 2004.5}}, [0, 1]),
        ({"year": {"$lte": "2005"}}, [3]),
        ({"draft": True}, [1]),
        ({"mixed": True}, [1]),  # 1 is not true
        ({"mixed": 1}, [0]),
        ({"mixed": {"$ne": True}}, [0, 2, 3, 4, 5]),
        ({"year": {"$in": [2004, True]}}, [1]),
        ({"tags": "pump"}, [0]),
        ({"tags": ["pump", "lock"]}, [0]),
        ({"tags": {"$ne": "pump"}}, [1, 2, 3, 4, 5]),
        ({"tags": {"$exists": True}}, [0, 2, 3]),
        ({"tags": {"$exists": False}}, [1, 4, 5]),
        ({"language": {"$glob": "manual/*"}}, [5]),
        ({"language": {"$glob": "e?"}}, [1, 2]),
        ({"tags": {"$glob": "p*"}}, [0]),
        ({"where": {"deep": [1]}}, [5]),
        ({"language": "en", "year": 2004}, [1]),
        ({"$or": [{"language": "de"}, {"draft": False}]}, [0, 3]),
        ({"$and": [{"language": "en"}, {"$not": {"draft": True}}]}, [2]),
        ({"$not": {"year": {"$gte": 0}}}, [3, 4]),
    ],
)
def test_a_filter_lets_the_right_rows_through(where: Any, expected: list[int]) -> None:
    assert rows_of(where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("de", "where='de' is no filter"),
        ({"$xor": []}, r"'\$xor' is no operator"),
        ({"year": {"$near": 3}}, r"year: '\$near' is no operator"),
        ({"year": {"$in": 3}}, r"year: \$in takes a list, got 3"),
        ({"year": {"$in": "abc"}}, r"year: \$in takes a list"),
        ({"year": {"$gt": None}}, r"year: \$gt compares numbers or text, got None"),
        ({"year": {"$exists": 1}}, r"year: \$exists takes true or false"),
        ({"year": {"$glob": 1}}, r"year: \$glob takes a pattern"),
        ({"$or": {"a": 1}}, r"\$or takes a list of filters"),
        ({"$or": []}, r"\$or takes a list of filters"),
        ({"$not": 3}, "where=3 is no filter"),
        ({1: 2}, "where={1: 2} is no filter"),
        ({"$and": [1]}, "where=1 is no filter"),
        ({"year": None}, r"year: None is no value; ask for a missing one with {'\$exists': False}"),
        ({"year": {"$nin": [1999, None]}}, r"year: None is no value"),
        (
            {"draft": 1},
            "draft holds true or false, such as True; the filter compares it with numbers, 1,",
        ),
        (
            {"year": True},
            "year holds numbers and text, such as 1999; the filter compares it with true",
        ),
        ({"draft": {"$gte": "abc"}}, "draft holds true or false.* compares it with text, 'abc'"),
        (
            {"draft": {"$glob": "*"}},
            r"draft holds true or false.* with text, '\*', which finds nothing",
        ),
        ({"draft": {"$ne": "yes"}}, "draft holds true or false"),
        ({"draft": {"$nin": ["yes", 1]}}, "compares it with numbers and text, 'yes'"),
        (
            {"language": {}},
            "language holds text, such as 'de'; the filter compares it with dicts, {}",
        ),
        ({"language": ["de"]}, r"compares it with lists, \['de'\]"),
        (
            {"tags": 3},
            "tags holds lists and text, such as .*; the filter compares it with numbers, 3",
        ),
    ],
)
def test_what_is_no_filter_is_refused(where: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(where)


scalars = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from("ab"), st.floats(0, 3))


@given(st.lists(st.one_of(st.none(), scalars, st.lists(scalars, max_size=2)), max_size=20), scalars)
def test_a_column_gives_each_row_its_own_value(values: list[Any], operand: Any) -> None:
    made = Column.of(values)
    again = [None if code < 0 else made.values[code] for code in made.codes]
    assert [(type(v), v) for v in again] == [(type(v), v) for v in values]
    held = [type(part) for v in values for part in (v if isinstance(v, list) else [v])]
    number = {int: float}
    kinds = {number.get(kind, kind) for kind in held} - {type(None)}
    if any(v is not None for v in values) and number.get(type(operand), type(operand)) not in kinds:
        with pytest.raises(ValueError, match="the filter compares it with"):
            matching_rows({"f": operand}, lambda _: made, rows=len(values))
        return
    found = matching_rows({"f": {"$ne": operand}}, lambda _: made, rows=len(values))
    opposite = matching_rows({"$not": {"f": operand}}, lambda _: made, rows=len(values))
    assert (found == opposite).all()


def test_terms_of_the_command_line() -> None:
    assert parsed_terms(["language=de"]) == {"language": {"$eq": "de"}}
    assert parsed_terms(['year="2004"']) == {"year": {"$eq": "2004"}}
    assert parsed_terms(["year != 2004"]) == {"year": {"$ne": 2004}}
    assert parsed_terms(["document~manual/*.md"]) == {"document": {"$glob": "manual/*.md"}}
    assert parsed_terms(["draft=true", '{"a": {"$in": [1]}}']) == {
        "$and": [{"draft": {"$eq": True}}, {"a": {"$in": [1]}}]
    }
    assert parsed_terms(["title=a = b"]) == {"title": {"$eq": "a = b"}}
    with pytest.raises(ValueError, match="'language' is no filter; write FIELD=VALUE"):
        parsed_terms(["language"])
    with pytest.raises(ValueError, match="is no JSON"):
        parsed_terms(["{a"])
    assert parsed_terms(["title=NaN"]) == {"title": {"$eq": "NaN"}}
    for term in ("language==de", "year=>2001", "year=<2001"):
        with pytest.raises(ValueError, match="is no filter; write = for equal"):
            parsed_terms([term])


def test_an_unknown_field_names_what_is_near() -> None:
    known = ["document", "language", "title"]
    assert str(unknown_field("langauge", known)) == (
        "no document has the field 'langauge'; perhaps language"
    )
    assert "the fields are document, language, title" in str(unknown_field("zzz", known))
