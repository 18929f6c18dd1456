from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench import store
from workbench.corpus.documents import Corpus, Document
from workbench.errors import IndexUnusable
from workbench.retrieval.encoders import SentenceEncoder
from workbench.retrieval.retrievers import Retriever, build_retriever, open_retriever
from workbench.retrieval.saved import _render


@pytest.fixture
def index(retriever: Retriever, tmp_path: Path) -> Path:
    retriever.save(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="session")
def one_word(encoder: SentenceEncoder) -> Retriever:
    return build_retriever(Corpus((Document("eel.txt", "Eel.", "eel"),)), encoder=encoder)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x01
    path.write_bytes(data)


def test_one_flipped_bit_in_any_file_is_seen(index: Path, encoder: SentenceEncoder) -> None:
    for path in sorted(p for p in index.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            flip(path, place)
            with pytest.raises(IndexUnusable):
                open_retriever(index, encoder=encoder)
            path.write_bytes(whole)
    assert open_retriever(index, encoder=encoder)


def test_one_flipped_bit_anywhere_in_the_manifest_is_seen(
    index: Path, encoder: SentenceEncoder
) -> None:
    for place in range((index / "manifest.json").stat().st_size):
        flip(index / "manifest.json", place)
        with pytest.raises(IndexUnusable):
            open_retriever(index, encoder=encoder)
        flip(index / "manifest.json", place)


def test_damage_names_the_file_and_the_remedy(index: Path, encoder: SentenceEncoder) -> None:
    flip(index / "chunks.jsonl", 5)
    with pytest.raises(
        IndexUnusable, match=r"chunks\.jsonl is not as it was written; build it again"
    ) as e:
        open_retriever(index, encoder=encoder)
    assert "\n" not in str(e.value)


def test_missing_file_and_foreign_file_are_damage(index: Path, encoder: SentenceEncoder) -> None:
    (index / "lexical" / "note.txt").write_text("mine")
    (index / "vectors.faiss").unlink()
    with pytest.raises(IndexUnusable, match=r"vectors\.faiss and 1 more"):
        open_retriever(index, encoder=encoder)


def test_missing_folder_is_one_sentence(tmp_path: Path, encoder: SentenceEncoder) -> None:
    with pytest.raises(IndexUnusable, match=r"no index at .*nowhere; make one with"):
        open_retriever(tmp_path / "nowhere", encoder=encoder)


def test_file_instead_of_a_folder_is_one_sentence(tmp_path: Path, encoder: SentenceEncoder) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(IndexUnusable, match="no index at"):
        open_retriever(tmp_path / "file", encoder=encoder)


def test_newer_format_is_named_before_anything_is_checked(
    index: Path, encoder: SentenceEncoder
) -> None:
    manifest = json.loads((index / "manifest.json").read_bytes())
    (index / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(
        IndexUnusable, match="has format 2, this program reads up to 1; update workbench"
    ):
        open_retriever(index, encoder=encoder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other", "files": {}}', "null"])
def test_manifest_of_something_else_is_refused(
    text: str, index: Path, encoder: SentenceEncoder
) -> None:
    (index / "manifest.json").write_text(text)
    with pytest.raises(
        IndexUnusable, match=r"manifest\.json is damaged or belongs to something else"
    ):
        open_retriever(index, encoder=encoder)


def test_sealed_manifest_without_its_facts_is_refused(
    index: Path, encoder: SentenceEncoder
) -> None:
    manifest = json.loads((index / "manifest.json").read_bytes())
    del manifest["mode"]
    (index / "manifest.json").write_bytes(_render(manifest))
    with pytest.raises(IndexUnusable, match="damaged"):
        open_retriever(index, encoder=encoder)


def test_saving_replaces_an_index_whole_or_damaged(
    index: Path, one_word: Retriever, encoder: SentenceEncoder
) -> None:
    one_word.save(index)
    assert len(open_retriever(index, encoder=encoder)) == 1
    (index / "manifest.json").write_text("{")
    one_word.save(index)
    assert len(open_retriever(index, encoder=encoder)) == 1


def test_saving_fills_an_empty_folder(tmp_path: Path, one_word: Retriever) -> None:
    (tmp_path / "index").mkdir()
    one_word.save(tmp_path / "index")
    assert (tmp_path / "index" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "name", ["thesis.md", "sub/thesis.md", "manifest.json", "lexical/thesis.md"]
)
def test_folder_that_is_no_index_is_never_replaced(
    name: str, tmp_path: Path, one_word: Retriever
) -> None:
    (tmp_path / "work" / name).parent.mkdir(parents=True)
    (tmp_path / "work" / name).write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=f"holds '{name}'.*choose a new or empty folder"):
        one_word.save(tmp_path / "work")
    assert (tmp_path / "work" / name).read_text() == '{"format": "other"}'


@pytest.mark.parametrize("name", ["note.txt", "lexical/note.txt"])
def test_index_with_a_foreign_file_is_not_replaced(
    name: str, index: Path, one_word: Retriever
) -> None:
    (index / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds '{name}'"):
        one_word.save(index)
    assert (index / name).read_text() == "mine"


def test_file_is_not_replaced_by_an_index(tmp_path: Path, one_word: Retriever) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        one_word.save(tmp_path / "file")


def test_failure_while_saving_leaves_the_old_index(
    index: Path,
    one_word: Retriever,
    retriever: Retriever,
    encoder: SentenceEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(one_word._vectors, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        one_word.save(index)
    assert len(open_retriever(index, encoder=encoder)) == len(retriever)
    assert [p.name for p in index.parent.iterdir()] == ["index"]


def test_crash_between_the_two_renames_is_repaired_on_opening(
    index: Path, retriever: Retriever, encoder: SentenceEncoder
) -> None:
    os.rename(index, index.with_name(".index.old-x1y2"))
    assert len(open_retriever(index, encoder=encoder)) == len(retriever)


def test_reader_never_sees_half_of_a_replacement(
    index: Path, one_word: Retriever, retriever: Retriever, encoder: SentenceEncoder
) -> None:
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            one_word.save(index)
            retriever.save(index)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(10):
            opened = open_retriever(index, encoder=encoder)
            assert len(opened) in (1, len(retriever))
            assert opened.search("eel", k=1)[0].chunk.document_id in opened.documents
    finally:
        stop.set()
        writer.join()


KILLED_AT_STEP = """
import os, shutil, signal, sys
import numpy as np
from pathlib import Path
from workbench.corpus.documents import Corpus, Document
from workbench.retrieval.retrievers import build_retriever

class Lengths:  # needs no torch, so that a run is short
    name, dim, max_tokens = "lengths", 2, 200
    identity = {"name": "lengths", "dim": 2}
    def measure(self, text):
        return np.array([[i, i + 1] for i, c in enumerate(text) if not c.isspace()]).reshape(-1, 2)
    def encode(self, texts, **_):
        return np.array([[1, len(text)] for text in texts], dtype=np.float32)

folder, step, words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
retriever = build_retriever(Corpus((Document("a.txt", words, "a"),)), encoder=Lengths())
seen = 0
def counted(call):
    def wrapper(*arguments, **named):
        global seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapper
for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"),
                     (os, "open"), (shutil, "rmtree"), (np, "save")):
    setattr(module, name, counted(getattr(module, name)))
retriever.save(folder)
"""


def _save_killed_at(folder: Path, step: int, words: str) -> int:
    """Save in a process that kills itself at its `step`-th change of the disk; 0 when it was not reached."""
    command = [sys.executable, "-c", KILLED_AT_STEP, str(folder), str(step), words]
    return subprocess.run(command, check=False).returncode


def _is_whole(folder: Path) -> bool:
    store.recover_folder(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return not store.damaged_files(folder, manifest)


@pytest.mark.kill
@pytest.mark.smoke
def test_a_killed_save_leaves_a_whole_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert _save_killed_at(folder, 0, "old words") == 0
    for step in (2, 9):
        assert _save_killed_at(folder, step, "new words") == -signal.SIGKILL
        assert _is_whole(folder)


@pytest.mark.kill
def test_kill_at_any_step_of_saving_leaves_a_whole_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert _save_killed_at(folder, 0, "old words") == 0
    codes = []
    for step in range(1, 200):
        codes.append(_save_killed_at(folder, step, f"new words {step}"))
        assert _is_whole(folder), f"killed at step {step}"
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and len(codes) > 10
    assert set(codes[:-1]) == {-signal.SIGKILL}
