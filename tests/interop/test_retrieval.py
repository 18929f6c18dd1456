"""Stores, retrievers and embeddings of LangChain: the standard tests of langchain-tests, whole, and ours."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

import workbench as wb
from workbench.corpus.documents import Corpus
from workbench.corpus.documents import Document as OurDocument
from workbench.errors import InputError
from workbench.interop.langchain import (
    WorkbenchEmbeddings,
    WorkbenchRetriever,
    WorkbenchVectorStore,
    from_langchain,
)
from workbench.retrieval.retrievers import Retriever, build_retriever, open_retriever


class TestStoreInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> VectorStore:
        return WorkbenchVectorStore(self.get_embeddings())


class TestStoreInAFolder(VectorStoreIntegrationTests):
    """The same, every change saved as a segment or a tombstone, beside documents that are deleted at the end."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> VectorStore:
        store = WorkbenchVectorStore(self.get_embeddings(), folder=tmp_path / "store")
        others = store.add_texts([f"other {n}" for n in range(9)])
        store.delete(others)
        return WorkbenchVectorStore(self.get_embeddings(), folder=tmp_path / "store")


class Reopened(WorkbenchVectorStore):
    """A store that forgets what it knows after every change and opens its folder again."""

    def _keep(self) -> None:
        super()._keep()
        assert self.folder is not None
        self.retriever = open_retriever(self.folder, encoder=self.retriever.encoder)


