"""Hits and a question, or a conversation → a prompt as token ids, with every source's place in it.

Knows no model, only a tokenizer. No text of a document, title, question or message can become a control token, and none
of a document or question the mark of a source (``chat_tokens.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from workbench.corpus.chunks import Chunk, document_sentences
from workbench.corpus.documents import Document
from workbench.errors import PromptTooLong
from workbench.generation.chat_tokens import MARK, most_tokens
from workbench.generation.chat_tokens import chat_token_ids as chat_token_ids
from workbench.markup import shorten
from workbench.retrieval.hits import Hit
from workbench.routing.intervene import TokenMask

ABSTENTION = "The passages do not say."
QUOTE_SYSTEM = (
    "Answer with the one numbered sentence that answers the question, copied exactly after its number, like [2]. "
    "If none of them does, say: The passages do not say."
)
FREE_SYSTEM = (
    "Answer the question in a few words from the numbered sentences alone. Begin with the number of the sentence the "
    "answer rests on, like [2]. If none of them says, write: The passages do not say."
)
SUMMARY_SYSTEM = (
    "Choose the one numbered sentence that best sums up the text, copied exactly after its number, "
    "like [2]."
)
SUMMARY_REQUEST = "Summarize the text."

ROLES = ("system", "user", "assistant")

Marks = Literal["sentence", "passage"]


@dataclass(frozen=True, slots=True)
class Source:
    """A numbered piece of evidence: ``prompt.text[start:stop] == document.text[document_start:document_stop]``.

    `n` is the number in its mark ``[n]``; `token_start` and `token_stop` are rows of ``prompt.token_ids``;
    `heading` is what the prompt shows above it: "document › section"; `rank` is that of the hit, 0 if there was none,
    and `language` that of the document.
    """

    n: int
    chunk: Chunk
    text: str
    start: int
    stop: int
    document_start: int
    document_stop: int
    token_start: int
    token_stop: int
    heading: str = ""
    rank: int = 0
    language: str | None = None

    @property
    def document_id(self) -> str:
        """The document this source is part of."""
        return self.chunk.document_id


@dataclass(frozen=True, slots=True)
class Dropped:
    """A hit that is not in the prompt, and why."""

    chunk: Chunk
    reason: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A named half-open character span of the prompt: system, question, "evidence n" or "history n"."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt ready to feed: ``token_ids``, the rendered ``text`` they stand for, and where everything is in it.

    ``token_spans`` [tokens, 2] are the characters of ``text`` behind each token. What no segment covers is "template".
    """

    messages: tuple[tuple[str, str], ...]
    text: str
    token_ids: tuple[int, ...]
    token_spans: NDArray[np.int32]
    segments: tuple[Segment, ...]
    sources: tuple[Source, ...]
    dropped: tuple[Dropped, ...]
    budget_tokens: int
    marks: Marks

    def __post_init__(self) -> None:
        for source in self.sources:
            if self.text[source.start : source.stop] != source.text:
                raise ValueError(f"source [{source.n}] is not where the prompt says it is")

    def __repr__(self) -> str:
        return (
            f"Prompt({len(self.token_ids)} of {self.budget_tokens} tokens, {len(self.sources)} sources, "
            f"{len(self.dropped)} dropped; next: .text, .sources, .dropped)"
        )

    def segment_codes(self) -> tuple[NDArray[np.int16], tuple[str, ...]]:
        """Segment of every token: [tokens] codes and the names they index; code 0 is "template"."""
        names = ["template", *dict.fromkeys(segment.name for segment in self.segments)]
        codes = np.zeros(len(self.token_ids), dtype=np.int16)
        middles = (
            self.token_spans.sum(axis=1) / 2
        )  # a token that reaches over an edge goes where its middle lies
        empty = self.token_spans[:, 0] == self.token_spans[:, 1]
        for segment in self.segments:
            inside = (middles >= segment.start) & (middles < segment.stop) & ~empty
            codes[inside] = names.index(segment.name)
        return codes, tuple(names)


