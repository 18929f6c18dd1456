"""``workbench route``: segments, contrasts, comparisons and interventions, as a script would call them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import workbench as wb
from workbench.cli import main
from workbench.generation.prompts import plain_prompt
from workbench.routing.agreement import agreement
from workbench.routing.compare import compare_routing
from workbench.routing.intervene import Edit

TEXT = "The pump ran for nine hours until the valve failed. " * 8


@pytest.fixture
def route(capsys):
    def run(*arguments, json_too=True):
        code = main(["route", *map(str, arguments), *(["--json"] if json_too else [])])
        captured = capsys.readouterr()
        found = json.loads(captured.out) if json_too and code == 0 else captured.out
        return code, found, captured.err

    return run


@pytest.fixture(scope="module")
def generator():
    return wb.load_generator("pocket")


@pytest.fixture(scope="module")
def index(small_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("route") / "index"
    assert main(["index", str(small_folder), "--index", str(folder)]) == 0
    return folder


def read(generator, text):
    prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=generator.context)
    return generator.read(prompt), prompt


def test_a_segment_is_reported_alone(route, generator):
    code, found, _ = route(TEXT, "--segment", "question")
    trace, _ = read(generator, TEXT)
    assert code == 0 and found["segment"] == "question" and found["k"] == 2
    np.testing.assert_allclose(found["usage"], trace.usage("question"))
    assert found["tokens"] == found["segments"]["question"] == int(trace.rows("question").sum())
    assert sum(found["segments"].values()) == int(trace.routed.sum())


def test_two_texts_are_compared(route, generator, tmp_path):
    other = "Harbour bread needs flour, water and salt. " * 9
    code, found, err = route(TEXT, "--against", other, "--plot", tmp_path / "difference.png")
    wanted = compare_routing(read(generator, TEXT)[0], read(generator, other)[0], block_tokens=16)
    assert code == 0 and not found["comparison"]["same_tokens"]
    assert found["comparison"]["agreement"] is None
    np.testing.assert_allclose(found["comparison"]["divergence_bits"], wanted.divergence_bits)
    cells = wanted.contrast.to_frame()
    assert len(found["comparison"]["cells"]) == int((cells["q"] <= 0.05).sum())
    assert (tmp_path / "difference.png").read_bytes().startswith(b"\x89PNG") and "wrote" in err


def test_segments_of_a_question_over_an_index_are_contrasted(route, index, tmp_path):
    code, found, _ = route(
        "Which valve failed first?", "--index", index, "-k", 3, "--contrast", "evidence", "system",
        "--out", tmp_path / "asked.npz",
    )  # fmt: skip
    assert code == 0 and {"evidence", "question", "answer"} <= set(found["segments"])
    tokens = found["comparison"]["tokens"]
    assert tokens == [found["segments"]["evidence"], found["segments"]["system"]]
    # the same of the trace it saved
    code, again, _ = route(tmp_path / "asked.npz", "--contrast", "evidence", "system")
    assert code == 0 and again["comparison"] == found["comparison"]
    code, text, _ = route(tmp_path / "asked.npz", "--segment", "evidence", json_too=False)
    assert code == 0 and "tokens of the evidence, 5 layers" in text


def test_the_trace_is_written_in_the_format_that_is_asked_for(route, tmp_path):
    code, _, err = route(TEXT, "--out", tmp_path / "t.html")
    assert code == 0 and "<script" in (tmp_path / "t.html").read_text("utf-8")
    code, found, err = route(TEXT, "--out", tmp_path / "t.csv")
    assert code == 0 and err.count("wrote ") == 2
    assert len((tmp_path / "t.choices.csv").read_text("utf-8").splitlines()) - 1 == (
        found["tokens"] * found["layers"] * found["k"]
    )


def test_an_intervention_in_a_text_is_what_the_notebook_computes(route, generator):
    code, found, _ = route(TEXT, "--ban", "1:3", "--bias", "all:4=-0.5", "--in", "question")
    before, prompt = read(generator, TEXT)
    edits = [Edit("ban", 3, (1,)), Edit("bias", 4, amount=-0.5)]
    with generator.intervened(edits, prompt=prompt, segment="question"):
        after = generator.read(prompt)
    rows = before.rows()
    kept = agreement(before.experts[rows], after.experts[rows]).mean(axis=0)
    assert code == 0
    np.testing.assert_allclose(found["intervention"]["agreement"], kept)
    np.testing.assert_allclose(found["intervention"]["usage"], after.usage())
    assert [edit["action"] for edit in found["intervention"]["edits"]] == ["ban", "bias"]
    counts = before.counts("question")
    assert found["intervention"]["met"] == counts[1, 3] + counts[:, 4].sum()


def test_what_is_saved_under_an_edit_is_the_trace_with_it(route, tmp_path):
    assert route(TEXT, "--ban", "2:5", "--out", tmp_path / "t.npz")[0] == 0
    saved = wb.load_trace(tmp_path / "t.npz")
    assert saved.counts()[2, 5] == 0 and saved.origin["edits"] == "ban 5 in layers 2"


def test_a_comparison_is_of_the_trace_under_the_edits(route, generator, index, tmp_path):
    asked = ("Which valve failed first?", "--index", index, "--ban", "2:5")
    _, found, _ = route(*asked, "--contrast", "evidence", "system", "--out", tmp_path / "t.npz")
    _, again, _ = route(tmp_path / "t.npz", "--contrast", "evidence", "system")
    assert found["comparison"]["divergence_bits"] == again["comparison"]["divergence_bits"]
    assert again["origin"]["edits"] == "ban 5 in layers 2"
    _, found, _ = route(TEXT, "--ban", "2:5", "--against", TEXT)
    with generator.intervened([Edit("ban", 5, (2,))]):
        after = read(generator, TEXT)[0]
    before = read(generator, TEXT)[0]
    kept = agreement(before.experts[before.rows()], after.experts[after.rows()]).mean(axis=0)
    np.testing.assert_allclose(found["comparison"]["agreement"], kept, atol=0.01)  # means of runs
    _, text, _ = route(tmp_path / "t.npz", json_too=False)
    assert "under an intervention: ban 5 in layers 2" in text


def test_a_text_beyond_the_context_says_what_option_takes_it(route, tmp_path):
    (tmp_path / "long.md").write_text("The gate was closed. " * 3000, "utf-8")
    code, _, err = route(tmp_path / "long.md")
    assert code == 2 and "--context takes up to 131072" in err


def test_an_intervention_in_an_answer_says_what_becomes_of_it(route, index):
    bans = [part for e in range(13) for part in ("--ban", f"all:{e}")]
    code, found, _ = route("Which valve failed first?", "--index", index, *bans)
    assert code == 0
    changed = found["intervention"]
    assert changed["likelihood_change"] < -0.1 and isinstance(changed["after"], str)
    code, text, _ = route(
        "Which valve failed first?", "--index", index, "--drop", "2:1", json_too=False
    )
    assert code == 0 and "with the edit: " in text and "of the first answer changes by" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([TEXT, "--ban", "3"], 2, "--ban '3' is not of the form LAYER:EXPERT, like 2:7"),
        ([TEXT, "--bias", "2:3"], 2, "is not of the form LAYER:EXPERT=AMOUNT"),
        ([TEXT, "--ban", "9:3"], 2, "there is no layer to ban 3 in layers 9; there are 0 to 4"),
        ([TEXT, "--ban", "1:99"], 2, "there is no expert to ban 99 in layers 1; there are 0 to 15"),
        ([TEXT, *(p for e in range(15) for p in ("--ban", f"all:{e}"))], 2, "two must be left"),
        ([TEXT, "--in", "question"], 2, "--in says where to intervene"),
        ([TEXT, "--ban", "1:2", "--in", "evidence"], 2, "no segment 'evidence'"),
        ([TEXT, "--segment", "evidence"], 2, "no segment 'evidence'; there are"),
        ([TEXT, "--contrast", "question", "answer"], 2, "no routed token in segment 'answer'"),
        ([TEXT, "--contrast", "question", "nothing"], 2, "no segment 'nothing'"),
        ([TEXT, "--plot", "x.txt"], 2, "x.txt must end with .png"),
        (["corpora"], 3, "corpora is a folder: name one of its files"),
        ([TEXT, "--against", "corpora"], 3, "corpora is a folder"),
        ([TEXT, "--contrast", "a", "b", "--against", TEXT], 2, "give one of them"),
        (["no-such.npz"], 3, "no routing trace at no-such.npz"),
        ([TEXT, "--out", "/nowhere/t.npz"], 2, "no folder /nowhere"),
        (
            [TEXT, "--out", "t.xlsx"],
            2,
            "t.xlsx ends with .xlsx; use one of .npz, .csv, .parquet, .html",
        ),
        ([TEXT, "--index", "/nowhere"], 4, "/nowhere"),
        (["README.md", "--index", "x"], 2, "README.md is a file: give its text"),
        ([TEXT, "-k", "3"], 2, "-k says how many passages"),
        ([""], 2, "the text is empty"),
        ([TEXT, "--against", ""], 2, "the text is empty"),
        ([TEXT, "--ban", "1:2", "--in", "answer"], 2, "--in answer: no token of it is read here"),
        ([TEXT, "--bias", "1:2=1e39"], 2, "no number from -60,000 to 60,000"),
        (
            [TEXT, "--force", "1:2", "--drop", "1:2"],
            2,
            "expert 2 of layer 1 is edited more than once",
        ),
    ],
)
def test_bad_input_is_one_sentence(route, arguments, code, message):
    found = route(*arguments)
    assert found[0] == code and message in found[2] and found[2].count("\n") == 1


def test_what_a_saved_trace_cannot_do_is_said(route, generator, tmp_path):
    path = read(generator, TEXT)[0].save(tmp_path / "t.npz")
    for arguments, message in (
        (["--ban", "1:2"], "a saved trace cannot be intervened in"),
        (["--index", "x"], "give its text, not a saved trace"),
        (["--against", "some other text"], "a saved trace is compared with another alone"),
    ):
        code, _, err = route(path, *arguments)
        assert code == 2 and message in err
    code, found, _ = route(path, "--against", path)
    assert code == 0 and found["comparison"]["agreement"] == [1.0] * 5
    assert found["comparison"]["cells"] == []


def test_a_dense_model_says_what_to_open_instead(route, dense_folder, index):
    for more in ([], ["--index", index]):
        code, _, err = route(TEXT, "--generator", dense_folder, *more)
        assert code == 2 and "is a dense model: it has no router to look at; open" in err
