"""Memory of several processes that have one index open, and the time to open it.

Each process opens the same folder, asks some questions and waits. What is shared counts once: the proportional set size
that Linux tells of each process. Run:
python benchmarks/shared_index.py [--chunks 100000] [--processes 10] [--structure ivf-sq8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tables import heading, table

from workbench.corpus.documents import Document
from workbench.retrieval.building import Recipe, update_index
from workbench.retrieval.index_structures import KINDS
from workbench.retrieval.retrievers import open_retriever

DIM, QUESTIONS, SEED = 384, 50, 0


class Random:
    """An encoder of no model: the memory is that of the index alone."""

    name, dim, max_tokens = "random", DIM, 10_000
    identity = {"name": "random", "dim": DIM}  # noqa: RUF012  # read only

    def encode(self, texts: Sequence[str], **_: Any) -> NDArray[np.float32]:
        """A random vector that follows from the number a text begins with."""
        made = [np.random.default_rng(int(text.split()[0])).standard_normal(DIM) for text in texts]
        return np.stack([v / np.linalg.norm(v) for v in made]).astype(np.float32)

    def measure(self, text: str) -> NDArray[np.int64]:
        """One token."""
        return np.array([[0, len(text)]])


def documents(count: int) -> Iterator[Document]:
    """Texts of 300 characters that begin with their number."""
    for n in range(count):
        yield Document(str(n), f"{n} " + f"some words of text {n} ".ljust(300, "."), "")


def reader(folder: str, pipe: Connection) -> None:
    """Open, ask, tell the seconds and the memory, and wait to be told to end."""
    before = held()
    begun = time.perf_counter()
    retriever = open_retriever(folder, encoder=Random())
    opened = time.perf_counter() - begun
    for n in range(QUESTIONS):
        retriever.search(f"{n} what?", k=10)
    pipe.send(opened)
    pipe.recv()  # all have opened it
    after = held()
    pipe.send([now - then for now, then in zip(after, before, strict=True)])
    pipe.recv()


def held() -> tuple[int, int]:
    """Resident bytes of this process, and its share of them where others hold the same pages."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    )
    return int(facts["Rss"].split()[0]) * 1024, int(facts["Pss"].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--structure", choices=KINDS, default="ivf-sq8")
    given = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(Random(), "dense", None, given.structure)
        update_index(folder, documents(given.chunks), recipe=recipe)
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        for count in dict.fromkeys((1, given.processes)):
            ends = []
            for _ in range(count):
                here, there = spawned.Pipe()
                process = spawned.Process(target=reader, args=(folder, there))
                process.start()
                ends.append((here, process))
            seconds = [here.recv() for here, _ in ends]
            for here, _ in ends:
                here.send(None)
            memory = np.array([here.recv() for here, _ in ends]) / 2**20
            for here, process in ends:
                here.send(None)
                process.join()
            rows.append(
                (
                    count,
                    f"{np.median(seconds):.2f}",
                    f"{memory[:, 0].mean():.0f}",
                    f"{memory[:, 1].mean():.0f}",
                    f"{memory[:, 1].sum():.0f}",
                )
            )
    note = (
        f"{given.chunks:,} chunks of {DIM} dimensions, {given.structure}, {size / 2**20:.0f} MiB on disk; each process "
        f"opens the index, which checks every byte of it, and asks {QUESTIONS} questions. Memory is what this adds to "
        "the process."
    )
    title = "One index, several processes"
    print(heading(title, packages=("numpy", "faiss-cpu"), seed=SEED, note=note))
    header = ("processes", "open, s", "resident each, MiB", "its share, MiB", "all together, MiB")
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
