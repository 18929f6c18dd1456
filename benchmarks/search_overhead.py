"""What our index and a Retriever add to a raw FAISS search of the same vectors with the same query vectors.

Also after 1,000 deletions, and in three segments. Run:
python benchmarks/search_overhead.py [--chunks 10000 100000] [--queries 200] [--seed 0]
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

from workbench.corpus.documents import Document
from workbench.retrieval.building import Recipe
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.retrievers import Retriever
from workbench.retrieval.segments import CHUNK, Prepared, memory_segment
from workbench.retrieval.snapshot import Snapshot

DIM = 384
K = 10
BATCH = 500
DELETED = 1000


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
    single, batches = [], []
    for count in arguments.chunks:
        for name, seconds in measure(count, arguments.queries, arguments.seed).items():
            alone, together = seconds
            if name == "raw FAISS flat":
                raw_alone, raw_together = alone, together
            added = f"{1e3 * (alone - raw_alone):+.3f}"
            single.append((f"{count:,}", name, f"{1e3 * alone:.3f}", added))
            if together is not None:
                share = f"{raw_together / together:.3f}"
                batches.append((f"{count:,}", name, f"{BATCH / together:,.0f}", share))
    encoder = load_encoder(device="cpu")
    question = "Which valve failed first, and why did it fail?"
    encoder.encode([question])
    seconds = [timed(lambda: encoder.encode([question], kind="query")) for _ in range(30)]
    note = (
        f"Random unit vectors of {DIM} dimensions, k = {K}; CPU time on one thread. One at a time: median of "
        f"{arguments.queries} queries, in turn; together: median of 25 batches of {BATCH}, in turn. All find the same "
        f"rows, but for the deleted ones. The question's vector is given: embedding {len(encoder.measure(question))} "
        f"tokens with {encoder.name} takes {1e3 * float(np.median(seconds)):.1f} ms more (median of 30)."
    )
    packages = ("numpy", importlib.metadata.packages_distributions()["faiss"][0])
    title = "Search: ours against raw FAISS"
    print(heading(title, packages=packages, seed=arguments.seed, note=note))
    print("\n" + table(("vectors", "one at a time", "ms a query", "added, ms"), single))
    header = ("vectors", f"{BATCH} together", "queries a CPU second", "of raw FAISS")
    print("\n" + table(header, batches))


def measure(count: int, queries: int, seed: int) -> dict[str, tuple[float, float | None]]:
    """Median seconds of a query and of a batch (None for a Retriever, which takes one question)."""
    generator = np.random.default_rng(seed)
    vectors, asked = unit_vectors(generator, count), unit_vectors(generator, queries)
    many = unit_vectors(generator, BATCH)
    raw = faiss.IndexFlatIP(DIM)
    raw.add(vectors)
    gone = np.sort(generator.permutation(count)[:DELETED]).tolist()
    third = count // 3
    parts = [vectors[:third], vectors[third : 2 * third], vectors[2 * third :]]
    snapshots = {
        "whole": snapshot_of([vectors], []),
        f"{DELETED:,} deleted": snapshot_of([vectors], gone),
        f"three segments, {DELETED:,} deleted": snapshot_of(parts, gone),
    }
    recipe = Recipe(GivenVectors(asked), "dense")
    singles: dict[str, Callable[[int], object]] = {
        "raw FAISS flat": lambda i: raw.search(asked[i : i + 1], K)
    }
    batches: dict[str, Callable[[], object]] = {"raw FAISS flat": lambda: raw.search(many, K)}
    for name, snapshot in snapshots.items():
        index, retriever = snapshot.vectors, Retriever(snapshot, recipe=recipe)
        rows = index.search(asked, K).rows
        expected = raw.search(asked, K + DELETED)[1]
        alive = [[row for row in found if snapshot.alive[row]][:K] for found in expected.tolist()]
        if rows.tolist() != alive:
            raise SystemExit("the searches do not find the same; the figures would mean nothing")
        singles[f"VectorIndex, {name}"] = lambda i, index=index: index.search(asked[i : i + 1], K)
        singles[f"Retriever, {name}"] = lambda i, r=retriever: r.search(str(i), k=K)
        batches[f"VectorIndex, {name}"] = lambda index=index: index.search(many, K)
    alone: dict[str, list[float]] = {name: [] for name in singles}
    for i in range(queries):
        for name, call in singles.items():
            alone[name].append(timed(lambda call=call, i=i: call(i)))
    together: dict[str, list[float]] = {name: [] for name in batches}
    for _ in range(25):
        for name, call in batches.items():
            together[name].append(timed(call))
    return {
        name: (
            float(np.median(seconds)),
            float(np.median(together[name])) if name in together else None,
        )
        for name, seconds in alone.items()
    }


def snapshot_of(parts: list[NDArray[np.float32]], deleted: list[int]) -> Snapshot:
    """Every vector a chunk and a document of its own, in as many segments as there are parts."""
    segments, first = [], 0
    for part in parts:
        chunks = np.zeros(1, dtype=CHUNK)
        chunks["stop"] = 1
        made = (
            Prepared(Document(str(first + n), "x", ""), chunks, part[n : n + 1])
            for n in range(len(part))
        )
        segments.append(memory_segment(made, dim=DIM, kind="flat", reason="as asked for"))
        first += len(part)
    return Snapshot(segments, dim=DIM, deleted=deleted)


def timed(call: Callable[[], object]) -> float:
    start = time.thread_time()  # of this thread alone: the machine may be busy with other work
    call()
    return time.thread_time() - start


def unit_vectors(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = generator.standard_normal((count, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
