"""Documents and their chunks in immutable segments, in memory or in a folder. Knows no search and no encoder.

A folder holds the texts one after another (``texts.utf8``), a line of facts for each document (``documents.jsonl``),
where both lie (``places.npy``), the ids (``ids.json``), the chunks (``chunks.npy``), their words for the word index,
and the vectors (``vectors.f32``) with a structure over them or none. Everything but the ids and the distinct words is
read where it is needed, so opening takes little memory whatever the size, and processes that open the same folder share
it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from workbench.corpus.chunks import Chunk
from workbench.corpus.documents import Document
from workbench.retrieval.index import VectorSegment, build_segment
from workbench.retrieval.index_structures import IndexReport, Kind, Structure
from workbench.retrieval.lexical import WORD_FILES, TextWords
from workbench.store import sha256_bytes, sync_folder

# `document` counts within the segment, `start` and `stop` characters of its text; `key` is that of what was embedded
CHUNK = np.dtype(
    [("document", "<i4"), ("start", "<i8"), ("stop", "<i8"), ("id", "S16"), ("key", "S32")]
)
VECTORS, STRUCTURE = "vectors.f32", "structure.faiss"
FILES = (
    "texts.utf8",
    "documents.jsonl",
    "places.npy",
    "ids.json",
    "chunks.npy",
    VECTORS,
    STRUCTURE,
    *WORD_FILES,
)
_CHARACTERS_KEPT = 4_000_000  # of documents that were read from a folder


class Prepared(NamedTuple):
    """A document as a segment takes it: `chunks` [n] of dtype ``CHUNK``, `vectors` [n, dim] or None.

    `words` are those of each chunk [n] for the word index, None without one; `fingerprint` is that of the document,
    None if it was not made yet.
    """

    document: Document
    chunks: NDArray[Any]
    vectors: NDArray[np.float32] | None
    words: Sequence[list[str]] | None = None
    fingerprint: str | None = None


class Stored(NamedTuple):
    """The folder of a segment, and what its writer told of it."""

    folder: Path
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Documents in order, their chunks in order (`chunks` [n] of dtype ``CHUNK``), and the chunks' vectors and words.

    Where there is no vector index, `vectors` is None, and `words` where there is no word index.
    `stored` is where it lies and what the manifest says of it, None in memory.
    """

    documents: Sequence[Document]
    ids: Sequence[str]
    fingerprints: Sequence[str]
    chunks: NDArray[Any]
    vectors: VectorSegment | None
    words: TextWords | None = None
    stored: Stored | None = None

    def __len__(self) -> int:
        return len(self.chunks)

    def chunk(self, row: int) -> Chunk:
        """The chunk in this row of the segment."""
        facts = self.chunks[row]
        document = self.documents[int(facts["document"])]
        start, stop = int(facts["start"]), int(facts["stop"])
        return Chunk(document.id, start, stop, document.text[start:stop], facts["id"].decode())


def fingerprint(document: Document) -> str:
    """32 hex digits that change with any fact or character of the document.

    >>> fingerprint(Document("a.txt", "Hello.", "a")) == fingerprint(Document("a.txt", "Hello!", "a"))
    False
    """
    facts = json.dumps(document.to_dict(), sort_keys=True, ensure_ascii=True, default=repr)
    return sha256_bytes(facts.encode())[:32]


def embedding_key(text: str) -> str:
    """32 hex digits of what is embedded for a chunk: equal keys, equal vectors."""
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))[:32]


def chunk_rows(chunks: Iterable[Chunk], keys: Iterable[str], ordinal: int) -> NDArray[Any]:
    """The rows of one document's chunks in a segment where it has this `ordinal`."""
    rows = [
        (ordinal, chunk.start, chunk.stop, chunk.id.encode(), key.encode())
        for chunk, key in zip(chunks, keys, strict=True)
    ]
    return np.array(rows, dtype=CHUNK)


def memory_segment(
    made: Iterable[Prepared], *, dim: int | None, kind: Kind | Literal["auto"], reason: str
) -> Segment:
    """A segment in memory, its structure built; `reason` is why it has this `kind`."""
    documents: list[Document] = []
    prints: list[str] = []
    rows: list[NDArray[Any]] = []
    vectors: list[NDArray[np.float32]] = []
    known_words: TextWords | None = None
    for document, chunks, embedding, words, known in made:
        own = chunks.copy()
        own["document"] = len(documents)
        documents.append(document)
        prints.append(known or fingerprint(document))
        rows.append(own)
        if embedding is not None:
            vectors.append(embedding)
        known_words = _with_words(known_words, words)
    held = None
    if dim is not None:
        together = np.concatenate([np.empty((0, dim), dtype=np.float32), *vectors])
        held = build_segment(together, kind=kind, reason=reason)
    ids = [document.id for document in documents]
    return Segment(tuple(documents), ids, prints, _joined(rows), held, known_words)


