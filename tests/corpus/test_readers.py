import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench.cancel import CancelToken, Progress
from workbench.corpus.chunks import chunk_document
from workbench.corpus.documents import Notice, Skipped
from workbench.corpus.readers import read_corpus, read_document
from workbench.errors import Cancelled, InputError


def test_a_document_knows_where_it_comes_from(tmp_path):
    data = "\ufeff# Die Pumpe\r\n\r\nDie Pumpe fiel aus, weil ihre Dichtung verschlissen war.\r\n".encode()
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual/pump.md").write_bytes(data)
    document = read_corpus(tmp_path)["manual/pump.md"]
    assert document.text == data[3:].decode()
    assert document.sha256 == hashlib.sha256(data).hexdigest()
    assert (document.title, document.language) == ("Die Pumpe", "de")
    assert (document.encoding, document.format) == ("utf-8-sig", "markdown")
    assert [(s.start, s.stop) for s in document.sections] == [(0, len(document.text))]


@pytest.mark.parametrize(
    ("name", "data", "title"),
    [
        ("a.md", b"text\n## First\n# Second", "First"),
        ("a.md", b"#\n\n# Named", "Named"),
        ("the.file.md", b"text", "the.file"),
        ("a.txt", b"# no heading", "a"),
        ("a.html", b"<title>T</title><h1>H</h1>x", "T"),
        ("a.html", b"<h1>H</h1>x", "H"),
    ],
)
def test_a_title_comes_from_the_file_its_first_heading_or_its_name(tmp_path, name, data, title):
    (tmp_path / name).write_bytes(data)
    assert read_document(tmp_path / name).title == title


def test_code_and_tables_have_no_language(tmp_path):
    text = "The pump failed because its seal was worn out long ago."
    for name in ("a.txt", "a.py", "a.csv", "a.jsonl", "a.log"):
        (tmp_path / name).write_text(text)
    assert {d.id: d.language for d in read_corpus(tmp_path)} == {
        "a.csv": None,
        "a.jsonl": None,
        "a.log": None,
        "a.py": None,
        "a.txt": "en",
    }


def test_one_bad_file_of_each_kind_stops_nothing(tmp_path):
    bad = {
        "binary.bin": (bytes(9), "binary data, no text format known for '.bin'"),
        "broken.docx": (b"PK\x03\x04", "broken DOCX (not a zip archive)"),
        "broken.ipynb": (b"{", "broken notebook: it is not JSON"),
        "broken.pdf": (b"%PDF-1.7", "broken PDF (Stream has ended unexpectedly)"),
        "empty.md": (b"", "empty file"),
        "empty.pdf": (b"", "empty file"),
        "mark.txt": (b"\xef\xbb\xbf", "holds no text"),
        "old.doc": (b"x", "'.doc' files are not read; save it as .docx"),
        "page.html": (b"<script>x</script>", "holds no text"),
        "space.txt": (b" \n\t", "holds no text"),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.md").write_text("It is read.")
    corpus = read_corpus(tmp_path)
    assert [d.id for d in corpus] == ["good.md"]
    assert corpus.skipped == tuple(
        Skipped(name, reason) for name, (_, reason) in sorted(bad.items())
    )


def test_what_is_skipped_is_in_the_order_of_paths_whatever_the_reason(tmp_path):
    for name in ("a.bin", "b.txt", "c.bin"):
        (tmp_path / name).write_bytes(bytes(9))
    (tmp_path / "z.md").write_text("text")
    (tmp_path / ".workbenchignore").write_text("b.txt")
    assert [s.path for s in read_corpus(tmp_path).skipped] == ["a.bin", "b.txt", "c.bin"]


def test_a_guessed_encoding_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_bytes("Die Prüfung größerer Ventile".encode("cp1252"))
    (tmp_path / "b.txt").write_bytes("Die Prüfung".encode("utf-16"))
    corpus = read_corpus(tmp_path)
    assert corpus.notices == (Notice("a.txt", "not UTF-8; read as cp1252"),)
    assert [d.encoding for d in corpus] == ["cp1252", "utf-16"]


def test_a_large_file_is_skipped_before_it_is_read(tmp_path):
    (tmp_path / "large.txt").write_bytes(b"x" * 1_001)
    (tmp_path / "small.txt").write_bytes(b"x" * 1_000)
    corpus = read_corpus(tmp_path, max_bytes=1_000)
    assert [d.id for d in corpus] == ["small.txt"]
    assert (
        corpus.skipped[0].reason
        == "1,001 bytes, more than max_bytes=1,000; split it or ask for more"
    )


def test_a_file_that_may_not_be_read_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "b.md").write_text("text")
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == "a.md":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    corpus = read_corpus(tmp_path)
    assert [d.id for d in corpus] == ["b.md"]
    assert corpus.skipped == (Skipped("a.md", "cannot be read: permission denied"),)


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything"
)
def test_permissions_of_the_system_are_told(tmp_path):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "b.md").write_text("text")
    (tmp_path / "a.md").chmod(0)
    assert read_corpus(tmp_path).skipped == (Skipped("a.md", "cannot be read: permission denied"),)


