"""Files made of a trace: read back, they are its tables; what a spreadsheet would run is text."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from workbench.errors import InputError
from workbench.routing.export import export_trace, read_tables
from workbench.routing.trace import RoutingTrace, TracedSource, example_trace, load_trace

TABLES = [".csv", ".parquet"]


def trace_of(texts: tuple[str, ...], *, layers: int = 3, document: str = "pump.md") -> RoutingTrace:
    """A trace with everything recorded but the norms, and evidence in its first half."""
    random = np.random.default_rng(len(texts))
    tokens = len(texts)
    routed = np.ones(tokens, dtype=bool)
    routed[-1] = False
    logs = random.normal(-1, 1, tokens).astype(np.float32)
    logs[: tokens // 2] = np.nan
    return RoutingTrace(
        experts=random.integers(0, 16, (tokens, layers, 2)).astype(np.uint8),
        gate_weights=random.uniform(0.3, 1, (tokens, layers, 2)).astype(np.float16),
        n_experts=16,
        token_ids=np.arange(tokens),
        token_texts=texts,
        phases=np.zeros(tokens, dtype=np.uint8),
        segments=(np.arange(tokens) >= tokens // 2).astype(np.int16),
        segment_names=("evidence 1", "answer"),
        spans=np.stack([np.arange(tokens), np.arange(tokens) + 1], axis=1).astype(np.int32),
        routed=routed,
        log_probabilities=logs,
        sources=(TracedSource("evidence 1", document, "c1", 3, 90, 0, rank=2),),
        origin={"generator": "tiny", "dtype": "float32"},
    )


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("is_bare", [False, True])
def test_tables_read_back_are_those_of_the_trace(
    tmp_path: Path, suffix: str, is_bare: bool
) -> None:
    texts = (
        "Which",
        " valve",
        "",
        "NA",
        "null",
        "nan",
        'a "b", c',
        "a\nb",
        "\r\n",
        "é日",
        "1",
        "True",
    )
    trace = example_trace() if is_bare else trace_of(texts)
    written = export_trace(trace, tmp_path / f"run{suffix}")
    assert [path.name for path in written] == [f"run{suffix}", f"run.choices{suffix}"]
    assert sorted(tmp_path.iterdir()) == sorted(written)
    again = read_tables(written[0])
    assert_frame_equal(again.tokens, trace.to_frame())
    assert_frame_equal(again.choices, trace.choices_frame())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1))
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    trace = trace_of(tuple(texts), layers=1)
    written = export_trace(trace, tmp_path_factory.mktemp("any") / "run.csv")
    assert read_tables(written[0]).tokens["text"].tolist() == texts


def test_no_text_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Read with Python's own csv module, which is what a spreadsheet would see after the quotes are gone."""
    texts = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'", "a=1", "")
    written = export_trace(trace_of(texts, document='=HYPERLINK("x")'), tmp_path / "run.csv")
    with written[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("text", "phase", "segment", "document", "chunk", "language"):
            assert not row[name].startswith(("=", "+", "-", "@", "\t", "\r")), row
    assert rows[0]["text"] == "'=1+1" and rows[0]["document"] == '\'=HYPERLINK("x")'
    assert rows[7]["text"] == "''" and rows[8]["text"] == "a=1"
    tokens = read_tables(written[0]).tokens
    assert tuple(tokens["text"]) == texts and tokens["document"][0] == '=HYPERLINK("x")'


def test_parquet_keeps_texts_as_they_are_and_who_routed(tmp_path: Path) -> None:
    trace = trace_of(("=1+1", "'a"))
    for file in export_trace(trace, tmp_path / "run.parquet"):
        frame = pd.read_parquet(file)
        assert frame.attrs["origin"] == trace.origin and "position" in frame.columns
    assert tuple(pd.read_parquet(tmp_path / "run.parquet")["text"]) == ("=1+1", "'a")


def test_the_tables_join_by_position(tmp_path: Path) -> None:
    trace = trace_of(("a", "b", "c"))
    tables = read_tables(export_trace(trace, tmp_path / "run.parquet")[0])
    joined = tables.choices.join(tables.tokens, on="position")
    for row in joined.itertuples():
        assert row.text == trace.token_texts[row.position]
        assert row.expert == trace.experts[row.position, row.layer, row.choice]


def test_an_exported_npz_is_the_trace(tmp_path: Path) -> None:
    trace = trace_of(("a", "b"))
    (path,) = export_trace(trace, tmp_path / "new" / "run.npz")
    assert (load_trace(path).experts == trace.experts).all()


def test_an_exported_page_is_titled_by_its_file(tmp_path: Path) -> None:
    (path,) = export_trace(example_trace(), tmp_path / "valve run.html")
    assert "<title>valve run</title>" in path.read_text("utf-8")


@pytest.mark.parametrize("suffix", [".npz", *TABLES, ".html"])
def test_what_fails_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = export_trace(trace_of(("a", "b")), tmp_path / f"run{suffix}")
    before = {path: path.read_bytes() for path in old}

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        export_trace(trace_of(("c", "d", "e")), tmp_path / f"run{suffix}")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("name", "found"), [("run.xlsx", ".xlsx"), ("run", "no suffix")])
def test_another_suffix_is_named_with_those_that_are_known(
    tmp_path: Path, name: str, found: str
) -> None:
    with pytest.raises(ValueError, match=f"{found}; use one of .npz, .csv, .parquet, .html"):
        export_trace(example_trace(), tmp_path / name)
    with pytest.raises(ValueError, match=r"use one of \.csv, \.parquet$"):
        read_tables(tmp_path / "run.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", TABLES)
def test_tables_of_something_else_are_refused_in_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    with pytest.raises(InputError, match=r"no table of a trace at .*run\."):
        read_tables(path)
    for content in (b"", b"PAR1 no", b"a,b\n1,2\n", b"\xff\xfe", replaced_column(tmp_path, suffix)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a table that export_trace wrote") as error:
            read_tables(path)
        assert "\n" not in str(error.value)
    export_trace(example_trace(), path)[1].unlink()
    with pytest.raises(InputError, match=r"no table of a trace at .*choices"):
        read_tables(path)


def replaced_column(folder: Path, suffix: str) -> bytes:
    """A token table that has a column too many."""
    frame = example_trace().to_frame().reset_index().assign(more=1)
    path = folder / "other"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    return path.read_bytes()


def test_a_trace_without_log_probabilities_has_the_same_types(tmp_path: Path) -> None:
    trace = trace_of(("a", "b"))
    without = replace(trace, log_probabilities=None, sources=())
    assert (
        (without.to_frame().dtypes["log_probability"]) == trace.to_frame().dtypes["log_probability"]
    )
