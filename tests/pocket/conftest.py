from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from workbench.pocket import prose
from workbench.pocket.lexicon import words


def _documents() -> tuple[tuple[str, ...], ...]:
    """Twenty-four documents of five sentences that share few words."""
    tools, places, crafts = words("implement"), words("habitat"), words("profession")
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


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    """The trainer's tokenizer, trained on a few examples."""
    pytest.importorskip("transformers")
    from workbench.pocket.tokenizer import train_tokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "_all_documents", _documents)
        prose.documents.cache_clear()
        tokenizer = train_tokenizer(vocabulary=1000, examples=60)
        prose.documents.cache_clear()
    return tokenizer
