from __future__ import annotations

from collections.abc import Iterator

import pytest

from workbench.pocket import prose
from workbench.pocket.lexicon import words


def _documents() -> tuple[tuple[str, ...], ...]:
    """Twenty-four documents of five sentences that share few words."""
    tools, places, crafts = words("tool"), words("habitat"), words("profession")
    return tuple(
        tuple(
            f"Document{d} tells how the {crafts[(d + s) % 20]} number{s} took {tools[(d * 5 + s) % 12]} "
            f"to {places[(d + 3 * s) % 12]} after sunset{d}x{s}."
            for s in range(5)
        )
        for d in range(24)
    )


@pytest.fixture(autouse=True)
def small_prose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two dozen short documents in place of the Python reference, which takes seconds to read (but in slow tests)."""
    if "slow" in request.keywords:
        yield
        return
    monkeypatch.setattr(prose, "_all_documents", _documents)
    prose.documents.cache_clear()
    yield
    prose.documents.cache_clear()
