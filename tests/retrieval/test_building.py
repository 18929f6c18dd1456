from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.corpus.documents import Corpus, Document
from workbench.corpus.extracted import Extracted
from workbench.corpus.formats import extract
from workbench.corpus.readers import CorpusReader, read_corpus
from workbench.errors import Cancelled, InputError
from workbench.retrieval.building import Changes, Recipe, delete_from_index, update_index
from workbench.retrieval.embedding_cache import EmbeddingCache, embedded
from workbench.retrieval.lexical import words
from workbench.retrieval.retrievers import build_retriever, open_retriever
from workbench.retrieval.saved import read_index
from workbench.retrieval.segments import SegmentWriter
from workbench.retrieval.snapshot import merge_plan


class Words:
    """An encoder that embeds nothing in particular, quickly."""

    name, dim, max_tokens = "words", 8, 300
    identity: Any = {"name": "words", "dim": 8}  # noqa: RUF012  # read only

    def measure(self, text: str) -> np.ndarray:
        return np.array([m.span() for m in re.finditer(r"\S+", text)]).reshape(-1, 2)

    def encode(self, texts: Any, **_: Any) -> np.ndarray:
        return np.random.default_rng(len(texts)).standard_normal((len(texts), 8)).astype("f4")


def long_documents(count: int) -> Iterator[Document]:
    generator = np.random.default_rng(0)
    words = [f"word{n}" for n in range(500)]
    for n in range(count):
        sentences = (" ".join(generator.choice(words, 12)).capitalize() + "." for _ in range(60))
        yield Document(f"{n}.txt", f"Document {n}. " + " ".join(sentences), f"{n}")


