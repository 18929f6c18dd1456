"""Do passages that are routed like the question answer it? Routing as a third voter beside words and meaning; nDCG@10.

The signature of a text is the usage of every expert of every layer by its tokens, less the mean signature of its kind
(chunks, questions); two texts are as alike as the cosine of their signatures. The 40 best hits of hybrid search are
ordered anew by their score plus a weight times that cosine, both scaled to 0 to 1 within the question. The weight is
chosen on one half of the questions and judged on the other.
Run: python benchmarks/routing_votes.py --data FILE … [--questions N] [--generator G]
(files as in retrieval_quality.py)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from retrieval_quality import read
from tables import heading, table

import workbench as wb
from workbench.corpus.documents import Corpus
from workbench.evaluation.retrieval import compare, ndcg
from workbench.generation.prompts import plain_prompt
from workbench.retrieval.hits import Hit

SEED, K, POOL = 0, 10, 40
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Signatures:
    """Usage of every expert by the tokens of a text: [layers × experts]; texts are read once."""

    def __init__(self, generator: wb.Generator) -> None:
        self._generator = generator
        self._known: dict[str, NDArray[np.float64]] = {}

    def of(self, text: str) -> NDArray[np.float64]:
        """The signature of `text`, not centred."""
        if text not in self._known:
            prompt = plain_prompt(
                text, tokenizer=self._generator.tokenizer, budget_tokens=self._generator.context
            )
            trace = self._generator.read(prompt)
            self._known[text] = trace.usage("question").reshape(-1)
        return self._known[text]


def likeness(question: NDArray[np.float64], chunks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of the question's signature with those of chunks, all centred: [chunks]."""
    norms = np.linalg.norm(question) * np.linalg.norm(chunks, axis=1)
    return chunks @ question / np.maximum(norms, 1e-12)


def scaled(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between 0 and 1."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)


def documents_of(hits: Sequence[Hit], order: NDArray[np.intp]) -> list[str]:
    """Documents in the order of their best hit."""
    return list(dict.fromkeys(hits[i].chunk.document_id for i in order))[:K]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--questions", type=int, default=300, help="of each file, at most")
    parser.add_argument("--generator", default="pocket")
    given = parser.parse_args()
    generator = wb.load_generator(given.generator)
    print(
        heading(
            f"Routing as a third voter ({generator.name})",
            packages=("torch", "transformers", "sentence-transformers"),
            seed=SEED,
            note=f"The {POOL} best hits of hybrid search, reordered. The weight is chosen on one half of them; "
            "the difference to hybrid search alone is that on the other half, with its 95 % interval and p. “Routing "
            "alone” orders the same hits by likeness only, “random” by chance.",
        )
    )
    rows = []
    for path in given.data:
        documents, asked = read(path)
        asked = random.Random(SEED).sample(asked, min(given.questions, len(asked)))
        retriever = wb.build_retriever(Corpus(tuple(documents)))
        signatures = Signatures(generator)
        found = [retriever.search(question, k=POOL) for question, _ in asked]
        texts = {hit.chunk.text for hits in found for hit in hits}
        chunk_mean = np.mean([signatures.of(text) for text in sorted(texts)], axis=0)
        question_mean = np.mean([signatures.of(question) for question, _ in asked], axis=0)
        scores: dict[float, list[float]] = {weight: [] for weight in (*WEIGHTS, np.inf)}
        chance: list[float] = []
        draws = np.random.default_rng(SEED)
        for (question, wanted), hits in zip(asked, found, strict=True):
            words = scaled(np.array([hit.score for hit in hits], dtype=np.float64))
            chunks = np.stack([signatures.of(hit.chunk.text) for hit in hits]) - chunk_mean
            alike = scaled(likeness(signatures.of(question) - question_mean, chunks))
            order = draws.permutation(len(hits))
            chance.append(ndcg(documents_of(hits, order), {wanted: 1}, k=K))
            for weight in scores:
                total = alike if np.isinf(weight) else words + weight * alike
                order = np.argsort(-total, kind="stable")
                scores[weight].append(ndcg(documents_of(hits, order), {wanted: 1}, k=K))
        half = len(asked) // 2
        best = max(WEIGHTS, key=lambda weight: np.mean(scores[weight][:half]))
        judged = compare(scores[best][half:], scores[0.0][half:])
        rows.append(
            [
                path.name,
                len(asked) - half,
                f"{np.mean(scores[0.0][half:]):.3f}",
                f"{np.mean(scores[np.inf][half:]):.3f}",
                f"{np.mean(chance[half:]):.3f}",
                f"{best:g}",
                str(judged),
            ]
        )
    header = [
        "questions of", "judged on", f"hybrid, nDCG@{K}", "routing alone", "random", "weight chosen",
        "hybrid + routing − hybrid",
    ]  # fmt: skip
    print()
    print(table(header, rows))


if __name__ == "__main__":
    main()
