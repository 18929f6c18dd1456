"""The command line in processes of its own: one JSON object on stdout, documented exit codes, one sentence of error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb


def run(*arguments, **options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "workbench", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
        **options,
    )


def inside(capsys, *arguments):
    """The same in this process, which is quicker: code, stdout, stderr."""
    from workbench.cli import main

    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def index(small_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "index"
    made = run("index", small_folder, "--index", folder, "--json")
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["documents"] == 3
    assert facts["chunks"] >= 3
    return folder


def test_ask_prints_one_json_object_with_true_spans_and_its_files(index, small_folder, tmp_path):
    asked = run(
        "ask", "Which valve failed first?", "--index", index, "-k", 3, "--json",
        "--routing", tmp_path / "r.npz", "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    facts = json.loads(asked.stdout)
    corpus = wb.read_corpus(small_folder)
    for c in facts["citations"]:
        assert corpus[c["document"]].text[c["start"] : c["stop"]] == c["text"]
    assert wb.load_trace(tmp_path / "r.npz").routed.any()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_search_prints_ranked_hits(capsys, index):
    code, out, _ = inside(capsys, "search", "hinge pin", "--index", index, "-k", 2, "--json")
    hits = json.loads(out)["hits"]
    assert (code, [h["rank"] for h in hits]) == (0, [1, 2])
    assert "hinge pin" in hits[0]["text"]


def test_route_prints_usage_whose_rows_sum_to_two(capsys, tmp_path):
    code, out, _ = inside(
        capsys,
        "route",
        "The pump ran for nine hours.",
        "--json",
        "--out",
        tmp_path / "t.npz",
        "--plot",
        tmp_path / "t.png",
    )
    facts = json.loads(out)
    assert code == 0
    assert (len(facts["usage"]), len(facts["usage"][0])) == (facts["layers"], facts["experts"])
    assert all(abs(sum(row) - 2) < 1e-9 for row in facts["usage"])
    assert len(facts["entropy"]) == facts["layers"]
    assert wb.load_trace(tmp_path / "t.npz").routed.sum() == facts["tokens"]


def test_route_reads_a_file(capsys, small_folder):
    code, out, _ = inside(capsys, "route", small_folder / "bread.txt", "--json")
    assert code == 0
    assert json.loads(out)["tokens"] > 20


def test_summarize_prints_spans_of_the_file(capsys, small_folder):
    code, out, err = inside(
        capsys, "summarize", small_folder / "report.md", "--json", "--sentences", 2
    )
    facts = json.loads(out)
    text = (small_folder / "report.md").read_text("utf-8")
    assert code == 0
    assert all(
        text[s["start"] : s["stop"]] == x["text"] for x in facts["sentences"] for s in x["sources"]
    )
    assert "summary of report.md" in err


def test_doctor_finds_no_problem(capsys):
    code, out, _ = inside(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert (code, facts["problems"]) == (0, [])
    assert facts["memory_plan"]["fits"]
    assert set(facts["self_tests"]) == {"encoder", "longrope", "chat template"}


def test_doctor_reports_a_problem_and_ends_with_4(capsys):
    code, out, _ = inside(capsys, "doctor", "--generator", "/nowhere", "--json")
    assert code == 4
    assert any("/nowhere" in problem for problem in json.loads(out)["problems"])


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", "", "--index", "INDEX"], 2, "question is empty"),
        (["ask", "valve " * 5000, "--index", "INDEX"], 2, "shorten it"),
        (["ask", "valve " * 5000, "--index", "INDEX", "--mode", "lexical"], 2, "the budget is"),
        (["ask", "valve?", "--index", "INDEX", "-k", "0"], 2, "k=0"),
        (["ask", "valve?", "--index", "INDEX", "-k", "-3"], 2, "k=-3 is not a number of hits"),
        (["ask", "valve?", "--index", "/nowhere"], 4, "/nowhere"),
        (["ask", "valve?", "--index", "INDEX", "--generator", "/nowhere"], 4, "/nowhere"),
        (["ask", "valve?", "--index", "INDEX", "--generator", "http://localhost:1"], 4, "endpoint"),
        (["ask", "valve?", "--index", "INDEX", "--context", "99999999"], 2, "context=99999999"),
        (["search", "valve?", "--index", "/nowhere"], 4, "/nowhere"),
        (["search", " ", "--index", "INDEX"], 2, "empty"),
        (["index", "/nowhere", "--index", "OUT"], 3, "/nowhere"),
        (["summarize", "/nowhere.txt"], 3, "/nowhere.txt"),
        (["route", " "], 2, "empty"),
        (["route", "no-such-file.txt"], 3, "no file 'no-such-file.txt'"),
        (["route", "some text", "--plot", "/nowhere/a.png"], 2, "no folder /nowhere"),
        (["route"], 2, "usage"),
        (["fly"], 2, "usage"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(
    capsys, index, tmp_path, arguments, code, words, json_flag
):
    names = {"INDEX": str(index), "OUT": str(tmp_path / "out")}
    found, out, err = inside(capsys, *[names.get(a, a) for a in arguments], *json_flag)
    assert (found, out) == (code, "")
    assert words in err
    if words != "usage":
        assert err.count("\n") == 1
    assert "Traceback" not in err


def test_an_index_with_one_byte_flipped_is_refused(capsys, index, tmp_path):
    unimportant = {".lock", ".workbenchignore"}
    files = {p.relative_to(index) for p in index.rglob("*") if p.is_file()}
    for name in sorted(name for name in files if name.name not in unimportant):
        damaged = tmp_path / "damaged"
        shutil.copytree(index, damaged)
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 1
        (damaged / name).write_bytes(data)
        code, out, err = inside(capsys, "search", "valve", "--index", damaged)
        assert (code, out, err.count("\n")) == (4, "", 1), name
        shutil.rmtree(damaged)


def test_a_failed_index_run_leaves_the_old_index_whole(capsys, index, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    before = {p: p.read_bytes() for p in index.rglob("*") if p.is_file()}
    code, _, err = inside(capsys, "index", empty, "--index", index)
    assert (code, err.count("\n")) == (3, 1)
    assert {p: p.read_bytes() for p in index.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_no_index_is_never_replaced(capsys, small_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    code, _, err = inside(capsys, "index", small_folder, "--index", tmp_path)
    assert (code, "thesis.txt" in err) == (2, True)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_debug_shows_the_traceback(index):
    shown = run("--debug", "search", "valve", "--index", "/nowhere")
    assert "Traceback" in shown.stderr


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.doctor.examine", interrupt)
    code, out, err = inside(capsys, "doctor")
    assert (code, out, err) == (130, "", "interrupted\n")