class SegmentWriter:
    """Writes one segment into a new folder, document by document, in memory of one document and the chunks' places.

    Nothing can be read before :meth:`finish`; a folder without it is no segment.
    """

    def __init__(self, folder: Path, *, dim: int | None) -> None:
        folder.mkdir(parents=True)
        self.folder, self.dim = folder, dim
        self._texts: IO[bytes] = (folder / "texts.utf8").open("wb")
        self._facts: IO[bytes] = (folder / "documents.jsonl").open("wb")
        self._vectors: IO[bytes] | None = (folder / VECTORS).open("wb") if dim is not None else None
        self._places: list[tuple[int, int, int, int]] = []
        self._ids: list[str] = []
        self._prints: list[str] = []
        self._chunks: list[NDArray[Any]] = []
        self._words: TextWords | None = None
        self._rows = 0

    @property
    def documents(self) -> int:
        """Documents written so far."""
        return len(self._ids)

    @property
    def rows(self) -> int:
        """Chunks written so far."""
        return self._rows

    def add(self, made: Prepared) -> None:
        """Append one document with its chunks and their vectors."""
        document, chunks, vectors, words, known = made
        text = document.text.encode("utf-8", "surrogatepass")
        facts = {**document.to_dict(), "text": ""}
        line = json.dumps(facts, ensure_ascii=True).encode() + b"\n"
        text_start, line_start = self._texts.tell(), self._facts.tell()
        self._texts.write(text)
        self._facts.write(line)
        self._places.append(
            (text_start, text_start + len(text), line_start, line_start + len(line))
        )
        rows = chunks.copy()
        rows["document"] = len(self._ids)
        self._chunks.append(rows)
        self._rows += len(rows)
        self._ids.append(document.id)
        self._prints.append(known or fingerprint(document))
        if self._vectors is not None and vectors is not None:
            self._vectors.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._words = _with_words(self._words, words)

    def finish(self, *, kind: Kind | Literal["auto"], reason: str) -> dict[str, Any]:
        """Write the rest, build the structure, and tell what :func:`open_segment` must know."""
        self.close()
        places = np.array(self._places, dtype=np.int64).reshape(-1, 4)
        chunks = _joined(self._chunks)
        np.save(self.folder / "places.npy", places, allow_pickle=False)
        np.save(self.folder / "chunks.npy", chunks, allow_pickle=False)
        with (self.folder / "ids.json").open("w", encoding="utf-8") as file:
            json.dump({"ids": self._ids, "fingerprints": self._prints}, file)
        facts: dict[str, Any] = {"documents": len(self._ids), "chunks": self._rows}
        if self._words is not None:
            self._words.save(self.folder)
            facts["words"] = True
        if self.dim is not None:
            vectors = _mapped_vectors(self.folder, self._rows, self.dim)
            segment = build_segment(vectors, kind=kind, reason=reason)
            if segment.structure is not None:
                segment.structure.save(self.folder / STRUCTURE)
            facts |= {"dim": self.dim, "index": segment.report.to_dict()}
        sync_folder(self.folder)
        return facts

    def close(self) -> None:
        """Close the files; what was written stays."""
        for file in (self._texts, self._facts, self._vectors):
            if file is not None:
                file.close()


def open_segment(folder: Path, facts: Mapping[str, Any]) -> Segment:
    """The segment that a :class:`SegmentWriter` wrote; `facts` are those that its ``finish`` told."""
    count, rows = facts["documents"], facts["chunks"]
    places = np.load(folder / "places.npy", allow_pickle=False)
    chunks = np.load(folder / "chunks.npy", mmap_mode="r" if rows else None, allow_pickle=False)
    with (folder / "ids.json").open(encoding="utf-8") as file:
        names = json.load(file)
    ids, prints = names["ids"], names["fingerprints"]
    if places.shape != (count, 4) or chunks.shape != (rows,) or chunks.dtype != CHUNK:
        raise ValueError(f"{folder.name} holds other documents or chunks than promised")
    if not len(ids) == len(prints) == count:
        raise ValueError(f"{folder.name} holds other ids than promised")
    vectors = None
    if "dim" in facts:
        array = _mapped_vectors(folder, rows, facts["dim"])
        report = IndexReport.from_dict(facts["index"])
        structure = None
        if report.kind != "flat":
            structure = Structure.open(
                report.kind, folder / STRUCTURE, dim=facts["dim"], count=rows
            )
        vectors = VectorSegment(array, report, structure)
    words = TextWords.open(folder) if facts.get("words") else None
    if words is not None and len(words) != rows:
        raise ValueError(f"{folder.name} holds the words of other chunks than promised")
    documents = StoredDocuments(folder, places)
    return Segment(documents, ids, prints, chunks, vectors, words, Stored(folder, facts))


