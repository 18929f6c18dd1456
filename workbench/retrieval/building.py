"""Documents become chunks, vectors and segments, in memory or in a folder; only what is new is embedded."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.corpus.chunks import Chunk, chunk_document, chunk_id
from workbench.corpus.documents import Corpus, Document
from workbench.corpus.readers import READING, CorpusReader
from workbench.errors import IndexUnusable, InputError
from workbench.markup import counted
from workbench.retrieval.embedding_cache import EmbeddingCache, embedded
from workbench.retrieval.encoders import Encoder, given_encoder, same_encoder
from workbench.retrieval.index_structures import KINDS, Kind
from workbench.retrieval.lexical import SETTINGS, words
from workbench.retrieval.saved import (
    CACHE,
    REMEDY,
    IndexWriter,
    read_index,
    writing_index,
)
from workbench.retrieval.segments import (
    Prepared,
    Segment,
    chunk_rows,
    embedding_key,
    fingerprint,
)
from workbench.retrieval.snapshot import Part, Snapshot, chunk_context
from workbench.store import MANIFEST

Mode = Literal["dense", "lexical", "hybrid"]
VOTERS: dict[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "lexical": ("lexical",),
    "hybrid": ("dense", "lexical"),
}
EMBEDDED = (
    "title-sections-text/1"  # what is embedded for a chunk; raise the number whenever it changes
)
_AT_ONCE = 2048  # chunks that a build into a folder holds in memory
_WORTH_A_STRUCTURE = 10_000  # rows below which a segment beside others is scanned one by one


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What decides how documents are cut, embedded and indexed; they stay whole if `max_tokens` is None."""

    encoder: Encoder
    mode: Mode = "hybrid"
    max_tokens: int | None = 128
    index: Kind | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.mode not in VOTERS:
            raise ValueError(f"mode={self.mode!r} is not known; use 'dense', 'lexical' or 'hybrid'")
        if self.index != "auto" and self.index not in KINDS:
            raise ValueError(
                f"index={self.index!r} is not known; use 'auto' or one of {', '.join(KINDS)}"
            )
        if self.max_tokens is not None and not 1 <= self.max_tokens <= self.encoder.max_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} is outside 1 to {self.encoder.max_tokens}, what the encoder "
                f"{self.encoder.name!r} reads"
            )

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None if nothing is embedded."""
        return self.encoder.dim if "dense" in VOTERS[self.mode] else None

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "mode": self.mode,
            "encoder": dict(self.encoder.identity),
            "chunking": {"max_tokens": self.max_tokens},
            "embedded": EMBEDDED,
            "lexical": SETTINGS,
            "index": self.index,
            "dim": self.dim,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of an index: ids of documents, and how many chunks had to be embedded or were known.

    >>> Changes(added=("a.txt",), embedded=3)
    Changes(1 added, 0 replaced, 0 removed, 0 unchanged; 3 chunks embedded, 0 known)
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    embedded: int = 0
    known: int = 0

    def __repr__(self) -> str:
        return (
            f"Changes({len(self.added)} added, {len(self.replaced)} replaced, {len(self.removed)} removed, "
            f"{len(self.unchanged)} unchanged; {counted(self.embedded, 'chunk')} embedded, {self.known} known)"
        )


class Cut(NamedTuple):
    """A document, its chunks, and what is embedded for each of them under which key."""

    document: Document
    chunks: list[Chunk]
    texts: list[str]
    keys: list[str]


Known = Callable[[Collection[str]], Mapping[str, NDArray[np.float32]]]


class Tally:
    """Counts chunks that were embedded and those whose vectors were known."""

    def __init__(self) -> None:
        self.embedded = self.known = 0


def prepared(
    documents: Iterable[Document],
    recipe: Recipe,
    *,
    known: Known,
    cache: EmbeddingCache | None = None,
    at_once: int | None = None,
    tally: Tally | None = None,
    total: int = 0,
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[Prepared]:
    """Each document cut and embedded, `at_once` chunks together (None: all of them).

    Their metadata must be plain: see :func:`with_plain_metadata`.
    """
    group: list[Cut] = []
    size = 0
    for done, document in enumerate(documents, start=1):
        if cancel is not None:
            cancel.raise_if_cancelled("chunking")
        group.append(_cut(document, recipe))
        size += len(group[-1].chunks)
        if progress is not None:
            progress(Progress("chunk", done, max(total, done)))
        if at_once is not None and size >= at_once:
            yield from _embedded_group(group, recipe, known, cache, tally, progress, cancel)
            group, size = [], 0
    yield from _embedded_group(group, recipe, known, cache, tally, progress, cancel)


def update_index(
    folder: str | Path,
    documents: Iterable[Document],
    *,
    recipe: Recipe | None = None,
    keep_others: bool = False,
    total: int = 0,
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Changes:
    """Bring the index in `folder` to hold these documents; only what changed is embedded.

    `documents` may be a corpus, or a ``CorpusReader`` for one that does not fit into memory: they are taken one after
    another and never held together, and files whose bytes are the same as before are not even extracted. Others that
    the index holds are removed, or kept with `keep_others`. Without a `recipe` it is that of ``build_retriever``.

    With `keep_others` the ids of what was read from a folder are paths from the folder that the index was made of, so
    that no two files share one: ``manual/pump.md`` when the folder ``manual`` below it is read, ``../more/pump.md``
    when its neighbour ``more`` is.

    Readers see the old index until the new one is whole. When the process is killed, the next run finds again what was
    embedded but for at most one batch of 256 chunks. An index that was made with another recipe, or that is damaged, is
    built anew.

    Raises
    ------
    ValueError
        `folder` holds something else than an index, or two documents have one id.
    IndexUnusable
        Another process writes into the folder.
    InputError
        There is no text to index.

    >>> import tempfile
    >>> eels, cod = Document("eels.md", "Eels are smoked.", "Eels"), Document("cod.md", "Cod is dried.", "Cod")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = update_index(folder, [eels])
    ...     update_index(folder, [eels, cod])
    Changes(1 added, 0 replaced, 0 removed, 1 unchanged; 1 chunk embedded, 0 known)
    """
    home = Path(folder)
    recipe = recipe or Recipe(given_encoder(None))
    with writing_index(home) as writer:
        old, is_whole = _held(home, recipe, must=keep_others)
        seen: dict[str, bool] = {}  # whether it is new or changed
        names = _Names(documents, root_of(home, writer.facts) if is_whole and keep_others else None)

        is_read_alike = is_whole and writer.facts.get("reading") == READING
        found: Iterable[tuple[str, Document | None]]
        if isinstance(documents, CorpusReader):
            sources = old.sources() if is_read_alike else {}
            found = documents.unless_known(lambda id: sources.get(names.of(id)))
        else:
            found = ((document.id, document) for document in each_document(documents))

        def changed() -> Iterator[Document]:
            for given, document in found:
                id = names.of(given)
                if id in seen:
                    raise ValueError(f"two documents have the id {id!r}; give each its own")
                seen[id] = False
                if document is None:
                    continue
                document = with_plain_metadata(
                    document if id == given else replace(document, id=id)
                )
                number = old.numbers.get(id)
                seen[id] = number is None or old.fingerprint(number) != fingerprint(document)
                if seen[id]:
                    yield document

        tally = Tally()
        segment = writer.new_segment(dim=recipe.dim)
        try:
            with _cache(home, recipe) as cache:
                for made in prepared(
                    changed(),
                    recipe,
                    known=old.known_vectors,
                    cache=cache,
                    at_once=_AT_ONCE,
                    tally=tally,
                    total=total,
                    progress=progress,
                    cancel=cancel,
                ):
                    segment.add(made)
        finally:
            segment.close()
        replaced = [id for id in seen if seen[id] and id in old.numbers]
        removed = [] if keep_others else [id for id in old.numbers if id not in seen]
        changes = Changes(
            added=tuple(id for id in seen if seen[id] and id not in old.numbers),
            replaced=tuple(replaced),
            removed=tuple(removed),
            unchanged=tuple(id for id in seen if not seen[id]),
            embedded=tally.embedded,
            known=tally.known,
        )
        is_rebuilt = is_whole and writer.facts["index"] != recipe.index
        reading = None
        if isinstance(documents, CorpusReader) and (
            is_read_alike or not keep_others or not old.numbers.keys() - seen.keys()
        ):
            reading = READING
        told = {"reading": reading, "root": relative_root(home, names.root)}
        is_newly_told = any(writer.facts.get(n) != v for n, v in told.items() if v is not None)
        if segment.documents or removed or is_rebuilt or is_newly_told or not is_whole:
            deleted = [*old.deleted(), *(old.numbers[id] for id in (*replaced, *removed))]
            segments = list(old.segments)
            if segment.documents:
                chosen = chosen_kind(recipe, segment.rows, has_structure=not segments)
                segments.append(writer.finished(segment, kind=chosen.kind, reason=chosen.reason))
            snapshot = Snapshot(segments, dim=recipe.dim, deleted=deleted)
            if is_rebuilt and len(snapshot):
                parts = list(snapshot.live_ordinals())
                rebuilt = writer.filled(
                    parts, dim=recipe.dim, kind=recipe.index, reason="as asked for"
                )
                snapshot = Snapshot([rebuilt], dim=recipe.dim)
            if not len(snapshot):
                raise InputError(
                    f"no text to index in {counted(len(seen), 'document')}; add files that hold text"
                )
            commit_snapshot(writer, snapshot, recipe, told)
    return changes


def delete_from_index(folder: str | Path, ids: Collection[str], *, encoder: Encoder) -> Changes:
    """Delete documents from the index in `folder`.

    Raises
    ------
    InputError
        The index holds no document of one of these ids: nothing is deleted.
    """
    home = Path(folder)
    if not (home / MANIFEST).exists():
        read_index(home)  # says that there is none, and leaves the folder as it is
    with writing_index(home) as writer:
        old, manifest = read_index(home)
        recipe = recipe_of(home, manifest, encoder)
        refuse_missing(ids, old)
        told = {name: manifest.get(name) for name in ("reading", "root")}
        commit_snapshot(writer, old.without(ids), recipe, told)
    return Changes(removed=tuple(ids))


def recipe_of(folder: Path, manifest: Mapping[str, Any], encoder: Encoder) -> Recipe:
    """The recipe of the index in `folder`; ``IndexUnusable`` if it was made with another encoder."""
    built, using = manifest["encoder"], encoder.identity
    if same_encoder(built, using):
        return Recipe(
            encoder, manifest["mode"], manifest["chunking"]["max_tokens"], manifest["index"]
        )
    told = {*built, *using} - {"name", "precision"}
    differs = ", ".join(sorted(name for name in told if built.get(name) != using.get(name)))
    raise IndexUnusable(
        f"the index {folder} was made with the encoder {built.get('name')!r} and opened with "
        f"{using.get('name')!r} (other {differs}); open it with the first or {REMEDY}"
    )


def refuse_missing(ids: Collection[str], snapshot: Snapshot) -> None:
    """Every one of `ids` must be the id of a document that is not deleted."""
    for id in ids:
        if id not in snapshot.numbers:
            close = difflib.get_close_matches(id, snapshot.numbers, n=3)
            hint = f"; perhaps {', '.join(map(repr, close))}" if close else ""
            raise InputError(f"no document {id!r} in the index{hint}; nothing was deleted")


def commit_snapshot(
    writer: IndexWriter, snapshot: Snapshot, recipe: Recipe, told: Mapping[str, str | None]
) -> Snapshot:
    """Write what of `snapshot` does not lie in the writer's folder, merge what should be one, and commit it.

    `told` is what else the manifest is to tell: ``reading``, the version that read every document from its file, None
    if that is not known of them all, and ``root``, see :func:`relative_root`. Returns the snapshot as it lies in the
    folder.
    """

    def write(parts: list[Part]) -> Segment:
        chosen = kind_of(parts, recipe)
        return writer.filled(parts, dim=recipe.dim, kind=chosen.kind, reason=chosen.reason)

    snapshot = snapshot.merged(write)
    if not all(writer.holds(segment) for segment in snapshot.segments):
        snapshot = snapshot.with_segments(
            [
                segment
                if writer.holds(segment)
                else write([(segment, [*range(len(segment.documents))])])
                for segment in snapshot.segments
            ]
        )
    writer.commit(
        snapshot.segments,
        deleted=snapshot.deleted(),
        words=snapshot.lexical() if "lexical" in VOTERS[recipe.mode] else None,
        facts={
            **recipe.facts(),
            "documents": len(snapshot.numbers),
            "chunks": len(snapshot),
            **told,
        },
    )
    return snapshot


class _Names:
    """How the ids of `documents` are called in an index whose ids are paths below `root`, None if there is no such.

    Afterwards `root` is the folder that the index's ids are relative to, as far as one is known.
    """

    def __init__(self, documents: Iterable[Document], root: Path | None) -> None:
        read = documents.root if isinstance(documents, CorpusReader | Corpus) else ""
        self._read = os.path.realpath(read) if read else None
        self.root = root
        if root is None and self._read is not None:
            self.root = Path(self._read)

    def of(self, id: str) -> str:
        """The path below the index's root of what has the path `id` below the folder read."""
        if self._read is None or self.root is None or self._read == str(self.root):
            return id
        try:
            path = os.path.relpath(os.path.join(self._read, id), self.root)
        except ValueError as error:
            raise InputError(
                f"{self._read} lies on another drive than {self.root}, the folder this index was made from; "
                "make another index of it"
            ) from error
        return Path(path).as_posix()