class TestStoreReopened(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> VectorStore:
        store = Reopened(self.get_embeddings(), folder=tmp_path / "store")
        store.delete(store.add_texts(["an other", "another"]))
        return store


@functools.cache
def harbour() -> Retriever:
    texts = [
        "Valve V-14 leaked in March.",
        "Eels are smoked.",
        "High water comes twice.",
        "Herring.",
    ]
    documents = (OurDocument(f"{n}.md", text, f"T{n}") for n, text in enumerate(texts))
    return build_retriever(Corpus(tuple(documents)))


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return WorkbenchRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": harbour(), "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "Which valve leaked?"


class OnTheProcessor:
    """What the standard tests need to know of the embeddings."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return WorkbenchEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"device": "cpu"}


class TestEmbeddings(OnTheProcessor, EmbeddingsIntegrationTests):
    pass


class TestEmbeddingsUnit(OnTheProcessor, EmbeddingsUnitTests):
    pass


@pytest.fixture
def store() -> Iterator[WorkbenchVectorStore]:
    texts = [f"text {n}" for n in range(60)]
    facts = [{"year": 1990 + n, "kind": "odd" if n % 2 else "even"} for n in range(60)]
    yield WorkbenchVectorStore.from_texts(
        texts, DeterministicFakeEmbedding(size=8), facts, ids=[str(n) for n in range(60)]
    )


def test_scores_are_cosines_and_filters_are_exact(store: WorkbenchVectorStore) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    asked = np.array(embedding.embed_query("text 7"))
    vectors = np.array(embedding.embed_documents([f"text {n}" for n in range(60)]))
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1) / np.linalg.norm(asked)
    found = store.similarity_search_with_score("text 7", k=60)
    assert [d.id for d, _ in found] == [str(n) for n in np.argsort(-cosines)]
    np.testing.assert_allclose([s for _, s in found], np.sort(cosines)[::-1], atol=1e-6)
    odd = [n for n in np.argsort(-cosines) if n % 2 and n < 10]
    where = {"$and": [{"kind": "odd"}, {"year": {"$lt": 2000}}]}
    assert [d.id for d in store.similarity_search("text 7", k=9, filter=where)] == [*map(str, odd)]
    relevance = store.similarity_search_with_relevance_scores("text 7", k=60)
    assert all(0 <= value <= 1 for _, value in relevance)


def test_variety_is_that_of_langchain(store: WorkbenchVectorStore) -> None:
    theirs = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    theirs.add_texts([f"text {n}" for n in range(60)], ids=[str(n) for n in range(60)])
    for lambda_mult in (0.0, 0.3, 0.7, 1.0):
        arguments: Any = {"k": 6, "fetch_k": 25, "lambda_mult": lambda_mult}
        one = store.max_marginal_relevance_search("text 3", **arguments)
        two = theirs.max_marginal_relevance_search("text 3", **arguments)
        assert [d.id for d in one] == [d.id for d in two]


def test_a_filter_on_an_unknown_field_and_bad_metadata_are_refused(
    store: WorkbenchVectorStore,
) -> None:
    with pytest.raises(ValueError, match=r"no document has the field 'yaer'; perhaps year"):
        store.similarity_search("text", filter={"yaer": 1})
    with pytest.raises(ValueError, match="metadata of document 'x' are no JSON values"):
        store.add_texts(["a"], [{"when": object()}], ids=["x"])
    with pytest.raises(ValueError, match="1 texts, 2 metadatas and 1 ids"):
        store.add_texts(["a"], [{}, {}])
    with pytest.raises(ValueError, match="holds no text"):
        store.add_texts([" "])
    with pytest.raises(ValueError, match="say which documents to delete"):
        store.delete()
    with pytest.raises(ValueError, match="the question is empty"):
        store.similarity_search(" ")


def test_a_store_does_not_open_an_index_of_chunks(tmp_path: Path) -> None:
    harbour().view().save(tmp_path / "index")
    with pytest.raises(
        InputError, match="holds documents cut into chunks; open it with open_retriever"
    ):
        WorkbenchVectorStore(folder=tmp_path / "index")


def test_a_hybrid_store_finds_words(tmp_path: Path) -> None:
    store = WorkbenchVectorStore(
        DeterministicFakeEmbedding(size=8), mode="hybrid", folder=tmp_path / "store"
    )
    store.add_documents(
        [Document(id=w, page_content=f"{w} of the harbour") for w in ("eel", "cod")]
    )
    found = store.similarity_search_with_score("cod?", k=2)
    assert {document.id for document, _ in found} == {"eel", "cod"}
    assert [
        hit.chunk.document_id for hit in store.retriever.search("cod?", k=1, mode="lexical")
    ] == ["cod"]
    with pytest.raises(NotImplementedError, match="no relevance from 0 to 1"):
        store.similarity_search_with_relevance_scores("cod?")


def test_a_document_from_the_retriever_tells_its_place() -> None:
    found = WorkbenchRetriever(retriever=harbour(), k=1).invoke("Which valve leaked?")
    facts = found[0].metadata["hit"]
    document = harbour().documents[facts["document"]]
    assert document.text[facts["start"] : facts["stop"]] == found[0].page_content
    assert {vote["retriever"] for vote in facts["votes"]} == {"dense", "lexical"}
    only = WorkbenchRetriever(retriever=harbour(), where={"document": "1.md"}, k=3)
    assert [d.metadata["source"] for d in only.invoke("valve")] == ["1.md"]


def test_a_retriever_over_few_chunks_gives_what_there_is_and_keeps_the_metadata() -> None:
    own = {"title": "My title", "rank": "captain", "page": 7}
    corpus = Corpus((OurDocument("a.md", "Eels are smoked.", "Eels", metadata=own),))
    found = WorkbenchRetriever(retriever=build_retriever(corpus)).invoke("When are eels smoked?")
    assert len(found) == 1
    assert {name: found[0].metadata[name] for name in own} == own
    assert found[0].metadata["hit"]["rank"] == 1 and found[0].metadata["source"] == "a.md"


def test_a_store_with_a_structure_builds_it_for_its_first_texts() -> None:
    texts = [f"text {n}" for n in range(300)]
    store = WorkbenchVectorStore.from_texts(texts, DeterministicFakeEmbedding(size=8), index="hnsw")
    report = store.retriever.report
    assert report is not None and report.kind == "hnsw"
    store.add_texts(["one more"])
    assert len(store.similarity_search("text", k=301)) == 301


def test_an_answer_from_a_store_of_langchain_cites_its_documents() -> None:
    store = InMemoryVectorStore(WorkbenchEmbeddings())
    store.add_documents(
        [
            Document(
                id="pump", page_content="Valve V-14 leaked in March.", metadata={"year": 1998}
            ),
            Document(page_content="Eels are smoked on Fridays.", metadata={"source": "eels.md"}),
        ]
    )
    generator = wb.load_generator("pocket")
    for source in (store, store.as_retriever(search_kwargs={"k": 2})):
        answer = wb.ask(
            "Which valve leaked in March?",
            retriever=from_langchain(source),
            generator=generator,
            k=2,
        )
        assert {hit.chunk.document_id for hit in answer.hits} >= {"pump"}
        for citation in answer.citations:
            assert citation.text in ("Valve V-14 leaked in March.", "Eels are smoked on Fridays.")
    with pytest.raises(ValueError, match="takes no filter here"):
        from_langchain(store.as_retriever()).search("valve", where={"year": 1998})
    with pytest.raises(ValueError, match="str is no retriever and no vector store"):
        from_langchain("store")  # type: ignore[arg-type]
