"""Our index against LangChain's FAISS store, LlamaIndex and txtai, each by its own interface, on the same vectors.

Each runs in a process of its own: build, save, load, query, query with a filter, memory. The peers are no dependency of
this project; install them beside it, and those that are missing are left out:
pip install langchain-community llama-index-core llama-index-vector-stores-faiss txtai
python benchmarks/retrieval_peers.py [--chunks 20000] [--queries 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tables import heading, table

DIM, K, YEARS = 384, 10, 100
PACKAGES = {
    "workbench": "workbench",
    "LangChain FAISS": "langchain-community",
    "LlamaIndex, its own store": "llama-index-core",
    "LlamaIndex, FAISS": "llama-index-vector-stores-faiss",
    "txtai": "txtai",
}


class Data(NamedTuple):
    """Texts that begin with their number, their vectors and years; questions, which are numbers too."""

    texts: list[str]
    years: list[int]
    vectors: NDArray[np.float32]
    asked: NDArray[np.float32]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What an encoder would make of texts or questions."""
        rows = [re.search(r"\b([nq])(\d+)\b", text).groups() for text in texts]
        return np.stack([(self.asked if kind == "q" else self.vectors)[int(n)] for kind, n in rows])


class System(NamedTuple):
    """One way to do it. `search` takes a question and a year or None, and gives the numbers of what was found."""

    build: Callable[[], Any]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]
    search: Callable[[Any, str, int | None], list[int]]


def data_of(count: int, queries: int, seed: int) -> Data:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // 100), DIM))
    words = [f"word{n}" for n in range(2000)]

    def vectors(many: int) -> NDArray[np.float32]:
        noise = rng.standard_normal((many, DIM))
        raw = centres[rng.integers(0, len(centres), many)] + noise
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)

    texts = [f"n{n} " + " ".join(rng.choice(words, 60)) for n in range(count)]
    years = (1900 + rng.integers(0, YEARS, count)).tolist()
    return Data(texts, years, vectors(count), vectors(queries))


def number_of(text: str) -> int:
    return int(text.split(" ", 1)[0][1:])


