"""A retriever, a store and an encoder in the shapes of LangChain, and LangChain's in ours.

The store is a :class:`~workbench.retrieval.retrievers.Retriever` whose documents are not cut: searching, filtering,
replacing, deleting and saving are the same code as ``wb.build_retriever``'s.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray
from pydantic import ConfigDict

from workbench.corpus.chunks import Chunk, chunk_id
from workbench.corpus.documents import Document
from workbench.errors import InputError
from workbench.retrieval.building import Mode, Recipe
from workbench.retrieval.encoders import Encoder, load_encoder
from workbench.retrieval.filters import Where, plain_filter
from workbench.retrieval.hits import Hit, Vote
from workbench.retrieval.index_structures import Kind
from workbench.retrieval.retrievers import Retriever, SearchOptions, open_retriever
from workbench.retrieval.snapshot import Snapshot
from workbench.store import sha256_bytes

_NO_LIMIT = 1_000_000_000


class WorkbenchEmbeddings(Embeddings):
    """An encoder as LangChain's ``Embeddings``; `model` is a folder or hub id, None for the embedded one.

    A text that is longer than the encoder reads is refused, never cut.

    >>> len(WorkbenchEmbeddings().embed_query("Which valve?"))
    384
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        encoder: Encoder | None = None,
    ) -> None:
        self.encoder = encoder if encoder is not None else load_encoder(model, device=device)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of passages, of length one: [texts, dim]."""
        found: list[list[float]] = self.encoder.encode(texts, kind="passage").tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question: [dim]."""
        found: list[float] = self.encoder.encode([text], kind="query")[0].tolist()
        return found


