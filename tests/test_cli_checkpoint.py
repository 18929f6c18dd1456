"""``workbench checkpoint`` as it is typed: JSON, words, exit codes; nothing is lost by a wrong command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from workbench.cli import main


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        try:
            code = main(["checkpoint", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def phi(moe_folder, tmp_path):
    shutil.copytree(moe_folder, tmp_path / "phi")
    return tmp_path / "phi"


def test_a_folder_goes_there_and_back(run, phi, tmp_path):
    code, out, _ = run("compress", phi, "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["folder"] == str(tmp_path / "phi-ZipNN") and 0.5 < found["ratio"] < 0.9
    )
    assert found["files"][0]["name"] == "model.safetensors.znn"
    code, out, _ = run("verify", tmp_path / "phi-ZipNN")
    assert code == 0 and "every sha256 is that of the manifest" in out
    code, _, _ = run("decompress", tmp_path / "phi-ZipNN", "--out", tmp_path / "again")
    assert code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        phi / "model.safetensors"
    ).read_bytes()


def test_a_compressed_folder_answers_and_the_cache_is_listed_and_cleaned(
    run, phi, tmp_path, capsys
):
    run("compress", phi, "--in-place")
    assert not (phi / "model.safetensors").exists()
    assert main(["doctor", "--generator", str(phi)]) == 0
    assert main(["route", "Which valve failed?", "--generator", str(phi), "--json"]) == 0
    capsys.readouterr()
    code, out, _ = run("cache", "--json")
    (entry,) = json.loads(out)["entries"]
    assert code == 0 and entry["name"] == "phi" and entry["is_whole"]
    code, out, _ = run("cache")
    assert f"{entry['key'][:12]}" in out and "holds 1" in out
    code, out, _ = run("cache", "--clean", entry["key"][:6])
    assert code == 0 and "held 1" in out and "removed" in out
    assert json.loads(run("cache", "--json")[1])["entries"] == []


def test_temporary_files_and_what_is_in_use_are_told(run, phi, tmp_path):
    from workbench.checkpoints.cache import decompressed

    run("compress", phi, "--in-place")
    left = tmp_path / "cache" / "checkpoints" / ".temporary-killed"
    with decompressed(phi, name="phi"):
        left.mkdir()
        (left / "plain.safetensors").write_bytes(bytes(20_000_000))
        assert (
            "0.02 GB in temporary files of running and of killed programs; --clean"
            in run("cache")[1]
        )
        code, out, _ = run("cache", "--clean", "--json")
        assert code == 0 and json.loads(out)["temporary_bytes"] == 0 and not left.exists()
        assert "phi (in use), from" in run("cache")[1]
        assert "held 0 (0.00 GB), removed; 1 in use stay, first phi" in run("cache", "--clean")[1]
    assert "held 1" in run("cache", "--clean")[1]


@pytest.mark.parametrize(("to", "code"), [("| true", 0), ("> /dev/full", 3)])
def test_output_that_nobody_takes_is_no_traceback(to, code):
    if not os.path.exists("/dev/full"):
        pytest.skip("a device of Linux")
    command = f"set -o pipefail; {sys.executable} -m workbench checkpoint cache --json {to}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (code != 0)


def test_a_name_with_a_line_break_takes_one_line_of_what_is_told(run, phi, tmp_path, monkeypatch):
    from workbench.generation.loading import load_generator

    named = phi.rename(tmp_path / "a\nb")
    code, out, _ = run("compress", named, "--in-place")
    assert code == 0 and len(out.splitlines()) == 1 and r"/a\nb: " in out
    load_generator(named, device="cpu")
    code, out, _ = run("cache")
    assert len(out.splitlines()) == 2 and r"a\nb, from" in out


def test_a_place_that_cannot_be_written_to_is_one_sentence(run, phi, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/there")

    monkeypatch.setattr("workbench.checkpoints.file_compression.compress_file", refuse)
    code, _, err = run("compress", phi)
    assert code == 3 and "workbench: /there: Permission denied; allow it, or use" in err


def test_a_cache_in_a_home_that_is_not_known_is_one_sentence(run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", "~nosuch/cache")
    code, _, err = run("cache")
    assert code == 3 and "~nosuch/cache names a home folder that is not known" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "PHI"], 4, "holds no compressed weights"),
        (["decompress", "PHI"], 4, "holds no compressed weights"),
        (["verify", "nowhere"], 3, "no file or folder at nowhere"),
        (["compress", "nowhere"], 3, "no file or folder at nowhere"),
        (["verify", "~nosuch/x"], 3, "~nosuch/x names a home folder that is not known"),
        (["compress", "~nosuch/x"], 3, "give the whole path"),
        (["decompress", "PHI", "--out", "~nosuch/x"], 3, "give the whole path"),
        (["compress", "PHI/config.json"], 4, "is no plain .safetensors file"),
        (["verify", "PHI/config.json"], 4, "is no compressed weight file"),
        (["compress", "PHI", "--out", "PHI"], 3, "is what is to be compressed"),
        (["compress", "PHI", "--out", "PHI/config.json"], 3, "is a file; give a folder"),
        (["compress", "PHI", "--in-place", "--out", "x"], 2, "leave out --out"),
        (
            ["compress", "nobody/nothing", "--in-place"],
            3,
            "no such hub id in the local Hugging Face cache",
        ),
        (["compress", "PHI/model.safetensors", "--in-place"], 2, "--in-place is for a folder"),
        (["cache", "--clean", "zz"], 3, "the cache holds nothing called 'zz'"),
        (["cache", "--unused-days", "3"], 2, "give --clean too"),
        (["cache", "--clean", "--unused-days", "-3"], 2, "--unused-days -3 is no number of days"),
        (["compress", ""], 2, "PATH is empty"),
        (["verify", "no body/nothing"], 2, "no body/nothing"),
        ([], 2, "required"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_loses_nothing(run, phi, arguments, code, words):
    before = {path.name: path.stat().st_mtime_ns for path in phi.iterdir()}
    found = run(*[argument.replace("PHI", str(phi)) for argument in arguments])
    assert found[0] == code and words in found[2], found
    assert {path.name: path.stat().st_mtime_ns for path in phi.iterdir()} == before
