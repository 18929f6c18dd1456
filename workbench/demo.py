"""The main job on the embedded default: index corpora/, answer its questions, draw the experts, summarize, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.answer import Answer, ask
from workbench.corpus.documents import Corpus
from workbench.corpus.readers import read_corpus
from workbench.errors import InputError
from workbench.generation.loading import load_generator
from workbench.generation.phi import Generator
from workbench.markup import escape, table
from workbench.plots.context import plot_context
from workbench.plots.figures import png_bytes
from workbench.plots.routing import plot_expert_usage, plot_segment_usage
from workbench.report import (
    Picture,
    Section,
    answers_section,
    pictures_section,
    report_page,
    summary_section,
)
from workbench.retrieval.retrievers import Retriever, build_retriever
from workbench.store import write_atomic
from workbench.summary import Summary, summarize

CORPORA = Path(__file__).resolve().parent.parent / "corpora"
LONG_DOCUMENT = "incident-report"
SHOWN = 6
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made: the page, its numbers, and the seconds each step took."""

    report: Path
    questions: int
    in_top_k: int
    sentence_hits: int
    abstained_rightly: int
    unanswerable: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """What ``workbench demo --json`` prints."""
        return {
            "report": str(self.report),
            "questions": self.questions,
            "evidence_document_in_top_5": self.in_top_k,
            "quote_overlaps_evidence": self.sentence_hits,
            "unanswerable": self.unanswerable,
            "abstained_rightly": self.abstained_rightly,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An answer beside what corpora/questions.jsonl says."""

    answer: Answer
    truth: dict[str, Any]

    @property
    def document_found(self) -> bool:
        """Whether the evidence's document is among the hits."""
        wanted = self.truth["evidence"]
        return wanted is not None and any(
            h.chunk.document_id == wanted["document"] for h in self.answer.hits
        )

    @property
    def evidence_quoted(self) -> bool:
        """Whether a citation overlaps the evidence."""
        wanted = self.truth["evidence"]
        return wanted is not None and any(
            c.document_id == wanted["document"]
            and c.start < wanted["stop"]
            and wanted["start"] < c.stop
            for c in self.answer.citations
        )


def run_demo(
    out: str | Path, *, corpora: str | Path = CORPORA, say: Say = lambda line: None
) -> DemoResult:
    """Run everything and write ``out/report.html``; `say` receives a line a step."""
    out = Path(out)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - started
        say(f"{name}: {seconds[name]:.1f} s")
        return result

    corpus: Corpus = timed("read", lambda: read_corpus(corpora))
    retriever: Retriever = timed("index", lambda: build_retriever(corpus))
    retriever.save(out / "index")
    generator: Generator = timed("load", lambda: load_generator("pocket"))
    truths = read_questions(Path(corpora) / "questions.jsonl")
    judged: list[Judged] = timed(
        "answer", lambda: [judge(truth, retriever, generator) for truth in truths]
    )
    summary: Summary = timed(
        "summarize", lambda: summarize(corpus[LONG_DOCUMENT], generator=generator, progress=False)
    )
    html = timed("draw", lambda: _page(corpus, generator, judged, summary))
    write_atomic(out / "report.html", html.encode())
    answerable = [j for j in judged if j.truth["answerable"]]
    unanswerable = [j for j in judged if not j.truth["answerable"]]
    return DemoResult(
        report=(out / "report.html").resolve(),
        questions=len(answerable),
        in_top_k=sum(j.document_found for j in answerable),
        sentence_hits=sum(j.evidence_quoted for j in answerable),
        abstained_rightly=sum(j.answer.abstained for j in unanswerable),
        unanswerable=len(unanswerable),
        seconds=seconds,
    )


def judge(truth: dict[str, Any], retriever: Retriever, generator: Generator) -> Judged:
    """Ask the question of one line of a questions file."""
    return Judged(ask(truth["question"], retriever=retriever, generator=generator), truth)


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Lines of a questions file; an unreadable line is an ``InputError`` naming it."""
    questions = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            question = json.loads(line)
            questions.append(
                {
                    **question,
                    "question": str(question["question"]),
                    "evidence": question["evidence"],
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: no question: {error}") from error
    return questions


def _page(corpus: Corpus, generator: Generator, judged: Sequence[Judged], summary: Summary) -> str:
    right = [j for j in judged if j.evidence_quoted][:SHOWN]
    wrong = [j for j in judged if j.truth["answerable"] and not j.evidence_quoted]
    said = [j for j in wrong if not j.answer.abstained][:2]
    failed = [*[j for j in wrong if j.answer.abstained][:1], *said]
    first = [*right, *judged][0]
    trace = first.answer.routing
    pictures = [
        Picture(
            png_bytes(plot_context(first.answer)),
            "How likely the model found each admissible quote; the one it said is coloured.",
        ),
        Picture(
            png_bytes(plot_expert_usage(trace)),
            f"Experts used in every layer for “{first.answer.question}”, prompt and answer.",
        ),
        Picture(
            png_bytes(plot_expert_usage(trace, segment="answer")), "The same, answer tokens alone."
        ),
        Picture(
            png_bytes(plot_segment_usage(trace, layer=trace.layers - 1)),
            "Segments of prompt and answer in the last layer.",
        ),
    ]
    return report_page(
        "workbench: where an answer comes from",
        [
            Section("What this is", _introduction(corpus, generator, judged)),
            answers_section("Answers that quote the evidence", [j.answer for j in right]),
            answers_section("Where it failed", [j.answer for j in failed]),
            pictures_section("Experts", pictures),
            summary_section("A long document, summarized", summary),
            Section("All questions", _questions_table(judged)),
        ],
    )


def _introduction(corpus: Corpus, generator: Generator, judged: Sequence[Judged]) -> str:
    answerable = [j for j in judged if j.truth["answerable"]]
    unanswerable = [j for j in judged if not j.truth["answerable"]]
    found, quoted = (
        sum(j.document_found for j in answerable),
        sum(j.evidence_quoted for j in answerable),
    )
    declined = sum(j.answer.abstained for j in unanswerable)
    rows = [
        [
            "the evidence's document is among the first five passages",
            f"{found} of {len(answerable)}",
        ],
        ["the quoted sentence overlaps the evidence", f"{quoted} of {len(answerable)}"],
        ["declined where the documents do not say", f"{declined} of {len(unanswerable)}"],
        [
            "declined although they do",
            f"{sum(j.answer.abstained for j in answerable)} of {len(answerable)}",
        ],
    ]
    return (
        f"<p>{len(corpus)} documents were read and {len(judged)} questions asked, all on this "
        f"machine. The answers come from the embedded model “{escape(generator.name)}”, a very small "
        "relative of Phi-3.5-MoE trained to quote. It shows how things work; its choice of sentence is "
        "often wrong, which is why every answer shows its passages.</p>"
        + table(["what", "how often"], rows)
    )


def _questions_table(judged: Sequence[Judged]) -> str:
    rows = []
    for j in judged:
        verdict = (
            "evidence quoted"
            if j.evidence_quoted
            else "declined"
            if j.answer.abstained
            else "other sentence"
        )
        wanted = (
            j.truth["evidence"]["document"] if j.truth["evidence"] else "(the documents do not say)"
        )
        rows.append(
            [j.truth["id"], j.answer.question, " ".join(j.answer.text.split()), wanted, verdict]
        )
    return table(["id", "question", "answer", "evidence in", "verdict"], rows)
