import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.corpus.formats import extract, format_of
from workbench.errors import InputError


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", "text"),
        ("README", "text"),
        ("a.xyz", "text"),
        ("A.MD", "markdown"),
        ("a.b.py", "code"),
        ("Makefile", "code"),
        ("a.json", "code"),
        ("a.csv", "csv"),
        ("a.tsv", "csv"),
        ("a.jsonl", "jsonl"),
        ("a.htm", "html"),
        ("a.ipynb", "ipynb"),
        ("a.PDF", "pdf"),
        ("a.docx", "docx"),
        ("a.log", "log"),
    ],
)
def test_a_name_tells_the_format(name, format):
    assert format_of(name) == format


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.sampled_from(["txt", "md", "py", "csv", "jsonl"]),
)
def test_text_formats_keep_the_decoded_file_as_it_is(text, suffix):
    text = "x\r\n" + text + "\r\n\tend\r"
    assert extract(text.encode(), f"a.{suffix}").text == text


def test_a_table_keeps_every_cell_as_another_reader_sees_it():
    rows = [["id", "text"], ["1", 'quoted "x", with\nline'], ["2", "日本"]]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    text = extract(buffer.getvalue().encode(), "a.csv").text
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


def test_broken_lines_of_jsonl_are_kept():
    data = json.dumps({"a": "é"}, ensure_ascii=False) + "\n{broken\n"
    assert extract(data.encode(), "a.jsonl").text == data


def test_only_markdown_has_headings_among_the_text_formats():
    assert [s.title for s in extract(b"# A\n", "a.md").sections] == ["A"]
    assert [extract(b"# A\n", f"a.{suffix}").sections for suffix in ("txt", "py", "csv")] == [
        (),
        (),
        (),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.bin", r"^binary data, no text format known for '\.bin'$"),
        ("a", "^binary data, no text format known without a suffix$"),
        ("a.txt", r"^binary data, though '\.txt' promises text$"),
        ("a.py", r"^binary data, though '\.py' promises text$"),
        ("Makefile", "^binary data, though 'Makefile' promises text$"),
        ("a.rtf", r"^'\.rtf' files are not read; save it as \.docx$"),
        ("a.XLSX", r"^'\.xlsx' files are not read; save it as \.csv$"),
    ],
)
def test_what_is_not_read_says_why(name, reason):
    with pytest.raises(InputError, match=reason):
        extract(bytes(100), name)


@settings(deadline=None, max_examples=50)
@given(
    st.binary(max_size=300), st.sampled_from(["pdf", "docx", "ipynb", "html", "txt", "md", "csv"])
)
def test_any_bytes_are_read_or_refused_in_one_line(data, suffix):
    try:
        extracted = extract(data, f"a.{suffix}")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        extracted.text.encode()
