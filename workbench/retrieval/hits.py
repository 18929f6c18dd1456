"""What a search found: chunks, the rank and score that each voter gave them, and where a score comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.corpus.chunks import Chunk
from workbench.markup import escape, fragment, table


@dataclass(frozen=True, slots=True)
class Vote:
    """What one retriever said of a chunk: its rank, from 1, and its own score (cosine, BM25, or a reranker's).

    `query` is what it was asked, where that was not the question itself but an expansion of it; `share` is what the
    vote adds to the fused score, None where nothing was fused.
    """

    retriever: str
    rank: int
    score: float
    query: str | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found for a question: `rank` from 1, `score` of its one voter, of the fusion, or of the reranker."""

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the score of a hit comes from; made by ``retriever.explain(hit, question)``.

    `cosine` and `bm25` are those of the question and this chunk, None where the index has no such part; `words` is what
    each telling word of the question adds to `bm25`, 0 for a word that the chunk does not hold. Where the score is a
    fusion it is the sum of the shares of ``hit.votes``.
    """

    hit: Hit
    question: str
    cosine: float | None
    bm25: float | None
    words: dict[str, float]

    def __str__(self) -> str:
        lines = [f"rank {self.hit.rank}, score {self.hit.score:.4f}: {self.hit.chunk.document_id}"]
        lines += [f"  {_name(v)}: rank {v.rank}, score {v.score:.4f}" for v in self.hit.votes]
        shares = [(v.share, _name(v)) for v in self.hit.votes if v.share is not None]
        if shares:
            lines.append(
                f"  fused: {' + '.join(f'{share:.4f} ({name})' for share, name in shares)}"
            )
        if self.cosine is not None:
            lines.append(f"  cosine of question and passage: {self.cosine:.4f}")
        if self.bm25 is not None:
            held = [f"{word} {share:.2f}" for word, share in self.words.items() if share]
            absent = [word for word, share in self.words.items() if not share]
            lines.append(f"  BM25 {self.bm25:.2f}: {', '.join(held) or 'no word in common'}")
            if absent:
                lines.append(f"  not in the passage: {', '.join(absent)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every figure as JSON knows it."""
        return {
            "question": self.question,
            "hit": self.hit.to_dict(),
            "cosine": self.cosine,
            "bm25": self.bm25,
            "words": dict(self.words),
        }

    def _repr_html_(self) -> str:
        rows = [(_name(v), str(v.rank), f"{v.score:.4f}") for v in self.hit.votes]
        words = [(word, f"{share:.3f}" if share else "–") for word, share in self.words.items()]
        parts = f"<p>{escape(str(self).splitlines()[0])}</p>"
        parts += table(("voter", "rank", "score"), rows)
        if words:
            parts += table(("word of the question", "share of BM25"), words)
        return fragment(parts)


def _name(vote: Vote) -> str:
    return vote.retriever if vote.query is None else f"{vote.retriever} for {vote.query!r}"
