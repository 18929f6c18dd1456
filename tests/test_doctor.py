"""doctor plans any generator, loads only what is here and fits, and calls only a plan that does not fit a problem."""

from __future__ import annotations

import json

import pytest

from workbench.cli import main
from workbench.doctor import examine
from workbench.generation import loading, planning
from workbench.generation.known_shapes import MINI, MOE

GB = 10**9
OLD_FIELDS = set(
    "sentence fits dtype context weight_bytes cache_bytes workspace_bytes largest_context".split()
)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with so many GB on one GPU, nothing of the two Phis, and no way to load or fetch anything."""

    def pretend(gb):
        monkeypatch.setattr(planning, "pick_device", lambda _: "cuda")
        monkeypatch.setattr(planning, "device_memory", lambda _: gb * GB)
        monkeypatch.setattr("workbench.generation.memory.device_memory", lambda _: gb * GB)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        monkeypatch.setattr(loading, "load_generator", lambda *_, **__: pytest.fail("loaded"))
        monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network was asked"))

    return pretend


@pytest.mark.parametrize(("name", "context", "gb"), [(MINI, 131_072, 80), (MOE, 131_072, 141)])
def test_a_phi_that_is_not_here_but_fits_is_no_problem(gpu, capsys, name, context, gb):
    gpu(gb)
    code = main(["doctor", "--generator", name, "--context", str(context), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (code, facts["problems"]) == (0, [])
    assert facts["memory_plan"]["fits"]
    assert OLD_FIELDS <= set(facts["memory_plan"])
    assert any(
        "not on this disk" in note and "nothing was loaded" in note for note in facts["notes"]
    )
    assert set(facts["self_tests"]) == {"encoder"}


def test_a_phi_that_does_not_fit_is_a_problem_with_numbers_and_alternatives(gpu, capsys):
    gpu(80)
    code = main(["doctor", "--generator", MOE, "--context", "131072", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 4
    assert "not on this disk" in facts["notes"][0]
    (problem,) = facts["problems"]
    plan = facts["memory_plan"]
    assert "weights 78.0 GiB + cache 16.0 GiB" in problem
    assert plan["alternatives"] and all(sentence in problem for sentence in plan["alternatives"])
    assert plan["total_bytes"] > plan["usable_bytes"]
    assert sum(plan["workspace"].values()) == plan["workspace_bytes"]


def test_a_card_that_is_not_here_is_planned_for(capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_generator", lambda *_, **__: pytest.fail("loaded"))
    assert main(["doctor", "--generator", MOE, "--card", "24"]) == 4
    *_, problem, first, second, third, mini, _ = capsys.readouterr().out.splitlines()
    assert problem.startswith("PROBLEM: ") and problem.endswith("too little:")
    assert first.startswith("  - with expert_cache=3, ")
    assert second.startswith("  - with quantization='8bit', expert_cache=7, ")
    assert third.startswith("  - with quantization='4bit', expert_cache=13, ")
    assert mini.startswith(f"  - {MINI} has weights of")
    options = ["--quantization", "4bit", "--expert-cache", "13", "--card", "24", "--json"]
    assert main(["doctor", "--generator", MOE, *options]) == 0
    plan = json.loads(capsys.readouterr().out)["memory_plan"]
    assert plan["fits"] and plan["device_bytes"] == 24 * GB and plan["expert_cache"] == 13
    assert main(["doctor", "--card", "0.5"]) == 0  # the embedded model, which is not loaded for it
    assert "cuda has 0.4 GiB usable" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "-3", "nan", "x", "1e9"])
def test_a_card_of_no_size_is_refused(size, capsys):
    with pytest.raises(SystemExit) as error:
        main(["doctor", f"--card={size}"])
    assert error.value.code == 2 and "--card" in capsys.readouterr().err


def test_what_is_here_and_does_not_fit_is_not_loaded(moe_folder, monkeypatch):
    monkeypatch.setattr(planning, "device_memory", lambda _: 1 << 20)
    monkeypatch.setattr(loading, "load_generator", lambda *_, **__: pytest.fail("loaded"))
    found = examine(str(moe_folder))
    assert "too little" in found.problems[0]


def test_the_text_names_the_largest_context_and_the_notes(gpu):
    gpu(80)
    text = str(examine(MINI))
    assert "the largest context that fits is 131,072 tokens" in text
    assert "note: the weights of microsoft/Phi-3.5-mini-instruct are not on this disk" in text


def test_a_context_beyond_the_window_is_a_problem(gpu):
    gpu(80)
    assert any("131073" in problem for problem in examine(MINI, context=131_073).problems)
