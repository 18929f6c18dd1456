"""Does a generator read? Its quotes and short answers against word overlap, MiniLM, typed spans and chance.

Without --data: every question of corpora/ through the whole pipeline. With --data a .jsonl or .jsonl.gz of
{"question", "answers", "ctxs": [{"title", "text"}]} whose first passage is the gold one: it among distractors found by
BM25 over all passages of the file, and, for abstention, the distractors alone. All choose among the same numbered
sentences of the same prompts. Run:
python benchmarks/reading.py [--data FILE] [--generator G] [--questions N] [--passages 1 3 5 8]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.corpus.chunks import Chunk
from workbench.corpus.documents import Document
from workbench.demo import CORPORA, read_questions
from workbench.evaluation.answers import is_contained, is_exact, token_f1, typed_span
from workbench.generation.prompts import (
    ABSTENTION,
    FREE_SYSTEM,
    QUOTE_SYSTEM,
    Prompt,
    Source,
    build_prompt,
)
from workbench.retrieval.encoders import load_encoder
from workbench.retrieval.hits import Hit
from workbench.retrieval.lexical import LexicalIndex

SEED, RESAMPLES = 0, 10_000


@dataclass(frozen=True)
class Case:
    """A question with what it may be answered from. `holds` says of a sentence whether it is the right one."""

    question: str
    answers: list[str]
    hits: list[Hit]
    documents: dict[str, Document]
    is_answerable: bool
    passages: int
    holds: Callable[[Source], bool]


@dataclass
class Scores:
    """One list of 0 and 1 (or F1) for each way of answering."""

    choice: dict[str, list[float]] = field(default_factory=dict)
    short: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    cited: list[float] = field(default_factory=list)
    quoted: list[float] = field(default_factory=list)
    present: list[float] = field(default_factory=list)
    abstained: list[float] = field(default_factory=list)
    declined: list[float] = field(default_factory=list)
    sentences: list[int] = field(default_factory=list)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def overlap_choice(
    question: str, sentences: list[str], frequency: Counter[str], passages: int
) -> int:
    """The sentence with the largest summed idf of the question's words; the first of equals."""
    asked = set(words(question))
    idf = {w: math.log((passages + 1) / (frequency[w] + 0.5)) for w in asked}
    return int(np.argmax([sum(idf[w] for w in asked & set(words(s))) for s in sentences]))


def interval(values: Sequence[float]) -> str:
    """Mean with a bootstrap interval over questions."""
    if not values:
        return "–"
    rng = np.random.default_rng(SEED)
    array = np.asarray(values, dtype=float)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{array.mean():.1%} ({low:.1%}–{high:.1%})"


def corpus_cases(folder: Path, k: int) -> tuple[list[Case], Counter[str], int]:
    """Every question of a corpus, with what the pipeline finds for it."""
    retriever = wb.build_retriever(wb.read_corpus(folder))
    frequency = Counter(w for chunk in retriever.chunks for w in set(words(chunk.text)))
    cases = []
    for q in read_questions(folder / "questions.jsonl"):
        wanted = q.get("evidence")

        def holds(source: Source, wanted: dict | None = wanted) -> bool:
            return bool(
                wanted
                and source.document_id == wanted["document"]
                and source.document_start < wanted["stop"]
                and wanted["start"] < source.document_stop
            )

        cases.append(
            Case(
                q["question"],
                [q["answer"]] if q["answerable"] else [],
                retriever.search(q["question"], k=k),
                retriever.documents,
                q["answerable"],
                k,
                holds,
            )
        )
    return cases, frequency, len(retriever.chunks)


def passage_cases(
    path: Path, sizes: Sequence[int], questions: int
) -> tuple[list[Case], Counter[str], int]:
    """The file's questions: the gold passage among BM25's best others, at a random place; and the others alone."""
    opened = (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8")
    )
    with opened as file:
        rows = [json.loads(line) for line in file]
    texts = [row["ctxs"][0]["text"].replace("\n", " ") for row in rows]
    titles = [row["ctxs"][0]["title"] for row in rows]
    frequency = Counter(w for text in texts for w in set(words(text)))
    index = LexicalIndex.build([f"{t}\n{x}" for t, x in zip(titles, texts, strict=True)])
    rng = random.Random(SEED)
    cases = []
    for number in rng.sample(range(len(rows)), min(questions, len(rows))):
        answers = rows[number]["answers"]

        def holds(source: Source, answers: list[str] = answers) -> bool:
            return is_contained(source.text, answers)

        found = index.search(rows[number]["question"], 60).rows.tolist()
        others = [
            i for i in found if texts[i] != texts[number] and not is_contained(texts[i], answers)
        ]
        for size in sizes:
            for gold in (True, False):
                picked = others[: size - gold] + [number] * gold
                rng.shuffle(picked)
                documents = {str(i): Document(str(i), texts[i], titles[i]) for i in picked}
                hits = [
                    Hit(Chunk(str(i), 0, len(texts[i]), texts[i], id=str(i)), 0.0, rank, ())
                    for rank, i in enumerate(picked, 1)
                ]
                cases.append(
                    Case(rows[number]["question"], answers, hits, documents, gold, size, holds)
                )
    return cases, frequency, len(texts)


def prompt_of(case: Case, generator: wb.Generator, system: str) -> Prompt:
    return build_prompt(
        case.question,
        case.hits,
        documents=case.documents,
        tokenizer=generator.tokenizer,
        budget_tokens=generator.context - 256,
        system=system,
        max_marks=generator.max_marks,
    )