def root_of(folder: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The folder that ids in the index `folder` are relative to, there or not; None if it is not known."""
    told = manifest.get("root")
    if not isinstance(told, str):
        return None
    return Path(os.path.realpath(os.path.join(os.path.realpath(folder), told)))


def relative_root(folder: Path, root: Path | None) -> str | None:
    """`root` as the manifest of the index `folder` tells it: relative, for they are moved together."""
    if root is None:
        return None
    try:
        return Path(os.path.relpath(root, os.path.realpath(folder))).as_posix()
    except ValueError:  # on another drive
        return root.as_posix()


class ChosenKind(NamedTuple):
    """How a segment is searched, and why."""

    kind: Kind | Literal["auto"]
    reason: str


def chosen_kind(recipe: Recipe, rows: int, *, has_structure: bool) -> ChosenKind:
    """How a new segment of so many rows is searched: few beside others one by one, whatever was asked for.

    `has_structure` says that it is the first one, or takes the place of one with the structure that was asked for.
    """
    if recipe.index == "auto" or has_structure or rows >= _WORTH_A_STRUCTURE:
        return ChosenKind(recipe.index, "as asked for")
    return ChosenKind("flat", "few vectors beside those of other segments")


def kind_of(parts: Sequence[Part], recipe: Recipe) -> ChosenKind:
    """How a segment that is merged of these documents, or copied, is searched."""
    held = [segment.vectors for segment, _ in parts if segment.vectors is not None]
    has_structure = any(vectors.structure is not None for vectors in held)
    return chosen_kind(recipe, sum(len(s) for s, _ in parts), has_structure=has_structure)


def _held(folder: Path, recipe: Recipe, *, must: bool) -> tuple[Snapshot, bool]:
    """What the folder holds, if it was made by the same recipe and is whole, else nothing; and whether it was.

    With `must` an index that cannot be gone on with is an error.
    """
    if not (folder / MANIFEST).exists():
        return Snapshot(dim=recipe.dim), False
    try:
        snapshot, facts = read_index(folder)
        wanted = recipe.facts()
        differs = [n for n in wanted if n not in ("encoder", "index") and facts.get(n) != wanted[n]]
        if not same_encoder(facts["encoder"], wanted["encoder"]):
            differs.append("encoder")
        if differs:
            raise IndexUnusable(
                f"the index {folder} was made with another {' and another '.join(sorted(differs))}; "
                "use the same to add to it, or build it anew with all its documents"
            )
    except IndexUnusable:
        if must:
            raise
        return Snapshot(dim=recipe.dim), False
    return snapshot, True


def _cache(folder: Path, recipe: Recipe) -> AbstractContextManager[EmbeddingCache | None]:
    if recipe.dim is None:
        return nullcontext()
    return EmbeddingCache(folder / CACHE, recipe.encoder.identity)


def _cut(document: Document, recipe: Recipe) -> Cut:
    encoder = recipe.encoder
    if recipe.max_tokens is None:
        chunks = [_whole(document)]
        texts = [chunk.text for chunk in chunks]
        return Cut(document, chunks, texts, [embedding_key(text) for text in texts])
    chunks = chunk_document(document, measure=encoder.measure, max_tokens=recipe.max_tokens)
    if recipe.dim is None:
        return Cut(document, chunks, [], [""] * len(chunks))
    texts = [_fitting(encoder, chunk_context(document, chunk), chunk.text) for chunk in chunks]
    return Cut(document, chunks, texts, [embedding_key(text) for text in texts])


def each_document(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents of a corpus or a list, one after another; ``ValueError`` for anything else."""
    if isinstance(documents, Document | str) or not isinstance(documents, Iterable):
        raise ValueError(
            f"{documents!r} is no list of documents; give read_corpus(…), or [document]"
        )
    for document in documents:
        if not isinstance(document, Document):
            raise ValueError(
                f"{document!r} is no document; give wb.Document(id, text) or read_corpus(…)"
            )
        yield document


def with_plain_metadata(document: Document) -> Document:
    """The document with its metadata as JSON gives them back: what is found in memory is found in a folder.

    Raises
    ------
    ValueError
        They hold something that JSON does not know.
    """
    if not document.metadata:
        return document
    try:
        facts = json.loads(json.dumps(dict(document.metadata), allow_nan=False, default=_iso))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the metadata of document {document.id!r} are no JSON values: {error}"
        ) from error
    return document if facts == document.metadata else replace(document, metadata=facts)