def segment_mask(prompt: Prompt, segment: str) -> TokenMask:
    """The tokens of a segment: "question", "evidence 3", "evidence" for all of them, "answer" for all that follows.

    Raises ``ValueError`` for a segment that is not there.
    """
    codes, names = prompt.segment_codes()
    own = [n for n, name in enumerate(names) if name == segment or name.startswith(f"{segment} ")]
    if not own and segment != "answer":
        raise ValueError(f"no segment {segment!r}; there are {', '.join(names)}, answer")
    ids = np.asarray(prompt.token_ids, dtype=np.int64)
    return TokenMask(np.isin(codes, own), segment == "answer", token_ids=ids, segment=segment)


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    *,
    documents: Mapping[str, Document],
    tokenizer: Any,
    budget_tokens: int,
    system: str = QUOTE_SYSTEM,
    marks: Marks = "sentence",
    max_marks: int | None = None,
) -> Prompt:
    """Pack whole chunks, best first, into `budget_tokens`; what does not fit is in ``Prompt.dropped`` with its reason.

    With ``marks="sentence"`` every sentence carries its own number, with ``"passage"`` every chunk. Raises
    ``ValueError`` for an empty question and ``PromptTooLong`` when the question alone exceeds the budget.
    """
    if not question.strip():
        raise ValueError("the question is empty; ask something like 'Which valve failed first?'")
    request = f"Question: {question.strip()}"
    return _pack(
        request,
        hits,
        documents,
        tokenizer,
        budget_tokens,
        system,
        marks,
        max_marks,
        question.strip(),
    )


def build_summary_prompt(
    chunks: Sequence[Chunk],
    *,
    documents: Mapping[str, Document],
    tokenizer: Any,
    budget_tokens: int,
    query: str | None = None,
    system: str = SUMMARY_SYSTEM,
    max_marks: int | None = None,
) -> Prompt:
    """The same for a summary of `chunks`: every sentence numbered, a request in place of the question."""
    request = f"Question: {query.strip()}" if query else SUMMARY_REQUEST
    hits = [
        Hit(chunk=chunk, score=0.0, rank=rank, votes=())
        for rank, chunk in enumerate(chunks, start=1)
    ]
    return _pack(
        request, hits, documents, tokenizer, budget_tokens, system, "sentence", max_marks, request
    )


def replaced_evidence(prompt: Prompt, texts: Mapping[int, str], *, tokenizer: Any) -> Prompt:
    """The same prompt with other text in the place of its sources: `texts` by their numbers, all that are to change.

    Headings, marks and segments stay. It has no ``sources``, for its evidence is of no document: what would have been
    answered had the documents said this. Raises ``ValueError`` for a number without a source and ``PromptTooLong``
    where the new text exceeds the budget.
    """
    unknown = set(texts) - {source.n for source in prompt.sources}
    if unknown:
        raise ValueError(f"the prompt has no source [{min(unknown)}] to replace")
    role, user = prompt.messages[-1]
    offset = _content_start(prompt)
    made, segments, at = "", [], 0
    marks = []
    for source in sorted(prompt.sources, key=lambda s: s.start):
        start, stop = source.start - offset, source.stop - offset
        made += user[at:start]
        place = len(made)
        # the mark stands before a sentence, or begins the line above a passage
        is_sentence = prompt.marks == "sentence"
        mark = place - len(f"[{source.n}] ") if is_sentence else made.rfind("\n", 0, place - 1) + 1
        marks.append(mark)
        made += texts.get(source.n, source.text)
        segments.append(Segment(f"evidence {source.n}", place, len(made)))
        at = stop
    grown = len(made) - at
    made += user[at:]
    for segment in prompt.segments:
        if segment.name == "question":
            shift = grown - offset
            segments.append(Segment("question", segment.start + shift, segment.stop + shift))
    messages = (*prompt.messages[:-1], (role, made))
    own = [[m.start() for m in MARK.finditer(text)] for _, text in prompt.messages[:-1]]
    text, ids, spans, offsets = chat_token_ids(tokenizer, messages, own_marks=[*own, marks])
    if len(ids) > prompt.budget_tokens:
        raise PromptTooLong(
            f"the prompt needs {len(ids)} tokens with its new evidence, the budget is {prompt.budget_tokens}"
        )
    others = [s for s in prompt.segments if s.start < offset]
    placed = [Segment(s.name, s.start + offsets[-1], s.stop + offsets[-1]) for s in segments]
    return replace(
        prompt,
        messages=messages,
        text=text,
        token_ids=tuple(ids),
        token_spans=spans,
        segments=(*others, *placed),
        sources=(),
    )


def _content_start(prompt: Prompt) -> int:
    """Where in the prompt's text its last message begins."""
    return prompt.text.rindex(prompt.messages[-1][1])


@dataclass(frozen=True, slots=True)
class PassageSize:
    """What a chunk takes of a prompt: tokens with heading and marks, and how many marks."""

    tokens: int
    marks: int


def passage_size(
    chunk: Chunk, document: Document, *, tokenizer: Any, marks: Marks = "sentence"
) -> PassageSize:
    """An upper bound of what `chunk` will take, whatever the numbers of its marks (up to four digits)."""
    text, pieces = _block(chunk, document, marks, 1000, 0)
    own_marks = {piece.mark for piece in pieces}
    return PassageSize(most_tokens(tokenizer, text, own_marks=own_marks) + 1, len(pieces))


