"""The embedded encoder, loaded once, and a small harbour of documents in three languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.corpus.documents import Corpus, Document, Section
from workbench.retrieval.encoders import EMBEDDED_PACKAGE, SentenceEncoder, load_encoder
from workbench.retrieval.retrievers import Retriever, build_retriever


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    return load_encoder(device="cpu")


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    import importlib.util

    found = importlib.util.find_spec(EMBEDDED_PACKAGE)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "model"


@pytest.fixture
def other_folder(embedded_folder: Path, tmp_path: Path) -> Path:
    """The same weights that read 30 tokens: another encoder."""
    folder = tmp_path / "short-encoder"
    (folder / "1_Pooling").mkdir(parents=True)
    for source in embedded_folder.rglob("*"):
        if source.is_file():
            (folder / source.relative_to(embedded_folder)).symlink_to(source)
    limits = folder / "sentence_bert_config.json"
    limits.unlink()
    limits.write_text('{"max_seq_length": 32, "do_lower_case": false}', encoding="utf-8")
    return folder


def harbour() -> Corpus:
    pump = "# Pump\n\nThe pump drains the lock.\n\n## Faults\n\nValve V-14 leaked in March.\n"
    faults = pump.index("## Faults")
    return Corpus(
        (
            Document(
                "de/deich.md", "Der Deich ist neun Meter hoch.\n", "Deichordnung", language="de"
            ),
            Document(
                "fish.txt", "Herring is sold at six.\n\nEels are smoked on Fridays.\n", "fish"
            ),
            Document(
                "manual/pump.md",
                pump,
                "Pump",
                sections=(
                    Section("Pump", 1, 0, len(pump)),
                    Section("Faults", 2, faults, len(pump)),
                ),
            ),
            Document("tides.txt", "High water comes twice a day.\n", "tides"),
        )
    )


@pytest.fixture(scope="session")
def retriever(encoder: SentenceEncoder) -> Iterator[Retriever]:
    yield build_retriever(harbour(), encoder=encoder)
