"""Chunks embedded a second by our encoder, in float32 and bfloat16, against plain sentence-transformers.

Run: python benchmarks/embedding.py [--texts 400] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from tables import heading, table

from workbench.corpus.readers import read_corpus
from workbench.demo import CORPORA
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.retrievers import build_retriever

ROUNDS, SEED = 5, 0


def main() -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    encoder = load_encoder(device="cpu", precision="float32")
    short = load_encoder(device="cpu", precision="bfloat16")
    chunks = [chunk.text for chunk in build_retriever(read_corpus(CORPORA), encoder=encoder).chunks]
    rng = np.random.default_rng(SEED)
    texts = [chunks[i] for i in rng.integers(0, len(chunks), given.texts)]
    folder = encoder._model[0].model.config._name_or_path  # the folder it was loaded from
    plain = SentenceTransformer(folder, device="cpu")
    ways: dict[str, Callable[[], np.ndarray]] = {
        "sentence-transformers": lambda: plain.encode(
            texts, batch_size=32, show_progress_bar=False
        ),
        "ours, float32": lambda: encoder.encode(texts),
        "ours, bfloat16": lambda: short.encode(texts),
    }
    exact = ways["sentence-transformers"]()
    cosines = {name: float((call() * exact).sum(1).min()) for name, call in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    base = float(np.median(seconds["sentence-transformers"]))
    rows = [
        (
            name,
            f"{given.texts / np.median(s):.0f}",
            f"{base / np.median(s):.2f}",
            f"{cosines[name]:.5f}",
        )
        for name, s in seconds.items()
    ]
    tokens = np.mean([len(encoder.measure(text)) for text in texts])
    note = (
        f"{given.texts} chunks of corpora/ of {tokens:.0f} tokens on average, {given.threads} threads, batches of 32, "
        f"wall time, median of {ROUNDS} rounds in turn. Cosine: the least one to the first row's vectors."
    )
    print(heading("Embedding", packages=("torch", "sentence-transformers"), seed=SEED, note=note))
    print("\n" + table(("encoder", "chunks/s", "times the first", "least cosine"), rows))


if __name__ == "__main__":
    main()