def judge(
    case: Case, generator: wb.Generator, encoder, frequency, passages: int, scores: Scores
) -> None:
    """Add one case to the scores."""
    prompt = prompt_of(case, generator, QUOTE_SYSTEM)
    generation = generator.quote(prompt, capture=False)
    declined = not generation.quotes
    scores.abstained.append(float(declined == (not case.is_answerable)))
    if not case.is_answerable:
        scores.declined.append(float(declined))
        return
    texts = [source.text for source in prompt.sources]
    good = np.array([case.holds(source) for source in prompt.sources])
    vectors = encoder.encode(texts, kind="passage")
    asked = encoder.encode([case.question], kind="query")[0]
    picks = {
        "generator": next(c.n for c in generation.candidates if c.n is not None) - 1,
        "idf overlap": overlap_choice(case.question, texts, frequency, passages),
        "MiniLM": int(np.argmax(vectors @ asked)),
    }
    for name, pick in picks.items():
        scores.choice.setdefault(name, []).append(float(good[pick]))
    scores.choice.setdefault("random", []).append(float(good.mean()))
    scores.present.append(float(good.any()))
    scores.sentences.append(len(texts))
    if not declined:
        scores.cited.append(float(good[generation.quotes[0] - 1]))
    scores.quoted.append(float(not declined and good[generation.quotes[0] - 1]))
    said = generator.generate(
        prompt_of(case, generator, FREE_SYSTEM), max_new_tokens=32, capture=False
    ).text
    free = re.sub(r"^(\[\d+\] ?)?((Yes|No): )?", "", said)
    rng = random.Random(case.question)
    length = len(case.answers[0].split())
    source_words = rng.choice(texts).split()
    start = rng.randrange(max(1, len(source_words) - length + 1))
    spans = {
        "generator, few words": "" if said.startswith(ABSTENTION) else free,
        "generator's sentence, typed span": typed_span(case.question, texts[picks["generator"]]),
        "idf sentence, typed span": typed_span(case.question, texts[picks["idf overlap"]]),
        "MiniLM sentence, typed span": typed_span(case.question, texts[picks["MiniLM"]]),
        "random span of that length": " ".join(source_words[start : start + length]),
    }
    for name, span in spans.items():
        row = (float(is_exact(span, case.answers)), float(is_contained(span, case.answers)))
        scores.short.setdefault(name, []).append((*row, token_f1(span, case.answers)))


def report(scores: Scores, title: str) -> Iterator[str]:
    inside = np.array(scores.present, dtype=bool)
    yield (
        f"\n## {title}\n\n{len(scores.present)} answerable questions, {np.mean(scores.sentences):.0f} sentences a "
        f"prompt; a right sentence is in the prompt for {interval(scores.present)}.\n"
    )
    rows = [
        [name, interval(values), interval(np.array(values)[inside].tolist())]
        for name, values in scores.choice.items()
    ]
    yield table(["sentence chosen by", "right, of all", "right, where one is in the prompt"], rows)
    yield ""
    rows = []
    for name, values in scores.short.items():
        columns = list(zip(*values, strict=True))
        rows.append([name, *(interval(column) for column in columns)])
    yield table(["short answer", "exact", "contains the answer", "token F1"], rows)
    yield (
        f"\nWith abstaining allowed: citation precision {interval(scores.cited)}, recall {interval(scores.quoted)}; "
        f"declines {interval(scores.declined)} of {len(scores.declined)} unanswerable and "
        f"{1 - len(scores.cited) / max(1, len(scores.quoted)):.1%} of the answerable questions; right to answer or to "
        f"decline {interval(scores.abstained)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--questions", type=int, default=100, help="of --data")
    parser.add_argument("--passages", type=int, nargs="+", default=[1, 3, 5, 8], help="of --data")
    parser.add_argument("-k", type=int, default=5, help="hits for each question of corpora/")
    given = parser.parse_args()
    generator = wb.load_generator(given.generator)
    encoder = load_encoder()
    if given.data:
        cases, frequency, passages = passage_cases(given.data, given.passages, given.questions)
    else:
        cases, frequency, passages = corpus_cases(given.corpora, given.k)
    by_size: dict[int, Scores] = {}
    seconds, tokens = 0.0, 0
    for case in cases:
        scores = by_size.setdefault(case.passages, Scores())
        judge(case, generator, encoder, frequency, passages, scores)
    timed = generator.generate(
        prompt_of(cases[0], generator, FREE_SYSTEM), max_new_tokens=128, capture=True, stop=()
    )
    seconds, tokens = timed.timing.decode_seconds, len(timed.token_ids) - 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    name = given.data.name if given.data else "corpora"
    speed = f" Decoding with routing: {tokens / seconds:.0f} tokens/s." if tokens > 3 else ""
    print(
        heading(
            f"Reading {name} ({generator.name})",
            packages=("torch", "transformers", "sentence-transformers", "faiss-cpu", "bm25s"),
            seed=SEED,
            note=f"95 % bootstrap intervals over questions. Peak memory of the process {peak:.2f} GiB, with MiniLM and "
            f"the index.{speed}",
        )
    )
    for size, scores in by_size.items():
        print("\n".join(report(scores, f"{size} passages")))


if __name__ == "__main__":
    main()
