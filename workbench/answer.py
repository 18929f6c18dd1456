"""One question, whole: search, prompt, generation, citations, answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from workbench.cancel import CancelToken
from workbench.corpus.documents import Document
from workbench.generation.decoding import OnText
from workbench.generation.options import GREEDY, Capture, Decoding, Sampling
from workbench.generation.phi import Generator
from workbench.generation.prompts import (
    FREE_SYSTEM,
    QUOTE_SYSTEM,
    Dropped,
    Marks,
    Prompt,
    build_prompt,
)
from workbench.generation.results import Generation
from workbench.grounding.abstention import is_abstention
from workbench.grounding.citations import Citation, CitationReport, find_citations
from workbench.markup import Highlight, escape, fragment, highlight
from workbench.retrieval.filters import Where
from workbench.retrieval.hits import Hit
from workbench.retrieval.retrievers import Searchable, SearchOptions
from workbench.routing.trace import RoutingTrace

if TYPE_CHECKING:
    import pandas

Style = Literal["quote", "free"]


def ask(
    question: str,
    *,
    retriever: Searchable,
    generator: Generator,
    k: int = 5,
    mode: Literal["dense", "lexical", "hybrid"] | None = None,
    where: Where | None = None,
    options: SearchOptions | None = None,
    style: Style = "quote",
    marks: Marks = "sentence",
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    decoding: Decoding | None = None,
    on_text: OnText | None = None,
    cancel: CancelToken | None = None,
    capture: Capture = True,
) -> Answer:
    """Answer `question` from the retriever's documents, every statement walked back to its characters.

    `k`, `mode`, `where` (a filter such as ``{"language": "de"}``) and `options` are those of ``retriever.search``.

    ``style="quote"`` answers with one verbatim sentence chosen by the model, or abstains; ``style="free"`` is ordinary
    decoding. `decoding` says how tokens are computed; None takes what is fastest here at equal tokens. `capture` says
    what is recorded of the routing: see ``Generator.generate``. Raises
    ``ValueError`` for an empty question, a k below 1 or an unknown style, ``PromptTooLong`` for a question that exceeds
    the context.

    >>> import workbench as wb
    >>> corpus = wb.read_corpus("corpora/manual/pump.md")
    >>> answer = wb.ask("How often are the bearings checked?", k=2,
    ...                 retriever=wb.build_retriever(corpus), generator=wb.load_generator("pocket"))
    >>> all(corpus[c.document_id].text[c.start:c.stop] == c.text for c in answer.citations)
    True
    """
    if style not in get_args(Style):
        raise ValueError(f"style={style!r} is not known; use 'quote' or 'free'")
    if not hasattr(retriever, "view"):
        raise ValueError(
            f"retriever={retriever!r} is no retriever; give build_retriever(…) or open_retriever(…)"
        )
    if not hasattr(generator, "quote"):
        call = f"load_generator({generator!r})" if generator else "load_generator()"
        raise ValueError(f"generator={generator!r} is no generator; give {call}")
    retriever = retriever.view()  # the passages are those of one moment
    hits = retriever.search(question, k=k, mode=mode, where=where, options=options)
    prompt = build_prompt(
        question,
        hits,
        documents=retriever.documents,
        tokenizer=generator.tokenizer,
        budget_tokens=generator.context - max_new_tokens,
        system=QUOTE_SYSTEM if style == "quote" else FREE_SYSTEM,
        marks=marks,
        max_marks=generator.max_marks,
    )
    return answer_prompt(
        prompt,
        question=question,
        hits=hits,
        documents=retriever.documents,
        generator=generator,
        style=style,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        decoding=decoding,
        on_text=on_text,
        cancel=cancel,
        capture=capture,
    )


def answer_prompt(
    prompt: Prompt,
    *,
    question: str,
    hits: Sequence[Hit],
    documents: Mapping[str, Document],
    generator: Generator,
    style: Style = "quote",
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    decoding: Decoding | None = None,
    on_text: OnText | None = None,
    cancel: CancelToken | None = None,
    capture: Capture = True,
) -> Answer:
    """The second half of ``ask``: answer a prompt that was built already, with what it was built from."""
    if style == "quote":
        generation = generator.quote(
            prompt, decoding=decoding, on_text=on_text, cancel=cancel, capture=capture
        )
    else:
        generation = generator.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            decoding=decoding or _copying(generator, sampling),
            on_text=on_text,
            cancel=cancel,
            capture=capture,
        )
    report = find_citations(generation, prompt, documents=documents)
    return Answer(
        question, style, hits=tuple(hits), prompt=prompt, generation=generation, report=report
    )


def _copying(generator: Generator, sampling: Sampling) -> Decoding:
    """How an answer that copies from its passages is decoded: with prompt lookup where that was measured to help.

    Twice the speed at equal tokens on a CPU (benchmarks/prompt_lookup.py); not measured on a GPU, where the
    experts of several tokens at once cost a MoE more memory traffic.
    """
    can_look_up = generator.decoding.cache in ("reserved", "int8", "fp8")
    if sampling.temperature > 0 or generator.device != "cpu" or not can_look_up:
        return generator.decoding
    return replace(generator.decoding, prompt_lookup_tokens=8)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An answer and everything that made it, so that each claim can be walked back."""

    question: str
    style: Style
    hits: tuple[Hit, ...]
    prompt: Prompt
    generation: Generation
    report: CitationReport

    @property
    def text(self) -> str:
        """The answer with its marks."""
        return self.generation.text

    @property
    def abstained(self) -> bool:
        """Whether the model declined."""
        return is_abstention(self.text)

    @property
    def abstention_reason(self) -> str:
        """Why there is no answer; empty if there is one."""
        if not self.abstained:
            return ""
        if not self.hits:
            return "no passage matched the question"
        if not self.prompt.sources:
            return "no passage fitted into the prompt"
        return (
            f"{self.generation.generator} chose none of {len(self.prompt.sources)} sources; "
            "it may be wrong: look at the passages"
        )

    @property
    def citations(self) -> tuple[Citation, ...]:
        """Citations in the order of the text."""
        return self.report.citations

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """Hits that did not fit into the prompt, with the reason."""
        return self.prompt.dropped

    @property
    def routing(self) -> RoutingTrace:
        """Which experts the model used; raises ``ValueError`` with the reason if nothing was recorded."""
        if self.generation.routing is None:
            raise ValueError(f"no routing was recorded: {self.generation.routing_note}")
        return self.generation.routing

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        count = len(self.citations)
        return f"Answer({text!r}, {count} citation{'' if count == 1 else 's'}; next: .citations, .hits, .routing)"

    def to_dict(self) -> dict[str, Any]:
        """What ``workbench ask --json`` prints; ranks start at 1, spans are half-open characters."""
        return {
            "question": self.question,
            "answer": self.text,
            "abstained": self.abstained,
            "abstention_reason": self.abstention_reason,
            "citations": [
                {
                    "n": c.n,
                    "answer_start": c.answer_start,
                    "answer_stop": c.answer_stop,
                    "document": c.document_id,
                    "start": c.start,
                    "stop": c.stop,
                    "text": c.text,
                    "verdict": c.verdict,
                }
                for c in self.citations
            ],
            "unmatched_marks": [{"n": u.n, "reason": u.reason} for u in self.report.unmatched],
            "hits": [hit.to_dict() for hit in self.hits],
            "dropped": [
                {"chunk_id": d.chunk.id, "document": d.chunk.document_id, "reason": d.reason}
                for d in self.dropped
            ],
            "style": self.style,
            "finish_reason": self.generation.finish_reason,
            "regime": self.generation.regime,
            "generator": self.generation.generator,
            "warning": self.generation.warning,
            "prompt_tokens": len(self.prompt.token_ids),
            "reused_tokens": self.generation.cache.reused_tokens,
            "seconds": round(self.generation.timing.seconds, 3),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row a citation: n, claim, document, start, stop, text, verdict."""
        import pandas

        rows = [
            (
                c.n,
                self.text[c.sentence_start : c.sentence_stop],
                c.document_id,
                c.start,
                c.stop,
                c.text,
                c.verdict,
            )
            for c in self.citations
        ]
        return pandas.DataFrame(
            rows, columns=["n", "claim", "document", "start", "stop", "text", "verdict"]
        )

    def _repr_html_(self) -> str:
        return fragment(self.to_html())

    def to_html(self) -> str:
        """The answer and its highlighted passages, escaped, without script or frame."""
        marks = [
            Highlight(c.answer_start, c.answer_stop, f"{c.document_id} {c.start}–{c.stop}")
            for c in self.citations
        ]
        cache = self.generation.cache
        note = (
            f"Generated by {escape(self.generation.generator)}, {self.style} style, {self.generation.regime} regime; "
            f"{len(self.prompt.token_ids):,} prompt tokens, {cache.reused_tokens:,} of them reused"
        )
        if self.abstained:
            note += f"; abstained: {escape(self.abstention_reason)}"
        if self.generation.warning:
            note += f"; {escape(self.generation.warning)}"
        parts = [
            f'<p class="wb-note">Question</p><p><strong>{escape(self.question)}</strong></p>',
            f'<p class="wb-note">{note}</p><p class="wb-text">{highlight(self.text, marks)}</p>',
        ]
        for hit in self.hits:
            parts.append(self._passage_html(hit))
        for mark in self.report.unmatched:
            parts.append(
                f'<p class="wb-note">mark [{mark.n}] has no source: {escape(mark.reason)}</p>'
            )
        for drop in self.dropped:
            parts.append(
                f'<p class="wb-note">not in the prompt: {escape(drop.chunk.document_id)} '
                f"{drop.chunk.start}–{drop.chunk.stop} ({escape(drop.reason)})</p>"
            )
        return "".join(parts)

    def _passage_html(self, hit: Hit) -> str:
        chunk = hit.chunk
        cited = [c for c in self.citations if c.source.chunk.id == chunk.id]
        headings = [s.heading for s in self.prompt.sources if s.chunk.id == chunk.id]
        above = f'<p class="wb-note">{escape(headings[0])}</p>' if headings else ""
        spans = [
            Highlight(c.start - chunk.start, c.stop - chunk.start, f"[{c.n}] {c.verdict}")
            for c in cited
        ]
        numbers = " ".join(f"[{n}]" for n in dict.fromkeys(c.n for c in cited))
        state = (
            f'<span class="wb-mark">cited as {numbers}</span>' if cited else "retrieved, not cited"
        )
        return (
            f'<details class="wb-card"{" open" if cited else ""}><summary class="wb-note">{hit.rank}. '
            f"{escape(chunk.document_id)} {chunk.start}–{chunk.stop}, {state}</summary>"
            f'{above}<div class="wb-text">{highlight(chunk.text, spans)}</div></details>'
        )
