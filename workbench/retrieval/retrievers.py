"""A corpus becomes a retriever, a question becomes hits: chunks with the rank each voter gave."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.corpus.chunks import Chunk, chunk_document
from workbench.corpus.documents import Corpus, Document
from workbench.errors import IndexUnusable, InputError
from workbench.retrieval.encoders import Encoder, load_encoder, same_encoder
from workbench.retrieval.index import Ranking, VectorIndex
from workbench.retrieval.lexical import SETTINGS, LexicalIndex
from workbench.retrieval.saved import REMEDY, read_index, replacing_index

Mode = Literal["dense", "lexical", "hybrid"]
VOTERS: dict[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "lexical": ("lexical",),
    "hybrid": ("dense", "lexical"),
}
RRF_CONSTANT = 60  # Cormack, Clarke & Büttcher 2009, "Reciprocal Rank Fusion outperforms Condorcet
#                    and individual Rank Learning Methods", SIGIR, section 2
EMBEDDED = (
    "title-sections-text/1"  # what is embedded for a chunk; raise the number whenever it changes
)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one retriever said of a chunk: its rank, from 1, and its own score (cosine or BM25)."""

    retriever: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found for a question: `rank` from 1, `score` of its one voter or of the fusion."""

    chunk: Chunk
    score: float
    rank: int
    votes: tuple[Vote, ...]

    def __repr__(self) -> str:
        text = self.chunk.text if len(self.chunk.text) <= 40 else f"{self.chunk.text[:39]}…"
        place = f"{self.rank}, {self.score:.4f}, {self.chunk.document_id!r}"
        return f"Hit({place}, {text!r}; next: .chunk, .votes)"

    def to_dict(self) -> dict[str, Any]:
        """Return what ``workbench search --json`` prints of a hit; the span counts characters."""
        return {
            "rank": self.rank,
            "score": self.score,
            "document": self.chunk.document_id,
            "chunk_id": self.chunk.id,
            "start": self.chunk.start,
            "stop": self.chunk.stop,
            "text": self.chunk.text,
            "votes": [asdict(vote) for vote in self.votes],
        }


class Retriever:
    """Chunks of a corpus that can be searched. Made by ``build_retriever``, ``open_retriever``.

    `documents` maps ids to documents, `chunks` are in the order of the documents; `corpus` is the
    documents once more, as :func:`~workbench.corpus.readers.read_corpus` gives them.

    >>> tides = Document("tides.txt", "High water comes twice a day.", "Tides")
    >>> build_retriever(Corpus((tides,)))
    Retriever(1 document, 1 chunk, hybrid, 'all-MiniLM-L6-v2'; next: .search('…', k=5), .save('…'))
    """

    def __init__(
        self,
        documents: Iterable[Document],
        chunks: Iterable[Chunk],
        *,
        encoder: Encoder,
        mode: Mode,
        max_tokens: int,
        vectors: VectorIndex | None,
        lexical: LexicalIndex | None,
    ) -> None:
        self.corpus = Corpus(tuple(documents))
        self.documents: Mapping[str, Document] = MappingProxyType({d.id: d for d in self.corpus})
        if len(self.documents) < len(self.corpus):
            ids = [document.id for document in self.corpus]
            twice = next(id for id in ids if ids.count(id) > 1)
            raise ValueError(f"two documents have the id {twice!r}; give each its own")
        self.chunks: tuple[Chunk, ...] = tuple(chunks)
        self.encoder = encoder
        self.mode = mode
        self.max_tokens = max_tokens
        self._vectors = vectors
        self._lexical = lexical

    def __len__(self) -> int:
        return len(self.chunks)

    def __repr__(self) -> str:
        sizes = f"{_count(len(self.corpus), 'document')}, {_count(len(self), 'chunk')}"
        return (
            f"Retriever({sizes}, {self.mode}, {self.encoder.name!r}; "
            "next: .search('…', k=5), .save('…'))"
        )

    def document(self, name: str) -> Document:
        """Return the document of this id or unique stem; else ``InputError`` lists what is near."""
        return self.corpus[name]

    def search(self, question: str, *, k: int = 5, mode: Mode | None = None) -> list[Hit]:
        """Find the `k` best chunks for `question`; equal scores keep the order of the chunks.

        ``dense`` ranks by the cosine of sentence vectors; ``lexical`` by BM25, and may find fewer
        than `k`, for a chunk that shares no word is no hit; ``hybrid`` asks both for 50 or 4k
        candidates, whichever is more, and fuses their ranks. A question longer than the encoder
        reads is not cut: only ``mode="lexical"`` takes it.

        Raises
        ------
        ValueError
            The question is empty or too long for the encoder, `k` is not in 1 … len(self), or
            this index was not built for `mode`.
        """
        mode = mode or self.mode
        if mode not in VOTERS:
            raise ValueError(f"mode={mode!r} is not known; use 'dense', 'lexical' or 'hybrid'")
        if not question.strip():
            raise ValueError("the question is empty; ask with at least one word")
        if k < 1:
            raise ValueError(f"k={k} is not a number of hits; ask for k >= 1")
        if k > len(self):
            raise ValueError(
                f"k={k} exceeds the {len(self)} chunks in the index; ask for k <= {len(self)}"
            )
        depth = k if mode != "hybrid" else min(max(50, 4 * k), len(self))
        rankings = {voter: self._ask(voter, question, depth) for voter in VOTERS[mode]}
        best = fuse_by_rank(list(rankings.values())) if mode == "hybrid" else rankings[mode]
        votes = _votes(rankings)
        found = zip(best.rows[:k].tolist(), best.scores[:k].tolist(), strict=True)
        return [
            Hit(self.chunks[row], score, rank, tuple(votes[row]))
            for rank, (row, score) in enumerate(found, start=1)
        ]

    def save(self, folder: str | Path) -> None:
        """Write everything below `folder`: beside it first, then renamed, with sha256 sums.

        An index that is already there stays readable until the new one is whole.

        Raises
        ------
        ValueError
            `folder` holds something else than an index of workbench.
        """
        facts = {
            "mode": self.mode,
            "encoder": dict(self.encoder.identity),
            "chunking": {"max_tokens": self.max_tokens},
            "embedded": EMBEDDED,
            "lexical": SETTINGS,
            "documents": len(self.documents),
            "chunks": len(self.chunks),
        }
        with replacing_index(Path(folder), facts) as fresh:
            _write_lines(fresh / "documents.jsonl", (d.to_dict() for d in self.documents.values()))
            _write_lines(fresh / "chunks.jsonl", map(_chunk_to_dict, self.chunks))
            if self._vectors is not None:
                self._vectors.save(fresh / "vectors.faiss")
            if self._lexical is not None:
                self._lexical.save(fresh / "lexical")

    def _ask(self, voter: str, question: str, depth: int) -> Ranking:
        if voter == "lexical" and self._lexical is not None:
            return self._lexical.search(question, depth)
        if voter == "dense" and self._vectors is not None:
            scores, rows = self._vectors.search(self._embed(question), depth)
            return Ranking(scores[0], rows[0])
        raise ValueError(
            f"this index was built with mode={self.mode!r} and has no {voter} part; "
            "build it with mode='hybrid'"
        )

    def _embed(self, question: str) -> NDArray[np.float32]:
        count = len(self.encoder.measure(question))
        if count > self.encoder.max_tokens:
            raise ValueError(
                f"the question has {count} tokens, the encoder {self.encoder.name!r} reads at most "
                f"{self.encoder.max_tokens}; shorten it or search with mode='lexical'"
            )
        return self.encoder.encode([question], kind="query")


def build_retriever(
    corpus: Corpus,
    *,
    mode: Mode = "hybrid",
    encoder: Encoder | None = None,
    max_tokens: int = 128,
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Retriever:
    """Cut, embed and index `corpus`.

    Parameters
    ----------
    corpus
        What ``read_corpus`` returned.
    mode
        Which parts are built: vectors (dense), words (lexical) or both (hybrid).
    encoder
        None for the embedded one. It measures the chunks in every mode: all modes cut alike.
    max_tokens
        Size of a chunk, in tokens of the encoder.
    progress, cancel
        Called after each document and each batch; looked at before each of them.

    Raises
    ------
    InputError
        The corpus holds no text.

    >>> valve = Document("pump.md", "Valve V-14 leaked in March.", "Pump")
    >>> eels = Document("eels.md", "Eels are smoked on Fridays.", "Eels")
    >>> build_retriever(Corpus((valve, eels))).search("Which valve leaked?", k=1)
    [Hit(1, 0.0328, 'pump.md', 'Valve V-14 leaked in March.'; next: .chunk, .votes)]
    """
    if mode not in VOTERS:
        raise ValueError(f"mode={mode!r} is not known; use 'dense', 'lexical' or 'hybrid'")
    encoder = encoder if encoder is not None else load_encoder()
    if not 1 <= max_tokens <= encoder.max_tokens:
        raise ValueError(
            f"max_tokens={max_tokens} is outside 1 to {encoder.max_tokens}, what the encoder "
            f"{encoder.name!r} reads"
        )
    documents = list(corpus)
    chunks: list[Chunk] = []
    contexts: list[str] = []
    for done, document in enumerate(documents, start=1):
        if cancel is not None:
            cancel.raise_if_cancelled("chunking")
        found = chunk_document(document, measure=encoder.measure, max_tokens=max_tokens)
        chunks += found
        contexts += [_context(document, chunk) for chunk in found]
        if progress is not None:
            progress(Progress("chunk", done, len(documents)))
    if not chunks:
        raise InputError(
            f"no text to index in {len(documents)} documents; add files that hold text"
        )
    vectors = lexical = None
    if "dense" in VOTERS[mode]:
        texts = [
            _fitting(encoder, *pair)
            for pair in zip(contexts, (c.text for c in chunks), strict=True)
        ]
        vectors = VectorIndex.build(_encode_once(encoder, texts, progress, cancel))
    if "lexical" in VOTERS[mode]:
        lexical = LexicalIndex.build(
            [f"{c}\n{chunk.text}" for c, chunk in zip(contexts, chunks, strict=True)]
        )
    return Retriever(
        documents,
        chunks,
        encoder=encoder,
        mode=mode,
        max_tokens=max_tokens,
        vectors=vectors,
        lexical=lexical,
    )


def open_retriever(folder: str | Path, *, encoder: Encoder | None = None) -> Retriever:
    """Open an index that :meth:`Retriever.save` wrote, after checking every byte of it.

    Raises
    ------
    IndexUnusable
        It is missing, damaged, newer than this program, or was made with another encoder than
        `encoder` (None: the embedded one).

    >>> import tempfile
    >>> tides = Document("tides.txt", "High water comes twice a day.", "Tides")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     build_retriever(Corpus((tides,))).save(folder)
    ...     found = open_retriever(folder).search("When is high water?", k=1)
    >>> found[0].chunk.start, found[0].chunk.stop
    (0, 29)
    """

    def read(folder: Path, manifest: dict[str, Any]) -> Retriever:
        _refuse_other_encoder(folder, manifest["encoder"], using.identity)
        documents = {
            d.id: d for d in map(Document.from_dict, _read_lines(folder / "documents.jsonl"))
        }
        chunks = [
            _chunk_from_dict(facts, documents) for facts in _read_lines(folder / "chunks.jsonl")
        ]
        voters = VOTERS[manifest["mode"]]
        vectors = VectorIndex.open(folder / "vectors.faiss") if "dense" in voters else None
        lexical = LexicalIndex.open(folder / "lexical") if "lexical" in voters else None
        if any(part is not None and len(part) != len(chunks) for part in (vectors, lexical)):
            raise IndexUnusable(f"the parts of the index {folder} do not belong together; {REMEDY}")
        return Retriever(
            documents.values(),
            chunks,
            encoder=using,
            mode=manifest["mode"],
            max_tokens=manifest["chunking"]["max_tokens"],
            vectors=vectors,
            lexical=lexical,
        )

    using = encoder if encoder is not None else load_encoder()
    return read_index(Path(folder), read)


def fuse_by_rank(rankings: Sequence[Ranking], *, constant: int = RRF_CONSTANT) -> Ranking:
    """Fuse by reciprocal rank: a row scores the sum of 1 / (constant + rank) over `rankings`.

    >>> one, two = np.array([7, 8]), np.array([8])
    >>> fuse_by_rank([Ranking(one, one), Ranking(two, two)]).rows.tolist()
    [8, 7]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking.rows.tolist(), start=1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (constant + rank)
    rows = sorted(scores, key=lambda row: (-scores[row], row))
    return Ranking(np.array([scores[row] for row in rows]), np.array(rows, dtype=np.int64))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _votes(rankings: Mapping[str, Ranking]) -> dict[int, list[Vote]]:
    votes: dict[int, list[Vote]] = {}
    for voter, ranking in rankings.items():
        for rank, (score, row) in enumerate(
            zip(ranking.scores.tolist(), ranking.rows.tolist(), strict=True), 1
        ):
            votes.setdefault(row, []).append(Vote(voter, rank, score))
    return votes


