"""A folder of everything that can be wrong with a file: each is reported in one sentence, and the rest is indexed."""

from __future__ import annotations

import io
import json
import os
import zipfile

import pytest

from workbench.cli import main

pytestmark = [pytest.mark.hostile]


def scanned_pdf() -> bytes:
    from reportlab.lib.pagesizes import A6
    from reportlab.pdfgen import canvas

    buffer = io.BytesIO()
    drawing = canvas.Canvas(buffer, pagesize=A6)
    drawing.rect(20, 20, 100, 100, fill=1)
    drawing.save()
    return buffer.getvalue()


def broken_docx() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<not closed")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    files = {
        "good.txt": b"The pump was mended on Monday.",
        "empty.txt": b"",
        "zero.pdf": b"",
        "scan.pdf": scanned_pdf(),
        "torn.pdf": scanned_pdf()[:200],
        "broken.docx": broken_docx(),
        "not-a-zip.docx": b"hello",
        "noise.bin": bytes(range(256)) * 40,
        "latin.txt": "Überlauf der Schleuse, café naïve, façade, größer.".encode("cp1252"),
        "broken.ipynb": b'{"cells": [',
        "a\nb.txt": b"A file whose name has a line end.",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "secret.txt").write_text("not for reading")
    (folder / "secret.txt").chmod(0)
    os.mkfifo(folder / "pipe.txt")
    outside = tmp_path / "outside.txt"
    outside.write_text("outside of the folder")
    (folder / "link.txt").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    return folder


@pytest.mark.smoke
def test_each_bad_file_is_one_line_and_the_rest_is_indexed(folder, tmp_path, capsys):
    code = main(["index", str(folder), "--index", str(tmp_path / "index"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    reasons = {entry["path"]: entry["reason"] for entry in facts["skipped"]}
    for name in (
        "empty.txt",
        "zero.pdf",
        "scan.pdf",
        "torn.pdf",
        "broken.docx",
        "not-a-zip.docx",
        "noise.bin",
    ):
        assert name in reasons, reasons
    assert "OCR" in reasons["scan.pdf"]
    assert {"pipe.txt", "link.txt", "loop"} <= reasons.keys()
    assert all("\n" not in reason and reason for reason in reasons.values())
    assert any(n["path"] == "latin.txt" and "cp1252" in n["message"] for n in facts["notices"])
    read = facts["documents"]
    assert read >= 3 - (os.geteuid() != 0)
    code = main(["search", "pump mended", "--index", str(tmp_path / "index"), "-k", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["hits"][0]["document"] == "good.txt"


def test_reports_on_the_terminal_stay_on_one_line_each(folder, tmp_path, capsys):
    assert main(["index", str(folder), "--index", str(tmp_path / "index")]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = ("3 documents", "3 added", "vectors: exact scan", "skipped", "note")
    assert all(line.startswith(told) for line in lines), lines


def test_a_single_line_of_fifty_megabytes_is_read_and_cut(tmp_path):
    import workbench as wb
    from workbench.corpus.chunks import sentence_spans

    path = tmp_path / "line.txt"
    sentence = "The pump ran for nine hours and stopped at noon. "
    path.write_text(sentence * (50_000_000 // len(sentence)), "utf-8")
    document = wb.read_document(path)
    spans = sentence_spans(document.text)
    assert len(spans) == 50_000_000 // len(sentence)
    assert document.text[slice(*spans[-1])] == sentence.strip()


def test_an_empty_folder_is_exit_code_three(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    assert main(["index", str(tmp_path / "nothing"), "--index", str(tmp_path / "index")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "index").exists()