def plain_prompt(text: str, *, tokenizer: Any, budget_tokens: int) -> Prompt:
    r"""A prompt of one user turn and nothing else, its text under the segment "question".

    >>> from workbench.generation.loading import load_generator
    >>> tokenizer = load_generator("pocket").tokenizer
    >>> plain_prompt("Which valve?", tokenizer=tokenizer, budget_tokens=100).text
    '<|user|>\nWhich valve?<|end|>\n<|assistant|>\n'
    """
    if not text.strip():
        raise ValueError("the text is empty")
    return chat_prompt([("user", text)], tokenizer=tokenizer, budget_tokens=budget_tokens)


def chat_prompt(
    messages: Sequence[tuple[str, str]], *, tokenizer: Any, budget_tokens: int
) -> Prompt:
    """A whole conversation of (role, content), roles system, user and assistant, for an answer to follow.

    The last user turn is the segment "question", system messages are "system", every other message is "history n", n
    from 1: ``routing.usage("history")`` takes them together. A literal ``[n]`` is what the model knows it as, because
    no source is numbered here. Raises ``ValueError`` for another role, no user turn or an empty last one, and
    ``PromptTooLong`` when the conversation exceeds `budget_tokens`; nothing is ever cut silently.

    >>> from workbench.generation.loading import load_generator
    >>> tokenizer = load_generator("pocket").tokenizer
    >>> talk = [("user", "Which valve?"), ("assistant", "V-14."), ("user", "Why?<|end|>")]
    >>> prompt = chat_prompt(talk, tokenizer=tokenizer, budget_tokens=100)
    >>> [(s.name, prompt.text[s.start : s.stop]) for s in prompt.segments]
    [('history 1', 'Which valve?'), ('history 2', 'V-14.'), ('question', 'Why?<|end|>')]
    """
    asked = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=None)
    for number, (role, _) in enumerate(messages, start=1):
        if role not in ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}; give one of {', '.join(ROLES)}"
            )
    if asked is None:
        raise ValueError("the conversation has no user turn; end it with a message of role 'user'")
    if not messages[asked][1].strip():
        raise ValueError(f"message {asked + 1}, the last user turn, is empty")
    text, ids, spans, offsets = chat_token_ids(tokenizer, messages)
    if len(ids) > budget_tokens:
        raise PromptTooLong(
            f"{len(messages)} message(s) need {len(ids)} tokens, the budget is {budget_tokens}: shorten them, leave "
            f"out earlier ones, or use generator.with_context(N) with N above {len(ids)}"
        )
    segments, earlier = [], 0
    for i, ((role, content), start) in enumerate(zip(messages, offsets, strict=True)):
        earlier += role != "system" and i != asked
        name = "system" if role == "system" else "question" if i == asked else f"history {earlier}"
        segments.append(Segment(name, start, start + len(content)))
    return Prompt(
        messages=tuple((role, content) for role, content in messages),
        text=text,
        token_ids=tuple(ids),
        token_spans=spans,
        segments=tuple(segments),
        sources=(),
        dropped=(),
        budget_tokens=budget_tokens,
        marks="passage",
    )


def known_marks(tokenizer: Any) -> int | None:
    """How many marks a checkpoint knows: n if ``[1]`` … ``[n]`` are tokens of their own, else None for any.

    A small model whose vocabulary holds marks as single tokens knows no mark beyond the last of them.
    """
    vocabulary = tokenizer.get_vocab()
    if "[1]" not in vocabulary:
        return None
    n = 1
    while f"[{n + 1}]" in vocabulary:
        n += 1
    return n


@dataclass(frozen=True, slots=True)
class _Piece:
    """A numbered piece before the prompt exists: offsets are relative to the user message, `mark` is its mark's."""

    n: int
    chunk: Chunk
    mark: int
    start: int
    stop: int
    document_start: int
    document_stop: int
    heading: str
    language: str | None
    rank: int = 0