def _context(document: Document, chunk: Chunk) -> str:
    """Title and headings above a chunk: what a passage leaves out for its page has said it."""
    headings = [s.title for s in document.sections if s.start <= chunk.start < s.stop]
    return " > ".join(dict.fromkeys(title for title in (document.title, *headings) if title))


def _fitting(encoder: Encoder, context: str, text: str) -> str:
    """Join context and text, the context shortened so far that the text is read whole."""
    room = encoder.max_tokens - len(encoder.measure(text)) - 1
    offsets = encoder.measure(context)
    if len(offsets) > room:
        context = context[: offsets[room - 1][1]] if room > 0 else ""
    joined = f"{context}\n{text}"
    return joined if context and len(encoder.measure(joined)) <= encoder.max_tokens else text


def _encode_once(
    encoder: Encoder, texts: list[str], progress: OnProgress | None, cancel: CancelToken | None
) -> NDArray[np.float32]:
    """Vectors of `texts`, equal texts embedded once: [texts, dim]."""
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode(list(distinct), kind="passage", progress=progress, cancel=cancel)
    return vectors[[distinct[text] for text in texts]]


def _refuse_other_encoder(folder: Path, built: Mapping[str, Any], using: Mapping[str, Any]) -> None:
    if same_encoder(built, using):
        return
    differs = ", ".join(
        sorted(n for n in {*built, *using} - {"name"} if built.get(n) != using.get(n))
    )
    raise IndexUnusable(
        f"the index {folder} was made with the encoder {built.get('name')!r} and opened with "
        f"{using.get('name')!r} (other {differs}); open it with the first or {REMEDY}"
    )


def _chunk_to_dict(chunk: Chunk) -> dict[str, Any]:
    """Place and id alone: the text is document.text[start:stop]."""
    return {"document": chunk.document_id, "start": chunk.start, "stop": chunk.stop, "id": chunk.id}


def _chunk_from_dict(facts: Mapping[str, Any], documents: Mapping[str, Document]) -> Chunk:
    start, stop = facts["start"], facts["stop"]
    text = documents[facts["document"]].text[start:stop]
    return Chunk(document_id=facts["document"], start=start, stop=stop, text=text, id=facts["id"])


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