class EmbeddingsEncoder:
    """LangChain's ``Embeddings`` as an encoder of ours. Words stand for tokens; there is no limit that it knows of."""

    max_tokens = _NO_LIMIT

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        model = getattr(embeddings, "model_name", None) or getattr(embeddings, "model", None)
        self.name = model if isinstance(model, str) else type(embeddings).__name__
        self.dim = len(embeddings.embed_query("length"))
        self.identity: Mapping[str, Any] = {
            "name": self.name,
            "langchain": type(embeddings).__qualname__,
            "dim": self.dim,
        }

    def encode(
        self, texts: Sequence[str], *, kind: Literal["passage", "query"] = "passage", **_: Any
    ) -> NDArray[np.float32]:
        """Vectors scaled to length one: [texts, dim]."""
        if kind == "query":
            found = [self.embeddings.embed_query(text) for text in texts]
        else:
            found = self.embeddings.embed_documents(list(texts))
        vectors = np.array(found, dtype=np.float32).reshape(len(texts), -1)
        if vectors.shape[1:] != (self.dim,) and len(texts):
            raise ValueError(f"{self.name} gave vectors of {vectors.shape[1]}, not {self.dim}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(lengths > 0, lengths, 1.0)
        return vectors

    def measure(self, text: str) -> NDArray[np.int64]:
        """Character offsets of the words: [words, 2]."""
        import re

        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return np.array(spans, dtype=np.int64).reshape(-1, 2)


class WorkbenchVectorStore(VectorStore):
    """LangChain's ``VectorStore`` over a workbench index: upsert by id, delete, filters, scores that are cosines.

    `folder` keeps it: what lies there is opened, and every change is saved before the call returns. A `filter` is a
    dict such as ``{"year": {"$gte": 2001}}`` over the documents' metadata. Metadata must be JSON values.

    >>> store = WorkbenchVectorStore()
    >>> ids = store.add_texts(["Valve V-14 leaked.", "Eels are smoked."], [{"year": 1998}, {"year": 2004}])
    >>> store.similarity_search("Which valve?", k=1)[0].page_content
    'Valve V-14 leaked.'
    >>> store.similarity_search("Which valve?", k=1, filter={"year": {"$gt": 2000}})[0].page_content
    'Eels are smoked.'
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        *,
        folder: str | Path | None = None,
        mode: Mode = "dense",
        index: Kind | Literal["auto"] = "auto",
    ) -> None:
        self._embedding = embedding if embedding is not None else WorkbenchEmbeddings()
        encoder = (
            self._embedding.encoder
            if isinstance(self._embedding, WorkbenchEmbeddings)
            else EmbeddingsEncoder(self._embedding)
        )
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and (self.folder / "manifest.json").exists():
            self.retriever = open_retriever(self.folder, encoder=encoder)
            if self.retriever.max_tokens is not None:
                raise InputError(
                    f"the index {folder} holds documents cut into chunks; open it with open_retriever and "
                    "give that to WorkbenchRetriever"
                )
        else:
            recipe = Recipe(encoder, mode, max_tokens=None, index=index)
            self.retriever = Retriever(Snapshot(dim=recipe.dim), recipe=recipe)

    @property
    def embeddings(self) -> Embeddings:
        """What embeds texts and questions."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> WorkbenchVectorStore:
        """A store of these texts; `options` are those of the class."""
        store = cls(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Add texts, or replace those whose id is there already; their ids, made up where none is given."""
        given = list(texts)
        facts = metadatas if metadatas is not None else [{} for _ in given]
        wanted = list(ids) if ids is not None else [None] * len(given)
        if not len(given) == len(facts) == len(wanted):
            raise ValueError(
                f"{len(given)} texts, {len(facts)} metadatas and {len(wanted)} ids; give one of each for every text"
            )
        names = [id if id is not None else uuid.uuid4().hex for id in wanted]
        self.retriever.add(
            Document(id, text, "", metadata=metadata)
            for id, text, metadata in zip(names, given, facts, strict=True)
        )
        self._keep()
        return names

    def add_documents(self, documents: list[LangChainDocument], **options: Any) -> list[str]:
        """Add documents, or replace those whose id is there already; their ids, made up where there is none."""
        ids = options.pop("ids", None) or [document.id for document in documents]
        texts = [document.page_content for document in documents]
        return self.add_texts(texts, [dict(d.metadata) for d in documents], ids=ids, **options)

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        """Delete the documents of these ids; ids that are not there are passed over. True."""
        if ids is None:
            raise ValueError("say which documents to delete: delete(ids=[…])")
        if self.retriever.delete(ids, missing="ignore").removed:
            self._keep()
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """The documents of these ids; ids that are not there are passed over."""
        documents = self.retriever.documents
        return [_returned(documents[id]) for id in ids if id in documents]

    def similarity_search(
        self, query: str, k: int = 4, filter: Where | None = None, **_: Any
    ) -> list[LangChainDocument]:
        """The `k` best documents for a question, fewer if there are not as many."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Where | None = None, **_: Any
    ) -> list[tuple[LangChainDocument, float]]:
        """The same with scores: cosines, or fused scores with ``mode="hybrid"``; the more the better."""
        view = self.retriever.view()
        hits = view.search(query, k=k, where=_where(filter))
        return [(_returned(view.documents[h.chunk.document_id]), h.score) for h in hits]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Where | None = None, **_: Any
    ) -> list[LangChainDocument]:
        """The `k` documents nearest to a vector."""
        return [document for document, _ in self._nearest(np.array(embedding), k, filter)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **_: Any,
    ) -> list[LangChainDocument]:
        """`k` of the `fetch_k` best, like the question and unlike each other; `lambda_mult` 1 is relevance alone."""
        return self.max_marginal_relevance_search_by_vector(
            self.retriever.embedded(query).tolist(), k, fetch_k, lambda_mult, filter
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        **_: Any,
    ) -> list[LangChainDocument]:
        """The same for a vector."""
        found = self._nearest(
            np.array(embedding), k, filter, diversity=1 - lambda_mult, candidates=fetch_k
        )
        return [document for document, _ in found]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """A cosine as a relevance from 0 to 1."""
        if self.retriever.mode != "dense":
            # what LangChain expects of a store that has no such scores
            raise NotImplementedError("fused scores are no relevance from 0 to 1; use mode='dense'")
        return lambda cosine: min(1.0, max(0.0, (1 + cosine) / 2))

    def _nearest(
        self, vector: NDArray[np.floating], k: int, filter: Where | None, **options: Any
    ) -> list[tuple[LangChainDocument, float]]:
        view = self.retriever.view()
        asked = vector.astype(np.float32)
        hits = view.search_vector(asked, k=k, where=_where(filter), **options)
        return [(_returned(view.documents[h.chunk.document_id]), h.score) for h in hits]

    def _keep(self) -> None:
        if self.folder is not None:
            self.retriever.save(self.folder)


