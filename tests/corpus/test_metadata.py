from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

import docx
import pytest
from reportlab.pdfgen.canvas import Canvas

from workbench.corpus.documents import Document
from workbench.corpus.docx_text import extract_docx
from workbench.corpus.html_text import extract_html
from workbench.corpus.metadata import front_matter, keywords_of, told_metadata
from workbench.corpus.pdf_text import extract_pdf
from workbench.corpus.readers import read_corpus, read_document


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("author: A. Smit\nyear: 1998\ndraft: no", {"author": "A. Smit", "year": 1998, "draft": False}),
        ("date: 1998-03-01\nat: 1998-03-01 12:30:00", {"date": "1998-03-01", "at": "1998-03-01T12:30:00"}),
        ("tags:\n- pump\n- 14\n-\nempty:\nnone: []", {"tags": ["pump", 14]}),
        ("a: {b: {c: 1}, d: null}\n3: x", {"a": {"b": {"c": 1}}, "3": "x"}),
        ("a: .nan\nb: -.inf\nc: 2.5", {"a": "nan", "b": "-inf", "c": 2.5}),
        ("a: >\n  two\n  lines\nö: '\t x'", {"a": "two lines", "ö": "x"}),
        ("Author: Ada\nDate: 2023\nYear: 3", {"author": "Ada", "date": "2023", "Year": 3}),
        ("tags: a, b c\nKeywords: d", {"tags": ["a", "b c"], "keywords": ["d"]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["---", "..."])
def test_front_matter_becomes_json_values(yaml: str, expected: object, end: str) -> None:
    found, notice = front_matter(f"---\n{yaml}\n{end}\n# Pump\n")
    assert found == expected and notice is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "text", ["", "# Pump", "---\nNo key here.\n---\n", "\n---\na: 1\n---\n", "--- a: 1 ---", "---\na: 1\n"]
)  # fmt: skip
def test_what_is_no_front_matter_gives_nothing(text: str) -> None:
    assert front_matter(text) == ({}, None)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


@pytest.mark.parametrize(
    ("yaml", "notice"),
    [
        (BOMB, "more than 1,000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "x" * 3000, "text of more than 2,000 characters"),
        ("a: [1", "expected ',' or ']'"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("a: 1\n" * 20_000, "more than 64,000 characters"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: 1\n? [a, b]\n: 1\n", "found unhashable key"),
    ],
)
def test_front_matter_that_means_harm_is_left_out_with_a_notice(yaml: str, notice: str) -> None:
    found, said = front_matter(f"---\n{yaml}\n---\n# Pump\n")
    assert found == {} and said is not None and "\n" not in said
    assert said.startswith("front matter not read (") and notice in said


def test_markdown_gives_title_metadata_and_the_whole_text(tmp_path: Path) -> None:
    text = "---\ntitle: The pump\nauthor: A. Smit\n---\n\n# Heading\n\nIt failed.\n"
    (tmp_path / "pump.md").write_text(text)
    (tmp_path / "bad.md").write_text("---\na: [1\n---\n# Eels\n")
    corpus = read_corpus(tmp_path)
    pump = corpus["pump"]
    assert pump.title == "The pump" and pump.text == text
    assert pump.metadata == {"title": "The pump", "author": "A. Smit"}
    assert corpus["bad"].title == "Eels" and "front matter not read" in str(corpus.notices[0])
    assert Document.from_dict(json.loads(json.dumps(pump.to_dict()))) == pump
    assert read_document(tmp_path / "pump.md").metadata == pump.metadata


def word(**facts: object) -> bytes:
    document, buffer = docx.Document(), io.BytesIO()
    document.add_paragraph("It failed.")
    for name, value in facts.items():
        setattr(document.core_properties, name, value)
    document.save(buffer)
    return buffer.getvalue()


def test_word_documents_tell_their_properties() -> None:
    told = {"author": "A. Smit", "keywords": "pump, lock", "created": datetime(1998, 3, 1, 12)}
    assert extract_docx(word(**told)).metadata == {
        "author": "A. Smit",
        "keywords": ["pump", "lock"],
        "created": "1998-03-01",
    }
    assert "author" not in extract_docx(word()).metadata  # python-docx is no author


def pdf(author: str, keywords: str) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    canvas.setAuthor(author)
    canvas.setKeywords(keywords)
    canvas.drawString(72, 720, "It failed.")
    canvas.save()
    return buffer.getvalue()


def test_pdfs_tell_their_properties() -> None:
    data = pdf("A. Smit", "pump; lock")
    found = dict(extract_pdf(data).metadata)
    assert found.pop("created") == datetime.now().date().isoformat()
    assert found == {"author": "A. Smit", "keywords": ["pump", "lock"]}
    assert "author" not in extract_pdf(pdf("anonymous", "")).metadata
    start = data.index(b"/CreationDate (") + len(b"/CreationDate (")
    broken = (
        data[:start]
        + b"yesterday".ljust(data.index(b")", start) - start)
        + data[data.index(b")", start) :]
    )
    assert extract_pdf(broken).metadata == {"author": "A. Smit", "keywords": ["pump", "lock"]}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ('<meta name=author content=Smit><meta name=dc.date content="1998-03">', {"author": "Smit", "date": "1998-03"}),
        ('<meta name=citation_author content=A><meta name=Citation_Author content=B>', {"author": ["A", "B"]}),
        ('<meta name=citation_publication_date content="1998/03/01">', {"date": "1998-03-01"}),
        ('<meta property="article:published_time" content="1998-03-01T12:00:00Z">', {"date": "1998-03-01"}),
        ('<meta name="DC.date" content="1998">', {"date": "1998"}),
        ('<meta name=date content="last week">', {}),
        ('<meta name=date content="1998-0301">', {}),
        ('<meta name=keywords content="pump, lock ,, gate">', {"keywords": ["pump", "lock", "gate"]}),
        ('<meta name="article:tag" content=a><meta property="article:tag" content=b>', {"keywords": ["a", "b"]}),
        ('<meta name=keywords><meta charset=utf-8><meta content=pump>', {}),
        ('<meta name=author content="' + "x" * 3000 + '">', {}),
    ],
)  # fmt: skip
def test_pages_tell_what_their_meta_tags_say(tags: str, expected: object) -> None:
    assert extract_html(f"<html><head>{tags}</head><p>It failed.".encode()).metadata == expected


def test_keywords_and_authors_in_all_their_forms() -> None:
    assert keywords_of("a b; c,d\n e") == ["a b", "c", "d", "e"]
    assert keywords_of(["a, b", "c"]) == ["a", "b", "c"] and keywords_of(None) == []
    assert told_metadata(author=["Unknown", "A. Smit"]) == {"author": "A. Smit"}
    assert told_metadata(author=[]) == told_metadata(author="(unknown)") == {}
    assert told_metadata(author="Jon Skov; Ada Brandt") == {"author": ["Jon Skov", "Ada Brandt"]}