def test_a_file_that_vanishes_before_it_is_read_is_told(tmp_path):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "b.md").write_text("text")

    def remove(step: Progress) -> None:
        (tmp_path / "b.md").unlink(missing_ok=True)

    corpus = read_corpus(tmp_path, progress=remove)
    assert corpus.skipped == (Skipped("b.md", "no such file; check the path"),)


def test_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    found: list[str] = []

    def read() -> None:
        try:
            read_document(tmp_path / "pipe.md")
        except InputError as error:
            found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert found
    assert "a named pipe, not a file; not opened" in found[0]


def test_an_empty_folder_says_so(tmp_path):
    (tmp_path / ".hidden.md").write_text("x")
    with pytest.raises(
        InputError, match="no file to read, it is empty or holds hidden files alone"
    ):
        read_corpus(tmp_path)


def test_a_folder_without_a_readable_file_says_how_many_were_skipped_and_why(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.md").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"7 skipped \(0\.md: empty file; .*4\.md: empty file; and 2 more\)"
    ):
        read_corpus(tmp_path)


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(InputError, match=r"gone: no such file or folder; check the path"):
        read_corpus([tmp_path, tmp_path / "gone"])
    with pytest.raises(InputError, match=r"gone\.md: no such file; check the path"):
        read_document(tmp_path / "gone.md")


def test_a_folder_is_no_document(tmp_path):
    with pytest.raises(InputError, match="a folder; give one file, or read the folder"):
        read_document(tmp_path)


def test_the_error_for_one_file_names_it_in_one_line(tmp_path):
    path = tmp_path / "a\nb.md"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty file") as raised:
        read_document(path)
    assert "\n" not in str(raised.value)
    assert r"a\nb.md" in str(raised.value)


def test_a_document_read_alone_is_the_one_of_the_corpus(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.md").write_text("# A\ntext")
    (corpus_document,) = read_corpus(tmp_path)
    assert read_document(tmp_path / "x/a.md", root=tmp_path) == corpus_document
    assert read_document(tmp_path / "x/a.md").id == "a.md"


def test_a_root_elsewhere_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(ValueError, match="does not lie below root"):
        read_document(tmp_path / "a.md", root=tmp_path / "x")


def test_a_string_a_path_and_a_list_are_taken(tmp_path):
    (tmp_path / "a.md").write_text("text")
    one = read_corpus(str(tmp_path))
    assert one == read_corpus(tmp_path) == read_corpus([tmp_path])
    assert one.root == str(tmp_path)


def test_progress_counts_every_file_and_ends_with_all_of_them(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("text" if name != "b" else "")
    steps: list[Progress] = []
    read_corpus(tmp_path, progress=steps.append)
    assert steps == [Progress("read", done, 3) for done in range(4)]


def test_a_cancelled_run_ends_before_the_next_file(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("text")
    token = CancelToken()
    seen: list[int] = []

    def cancel_after_the_first(step: Progress) -> None:
        seen.append(step.done)
        if step.done == 1:
            token.cancel()

    with pytest.raises(Cancelled, match="reading was cancelled"):
        read_corpus(tmp_path, progress=cancel_after_the_first, cancel=token)
    assert seen == [0, 1]


def test_importing_the_readers_loads_no_library_of_a_format():
    heavy = [
        "bs4",
        "docx",
        "lxml",
        "nbformat",
        "pypdf",
        "charset_normalizer",
        "py3langid",
        "pathspec",
    ]
    code = f"import sys, workbench.corpus.readers; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


READ_AND_CHUNK = """
import re, sys
import numpy as np
from workbench.corpus.chunks import chunk_document
from workbench.corpus.readers import read_document
document = read_document(sys.argv[1])
measure = lambda text: np.array([m.span() for m in re.finditer(r"\\S+", text)]).reshape(-1, 2)
chunks = chunk_document(document, measure=measure)
assert all(len(chunk.text) <= 128 * 32 for chunk in chunks)
print(len(document.text), sum(len(re.sub(r"\\s", "", chunk.text)) for chunk in chunks))
"""


@pytest.mark.hostile
@pytest.mark.parametrize(
    "word", ["The pump failed, and 3.5 hours later it was dry. ", "word ", "x"]
)
def test_fifty_megabytes_in_one_line_are_read_and_cut(tmp_path, word):
    path = tmp_path / "line.txt"
    text = word * (50_000_000 // len(word))
    path.write_text(text)
    command = [sys.executable, "-c", READ_AND_CHUNK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    assert done.stdout.split() == [str(len(text)), str(len(text.replace(" ", "")))]


@pytest.mark.hostile
def test_a_file_of_forty_thousand_sections_is_read_and_cut(tmp_path):
    path = tmp_path / "many.md"
    path.write_text("".join(f"## Part {i}\n\nIt has number {i}.\n\n" for i in range(40_000)))
    document = read_document(path)
    assert len(document.sections) == 40_000

    def measure(text):
        import numpy as np

        return np.array([(i, i + 1) for i in range(len(text))]).reshape(-1, 2)

    chunks = chunk_document(document, measure=measure)
    assert len(chunks) == 40_000
    assert all(document.section_at(c.start) == document.section_at(c.stop - 1) for c in chunks)
