"""What the README says is true: its links lead somewhere and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [
        link for link in links if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert missing == []


def test_every_verb_of_the_command_line_that_the_readme_names_exists():
    from workbench.cli import build_parser

    readme = (ROOT / "README.md").read_text("utf-8")
    verbs = set(re.findall(r"\$ workbench (\w+)", readme))
    assert len(verbs) >= 3
    known = build_parser()._subparsers._group_actions[0].choices
    assert verbs <= known.keys()


def test_every_target_that_is_named_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)\b", page.read_text("utf-8")):
            if f"`make {target}" in page.read_text("utf-8") or f"$ make {target}" in page.read_text(
                "utf-8"
            ):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_the_example_runs_word_by_word():
    block = re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    ).group(1)
    assert len([line for line in block.splitlines() if line.strip()]) <= 13
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            "-c",
            block + "\nassert answer.citations or answer.abstained\n",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_examples_of_the_page_on_the_router_run(tmp_path):
    page = (ROOT / "docs" / "routing.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 9
    code = "\n".join(blocks).replace("build/", f"{tmp_path.as_posix()}/")
    code += "\nassert scan.effects.shape[1:] == (5, 16) and len(use.gains) == len(cases)\n"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".parquet", ".jsonl"}


@pytest.mark.slow
def test_the_examples_of_the_page_on_long_prompts_run():
    page = (ROOT / "docs" / "long-prompts.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    # the first names a real Phi, the others run on any generator; a shorter document is quicker
    code = "\n".join(
        ["import workbench as wb", "generator = wb.load_generator('pocket')", *blocks[1:]]
    )
    code = code.replace("incident-report.md", "manual/pump.md").replace("32768", "8192")
    code += "\nassert second.cache.reused_tokens > 100, second.cache\n"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