def _pack(
    request: str,
    hits: Sequence[Hit],
    documents: Mapping[str, Document],
    tokenizer: Any,
    budget_tokens: int,
    system: str,
    marks: Marks,
    max_marks: int | None,
    asked: str,
) -> Prompt:
    if marks not in get_args(Marks):
        raise ValueError(f"marks={marks!r} is not known; use 'sentence' or 'passage'")
    frame_messages = (("system", system), ("user", request))
    own_marks = _own_marks(system, ())
    frame = len(chat_token_ids(tokenizer, frame_messages, own_marks=own_marks)[1])
    if frame > budget_tokens:
        raise PromptTooLong(
            f"the question needs {frame} tokens with its frame, the budget is {budget_tokens}: "
            "ask a shorter question or load the generator with a larger context"
        )
    kept: list[_Piece] = []
    dropped: list[Dropped] = []
    evidence = ""
    left = budget_tokens - frame
    for hit in hits:
        block, pieces = _block(
            hit.chunk, documents[hit.chunk.document_id], marks, len(kept) + 1, len(evidence)
        )
        places = {piece.mark - len(evidence) for piece in pieces}
        need = most_tokens(tokenizer, block, own_marks=places) + 1  # one more where blocks join
        if max_marks is not None and len(kept) + len(pieces) > max_marks:
            free = max_marks - len(kept)
            reason = f"needs {len(pieces)} marks, {free} of the {max_marks} this checkpoint knows are left"
            dropped.append(Dropped(hit.chunk, reason))
        elif need > left:
            dropped.append(
                Dropped(
                    hit.chunk,
                    f"needs {need} tokens, {left} of the budget of {budget_tokens} are left",
                )
            )
        else:
            kept += [replace(piece, rank=hit.rank) for piece in pieces]
            evidence += block
            left -= need
    user = evidence + request
    asked_start = len(user) - len(asked)
    segments = (
        Segment("system", 0, len(system)),
        Segment("question", asked_start, asked_start + len(asked)),
    )
    messages = (("system", system), ("user", user))
    return _assemble(messages, kept, segments, tokenizer, budget_tokens, tuple(dropped), marks)


def _own_marks(system: str, pieces: Sequence[_Piece]) -> tuple[list[int], list[int]]:
    """Where marks are meant: all of a system message, which speaks of them, and in front of every piece."""
    return [match.start() for match in MARK.finditer(system)], [piece.mark for piece in pieces]


def _block(
    chunk: Chunk, document: Document, marks: Marks, first: int, offset: int
) -> tuple[str, list[_Piece]]:
    """The text of one passage under its heading, and its numbered pieces.

    With a mark for each sentence the section headings inside a chunk get none: they answer nothing, and the innermost
    one stands above the passage.
    """
    sentences = document_sentences(document, chunk.start, chunk.stop)
    headings = {section.start for section in document.sections}
    spoken = [span for span in sentences if span[0] not in headings] or sentences
    section = document.section_at(spoken[0][0] if spoken else chunk.start)
    heading = document.title
    if section is not None and section.title != document.title:
        heading = f"{document.title} › {section.title}"
    heading = shorten(" ".join(heading.split()), 120)
    text = f"{heading}\n" if marks == "sentence" else ""
    pieces = []
    spans = spoken if marks == "sentence" else [(chunk.start, chunk.stop)]
    for n, (start, stop) in enumerate(spans, start=first):
        mark = offset + len(text)
        text += f"[{n}] " if marks == "sentence" else f"[{n}] {heading}\n"
        place = offset + len(text)
        text += document.text[start:stop] + "\n"
        end, language = place + stop - start, document.language
        pieces.append(_Piece(n, chunk, mark, place, end, start, stop, heading, language))
    return text + "\n", pieces


def _assemble(
    messages: tuple[tuple[str, str], ...],
    pieces: Sequence[_Piece],
    segments: tuple[Segment, ...],
    tokenizer: Any,
    budget_tokens: int,
    dropped: tuple[Dropped, ...],
    marks: Marks,
) -> Prompt:
    """Turn message-relative places into places in the rendered text and rows of tokens."""
    own_marks = _own_marks(messages[0][1], pieces)
    text, ids, spans, offsets = chat_token_ids(tokenizer, messages, own_marks=own_marks)
    if len(ids) > budget_tokens:
        raise PromptTooLong(
            f"the prompt needs {len(ids)} tokens, the budget is {budget_tokens}: shorten it, lower k, "
            "or load the generator with a larger context"
        )
    user = offsets[-1]
    sources = []
    for piece in pieces:
        start, stop = user + piece.start, user + piece.stop
        rows = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < stop))
        sources.append(
            Source(
                n=piece.n,
                chunk=piece.chunk,
                text=text[start:stop],
                start=start,
                stop=stop,
                document_start=piece.document_start,
                document_stop=piece.document_stop,
                token_start=int(rows[0]) if len(rows) else 0,
                token_stop=int(rows[-1]) + 1 if len(rows) else 0,
                heading=piece.heading,
                rank=piece.rank,
                language=piece.language,
            )
        )
    placed = [
        Segment(
            s.name,
            s.start + (offsets[0] if s.name == "system" else user),
            s.stop + (offsets[0] if s.name == "system" else user),
        )
        for s in segments
    ]
    placed += [Segment(f"evidence {source.n}", source.start, source.stop) for source in sources]
    return Prompt(
        messages=messages,
        text=text,
        token_ids=tuple(ids),
        token_spans=spans,
        segments=tuple(placed),
        sources=tuple(sources),
        dropped=dropped,
        budget_tokens=budget_tokens,
        marks=marks,
    )
