"""Which sentence is chosen: the pocket model against chance, idf word overlap and the MiniLM-nearest sentence.

All four choose among the same numbered sentences of the same prompts, for every answerable question of corpora/. A
choice is right when its span overlaps the evidence. Run:
python benchmarks/quote_choice.py [--corpora DIR] [--generator G]
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.demo import CORPORA, read_questions
from workbench.generation.prompts import QUOTE_SYSTEM, build_prompt

SEED, RESAMPLES = 0, 10_000


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def overlap_choice(
    question: str, sentences: list[str], frequency: Counter[str], documents: int
) -> int:
    """The sentence with the largest summed idf of the question's words; the first of equals."""
    asked = set(words(question))
    idf = {w: math.log((documents + 1) / (frequency[w] + 0.5)) for w in asked}
    return int(np.argmax([sum(idf[w] for w in asked & set(words(s))) for s in sentences]))


def interval(hits: np.ndarray) -> str:
    """Share with a bootstrap interval over questions."""
    random = np.random.default_rng(SEED)
    means = hits[random.integers(0, len(hits), (RESAMPLES, len(hits)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{hits.mean():.1%} ({low:.1%}–{high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("-k", type=int, default=5)
    arguments = parser.parse_args()
    corpus = wb.read_corpus(arguments.corpora)
    retriever = wb.build_retriever(corpus)
    generator = wb.load_generator(arguments.generator)
    questions = read_questions(arguments.corpora / "questions.jsonl")
    frequency = Counter(w for chunk in retriever.chunks for w in set(words(chunk.text)))
    right: dict[str, list[float]] = {name: [] for name in ("pocket", "idf", "minilm", "random")}
    present, found, declined, sources = [], [], [], []
    for q in questions:
        hits = retriever.search(q["question"], k=arguments.k)
        prompt = build_prompt(
            q["question"],
            hits,
            documents=retriever.documents,
            tokenizer=generator.tokenizer,
            budget_tokens=generator.context - 256,
            system=QUOTE_SYSTEM,
            max_marks=generator.max_marks,
        )
        generation = generator.quote(prompt, capture=False)
        if not q["answerable"]:
            declined.append(not generation.quotes)
            continue
        wanted = q["evidence"]
        good = np.array(
            [
                s.document_id == wanted["document"]
                and s.document_start < wanted["stop"]
                and wanted["start"] < s.document_stop
                for s in prompt.sources
            ]
        )
        texts = [s.text for s in prompt.sources]
        vectors = retriever.encoder.encode(texts, kind="passage")
        asked = retriever.encoder.encode([q["question"]], kind="query")[0]
        chosen = next(c.n for c in generation.candidates if c.n is not None)
        found.append(any(h.chunk.document_id == wanted["document"] for h in hits))
        present.append(good.any())
        sources.append(len(texts))
        right["pocket"].append(good[chosen - 1])
        right["idf"].append(
            good[overlap_choice(q["question"], texts, frequency, len(retriever.chunks))]
        )
        right["minilm"].append(good[int(np.argmax(vectors @ asked))])
        right["random"].append(good.mean())
    inside = np.array(present)
    print(
        heading(
            f"Choice of the quoted sentence ({generator.name})",
            packages=("torch", "transformers", "sentence-transformers", "faiss-cpu", "bm25s"),
            seed=SEED,
            note=f"{len(present)} answerable questions, k = {arguments.k}; evidence document among the hits for "
            f"{np.mean(found):.1%}, evidence sentence in the prompt for {inside.mean():.1%}; "
            f"{np.mean(sources):.0f} sentences a prompt on average. {sum(declined)} of {len(declined)} "
            "unanswerable questions declined. Abstaining is left out of the choice here. 95 % bootstrap "
            "intervals over questions.",
        )
    )
    print()
    names = {
        "pocket": f"{generator.name}: own log-probability",
        "idf": "idf word overlap",
        "minilm": "MiniLM-nearest sentence",
        "random": "random sentence (expected)",
    }
    rows = []
    for name, label in names.items():
        hits_of = np.array(right[name], dtype=float)
        rows.append([label, interval(hits_of), interval(hits_of[inside])])
    print(
        table(
            ["choice", "right, of all questions", "right, where the evidence is in the prompt"],
            rows,
        )
    )


if __name__ == "__main__":
    main()
