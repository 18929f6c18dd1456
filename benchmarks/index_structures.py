"""Every structure at growing sizes: time to build and tune, bytes a vector, recall as tuned and on questions, speed.

With --data (.jsonl or .jsonl.gz of {"question", "ctxs": [{"title", "text"}]}) the vectors are real sentences and
mixtures of two neighbouring ones, and the questions are real; without, clusters of random vectors. Run:
python benchmarks/index_structures.py [--data FILE] [--sizes 10000 100000] [--kinds flat hnsw ivf-sq8] [--threads 2]
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import time
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from tables import heading, table

from workbench.corpus.sentences import sentence_spans
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.index import VectorIndex
from workbench.retrieval.index_structures import KINDS, TARGET_RECALL

DIM, K, SEED = 384, 10, 0
QUESTIONS, BATCH, SENTENCES = 300, 500, 12_000


def real(path: Path, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of sentences and of questions of a file."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    with opened as file:
        rows = [json.loads(line) for line in file]
    texts = dict.fromkeys(row["ctxs"][0]["text"] for row in rows)
    sentences = [text[a:b] for text in texts for a, b in sentence_spans(text)]
    encoder = load_encoder()
    kept = [s for s in sentences if 5 <= len(encoder.measure(s)) <= 60]
    kept = [kept[i] for i in rng.permutation(len(kept))[:SENTENCES]]
    asked = [rows[i]["question"] for i in rng.permutation(len(rows))[:QUESTIONS]]
    return encoder.encode(kept), encoder.encode(asked, kind="query")


def grown(base: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """`count` vectors: those of `base`, then mixtures of one of them with one of its 20 nearest, and a little noise."""
    near = faiss.knn(base, base, 21, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 1:]
    made = [base[:count]]
    left = count - len(made[0])
    while left > 0:
        size = min(left, 50_000)
        first = rng.integers(0, len(base), size)
        second = near[first, rng.integers(0, 20, size)]
        share = rng.uniform(0.2, 0.8, (size, 1)).astype(np.float32)
        noise = 0.02 * rng.standard_normal((size, DIM), dtype=np.float32)
        made.append(unit((1 - share) * base[first] + share * base[second] + noise))
        left -= size
    return np.concatenate(made)


def clusters(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    centres = unit(np.random.default_rng(SEED).standard_normal((2000, DIM), dtype=np.float32))
    noise = rng.standard_normal((count, DIM), dtype=np.float32) / np.sqrt(DIM)
    return unit(centres[rng.integers(0, len(centres), count)] + 0.9 * noise)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    faiss.omp_set_num_threads(given.threads)
    rng = np.random.default_rng(SEED)
    base, asked = real(given.data, rng) if given.data else (None, clusters(QUESTIONS, rng))
    rows = []
    for size in given.sizes:
        vectors = clusters(size, rng) if base is None else grown(base, size, rng)
        truth = faiss.knn(asked, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        many = asked[rng.integers(0, len(asked), BATCH)]
        for kind in given.kinds:
            begun = time.perf_counter()
            index = VectorIndex.build(vectors, kind=kind)
            built = time.perf_counter() - begun
            found = index.search(asked, K).rows
            hits = [
                len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)
            ]
            alone = [timed(lambda i=i, x=index: x.search(asked[i : i + 1], K)) for i in range(100)]
            together = np.median(
                [timed(lambda x=index, many=many: x.search(many, K)) for _ in range(5)]
            )
            report = index.report
            rows.append(
                (
                    f"{size:,}",
                    kind,
                    f"{report.parameter} {report.effort}" if report.effort else "–",
                    f"{built:.1f}",
                    f"{report.bytes_per_vector:.0f}",
                    f"{report.recall:.3f}",
                    f"{np.mean(hits) / K:.3f}",
                    f"{1e3 * np.median(alone):.2f}",
                    f"{BATCH / together:,.0f}",
                )
            )
            print(f"{size:,} {kind}: {rows[-1][2:]}", flush=True)
            del index
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    source = (
        f"Sentences of {given.data.name} and mixtures of neighbours" if given.data else "Clusters"
    )
    asked_what = "its questions" if given.data else "other points of the clusters"
    note = (
        f"{source}, {DIM} dimensions, k = {K}, {given.threads} threads. Tuned to recall@10 ≥ "
        f"{TARGET_RECALL} on own vectors and on points near them; beside it recall on {asked_what}. Wall time; "
        f"speed is that of VectorIndex, one query at a time (median of 100) and {BATCH} together (median of 5). Bytes "
        "are those in memory of the structure; the vectors (1,536 bytes each) lie in a mapped file. Peak memory of the "
        f"process {peak:.1f} GiB, vectors in memory."
    )
    print(heading("Structures of an index", packages=("numpy", "faiss-cpu"), seed=SEED, note=note))
    header = (
        "vectors", "structure", "effort", "build and tune, s", "bytes a vector", "recall@10, tuned",
        "recall@10, questions", "ms a query", "queries/s together",
    )  # fmt: skip
    print("\n" + table(header, rows))


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
