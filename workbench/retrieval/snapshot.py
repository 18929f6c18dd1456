"""What an index holds at one moment: segments and the documents deleted from them. Knows no encoder and no question.

A snapshot never changes; adding, replacing and deleting documents give a new one that shares the segments.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from workbench.corpus.chunks import Chunk
from workbench.corpus.documents import Document
from workbench.markup import counted
from workbench.retrieval.filters import (
    Column,
    Where,
    matching_rows,
    plain_filter,
    unknown_field,
)
from workbench.retrieval.index import VectorIndex
from workbench.retrieval.index_structures import Ranking
from workbench.retrieval.lexical import LexicalIndex, TextWords
from workbench.retrieval.segments import Recent, Segment, StoredDocuments

Part = tuple[Segment, list[int]]  # a segment, and the places in it of some of its documents
MANY_DELETED = 0.25  # the share of a segment's rows beyond which what is left is written anew
_OF_DOCUMENT = ("document", "title", "language", "format")
_OF_CHUNK = ("page", "section")
_CHUNKS_KEPT, _FILTERS_KEPT = 4096, 16


class Snapshot:
    """Documents and chunks of several segments, less the deleted ones. Rows and documents count through all segments.

    `deleted` are numbers of documents; `dim` is the length of the vectors, None without vectors. `words` is the word
    index of what is left, built when it is first needed unless it is given.
    """

    def __init__(
        self,
        segments: Sequence[Segment] = (),
        *,
        dim: int | None,
        deleted: Collection[int] = (),
        words: LexicalIndex | None = None,
    ) -> None:
        self.segments = tuple(segments)
        self.dim = dim
        self._document_starts = [0, *accumulate(len(s.documents) for s in self.segments)]
        self._row_starts = [0, *accumulate(len(s) for s in self.segments)]
        self.alive_documents = np.ones(self._document_starts[-1], dtype=bool)
        self.alive_documents[list(deleted)] = False
        parts = [
            s.chunks["document"].astype(np.int64) + start
            for s, start in zip(self.segments, self._document_starts, strict=False)
        ]
        self.document_of_row = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        self.alive = self.alive_documents[self.document_of_row]
        self.vectors: VectorIndex | None = None
        if dim is not None:
            held = [s.vectors for s in self.segments if s.vectors is not None]
            self.vectors = VectorIndex(held, dim=dim, alive=self.alive)
        self._words = words
        self._lock = threading.Lock()
        self._recent: Recent[Chunk] = Recent(_CHUNKS_KEPT)
        self._filtered: dict[str, NDArray[np.bool_]] = {}
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return int(self.alive.sum())

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each document that is not deleted, by its id, in order."""
        found: dict[str, int] = {}
        for segment, start in zip(self.segments, self._document_starts, strict=False):
            for number, id in enumerate(segment.ids, start=start):
                if self.alive_documents[number]:
                    found[id] = number
        return found

    @property
    def documents(self) -> Mapping[str, Document]:
        """Documents by id, each read when it is asked for."""
        return _Documents(self)

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Chunks in order, each made when it is asked for."""
        return _Chunks(self)

    @cached_property
    def live_rows(self) -> NDArray[np.int64]:
        """The rows that are not deleted, ascending."""
        return np.flatnonzero(self.alive)

    def chunk(self, row: int) -> Chunk:
        """The chunk in this row, deleted or not."""
        return self._recent.get(row, self._chunk)

    def document(self, number: int) -> Document:
        """The document of this number, deleted or not."""
        segment, ordinal = self._place(number, self._document_starts)
        return segment.documents[ordinal]

    def fingerprint(self, number: int) -> str:
        """The fingerprint of the document of this number."""
        segment, ordinal = self._place(number, self._document_starts)
        return segment.fingerprints[ordinal]

    def sources(self) -> dict[str, str]:
        """The sha256 of the file that each document was read from, by id."""
        alive = zip(self._outlines, self.alive_documents, strict=True)
        return {d.id: d.sha256 for d, lives in alive if lives and d.sha256}

    def lexical(self) -> LexicalIndex:
        """The word index over :attr:`live_rows`, built now if there is none."""
        with self._lock:
            if self._words is None:
                self._words = LexicalIndex.of([*self._live_words()])
            return self._words

    def search_words(
        self, question: str, k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> Ranking:
        """The best rows by BM25, at most `k`, among those `allowed` [rows]: [found]."""
        live = self.live_rows
        found = self.lexical().search(
            question, k, allowed=None if allowed is None else allowed[live]
        )
        return Ranking(found.scores, live[found.rows])

    def matching(self, where: Where) -> NDArray[np.bool_]:
        """The rows that the filter `where` lets through, deleted ones left out: [rows].

        Raises
        ------
        ValueError
            `where` is no filter, or names a field that no document has.
        """
        where = plain_filter(where)
        key = json.dumps(where, sort_keys=True)
        with self._lock:
            known = self._filtered.get(key)
        if known is None:
            known = self.alive & matching_rows(where, self._column, rows=len(self.alive))
            with self._lock:
                if len(self._filtered) >= _FILTERS_KEPT:
                    self._filtered.pop(next(iter(self._filtered)))
                self._filtered[key] = known
        return known

    def fields(self) -> list[str]:
        """The fields that a filter may name: those of every document and chunk, and those of the metadata.

        >>> Snapshot(dim=None).fields()
        ['document', 'title', 'language', 'format', 'page', 'section']
        """
        alive = zip(self._outlines, self.alive_documents, strict=True)
        metadata = dict.fromkeys(name for facts, lives in alive if lives for name in facts.metadata)
        return [
            *_OF_DOCUMENT,
            *_OF_CHUNK,
            *(n for n in metadata if n not in _OF_DOCUMENT + _OF_CHUNK),
        ]

    def added(self, segment: Segment) -> Snapshot:
        """The snapshot with one more segment; documents of the same id are replaced."""
        gone = [self.numbers[id] for id in segment.ids if id in self.numbers]
        return Snapshot([*self.segments, segment], dim=self.dim, deleted=[*self.deleted(), *gone])

    def without(self, ids: Iterable[str]) -> Snapshot:
        """The snapshot without the documents of these ids; ids that are not there change nothing."""
        gone = [self.numbers[id] for id in ids if id in self.numbers]
        return Snapshot(self.segments, dim=self.dim, deleted=[*self.deleted(), *gone])

    def merged(self, make: Callable[[list[Part]], Segment]) -> Snapshot:
        """The snapshot with some neighbouring segments made one, without what was deleted from them.

        So many rows come together that each segment holds at least twice those of the next: there are never many, and
        a row moves a number of times that grows with the logarithm of their number. A segment that lost more than a
        quarter of its rows is made anew.
        """
        bounds = list(zip(self._row_starts[:-1], self._row_starts[1:], strict=True))
        live = [int(self.alive[start:stop].sum()) for start, stop in bounds]
        parts = list(self.live_ordinals())
        sizes = [count + len(ordinals) for count, (_, ordinals) in zip(live, parts, strict=True)]
        segments: list[Segment] = []
        deleted: list[int] = []
        count = 0
        for group in merge_plan(sizes):
            number = group[0]
            start, stop = bounds[number]
            if len(group) == 1 and stop - start - live[number] <= MANY_DELETED * (stop - start):
                segments.append(self.segments[number])
                first = self._document_starts[number]
                own = self.alive_documents[first : first + len(segments[-1].documents)]
                deleted += (np.flatnonzero(~own) + count).tolist()
            elif any(ordinals for _, ordinals in (parts[n] for n in group)):
                segments.append(make([parts[n] for n in group]))
            else:
                continue
            count += len(segments[-1].documents)
        if segments == list(self.segments):
            return self
        return Snapshot(segments, dim=self.dim, deleted=deleted)

    def with_segments(self, segments: Sequence[Segment]) -> Snapshot:
        """The same documents and chunks in other segments: one for each, stored elsewhere."""
        return Snapshot(segments, dim=self.dim, deleted=self.deleted(), words=self._words)

    def deleted(self) -> list[int]:
        """Numbers of the deleted documents, ascending."""
        found: list[int] = np.flatnonzero(~self.alive_documents).tolist()
        return found

    def live_ordinals(self) -> Iterator[Part]:
        """Each segment with the places, in it, of its documents that are not deleted."""
        for segment, start in zip(self.segments, self._document_starts, strict=False):
            alive = self.alive_documents[start : start + len(segment.documents)]
            yield segment, np.flatnonzero(alive).tolist()

    def known_vectors(self, keys: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of what was embedded under these keys, as far as it is known."""
        if self.vectors is None or not keys:
            return {}
        known, rows = self._sorted_keys
        wanted = np.array([key.encode() for key in keys], dtype="S32")
        places = np.searchsorted(known, wanted)
        found = places < len(known)
        found[found] = known[places[found]] == wanted[found]
        vectors = self.vectors.vectors(rows[places[found]])
        return {key.decode(): v for key, v in zip(wanted[found].tolist(), vectors, strict=True)}

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Keys of all rows, deleted ones included, in order, and the rows that have them."""
        empty = np.empty(0, dtype="S32")
        keys = np.concatenate([empty, *(segment.chunks["key"] for segment in self.segments)])
        rows = np.argsort(keys, kind="stable")
        return keys[rows], rows

    def _place(self, number: int, starts: Sequence[int]) -> tuple[Segment, int]:
        which = int(np.searchsorted(starts, number, side="right")) - 1
        return self.segments[which], number - starts[which]

    def _chunk(self, row: int) -> Chunk:
        segment, within = self._place(row, self._row_starts)
        return segment.chunk(within)

    def _live_words(self) -> Iterator[TextWords]:
        """The words of the live chunks of each segment."""
        for segment, start in zip(self.segments, self._row_starts, strict=False):
            alive = self.alive[start : start + len(segment)]
            if segment.words is not None:
                yield segment.words if alive.all() else segment.words.kept(alive)

    @cached_property
    def _outlines(self) -> list[Document]:
        """Every document, deleted ones included, without what a filter on documents does not need."""
        found: list[Document] = []
        for segment in self.segments:
            stored = segment.documents
            found += (
                [stored.outline(i) for i in range(len(stored))]
                if isinstance(stored, StoredDocuments)
                else stored
            )
        return found

    def _column(self, name: str) -> Column:
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._made_column(name)
            return self._columns[name]

    def _made_column(self, name: str) -> Column:
        if name in _OF_CHUNK:
            column = Column.of(self._of_chunk(name, row) for row in range(len(self.alive)))
            if len(self) and not column.values:
                raise unknown_field(name, {*self.fields()} - {name})
            return column
        if name in _OF_DOCUMENT:
            values = [d.id if name == "document" else getattr(d, name) for d in self._outlines]
        else:
            key = name.removeprefix("metadata.")
            values = [document.metadata.get(key) for document in self._outlines]
            alive = zip(values, self.alive_documents, strict=True)
            if len(self) and all(value is None for value, lives in alive if lives):
                raise unknown_field(key, self.fields())
        column = Column.of(values)
        return Column(column.codes[self.document_of_row], column.values)

    def _of_chunk(self, name: str, row: int) -> Any:
        if not self.alive[row]:
            return None
        chunk = self._chunk(row)
        document = self.document(int(self.document_of_row[row]))
        if name == "page":
            pages = [document.page_at(place) for place in (chunk.start, chunk.stop - 1)]
            numbers = [page.number for page in pages if page is not None]
            several = [*range(numbers[0], numbers[-1] + 1)] if numbers else [None]
            return several if len(several) > 1 else several[0]
        return headings_above(document, chunk) or None


class _Documents(Mapping[str, Document]):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __repr__(self) -> str:
        return f"{counted(len(self), 'document')} by id; next: ['…'], .values()"

    def __len__(self) -> int:
        return len(self._snapshot.numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._snapshot.numbers)

    def __getitem__(self, id: str) -> Document:
        return self._snapshot.document(self._snapshot.numbers[id])


class _Chunks(Sequence[Chunk]):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.live_rows)

    @overload
    def __getitem__(self, place: int) -> Chunk: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Chunk]: ...
    def __getitem__(self, place: int | slice) -> Chunk | Sequence[Chunk]:
        rows = self._snapshot.live_rows[place]
        if isinstance(place, slice):
            return [self._snapshot.chunk(row) for row in rows.tolist()]
        return self._snapshot.chunk(int(rows))


def merge_plan(live: Sequence[int]) -> list[list[int]]:
    """Which neighbouring segments shall be one, given the sizes of what lives in them: only the last ones ever are.

    >>> merge_plan([1000, 40, 30]), merge_plan([1000, 40, 10]), merge_plan([10, 10, 10])
    ([[0], [1, 2]], [[0], [1], [2]], [[0, 1, 2]])
    """
    first = len(live) - 1
    together = live[first] if live else 0
    while first > 0 and live[first - 1] < 2 * together:
        first -= 1
        together += live[first]
    return [*([n] for n in range(first)), [*range(first, len(live))]] if live else []


def headings_above(document: Document, chunk: Chunk) -> list[str]:
    """Titles of the sections that hold the beginning of the chunk, the outermost first."""
    return [s.title for s in document.sections if s.start <= chunk.start < s.stop and s.title]


def chunk_context(document: Document, chunk: Chunk) -> str:
    """Title and headings above a chunk: what a passage leaves out for its page has said it."""
    names = [name for name in (document.title, *headings_above(document, chunk)) if name]
    return " > ".join(dict.fromkeys(names))