def _iso(value: Any) -> str:
    """A day or time as text that compares as days do; ``TypeError`` for anything else."""
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{value!r} is no JSON value")


def _whole(document: Document) -> Chunk:
    """The document as one chunk."""
    if not document.text.strip():
        raise ValueError(f"the document {document.id!r} holds no text; leave it out")
    text = document.text
    return Chunk(document.id, 0, len(text), text, chunk_id(document.id, text, 1))


def _embedded_group(
    group: list[Cut],
    recipe: Recipe,
    known: Known,
    cache: EmbeddingCache | None,
    tally: Tally | None,
    progress: OnProgress | None,
    cancel: CancelToken | None,
) -> Iterator[Prepared]:
    texts = [text for cut in group for text in cut.texts]
    keys = [key for cut in group for key in cut.keys]
    vectors = None
    if recipe.dim is not None and group:
        vectors, new = embedded(
            recipe.encoder,
            texts,
            keys,
            known=known(set(keys)),
            cache=cache,
            progress=progress,
            cancel=cancel,
        )
        if tally is not None:
            tally.known += len(keys) - new
            tally.embedded += new
    at = 0
    for ordinal, (document, chunks, _, own_keys) in enumerate(group):
        part = None if vectors is None else vectors[at : at + len(chunks)]
        at += len(chunks)
        spoken = None
        if "lexical" in VOTERS[recipe.mode]:
            spoken = [words(f"{chunk_context(document, c)}\n{c.text}") for c in chunks]
        yield Prepared(document, chunk_rows(chunks, own_keys, ordinal), part, spoken)


def _fitting(encoder: Encoder, context: str, text: str) -> str:
    """Join context and text, the context shortened so far that the text is read whole."""
    room = encoder.max_tokens - len(encoder.measure(text)) - 1
    offsets = encoder.measure(context)
    if len(offsets) > room:
        context = context[: offsets[room - 1][1]] if room > 0 else ""
    joined = f"{context}\n{text}"
    return joined if context and len(encoder.measure(joined)) <= encoder.max_tokens else text