class WorkbenchRetriever(BaseRetriever):
    """A workbench retriever as LangChain's ``BaseRetriever``; `k` may also be told to ``invoke``.

    A returned document is a chunk. Its metadata are the document's, and under ``hit`` where it stands (``document``,
    ``start``, ``stop``: characters of the document's text) and how it was found (``rank``, ``score``, ``votes``);
    ``source`` is the document's id unless the document has one of its own.

    >>> from workbench.corpus.documents import Corpus
    >>> from workbench.retrieval.retrievers import build_retriever
    >>> eels = Document("eels.md", "Eels are smoked on Fridays.", "Eels")
    >>> found = WorkbenchRetriever(retriever=build_retriever(Corpus((eels,))), k=1).invoke("When are eels smoked?")
    >>> found[0].metadata["hit"]["document"], found[0].metadata["hit"]["start"]
    ('eels.md', 0)
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: Retriever
    k: int = 5
    mode: Literal["dense", "lexical", "hybrid"] | None = None
    where: dict[str, Any] | None = None
    options: SearchOptions | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
    ) -> list[LangChainDocument]:
        view = self.retriever.view()
        wanted = self.k if k is None else k
        if not len(view):
            return []
        hits = view.search(
            query,
            k=min(wanted, len(view)),
            mode=self.mode,
            where=self.where if where is None else where,
            options=self.options,
        )
        return [_found(hit, view.documents[hit.chunk.document_id]) for hit in hits]


class LangChainRetriever:
    """Any retriever or store of LangChain, searched as ``wb.ask`` searches. Made by :func:`from_langchain`.

    Its documents become ours: their text is what is cited. `documents` are those that were found so far.
    """

    def __init__(
        self, find: Callable[[str, int, Where | None], list[tuple[LangChainDocument, float | None]]]
    ) -> None:
        self._find = find
        self.documents: dict[str, Document] = {}

    def view(self) -> LangChainRetriever:
        """Another one over the same source, with documents of its own."""
        return LangChainRetriever(self._find)

    def search(
        self,
        question: str,
        *,
        k: int = 5,
        mode: Mode | None = None,
        where: Where | None = None,
        options: SearchOptions | None = None,
    ) -> list[Hit]:
        """The source's best documents for `question`, at most `k`; their score is its relevance, or 1 / rank."""
        if not question.strip():
            raise ValueError("the question is empty; ask with at least one word")
        if k < 1:
            raise ValueError(f"k={k} is not a number of hits; ask for k >= 1")
        if mode is not None or options is not None:
            raise ValueError("mode and options are of our own index; set up LangChain's beforehand")
        hits: list[Hit] = []
        for document, score in self._find(question, k, where)[:k]:
            text = document.page_content
            if not text.strip():
                continue
            facts = json.loads(json.dumps(document.metadata, default=str))
            id = document.id or str(facts.get("source") or "")
            digest = sha256_bytes(text.encode("utf-8", "surrogatepass"))[:16]
            if not id or self.documents.get(id, Document(id, text, "")).text != text:
                id = f"{id}#{digest}" if id else digest
            self.documents[id] = Document(id, text, str(facts.get("title") or id), metadata=facts)
            rank = len(hits) + 1
            value = 1.0 / rank if score is None else float(score)
            chunk = Chunk(id, 0, len(text), text, chunk_id(id, text, 1))
            hits.append(Hit(chunk, value, rank, (Vote("langchain", rank, value),)))
        return hits


def from_langchain(source: BaseRetriever | VectorStore) -> LangChainRetriever:
    """A retriever of ours over one of LangChain's, or over a store: for ``wb.ask(…, retriever=…)``.

    >>> store = WorkbenchVectorStore.from_texts(["Eels are smoked on Fridays."], WorkbenchEmbeddings())
    >>> from_langchain(store).search("When are eels smoked?", k=1)[0].chunk.text
    'Eels are smoked on Fridays.'
    """
    if isinstance(source, VectorStore):

        def find(
            question: str, k: int, where: Where | None
        ) -> list[tuple[LangChainDocument, float | None]]:
            options = {} if where is None else {"filter": dict(where)}
            try:
                return [*source.similarity_search_with_relevance_scores(question, k=k, **options)]
            except NotImplementedError:
                found = source.similarity_search(question, k=k, **options)
                return [(document, None) for document in found]

        return LangChainRetriever(find)
    if isinstance(source, BaseRetriever):

        def ask(
            question: str, k: int, where: Where | None
        ) -> list[tuple[LangChainDocument, float | None]]:
            if where is not None:
                raise ValueError("LangChain's retriever takes no filter here; set it up beforehand")
            return [(document, None) for document in source.invoke(question)]

        return LangChainRetriever(ask)
    raise ValueError(f"{type(source).__name__} is no retriever and no vector store of LangChain")


def _returned(document: Document) -> LangChainDocument:
    return LangChainDocument(
        id=document.id, page_content=document.text, metadata=dict(document.metadata)
    )


def _found(hit: Hit, document: Document) -> LangChainDocument:
    own = {name: value for name, value in hit.to_dict().items() if name not in ("chunk_id", "text")}
    page = document.page_at(hit.chunk.start)
    place = {"title": document.title, "page": page.number if page is not None else None}
    return LangChainDocument(
        id=hit.chunk.id,
        page_content=hit.chunk.text,
        metadata={"source": document.id, **document.metadata, "hit": {**place, **own}},
    )


def _where(filter: Where | None) -> Where | None:
    """LangChain's filter, which names metadata, as ours."""
    if filter is None:
        return None

    def named(part: Any) -> Any:
        if not isinstance(part, Mapping):
            return part
        found = {}
        for name, value in part.items():
            if name in ("$and", "$or") and isinstance(value, list):
                found[name] = [named(one) for one in value]
            elif name == "$not":
                found[name] = named(value)
            else:
                found[name if name.startswith("$") else f"metadata.{name}"] = value
        return found

    return dict(named(plain_filter(filter)))
