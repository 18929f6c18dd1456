from __future__ import annotations

import tomllib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "workbench"


def test_what_training_reads_and_the_weights_are_installed_with_the_package() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["workbench"]
    taken = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {p for p in (PACKAGE / "pocket").rglob("*.*") if p.is_file() and p.suffix[:3] != ".py"}
    assert len(data) > 40
    assert data <= taken