def workbench_system(data: Data) -> System:
    from workbench.corpus.documents import Corpus, Document
    from workbench.retrieval.retrievers import build_retriever, open_retriever

    class Given:
        name, dim, max_tokens = "given", DIM, 10_000
        identity = {"name": "given", "dim": DIM}  # noqa: RUF012  # read only

        def encode(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
            return data.embed(texts)

        def measure(self, text: str) -> NDArray[np.int64]:
            return np.array([[0, len(text)]])

    def build() -> Any:
        rows = zip(data.texts, data.years, strict=True)
        documents = [
            Document(str(n), text, str(n), metadata={"year": year})
            for n, (text, year) in enumerate(rows)
        ]
        corpus = Corpus(tuple(documents))
        return build_retriever(corpus, encoder=Given(), mode="dense", max_tokens=None)

    def search(retriever: Any, question: str, year: int | None) -> list[int]:
        where = None if year is None else {"year": year}
        return [number_of(h.chunk.text) for h in retriever.search(question, k=K, where=where)]

    return System(
        build,
        lambda retriever, folder: retriever.save(folder / "index"),
        lambda folder: open_retriever(folder / "index", encoder=Given()),
        search,
    )


def langchain_system(data: Data) -> System:
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy
    from langchain_core.embeddings import Embeddings

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return data.embed(texts).tolist()

        def embed_query(self, text: str) -> list[float]:
            return data.embed([text])[0].tolist()

    inner = DistanceStrategy.MAX_INNER_PRODUCT

    def search(store: Any, question: str, year: int | None) -> list[int]:
        filtered = {} if year is None else {"filter": {"year": year}}
        return [
            number_of(d.page_content) for d in store.similarity_search(question, k=K, **filtered)
        ]

    return System(
        lambda: FAISS.from_texts(
            data.texts,
            Given(),
            metadatas=[{"year": year} for year in data.years],
            distance_strategy=inner,
        ),
        lambda store, folder: store.save_local(str(folder)),
        lambda folder: FAISS.load_local(
            str(folder), Given(), allow_dangerous_deserialization=True, distance_strategy=inner
        ),
        search,
    )


def llamaindex_system(data: Data, *, with_faiss: bool) -> System:
    from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

    class Given(BaseEmbedding):
        def _get_query_embedding(self, query: str) -> list[float]:
            return data.embed([query])[0].tolist()

        _get_text_embedding = _get_query_embedding

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_query_embedding(query)

    def store() -> dict[str, Any]:
        if not with_faiss:
            return {}
        import faiss
        from llama_index.vector_stores.faiss import FaissVectorStore

        return {"vector_store": FaissVectorStore(faiss_index=faiss.IndexFlatIP(DIM))}

    def build() -> Any:
        rows = zip(data.texts, data.years, strict=True)
        nodes = [
            TextNode(id_=str(n), text=text, metadata={"year": year})
            for n, (text, year) in enumerate(rows)
        ]
        context = StorageContext.from_defaults(**store())
        return VectorStoreIndex(nodes, storage_context=context, embed_model=Given())

    def load(folder: Path) -> Any:
        stored: dict[str, Any] = {}
        if with_faiss:
            from llama_index.vector_stores.faiss import FaissVectorStore

            stored = {"vector_store": FaissVectorStore.from_persist_dir(str(folder))}
        context = StorageContext.from_defaults(persist_dir=str(folder), **stored)
        return load_index_from_storage(context, embed_model=Given())

    def search(index: Any, question: str, year: int | None) -> list[int]:
        only = None
        if year is not None:
            only = MetadataFilters(filters=[MetadataFilter(key="year", value=year)])
        found = index.as_retriever(similarity_top_k=K, filters=only).retrieve(question)
        return [number_of(one.node.text) for one in found]

    return System(
        build, lambda index, folder: index.storage_context.persist(str(folder)), load, search
    )


def txtai_system(data: Data) -> System:
    from txtai import Embeddings

    def transform(texts: Sequence[str]) -> NDArray[np.float32]:
        return data.embed(texts)

    def build() -> Any:
        embeddings = Embeddings(method="external", transform=transform, content=True)
        rows = zip(data.texts, data.years, strict=True)
        embeddings.index(
            [(n, {"text": text, "year": year}, None) for n, (text, year) in enumerate(rows)]
        )
        return embeddings

    def load(folder: Path) -> Any:
        embeddings = Embeddings()
        embeddings.load(str(folder / "index"), config={"transform": transform})
        return embeddings

    def search(embeddings: Any, question: str, year: int | None) -> list[int]:
        only = "" if year is None else f" and year = {year}"
        query = f"select id, text, score from txtai where similar(:q){only}"
        found = embeddings.search(query, K, parameters={"q": question})
        return [number_of(row["text"]) for row in found]

    return System(build, lambda e, folder: e.save(str(folder / "index")), load, search)


SYSTEMS: dict[str, Callable[[Data], System]] = {
    "workbench": workbench_system,
    "LangChain FAISS": langchain_system,
    "LlamaIndex, its own store": lambda data: llamaindex_system(data, with_faiss=False),
    "LlamaIndex, FAISS": lambda data: llamaindex_system(data, with_faiss=True),
    "txtai": txtai_system,
}


def measure(name: str, count: int, queries: int, seed: int) -> dict[str, Any]:
    """Everything of one system, in this process."""
    data = data_of(count, queries, seed)
    system = SYSTEMS[name](data)
    year = 1900 + YEARS // 2
    inside = np.flatnonzero(np.array(data.years) == year)
    exact = np.argsort(-(data.asked @ data.vectors.T), axis=1, kind="stable")[:, :K].tolist()
    order = np.argsort(-(data.asked @ data.vectors[inside].T), axis=1, kind="stable")[:, :K]
    exact_inside = inside[order].tolist()
    found: dict[str, Any] = {}
    gc.collect()
    before = resident()
    found["build"], held = timed(system.build)
    gc.collect()
    found["memory"] = (resident() - before) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        found["save"], _ = timed(partial(system.save, held, Path(folder)))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        found["disk"] = sum(path.stat().st_size for path in files) / 2**20
        del held
        gc.collect()
        before = resident()
        found["load"], opened = timed(lambda: system.load(Path(folder)))
        gc.collect()
        found["memory opened"] = (resident() - before) / 2**20
        for kind, only, truth in (("query", None, exact), ("filtered", year, exact_inside)):
            try:
                seconds, rows = [], []
                for n in range(queries):
                    took, one = timed(lambda n=n, only=only: system.search(opened, f"q{n}", only))
                    seconds.append(took)
                    rows.append(one)
            except (ValueError, NotImplementedError) as error:
                found[kind] = found[f"{kind} recall"] = None
                found[f"{kind} error"] = f"{type(error).__name__}: {error}"
                continue
            hits = sum(len({*a} & {*b}) for a, b in zip(rows, truth, strict=True))
            found[kind] = float(np.median(seconds))
            found[f"{kind} recall"] = hits / sum(map(len, truth))
    return found


def resident() -> int:
    """Bytes of memory that this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", choices=SYSTEMS, help="measure this one here, and print JSON")
    given = parser.parse_args()
    if given.system:
        print(json.dumps(measure(given.system, given.chunks, given.queries, given.seed)))
        return
    results: dict[str, dict[str, Any]] = {}
    for name in SYSTEMS:
        arguments = f"--chunks {given.chunks} --queries {given.queries} --seed {given.seed}".split()
        command = [sys.executable, __file__, *arguments, "--system", name]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
        if run.returncode:
            print(f"{name} is left out: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        results[name] = json.loads(run.stdout.splitlines()[-1])
    ours = results["workbench"]
    columns = {
        "build": ("build, s", ".2f"), "save": ("save, s", ".2f"), "load": ("load, s", ".3f"),
        "query": ("query, ms", ".3f"), "filtered": ("filtered query, ms", ".3f"),
    }  # fmt: skip
    rows = []
    for name, found in results.items():
        row = [name]
        for key, (header, form) in columns.items():
            if found[key] is None:
                row.append("not supported")
                continue
            value = found[key] * (1000 if header.endswith("ms") else 1)
            row.append(f"{value:{form}} ({found[key] / ours[key]:.2f})")
        rows.append(row)
    note = (
        f"{given.chunks:,} texts of 61 words with vectors of {DIM} dimensions around {max(1, given.chunks // 100)} "
        f"centres, given beforehand: no embedding is timed. k = {K}; the filter lets 1 text in {YEARS} through. Query: "
        f"median of {given.queries}, one at a time, after loading what was saved. In brackets: times ours."
    )
    packages = ["numpy", importlib.metadata.packages_distributions()["faiss"][0]]
    packages += [PACKAGES[name] for name in results if name != "workbench"]
    print(heading("Retrieval: peers", packages=packages, seed=given.seed, note=note))
    print("\n" + table(("", *(header for header, _ in columns.values())), rows))

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = [
        [
            name,
            share(found["query recall"]),
            share(found["filtered recall"]),
            f"{found['memory']:.0f}",
            f"{found['memory opened']:.0f}",
            f"{found['disk']:.0f}",
        ]
        for name, found in results.items()
    ]
    header = ("", f"recall@{K}", "filtered", "built, MiB", "opened, MiB", "on disk, MiB")
    print("\n" + table(header, rows))
    for name, found in results.items():
        if "filtered error" in found:
            print(f"\n{name}, with a filter: {found['filtered error']}")


if __name__ == "__main__":
    main()
