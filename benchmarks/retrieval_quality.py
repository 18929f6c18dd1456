"""Which passages come first: dense, BM25 and both, fused by rank or by score, on public questions; nDCG@10, paired.

--data takes files of two forms: .jsonl(.gz) of {"question", "ctxs": [{"title", "text"}]} whose first passage is the
gold one (all gold passages of the file are searched together), and .json(.gz) in SQuAD's form (all its paragraphs).
Run: python benchmarks/retrieval_quality.py --data FILE … [--questions N] [--encoder E]
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import heading, table

from workbench.corpus.documents import Corpus, Document
from workbench.evaluation.retrieval import compare, ndcg, recall, reciprocal_rank
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.retrievers import Retriever, SearchOptions, build_retriever

SEED, K = 0, 10
SYSTEMS: dict[str, tuple[str, SearchOptions]] = {
    "dense": ("dense", SearchOptions()),
    "BM25": ("lexical", SearchOptions()),
    "hybrid, by rank": ("hybrid", SearchOptions(fusion="rank")),
    "hybrid, by score": ("hybrid", SearchOptions()),
    "hybrid, by rank, BM25 twice": (
        "hybrid",
        SearchOptions(fusion="rank", weights={"lexical": 2.0}),
    ),
}
BASE = "hybrid, by rank"


def read(path: Path) -> tuple[list[Document], list[tuple[str, str]]]:
    """Documents, and questions with the id of the document that answers."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.name:
            rows = [json.loads(line) for line in file]
            texts = dict.fromkeys((r["ctxs"][0]["title"], r["ctxs"][0]["text"]) for r in rows)
            ids = {pair: str(n) for n, pair in enumerate(texts)}
            asked = [
                (r["question"], ids[r["ctxs"][0]["title"], r["ctxs"][0]["text"]]) for r in rows
            ]
            return [Document(id, text, title) for (title, text), id in ids.items()], asked
        documents, asked = [], []
        for article in json.load(file)["data"]:
            for paragraph in article["paragraphs"]:
                id = str(len(documents))
                documents.append(Document(id, paragraph["context"], article["title"]))
                asked += [(qa["question"], id) for qa in paragraph["qas"]]
        return documents, asked


def ranked(retriever: Retriever, question: str, system: str) -> list[str]:
    """Documents in the order of their best chunk."""
    mode, options = SYSTEMS[system]
    hits = retriever.search(question, k=40, mode=mode, options=options)  # type: ignore[arg-type]
    return list(dict.fromkeys(hit.chunk.document_id for hit in hits))[:K]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--questions", type=int, default=600, help="of each file, at most")
    parser.add_argument("--encoder", help="hub id or folder (default: all-MiniLM-L6-v2)")
    given = parser.parse_args()
    encoder = load_encoder(given.encoder)
    print(
        heading(
            "Which passages come first",
            packages=("torch", "sentence-transformers", "faiss-cpu", "bm25s"),
            seed=SEED,
            note=f"Encoder {encoder.name}. Documents in the order of their best chunk of 128 tokens; one is right. "
            f"Differences to “{BASE}” with 95 % bootstrap intervals over questions and p of a randomization test.",
        )
    )
    for path in given.data:
        documents, asked = read(path)
        asked = random.Random(SEED).sample(asked, min(given.questions, len(asked)))
        retriever = build_retriever(Corpus(tuple(documents)), encoder=encoder)
        scores: dict[str, list[float]] = {}
        rows = []
        for system in SYSTEMS:
            found = [ranked(retriever, question, system) for question, _ in asked]
            wanted = [{id: 1} for _, id in asked]
            pairs: Sequence[Any] = list(zip(found, wanted, strict=True))
            scores[system] = [ndcg(f, w, k=K) for f, w in pairs]
            first = np.mean([recall(f, w, k=1) for f, w in pairs])
            five = np.mean([recall(f, w, k=5) for f, w in pairs])
            rr = np.mean([reciprocal_rank(f, w) for f, w in pairs])
            rows.append(
                [
                    system,
                    f"{np.mean(scores[system]):.3f}",
                    f"{first:.1%}",
                    f"{five:.1%}",
                    f"{rr:.3f}",
                ]
            )
        for row, system in zip(rows, SYSTEMS, strict=True):
            row.append("" if system == BASE else str(compare(scores[system], scores[BASE])))
        print(
            f"\n## {path.name}: {len(documents):,} documents, {len(retriever):,} chunks, {len(asked):,} questions\n"
        )
        header = ["system", f"nDCG@{K}", "first", "in 5", "RR", f"nDCG against {BASE}"]
        print(table(header, rows))


if __name__ == "__main__":
    main()
