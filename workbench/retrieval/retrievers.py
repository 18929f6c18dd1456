"""A corpus becomes a retriever, a question becomes hits: chunks with the rank each voter gave."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress
from workbench.corpus.chunks import Chunk
from workbench.corpus.documents import Corpus, Document, id_named
from workbench.errors import IndexUnusable, InputError
from workbench.markup import counted
from workbench.retrieval.building import (
    VOTERS,
    Changes,
    Mode,
    Recipe,
    Tally,
    chosen_kind,
    commit_snapshot,
    each_document,
    kind_of,
    prepared,
    recipe_of,
    refuse_missing,
    relative_root,
    root_of,
    with_plain_metadata,
)
from workbench.retrieval.encoders import Encoder, given_encoder
from workbench.retrieval.filters import Where
from workbench.retrieval.fusion import (
    scaled,
    shares_by_rank,
    shares_by_score,
    summed,
    varied,
)
from workbench.retrieval.hits import Explanation, Hit, Vote
from workbench.retrieval.index import checked_vectors
from workbench.retrieval.index_structures import GpuScanner, IndexReport, Kind, Ranking
from workbench.retrieval.rerank import Reranker
from workbench.retrieval.saved import read_index, writing_index
from workbench.retrieval.segments import Segment, copied, fingerprint, memory_segment
from workbench.retrieval.snapshot import Part, Snapshot

Device = Literal["cpu", "cuda"]
_OTHER_QUESTION = 1e-3  # by how much the cosine of a hit for the same question never differs
_CANDIDATES = 50  # of each voter, or four for each hit if that is more


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How votes become hits.

    `fusion` is by ``"score"`` (a convex combination of scaled scores) or by ``"rank"`` (reciprocal rank); `weights`
    says how much each voter counts, 1 unless told (``{"dense": 2.0}``). `expand` gives further wordings of the
    question, which vote as it does. `reranker` scores the candidates anew. `diversity` above 0 chooses among the
    candidates by maximal marginal relevance, 1 being variety alone. `candidates` is how many each voter names: 50 or
    four for each hit, if None. `exact` compares every vector, whatever the index.
    """

    fusion: Literal["rank", "score"] = "score"
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    expand: Callable[[str], Sequence[str]] | None = None
    reranker: Reranker | None = None
    diversity: float = 0.0
    candidates: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.fusion not in ("rank", "score"):
            raise ValueError(f"fusion={self.fusion!r} is not known; use 'rank' or 'score'")
        if not isinstance(self.weights, Mapping) or not all(map(_is_number, self.weights.values())):
            raise ValueError(
                f"weights={self.weights!r} are none; give a dict such as {{'dense': 2.0}}"
            )
        unknown = self.weights.keys() - {"dense", "lexical"}
        if unknown:
            raise ValueError(
                f"weights names {min(unknown)!r}; the voters are 'dense' and 'lexical'"
            )
        if not _is_number(self.diversity) or not 0 <= self.diversity <= 1:
            raise ValueError(
                f"diversity={self.diversity!r} is outside 0 (relevance alone) to 1 (variety alone)"
            )
        if self.candidates is not None and (
            not isinstance(self.candidates, Integral) or self.candidates < 1
        ):
            raise ValueError(
                f"candidates={self.candidates!r} is no number of candidates; ask for 1 or more"
            )
        if self.expand is not None and not callable(self.expand):
            raise ValueError(f"expand={self.expand!r} is no function of a question")
        if self.reranker is not None and not hasattr(self.reranker, "score"):
            raise ValueError(
                f"reranker={self.reranker!r} is none; give load_reranker({str(self.reranker)!r})"
            )


class Searchable(Protocol):
    """What ``ask`` needs of a retriever: ours, or one of LangChain's in our shape."""

    @property
    def documents(self) -> Mapping[str, Document]:
        """The documents of what was found, by id."""

    def view(self) -> Searchable:
        """The same at this moment, for one question."""

    def search(
        self,
        question: str,
        *,
        k: int = 5,
        mode: Mode | None = None,
        where: Where | None = None,
        options: SearchOptions | None = None,
    ) -> list[Hit]:
        """The best chunks for a question, at most `k`."""


class Home(NamedTuple):
    """The folder that a retriever was opened from or saved to last, and the checksum of its manifest then."""

    folder: Path
    checksum: str


class _State(NamedTuple):
    """What a retriever holds at one moment; replaced as a whole."""

    snapshot: Snapshot
    home: Home | None


