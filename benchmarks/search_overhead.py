"""What a Retriever adds to a raw FAISS search of the same vectors with the same query vectors.

Run: python benchmarks/search_overhead.py [--chunks 10000 100000] [--queries 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tables import heading, table

from workbench.corpus.chunks import Chunk
from workbench.corpus.documents import Document
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.index import VectorIndex
from workbench.retrieval.retrievers import Retriever

DIM = 384
K = 10


class GivenVectors:
    """An encoder that looks a question's vector up, so that search alone is timed."""

    name = "given vectors"
    identity = {"name": "given vectors", "dim": DIM}  # noqa: RUF012  # read only
    dim = DIM
    max_tokens = 254

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
        """Vectors whose numbers are the texts."""
        return self._vectors[[int(text) for text in texts]]

    def measure(self, text: str) -> NDArray[np.int64]:
        """One token."""
        return np.array([[0, len(text)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows = []
    for count in arguments.chunks:
        raw, ours = measure(count, arguments.queries, arguments.seed)
        added = f"{1e3 * (ours - raw):+.3f}"
        rows.append(
            (f"{count:,}", f"{1e3 * raw:.3f}", f"{1e3 * ours:.3f}", added, f"{ours / raw:.3f}")
        )
    encoder = load_encoder(device="cpu")
    question = "Which valve failed first, and why did it fail?"
    encoder.encode([question])
    seconds = [timed(lambda: encoder.encode([question], kind="query")) for _ in range(30)]
    note = (
        f"Random unit vectors of {DIM} dimensions, k = {K}; median of {arguments.queries} queries, "
        "one at a time and in turn, CPU milliseconds on one thread. Both find the same rows. The "
        f"question's vector is given: embedding {len(encoder.measure(question))} tokens with "
        f"{encoder.name} takes {1e3 * float(np.median(seconds)):.1f} ms more (median of 30)."
    )
    packages = ("numpy", importlib.metadata.packages_distributions()["faiss"][0])
    title = "Search: Retriever against raw FAISS"
    print(heading(title, packages=packages, seed=arguments.seed, note=note))
    header = ("chunks", "raw FAISS flat, ms", "Retriever.search dense, ms", "added, ms", "ratio")
    print("\n" + table(header, rows))


def measure(count: int, queries: int, seed: int) -> tuple[float, float]:
    """Median seconds of a raw search and of a Retriever's; both must find the same."""
    generator = np.random.default_rng(seed)
    vectors, asked = unit_vectors(generator, count), unit_vectors(generator, queries)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    retriever = Retriever(
        [Document("all.txt", "x" * count, "all")],
        [Chunk("all.txt", i, i + 1, "x", f"{i:016x}") for i in range(count)],
        encoder=GivenVectors(asked),
        mode="dense",
        max_tokens=128,
        vectors=VectorIndex(index),
        lexical=None,
    )
    raw, ours = [], []
    for i in range(queries):
        query = asked[i : i + 1]
        raw.append(timed(lambda query=query: index.search(query, K)))
        ours.append(timed(lambda i=i: retriever.search(str(i), k=K)))
    rows = index.search(asked[:1], K)[1][0].tolist()
    if [hit.chunk.start for hit in retriever.search("0", k=K)] != rows:
        raise SystemExit("the two searches do not find the same; the figures would mean nothing")
    return float(np.median(raw)), float(np.median(ours))


def timed(call: Callable[[], object]) -> float:
    start = time.thread_time()  # of this thread alone: the machine may be busy with other work
    call()
    return time.thread_time() - start


def unit_vectors(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = generator.standard_normal((count, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
