"""docs/gallery.md shows what docs/make_gallery.py would make: run that again if one of these fails."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "gallery.md").read_text("utf-8")


def test_every_entry_is_on_the_page_with_its_picture(gallery, page) -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert shown == [f"images/gallery/{entry.function}.png" for entry in gallery.ENTRIES]
    for entry in gallery.ENTRIES:
        assert entry.code in page and entry.reading in page
    assert {p.name for p in gallery.IMAGES.iterdir()} == {Path(path).name for path in shown}


def test_the_pictures_are_small_together(gallery) -> None:
    assert sum(path.stat().st_size for path in gallery.IMAGES.iterdir()) < 1.5e6


def test_the_names_on_the_page_are_those_of_the_script(gallery, page) -> None:
    assert inspect.getsource(gallery.prepare) in page


def test_what_entries_call_is_there(gallery) -> None:
    for entry in gallery.ENTRIES:
        assert callable(
            getattr(importlib.import_module(f"workbench.plots.{entry.room}"), entry.function)
        )