def peak_of(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most that was held while documents were read, cut, embedded and written."""
    peaks = []
    finish = SegmentWriter.finish

    def measured(writer: SegmentWriter, **options: Any) -> Any:
        peaks.append(tracemalloc.get_traced_memory()[1])
        return finish(writer, **options)

    tracemalloc.start()
    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "finish", measured)
        update_index(folder, long_documents(count), recipe=Recipe(Words(), mode="dense"))
    tracemalloc.stop()
    return peaks[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.retrieval.building._AT_ONCE", 64)  # a batch smaller than both
    peak_of(tmp_path / "first", 3, monkeypatch)  # what is imported then counts no more
    few = peak_of(tmp_path / "few", 40, monkeypatch)
    many = peak_of(tmp_path / "many", 140, monkeypatch)
    texts = sum(len(document.text) for document in long_documents(100))
    assert texts > 400_000
    assert many - few < 0.4 * texts


def test_a_reader_gives_the_documents_of_read_corpus_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.bin").write_bytes(bytes(9))
    (tmp_path / "c.md").write_text("# Two\n")
    reader, corpus = CorpusReader(tmp_path), read_corpus(tmp_path)
    assert len(reader) == 3
    assert tuple(reader) == corpus.documents
    assert tuple(reader.skipped) == corpus.skipped
    (tmp_path / "a.txt").unlink()
    assert [d.id for d in reader] == ["c.md"] and "no such file" in str(reader.skipped[0])


def test_files_with_the_same_bytes_are_not_extracted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = tmp_path / "docs", tmp_path / "index"
    folder.mkdir()
    (folder / "a.txt").write_text("One.")
    (folder / "b.txt").write_text("Two.")
    extracted: list[str] = []

    def spy(data: bytes, name: str) -> Extracted:
        extracted.append(name)
        return extract(data, name)

    monkeypatch.setattr("workbench.corpus.readers.extract", spy)

    def update(**options: Any) -> tuple[list[str], Changes]:
        extracted.clear()
        changes = update_index(index, CorpusReader(folder), recipe=Recipe(Words()), **options)
        return extracted.copy(), changes

    assert update()[0] == ["a.txt", "b.txt"]
    read, changes = update()
    assert read == [] and changes.unchanged == ("a.txt", "b.txt")
    (folder / "b.txt").write_text("Two!")
    read, changes = update()
    assert read == ["b.txt"] and changes.replaced == ("b.txt",)
    (folder / "a.txt").unlink()
    assert update(keep_others=True)[0] == [] and update()[1].removed == ("a.txt",)
    delete_from_index(index, ["b.txt"], encoder=Words())
    assert update()[1].added == ("b.txt",)
    assert read_index(index)[0].documents["b.txt"].text == "Two!"

    # a program that reads files in another way reads all of them, and says from then on that it did
    monkeypatch.setattr("workbench.retrieval.building.READING", "next")
    assert update()[0] == ["b.txt"] and update()[0] == []
    (folder / "c.txt").write_text("Three.")
    assert update()[0] == ["c.txt"] and update()[0] == []
    # documents that somebody changed after they were read are not taken for what their files hold
    mended = [replace(d, text=d.text.upper()) for d in read_corpus(folder)]
    update_index(index, mended, recipe=Recipe(Words()))
    assert update()[1].replaced == ("b.txt", "c.txt")
    # others that were kept may have been read by an older program
    monkeypatch.setattr("workbench.retrieval.building.READING", "after that")
    (folder / "b.txt").rename(folder / "d.txt")
    assert update(keep_others=True)[0] == update(keep_others=True)[0] == ["c.txt", "d.txt"]


def test_nothing_to_index_leaves_no_index(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(InputError, match="no file to read"):
        update_index(tmp_path / "index", CorpusReader(tmp_path / "docs"), recipe=Recipe(Words()))
    with pytest.raises(InputError, match="no text to index in 1 document"):
        update_index(tmp_path / "index", [Document("a.txt", " \n", "a")], recipe=Recipe(Words()))
    assert not (tmp_path / "index" / "manifest.json").exists()
    update_index(tmp_path / "index", [Document("a.txt", "Now.", "a")], recipe=Recipe(Words()))
    assert len(read_index(tmp_path / "index")[0]) == 1


def test_cancelling_keeps_the_old_index_and_what_was_embedded(tmp_path: Path) -> None:
    from workbench.cancel import CancelToken, Progress

    recipe = Recipe(Words())
    update_index(tmp_path, [Document("a.txt", "One.", "a")], recipe=recipe)
    token = CancelToken()

    def stop(step: Progress) -> None:
        if step.stage == "embed":
            token.cancel()

    texts = [Document(f"{n}.txt", f"Text {n}.", "x") for n in range(400)]
    with pytest.raises(Cancelled):
        update_index(tmp_path, texts, recipe=recipe, progress=stop, cancel=token)
    assert list(read_index(tmp_path)[0].documents) == ["a.txt"]
    with EmbeddingCache(tmp_path / "embeddings.cache", Words.identity) as cache:
        assert len(cache) == 256


def test_a_cache_drops_a_torn_record_and_what_another_encoder_made(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    vectors = np.arange(24, dtype=np.float32).reshape(3, 8)
    keys = [letter * 32 for letter in "abc"]
    with EmbeddingCache(path, Words.identity) as cache:
        cache.put(keys[:2], vectors[:2])
    whole = path.read_bytes()
    for end in range(len(whole) - 68, len(whole)):
        path.write_bytes(whole[:end])
        with EmbeddingCache(path, Words.identity) as cache:
            assert len(cache) == 1 and cache.get(keys[1]) is None
            np.testing.assert_array_equal(cache.get(keys[0]), vectors[0])
            cache.put(keys[2:], vectors[2:])
            np.testing.assert_array_equal(cache.get(keys[2]), vectors[2])
    path.write_bytes(whole[:-20] + b"x" + whole[-19:])
    with EmbeddingCache(path, Words.identity) as cache:
        assert len(cache) == 1
    with EmbeddingCache(path, {"name": "other", "dim": 8, "weights": "x"}) as cache:
        assert len(cache) == 0
    path.write_bytes(b"\x00" * 50)
    with EmbeddingCache(path, Words.identity) as cache:
        assert len(cache) == 0


def test_known_texts_and_equal_texts_are_not_embedded(tmp_path: Path) -> None:
    class Counting(Words):
        seen: list[str]

        def encode(self, texts: Any, **options: Any) -> np.ndarray:
            self.seen += texts
            return super().encode(texts, **options)

    encoder = Counting()
    encoder.seen = []
    known = {"k" * 32: np.ones(8, dtype=np.float32)}
    keys = ["k" * 32, "n" * 32, "n" * 32]
    found, new = embedded(encoder, ["known", "new", "new"], keys, known=known)
    assert encoder.seen == ["new"] and new == 1
    np.testing.assert_array_equal(found[0], np.ones(8))
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize("seed", range(5))
def test_merging_keeps_few_segments_and_moves_rows_seldom(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes: list[int] = []
    moved = total = 0
    for _ in range(2000):
        sizes.append(int(generator.integers(1, 9)))
        total += sizes[-1]
        plan = merge_plan(sizes)
        assert [n for group in plan for n in group] == list(range(len(sizes)))
        moved += sum(sum(sizes[n] for n in group) for group in plan if len(group) > 1)
        sizes = [sum(sizes[n] for n in group) for group in plan]
        assert all(one >= 2 * two for one, two in pairwise(sizes))
    assert len(sizes) <= 1 + np.log2(total)
    assert moved <= 2 * total * np.log2(total)


def test_a_build_that_comes_to_nothing_leaves_no_folder_of_its_own(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        raise OSError("gone")
        yield

    with pytest.raises(OSError, match="gone"):
        update_index(tmp_path / "new", broken(), recipe=Recipe(Words()))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="gone"):
        update_index(tmp_path / "there", broken(), recipe=Recipe(Words()))
    assert (tmp_path / "there").exists()


class Library:
    """Two folders of documents beside an index, and what is done to it; both folders hold a ``notes.md``."""

    def __init__(self, home: Path) -> None:
        self.home, self.index = home, home / "index"
        for path, text in (
            ("docs/notes.md", "Notes on pumps."),
            ("docs/manual/pump.md", "The pump."),
            ("more/notes.md", "Notes on eels."),
        ):
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        (self.home / path).parent.mkdir(parents=True, exist_ok=True)
        (self.home / path).write_text(text)

    def update(self, *paths: str, **options: Any) -> Changes:
        reader = CorpusReader([self.home / path for path in paths])
        return update_index(self.index, reader, recipe=Recipe(Words()), **options)

    def keep(self, *paths: str) -> Changes:
        return self.update(*paths, keep_others=True)

    @property
    def held(self) -> dict[str, str]:
        documents = read_index(self.index)[0].documents
        return {id: document.text for id, document in documents.items()}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library(tmp_path / "here")
    made.update("docs")
    return made


def test_a_folder_or_file_below_keeps_the_ids_of_its_documents(library: Library) -> None:
    library.write("docs/manual/pump.md", "The other pump.")
    assert library.keep("docs/manual").replaced == ("manual/pump.md",)
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)
    assert library.keep("docs/manual/pump.md").unchanged == ("manual/pump.md",)
    assert library.held == {
        "notes.md": "Notes on pumps.",
        "manual/pump.md": "The other pump.",
    }


def test_a_neighbour_takes_nobodys_place(library: Library) -> None:
    assert library.keep("more").added == ("../more/notes.md",)
    assert library.keep("more").unchanged == ("../more/notes.md",)
    assert library.held["notes.md"] == "Notes on pumps."
    assert library.held["../more/notes.md"] == "Notes on eels."
    changes = library.keep(".")  # the folder above both
    assert sorted(changes.unchanged) == ["../more/notes.md", "manual/pump.md", "notes.md"]
    assert not changes.added


def test_a_corpus_is_called_as_its_reader_would_call_it(library: Library) -> None:
    corpus = read_corpus(library.home / "more")
    update_index(library.index, corpus, recipe=Recipe(Words()), keep_others=True)
    assert "../more/notes.md" in library.held
    made = [Document("notes.md", "Made by hand.")]  # whose ids are what they are
    update_index(library.index, made, recipe=Recipe(Words()), keep_others=True)
    assert library.held["notes.md"] == "Made by hand."
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)


def test_without_keep_others_the_folder_read_is_the_one_that_counts(library: Library) -> None:
    changes = library.update("more")
    assert changes.replaced == ("notes.md",) and changes.removed == ("manual/pump.md",)
    assert library.keep("docs").added == ("../docs/manual/pump.md", "../docs/notes.md")


def test_an_index_that_was_moved_with_its_documents_knows_them(library: Library) -> None:
    library.home = library.home.rename(library.home.with_name("there"))
    library.index = library.home / "index"
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)
    before = library.held
    alone = library.home.with_name("alone") / "deep"
    alone.mkdir(parents=True)
    library.index = library.index.rename(alone / "index")  # and without them takes them for others
    assert len(library.keep("docs").added) == 2
    assert library.held.items() >= before.items()


def test_a_link_to_the_folder_is_the_folder(library: Library) -> None:
    (library.home / "link").symlink_to(library.home / "docs" / "manual")
    (library.home.with_name("elsewhere") / "deep").mkdir(parents=True)
    library.index = library.index.rename(library.home / "deep-index")
    other = library.home.with_name("elsewhere") / "deep" / "also"
    other.symlink_to(library.index)
    library.index = other
    assert library.keep("link").unchanged == ("manual/pump.md",)


def test_saving_and_deleting_keep_the_folder_in_mind(library: Library) -> None:
    retriever = open_retriever(library.index, encoder=Words())
    retriever.delete(["notes.md"])
    retriever.save(library.index)
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)
    open_retriever(library.index, encoder=Words()).view().save(library.home / "far" / "copy")
    library.index = library.home / "far" / "copy"
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)
    library.keep("more")
    delete_from_index(library.index, ["../more/notes.md"], encoder=Words())
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)
    built = build_retriever(read_corpus(library.home / "docs"), encoder=Words())
    built.save(library.home / "built")
    library.index = library.home / "built"
    assert library.keep("docs/manual").unchanged == ("manual/pump.md",)


def test_an_index_of_documents_made_takes_the_first_folder_for_its_own(tmp_path: Path) -> None:
    library = Library(tmp_path)
    update_index(library.index, [Document("a", "Made.")], recipe=Recipe(Words()))
    assert library.keep("docs").added == ("manual/pump.md", "notes.md")
    assert library.keep("more").added == ("../more/notes.md",)
    assert "a" in library.held


def test_no_text_is_taken_apart_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(text: str) -> list[str]:
        read.append(text.partition("\n")[2])
        return words(text)

    monkeypatch.setattr("workbench.retrieval.building.words", spy)
    monkeypatch.setattr("workbench.retrieval.lexical.words", spy)  # of what is built from texts

    def read_by(change: Any) -> list[str]:
        read.clear()
        change()
        return read.copy()

    texts = [Document(f"{n}.txt", f"Text {n} on pumps.", f"{n}") for n in range(20)]
    update = partial(update_index, tmp_path, recipe=Recipe(Words(), mode="hybrid"))
    assert len(read_by(lambda: update(texts))) == 20
    assert read_by(lambda: update([*texts, Document("n.txt", "New.", "n")])) == ["New."]
    retriever = open_retriever(tmp_path, encoder=Words())
    assert read_by(lambda: retriever.add([Document("m.txt", "More.", "m")])) == ["More."]
    assert read_by(lambda: retriever.delete(["n.txt", *(f"{n}.txt" for n in range(12))])) == []
    assert read_by(lambda: retriever.save(tmp_path)) == []
    gone = ["m.txt", "12.txt"]  # too few to write their segments anew
    assert read_by(lambda: delete_from_index(tmp_path, gone, encoder=Words())) == []
    again = open_retriever(tmp_path, encoder=Words())
    fresh = build_retriever(Corpus(tuple(again.documents.values())), encoder=Words())
    for question in ("Text 17", "pumps", "more", "13"):
        found = [r.search(question, k=9, mode="lexical") for r in (again, fresh)]
        assert [h.chunk for h in found[0]] == [h.chunk for h in found[1]]
        assert [h.score for h in found[0]] == [h.score for h in found[1]]


def test_what_is_the_same_is_left_alone_wherever_it_was_made(tmp_path: Path) -> None:
    texts = [Document(f"{n}.txt", f"Text {n}.", f"{n}") for n in range(5)]
    built = build_retriever(Corpus(tuple(texts[:3])), encoder=Words())
    assert built.add(texts[:4]).unchanged == ("0.txt", "1.txt", "2.txt")
    assert len(built.add(texts).unchanged) == 4  # of a merged segment
    built.save(tmp_path)
    assert len(built.add(texts).unchanged) == 5
    opened = open_retriever(tmp_path, encoder=Words())
    assert len(opened.add(texts).unchanged) == 5
    assert len(update_index(tmp_path, texts, recipe=Recipe(Words())).unchanged) == 5