class StoredDocuments(Sequence[Document]):
    """The documents of a segment's folder, each read when it is asked for."""

    def __init__(self, folder: Path, places: NDArray[np.int64]) -> None:
        self._places = places
        self._texts = _mapped_bytes(folder / "texts.utf8")
        self._facts = _mapped_bytes(folder / "documents.jsonl")
        self._recent: Recent[Document] = Recent(
            _CHARACTERS_KEPT, lambda document: len(document.text)
        )

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, ordinal: int) -> Document: ...
    @overload
    def __getitem__(self, ordinal: slice) -> Sequence[Document]: ...
    def __getitem__(self, ordinal: int | slice) -> Document | Sequence[Document]:
        if isinstance(ordinal, slice):
            return [self[i] for i in range(*ordinal.indices(len(self)))]
        if not -len(self) <= ordinal < len(self):
            raise IndexError(f"document {ordinal} of {len(self)}")
        return self._recent.get(ordinal % len(self), self._read_one)

    def outline(self, ordinal: int) -> Document:
        """The document without its text and spans: what a filter looks at."""
        facts = self._facts_of(ordinal)
        return Document.from_dict({**facts, "sections": [], "pages": []})

    def _read_one(self, ordinal: int) -> Document:
        start, stop = self._places[ordinal, :2]
        text = self._texts[start:stop].tobytes().decode("utf-8", "surrogatepass")
        return Document.from_dict({**self._facts_of(ordinal), "text": text})

    def _facts_of(self, ordinal: int) -> dict[str, Any]:
        start, stop = self._places[ordinal, 2:]
        facts: dict[str, Any] = json.loads(self._facts[start:stop].tobytes())
        return facts


Item = TypeVar("Item")


class Recent(Generic[Item]):
    """What was made last, by number, up to a total `most` of its weights (at least one item)."""

    def __init__(self, most: int, weight: Callable[[Item], int] = lambda _: 1) -> None:
        self._most, self._weight, self._total = most, weight, 0
        self._items: OrderedDict[int, Item] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int, make: Callable[[int], Item]) -> Item:
        """The item of this number, made now if it is not kept."""
        with self._lock:
            if number in self._items:
                self._items.move_to_end(number)
                return self._items[number]
        item = make(number)
        with self._lock:
            if number not in self._items:
                self._items[number] = item
                self._total += self._weight(item)
            while self._total > self._most and len(self._items) > 1:
                self._total -= self._weight(self._items.popitem(last=False)[1])
        return item


def copied(segment: Segment, ordinals: Iterable[int]) -> Iterator[Prepared]:
    """Some documents of a segment with their chunks and vectors."""
    chunks = segment.chunks
    first = np.searchsorted(chunks["document"], np.arange(len(segment.documents) + 1))
    for ordinal in ordinals:
        part = slice(int(first[ordinal]), int(first[ordinal + 1]))
        vectors = None if segment.vectors is None else segment.vectors.vectors[part]
        known, words = segment.fingerprints[ordinal], None
        if segment.words is not None:
            words = [segment.words[row] for row in range(part.start, part.stop)]
        yield Prepared(segment.documents[ordinal], np.asarray(chunks[part]), vectors, words, known)


def _with_words(known: TextWords | None, words: Sequence[list[str]] | None) -> TextWords | None:
    """`known` words, and those of further texts."""
    if words is None:
        return known
    known = known if known is not None else TextWords()
    for one in words:
        known.add(one)
    return known


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of dtype ``CHUNK`` as one; NumPy itself would compare the fields of each with those of the next."""
    return np.frombuffer(bytearray().join(part.tobytes() for part in parts), dtype=CHUNK)


def _mapped_vectors(folder: Path, rows: int, dim: int) -> NDArray[np.float32]:
    path = folder / VECTORS
    if path.stat().st_size != 4 * rows * dim:
        raise ValueError(f"{path.name} holds other vectors than {rows} of {dim} dimensions")
    if not rows:
        return np.empty((0, dim), dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r", shape=(rows, dim)).view(np.ndarray)


def _mapped_bytes(path: Path) -> NDArray[np.uint8]:
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
