"""Files are whole or absent: what a crash leaves behind at every step."""

from __future__ import annotations

import json
import os
import time

import pytest

from workbench.store import (
    damaged_files,
    recover_folder,
    replacing_folder,
    sha256_file,
    write_atomic,
    write_manifest,
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a" / "file.txt"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, b"old")
    monkeypatch.setattr(
        os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "index"
    for text in ("one", "two"):
        with replacing_folder(folder) as fresh:
            (fresh / "file").write_text(text)
    assert (folder / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["index"]


def test_a_failure_inside_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "index"
    with replacing_folder(folder) as fresh:
        (fresh / "file").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(folder) as fresh:
        (fresh / "file").write_text("new")
        raise RuntimeError
    assert (folder / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize(("crash_at", "left"), [(1, "old"), (2, "old"), (3, "new"), (4, "new")])
def test_a_crash_at_any_rename_or_in_the_removal_loses_nothing(
    tmp_path, monkeypatch, crash_at, left
):
    folder = tmp_path / "index"
    with replacing_folder(folder) as fresh:
        (fresh / "file").write_text("old")
    real, calls = os.rename, 0

    class Crash(BaseException):
        pass

    def rename(a, b):
        nonlocal calls
        calls += 1
        if calls == crash_at:
            monkeypatch.setattr("workbench.store.recover_folder", lambda _: None)
            raise Crash
        real(a, b)

    def remove_half(path, **_):
        if ".gone-" not in path.name:
            return
        next(path.iterdir()).unlink()
        raise Crash

    monkeypatch.setattr(os, "rename", rename)
    if crash_at == 4:
        monkeypatch.setattr("workbench.store.recover_folder", lambda _: None)
        monkeypatch.setattr("workbench.store.shutil.rmtree", remove_half)
    with pytest.raises(Crash), replacing_folder(folder) as fresh:
        (fresh / "file").write_text("new")
    monkeypatch.undo()
    for _ in range(2):
        recover_folder(folder)
        assert (folder / "file").read_text() == left
    with replacing_folder(folder) as fresh:
        (fresh / "file").write_text("newest")
    assert (folder / "file").read_text() == "newest"
    assert [name for name in os.listdir(tmp_path) if ".new-" not in name] == ["index"]


def test_a_half_written_folder_of_yesterday_is_cleared_and_a_young_one_is_left(tmp_path):
    for name, age in [
        (".index.new-old", 90_000),
        (".index.new-young", 10),
        (".other.new-old", 90_000),
    ]:
        (tmp_path / name).mkdir()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    recover_folder(tmp_path / "index")
    assert sorted(os.listdir(tmp_path)) == [".index.new-young", ".other.new-old"]


def test_a_manifest_names_what_is_changed_missing_or_extra(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path, {"format": 1})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["files"]["a"] == sha256_file(tmp_path / "a")
    assert damaged_files(tmp_path, manifest) == []
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").unlink()
    (tmp_path / "d").write_text("d")
    assert damaged_files(tmp_path, manifest) == ["a", "b", "d"]