class Retriever:
    """Chunks of a corpus that can be searched. Made by ``build_retriever``, ``open_retriever``.

    `documents` maps ids to documents, `chunks` are in the order of the documents. Documents can be added, replaced and
    deleted; a search that is under way sees all of a change or nothing. What lies in a folder changes by :meth:`save`.

    >>> tides = Document("tides.txt", "High water comes twice a day.", "Tides")
    >>> retriever = build_retriever(Corpus((tides,)))
    >>> retriever
    Retriever(1 document, 1 chunk, hybrid, 'all-MiniLM-L6-v2'; next: .search('…', k=5), .save('…'))
    >>> retriever.add([Document("eels.txt", "Eels are smoked on Fridays.", "Eels")])
    Changes(1 added, 0 replaced, 0 removed, 0 unchanged; 1 chunk embedded, 0 known)
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        recipe: Recipe,
        home: Home | None = None,
        root: Path | None = None,
        gpu: GpuScanner | None = None,
    ) -> None:
        self._state, self._recipe, self._gpu = _State(snapshot, home), recipe, gpu
        self._root = root  # the folder that ids are relative to
        self._changing = threading.Lock()

    @property
    def _snapshot(self) -> Snapshot:
        return self._state.snapshot

    def __len__(self) -> int:
        return len(self._snapshot)

    def __repr__(self) -> str:
        sizes = f"{counted(len(self.documents), 'document')}, {counted(len(self), 'chunk')}"
        return (
            f"Retriever({sizes}, {self.mode}, {self.encoder.name!r}; "
            "next: .search('…', k=5), .save('…'))"
        )

    @property
    def encoder(self) -> Encoder:
        """What embeds chunks and questions."""
        return self._recipe.encoder

    @property
    def mode(self) -> Mode:
        """What was built, and how is searched unless told otherwise."""
        return self._recipe.mode

    @property
    def max_tokens(self) -> int | None:
        """Size of a chunk, in tokens of the encoder; None if documents are chunks."""
        return self._recipe.max_tokens

    @property
    def documents(self) -> Mapping[str, Document]:
        """Documents by id; one that lies in a folder is read when it is asked for."""
        return self._snapshot.documents

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks, in the order of the documents."""
        return self._snapshot.chunks

    @property
    def report(self) -> IndexReport | None:
        """How vectors are searched, why, and the recall that was measured; None without vectors."""
        vectors = self._snapshot.vectors
        return None if vectors is None else vectors.report

    def to_corpus(self) -> Corpus:
        """The documents once more, as ``read_corpus`` gives them; reads them all."""
        return Corpus(tuple(self.documents.values()))

    def fields(self) -> list[str]:
        """What a filter may name; looks at every document."""
        return self._snapshot.fields()

    def document(self, name: str) -> Document:
        """Return the document of this id or unique stem; else ``InputError`` lists what is near."""
        documents = self.documents
        return documents[id_named(name, documents)]

    def search(
        self,
        question: str,
        *,
        k: int = 5,
        mode: Mode | None = None,
        where: Where | None = None,
        options: SearchOptions | None = None,
    ) -> list[Hit]:
        """Find the `k` best chunks for `question`; equal scores keep the order of the chunks.

        ``dense`` ranks by the cosine of sentence vectors; ``lexical`` by BM25, and may find fewer than `k`, for
        a chunk that shares no word is no hit; ``hybrid`` asks both and fuses their scores. `where` is a filter
        such as ``{"language": "de"}``: only chunks it lets through are searched, so `k` of them are found if
        there are as many; fewer than `k` chunks are all found. A question longer than the encoder reads is not
        cut: only ``mode="lexical"`` takes it.

        Raises
        ------
        ValueError
            The question is empty or too long for the encoder, `k` is below 1, `where`
            is no filter or names an unknown field, or this index was not built for `mode`.

        >>> eels = Document("eels.md", "Eels are smoked on Fridays.", "Eels", metadata={"year": 1998})
        >>> cod = Document("cod.md", "Cod is dried in April.", "Cod", metadata={"year": 2011})
        >>> retriever = build_retriever(Corpus((eels, cod)))
        >>> retriever.search("When are eels smoked?", k=1, where={"year": {"$gt": 2000}})[0].chunk.document_id
        'cod.md'
        """
        snapshot, chosen = self._snapshot, options or SearchOptions()
        if not isinstance(chosen, SearchOptions):
            raise ValueError(f"options={options!r} are none; give SearchOptions(fusion='rank', …)")
        mode = mode or self.mode
        if mode not in VOTERS:
            raise ValueError(f"mode={mode!r} is not known; use 'dense', 'lexical' or 'hybrid'")
        _refuse_empty(question)
        k = _checked_k(k)
        if not len(snapshot):
            return []
        allowed = None if where is None else snapshot.matching(where)
        rankings = self._rankings(snapshot, question, mode, k, allowed, chosen)
        best, shares = _fused(rankings, chosen)
        votes = _votes(rankings, shares, question)
        if chosen.reranker is not None:
            best = _reranked(snapshot, question, best, chosen.reranker, votes)
        if chosen.diversity:
            best = self._varied(snapshot, best, k, chosen.diversity)
        return _hits(snapshot, best, k, votes)

    def search_vector(
        self,
        vector: NDArray[np.float32],
        *,
        k: int = 5,
        where: Where | None = None,
        diversity: float = 0.0,
        candidates: int | None = None,
    ) -> list[Hit]:
        """Find the `k` chunks of greatest cosine with `vector` [dim], fewer if there are not as many.

        `diversity` above 0 chooses among the `candidates` nearest (50 or four for each hit, if None) by maximal
        marginal relevance, with the cosine to `vector` as relevance.
        """
        snapshot = self._snapshot
        if snapshot.vectors is None:
            raise ValueError("this index has no vectors; build it with mode='hybrid' or 'dense'")
        k = _checked_k(k)
        if not len(snapshot):
            return []
        asked = checked_vectors(np.asarray(vector)[None], dim=snapshot.vectors.dim)
        asked = asked / np.linalg.norm(asked)
        depth = k if not diversity else (candidates or max(_CANDIDATES, 4 * k))
        scores, rows = snapshot.vectors.search(
            asked,
            min(max(depth, k), len(snapshot)),
            allowed=None if where is None else snapshot.matching(where),
            gpu=self._gpu,
        )
        found = rows[0] >= 0
        best = Ranking(scores[0][found], rows[0][found])
        votes = _votes({("dense", ""): best}, [], "")
        if diversity:
            order = varied(best.scores, snapshot.vectors.vectors(best.rows), k, diversity=diversity)
            best = Ranking(best.scores[order], best.rows[order])
        return _hits(snapshot, best, k, votes)

    def view(self) -> Retriever:
        """The retriever as it is now: what is added or deleted later does not show in it."""
        state = self._state
        return Retriever(
            state.snapshot, recipe=self._recipe, home=state.home, root=self._root, gpu=self._gpu
        )

    def explain(self, hit: Hit, question: str) -> Explanation:
        """Where the score of a hit for `question` comes from: votes, cosine, and BM25 word by word.

        >>> valve = Document("pump.md", "Valve V-14 leaked in March.", "Pump")
        >>> retriever = build_retriever(Corpus((valve,)))
        >>> question = "Which valve failed?"
        >>> sorted(retriever.explain(retriever.search(question, k=1)[0], question).words)
        ['failed', 'valve', 'which']
        """
        _refuse_empty(question)
        if not isinstance(hit, Hit):
            raise ValueError(f"{hit!r} is no hit; give one of retriever.search({question!r})")
        snapshot = self._snapshot
        row = next(
            (
                row
                for row in self._rows_of(snapshot, hit.chunk.document_id)
                if snapshot.chunk(row) == hit.chunk
            ),
            None,
        )
        if row is None:
            raise ValueError(f"{hit!r} is no hit of this index as it is now; search again")
        cosine = bm25 = None
        words: dict[str, float] = {}
        if (
            snapshot.vectors is not None
            and len(self.encoder.measure(question)) <= self.encoder.max_tokens
        ):
            cosine = float(snapshot.vectors.vectors([row])[0] @ self.embedded(question))
            told = [v.score for v in hit.votes if v.retriever == "dense" and v.query is None]
            if told and abs(told[0] - cosine) > _OTHER_QUESTION:
                raise ValueError(f"{hit!r} was found for another question than {question!r}")
        if "lexical" in VOTERS[self.mode]:
            place = int(np.searchsorted(snapshot.live_rows, row))
            words = snapshot.lexical().shares(question, place)
            bm25 = float(snapshot.lexical().scores(question)[place])
        return Explanation(hit, question, cosine, bm25, words)

    def add(
        self,
        documents: Iterable[Document],
        *,
        progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> Changes:
        """Add documents; one whose id is there already replaces it, and one that is the same is left alone.

        Only what was not embedded before is embedded now. `progress` is told of each document and each batch.
        """
        given = [with_plain_metadata(document) for document in each_document(documents)]
        _refuse_duplicates(given)
        with self._changing:
            old = self._snapshot
            fresh = [
                d
                for d in given
                if d.id not in old.numbers or old.fingerprint(old.numbers[d.id]) != fingerprint(d)
            ]
            names = {d.id for d in fresh}
            changes = Changes(
                added=tuple(d.id for d in fresh if d.id not in old.numbers),
                replaced=tuple(d.id for d in fresh if d.id in old.numbers),
                unchanged=tuple(d.id for d in given if d.id not in names),
            )
            if not fresh:
                return changes
            tally = Tally()
            made = list(
                prepared(
                    fresh,
                    self._recipe,
                    known=old.known_vectors,
                    tally=tally,
                    total=len(fresh),
                    progress=progress,
                    cancel=cancel,
                )
            )
            rows = sum(len(one.chunks) for one in made)
            chosen = chosen_kind(self._recipe, rows, has_structure=not old.segments)
            segment = memory_segment(
                made, dim=self._recipe.dim, kind=chosen.kind, reason=chosen.reason
            )
            self._state = _State(old.added(segment).merged(self._together), self._state.home)
            return replace(changes, embedded=tally.embedded, known=tally.known)

    def delete(
        self, ids: Iterable[str], *, missing: Literal["error", "ignore"] = "error"
    ) -> Changes:
        """Delete the documents of these ids.

        Raises
        ------
        InputError
            One of them is not there, and `missing` does not say to pass over it: nothing is deleted.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise ValueError(f"delete takes a list of ids; write delete([{ids!r}])")
        wanted = list(dict.fromkeys(ids))
        if wrong := [id for id in wanted if not isinstance(id, str)]:
            raise ValueError(f"{wrong[0]!r} is no id of a document")
        with self._changing:
            old = self._snapshot
            if missing == "error":
                refuse_missing(wanted, old)
            known = [id for id in wanted if id in old.numbers]
            if known:
                self._state = _State(old.without(known).merged(self._together), self._state.home)
        return Changes(removed=tuple(known))

    def save(self, folder: str | Path) -> None:
        """Write the index below `folder`, or what changed since it was opened from there or saved there.

        What is there already stays readable until the new index is whole; every file has a sha256 sum.

        Raises
        ------
        ValueError
            `folder` holds something else than an index of workbench.
        IndexUnusable
            Another process writes there, or has written there since this retriever was opened from it, or it holds an
            index that is newer than this program.
        """
        place = Path(folder)
        with self._changing:
            snapshot, home = self._state
            with writing_index(place) as writer:
                is_same = home is not None and home.folder == place.resolve()
                if is_same and home is not None and writer.facts.get("checksum") != home.checksum:
                    raise IndexUnusable(
                        f"the index {folder} was changed by another program since it was opened; "
                        "open it again, or save to another folder"
                    )
                told = {"reading": None, "root": relative_root(place, self._root)}
                stored = commit_snapshot(writer, snapshot, self._recipe, told)
                checksum = str(writer.facts["checksum"])
            if [list(s.ids) for s in stored.segments] == [list(s.ids) for s in snapshot.segments]:
                pairs = zip(snapshot.segments, stored.segments, strict=True)  # memory stays memory
                stored = snapshot.with_segments([replace(a, stored=b.stored) for a, b in pairs])
            self._state = _State(stored, Home(place.resolve(), checksum))

    def _together(self, parts: list[Part]) -> Segment:
        made = (prepared for part in parts for prepared in copied(*part))
        chosen = kind_of(parts, self._recipe)
        return memory_segment(made, dim=self._recipe.dim, kind=chosen.kind, reason=chosen.reason)

    def _rankings(
        self,
        snapshot: Snapshot,
        question: str,
        mode: Mode,
        k: int,
        allowed: NDArray[np.bool_] | None,
        options: SearchOptions,
    ) -> dict[tuple[str, str], Ranking]:
        """What each voter says of the question and each expansion of it."""
        wordings = [question]
        if options.expand is not None:
            others = options.expand(question)
            if isinstance(others, str) or not _are_texts(others):
                raise ValueError(f"expand gave {others!r}; it must give a list of wordings")
            wordings += [t for t in dict.fromkeys(others) if t.strip() and t != question]
        is_plain = len(VOTERS[mode]) * len(wordings) == 1
        choosing = options.reranker is not None or options.diversity > 0
        depth = options.candidates or (k if is_plain and not choosing else max(_CANDIDATES, 4 * k))
        depth = min(max(depth, k), len(snapshot))
        return {
            (voter, wording): self._ask(
                snapshot, voter, wording, depth, allowed, exact=options.exact
            )
            for wording in wordings
            for voter in VOTERS[mode]
        }

    def _ask(
        self,
        snapshot: Snapshot,
        voter: str,
        question: str,
        depth: int,
        allowed: NDArray[np.bool_] | None,
        *,
        exact: bool,
    ) -> Ranking:
        if voter not in VOTERS[self.mode]:
            raise ValueError(
                f"this index was built with mode={self.mode!r} and has no {voter} part; "
                "build it with mode='hybrid'"
            )
        if voter == "lexical" or snapshot.vectors is None:
            return snapshot.search_words(question, depth, allowed=allowed)
        asked = self.embedded(question)[None]
        scores, rows = snapshot.vectors.search(
            asked, depth, allowed=allowed, exact=exact, gpu=self._gpu
        )
        found = rows[0] >= 0
        return Ranking(scores[0][found], rows[0][found])

    def _varied(self, snapshot: Snapshot, best: Ranking, k: int, diversity: float) -> Ranking:
        if snapshot.vectors is None:
            raise ValueError(
                "diversity compares vectors, and this index has none; build it with mode='hybrid'"
            )
        order = varied(
            scaled(best.scores), snapshot.vectors.vectors(best.rows), k, diversity=diversity
        )
        return Ranking(best.scores[order], best.rows[order])

    def embedded(self, question: str) -> NDArray[np.float32]:
        """The vector of a question: [dim]. ``ValueError`` if it is empty or longer than the encoder reads."""
        _refuse_empty(question)
        count = len(self.encoder.measure(question))
        if count > self.encoder.max_tokens:
            raise ValueError(
                f"the question has {count} tokens, the encoder {self.encoder.name!r} reads at most "
                f"{self.encoder.max_tokens}; shorten it or search with mode='lexical'"
            )
        vectors = self.encoder.encode([question], kind="query")
        found: NDArray[np.float32] = checked_vectors(vectors, dim=self.encoder.dim)[0]
        return found

    @staticmethod
    def _rows_of(snapshot: Snapshot, document_id: str) -> list[int]:
        number = snapshot.numbers.get(document_id, -1)
        rows: list[int] = np.flatnonzero(snapshot.document_of_row == number).tolist()
        return rows


def build_retriever(
    corpus: Corpus | Sequence[Document],
    *,
    mode: Mode = "hybrid",
    encoder: Encoder | None = None,
    max_tokens: int = 128,
    index: Kind | Literal["auto"] = "auto",
    device: Device = "cpu",
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Retriever:
    """Cut, embed and index `corpus`.

    Parameters
    ----------
    corpus
        What ``read_corpus`` returned, or a list of documents.
    mode
        Which parts are built: vectors (dense), words (lexical) or both (hybrid).
    encoder
        None for the embedded one. It measures the chunks in every mode: all modes cut alike.
    max_tokens
        Size of a chunk, in tokens of the encoder.
    index
        How vectors are searched: ``flat`` (exact), ``hnsw``, ``ivf-flat``, ``ivf-sq8``, ``ivf-rabitq``, or ``auto``;
        what was chosen, why, and the measured recall are in ``.report``.
    device
        Where vectors are compared. ``cuda`` copies them to the first GPU that FAISS sees and compares all of them
        there, but for searches with a filter; the encoder has a device of its own.
    progress, cancel
        Called after each document and each batch; looked at before each of them.

    Raises
    ------
    InputError
        The corpus holds no text, or FAISS sees no GPU.

    >>> valve = Document("pump.md", "Valve V-14 leaked in March.", "Pump")
    >>> eels = Document("eels.md", "Eels are smoked on Fridays.", "Eels")
    >>> build_retriever(Corpus((valve, eels))).search("Which valve leaked?", k=1)
    [Hit(1, 1.0000, 'pump.md', 'Valve V-14 leaked in March.'; next: .chunk, .votes)]
    """
    gpu = _scanner(device)
    recipe = Recipe(given_encoder(encoder), mode, max_tokens, index)
    documents = [with_plain_metadata(document) for document in each_document(corpus)]
    _refuse_duplicates(documents)
    made = prepared(
        documents,
        recipe,
        known=lambda _: {},
        total=len(documents),
        progress=progress,
        cancel=cancel,
    )
    segment = memory_segment(made, dim=recipe.dim, kind=recipe.index, reason="as asked for")
    if not len(segment):
        raise InputError(
            f"no text to index in {len(documents)} documents; add files that hold text"
        )
    snapshot = Snapshot([segment], dim=recipe.dim)
    if "lexical" in VOTERS[mode]:
        snapshot.lexical()
    root = getattr(corpus, "root", "")
    return Retriever(
        snapshot, recipe=recipe, root=Path(os.path.realpath(root)) if root else None, gpu=gpu
    )


def open_retriever(
    folder: str | Path, *, encoder: Encoder | None = None, device: Device = "cpu"
) -> Retriever:
    """Open an index that :meth:`Retriever.save` wrote, after checking every byte of it.

    `device` is where vectors are compared, as for ``build_retriever``.

    Raises
    ------
    IndexUnusable
        It is missing, damaged, newer than this program, or was made with another encoder than
        `encoder` (None: the embedded one).
    InputError
        FAISS sees no GPU.

    >>> import tempfile
    >>> tides = Document("tides.txt", "High water comes twice a day.", "Tides")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     build_retriever(Corpus((tides,))).save(folder)
    ...     found = open_retriever(folder).search("When is high water?", k=1)
    >>> found[0].chunk.start, found[0].chunk.stop
    (0, 29)
    """
    home, gpu = Path(folder), _scanner(device)
    snapshot, manifest = read_index(home)
    using = given_encoder(encoder)  # seconds of imports, which a wrong folder shall not wait for
    return Retriever(
        snapshot,
        recipe=recipe_of(home, manifest, using),
        home=Home(home.resolve(), manifest["checksum"]),
        root=root_of(home, manifest),
        gpu=gpu,
    )


def _scanner(device: Device) -> GpuScanner | None:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not known; use 'cpu' or 'cuda'")
    return GpuScanner() if device == "cuda" else None


def _hits(
    snapshot: Snapshot, best: Ranking, k: int, votes: Mapping[int, Sequence[Vote]]
) -> list[Hit]:
    found = zip(best.rows[:k].tolist(), best.scores[:k].tolist(), strict=True)
    return [
        Hit(snapshot.chunk(row), score, rank, tuple(votes[row]))
        for rank, (row, score) in enumerate(found, start=1)
    ]


def _fused(
    rankings: Mapping[tuple[str, str], Ranking], options: SearchOptions
) -> tuple[Ranking, list[dict[int, float]]]:
    """The rankings as one, and what each adds to the score of its rows; nothing where there is one alone."""
    if len(rankings) == 1:
        return next(iter(rankings.values())), []
    parts = shares_by_rank if options.fusion == "rank" else shares_by_score
    weights = [options.weights.get(voter, 1.0) for voter, _ in rankings]
    shares = parts(list(rankings.values()), weights=weights)
    return summed(shares), shares


def _reranked(
    snapshot: Snapshot,
    question: str,
    best: Ranking,
    reranker: Reranker,
    votes: dict[int, list[Vote]],
) -> Ranking:
    """`best` in the order of the reranker's scores, which are added to the votes."""
    rows = best.rows.tolist()
    scores = reranker.score(question, [snapshot.chunk(row).text for row in rows])
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise ValueError(f"the reranker {reranker.name!r} gave no finite score for each passage")
    order = np.argsort(-scores, kind="stable")
    for rank, place in enumerate(order.tolist(), start=1):
        votes[rows[place]].append(Vote("reranker", rank, float(scores[place])))
    return Ranking(scores[order], best.rows[order])


def _votes(
    rankings: Mapping[tuple[str, str], Ranking],
    shares: Sequence[Mapping[int, float]],
    question: str,
) -> dict[int, list[Vote]]:
    votes: dict[int, list[Vote]] = {}
    for number, ((voter, wording), ranking) in enumerate(rankings.items()):
        query = None if wording == question else wording
        for rank, (score, row) in enumerate(
            zip(ranking.scores.tolist(), ranking.rows.tolist(), strict=True), 1
        ):
            share = shares[number][row] if shares else None
            votes.setdefault(row, []).append(Vote(voter, rank, score, query, share))
    return votes


def _are_texts(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _refuse_empty(question: str) -> None:
    if not isinstance(question, str):
        raise ValueError(f"the question is {question!r}; ask with text")
    if not question.strip():
        raise ValueError("the question is empty; ask with at least one word")


def _checked_k(k: int) -> int:
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} is not a number of hits; ask for k >= 1")
    return int(k)


def _refuse_duplicates(documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"two documents have the id {document.id!r}; give each its own")
        seen.add(document.id)
