from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.corpus.documents import Corpus, Document
from workbench.errors import IndexUnusable, InputError
from workbench.retrieval.building import Recipe, delete_from_index, update_index
from workbench.retrieval.encoders import SentenceEncoder
from workbench.retrieval.retrievers import Retriever, build_retriever, open_retriever
from workbench.retrieval.saved import _render, read_index, writing_index
from workbench.store import sha256_file


class Lengths:
    """An encoder without a model, so that a run is short; counts what it embeds."""

    name, dim, max_tokens = "lengths", 3, 200
    identity: Any = {"name": "lengths", "dim": 3}  # noqa: RUF012  # read only

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def measure(self, text: str) -> np.ndarray:
        return np.array([[i, i + 1] for i, c in enumerate(text) if not c.isspace()]).reshape(-1, 2)

    def encode(self, texts: Any, *, kind: str = "passage", **_: Any) -> np.ndarray:
        if kind == "passage":
            self.embedded += texts
        seeds = [sum(map(ord, text)) for text in texts]
        return np.stack([np.random.default_rng(s).standard_normal(3) for s in seeds]).astype("f4")


def documents(*texts: str) -> list[Document]:
    return [Document(f"{n}.txt", text, f"{n}") for n, text in enumerate(texts)]


def assert_same_hits(one: Retriever, two: Retriever, question: str) -> None:
    """The same chunks with the same scores; of equal scores the order may differ with the history."""
    modes: tuple[Any, ...] = ("dense", "lexical")
    for mode in modes:
        hits = [retriever.search(question, k=len(one), mode=mode) for retriever in (one, two)]
        scores = [{hit.chunk: hit.score for hit in found} for found in hits]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def held(folder: Path) -> dict[str, str]:
    snapshot, _ = read_index(folder)
    return {id: document.text for id, document in snapshot.documents.items()}


@pytest.fixture
def index(retriever: Retriever, tmp_path: Path) -> Path:
    retriever.save(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="session")
def one_word(encoder: SentenceEncoder) -> Retriever:
    return build_retriever(Corpus((Document("eel.txt", "Eel.", "eel"),)), encoder=encoder)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x01
    path.write_bytes(data)


def the(index: Path, name: str) -> Path:
    (found,) = index.rglob(name)
    return found


def test_one_flipped_bit_in_any_file_is_seen(index: Path, encoder: SentenceEncoder) -> None:
    unimportant = {".lock", ".workbenchignore"}
    paths = sorted(p for p in index.rglob("*") if p.is_file() and p.name not in unimportant)
    assert len(paths) > 10
    for path in paths:
        whole = path.read_bytes()
        for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            flip(path, place)
            with pytest.raises(IndexUnusable):
                open_retriever(index, encoder=encoder)
            path.write_bytes(whole)
        path.unlink()
        with pytest.raises(IndexUnusable):
            open_retriever(index, encoder=encoder)
        path.write_bytes(whole)
    assert open_retriever(index, encoder=encoder)


def test_one_flipped_bit_anywhere_in_the_manifest_is_seen(index: Path) -> None:
    for place in range((index / "manifest.json").stat().st_size):
        flip(index / "manifest.json", place)
        with pytest.raises(IndexUnusable):
            read_index(index)
        flip(index / "manifest.json", place)
    assert read_index(index)


def test_damage_names_the_file_and_the_remedy(index: Path, encoder: SentenceEncoder) -> None:
    flip(the(index, "chunks.npy"), 5)
    with pytest.raises(
        IndexUnusable, match=r"chunks\.npy is not as it was written; build it again"
    ) as e:
        open_retriever(index, encoder=encoder)
    assert "\n" not in str(e.value)


def test_missing_files_are_damage(index: Path, encoder: SentenceEncoder) -> None:
    the(index, "chunks.npy").unlink()
    the(index, "vectors.f32").unlink()
    with pytest.raises(IndexUnusable, match=r"chunks\.npy and 1 more"):
        open_retriever(index, encoder=encoder)


def test_missing_folder_is_one_sentence(tmp_path: Path, encoder: SentenceEncoder) -> None:
    with pytest.raises(IndexUnusable, match=r"no index at .*nowhere; make one with"):
        open_retriever(tmp_path / "nowhere", encoder=encoder)


def test_file_instead_of_a_folder_is_one_sentence(tmp_path: Path, encoder: SentenceEncoder) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(IndexUnusable, match="no index at"):
        open_retriever(tmp_path / "file", encoder=encoder)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (4, "has format 4, newer than this program's 3; update workbench"),
        (2, "has format 2, older than this program's 3; build it again"),
    ],
)
def test_another_format_is_named_before_anything_is_checked(
    version: int, message: str, index: Path, encoder: SentenceEncoder
) -> None:
    manifest = json.loads((index / "manifest.json").read_bytes())
    (index / "manifest.json").write_text(json.dumps({**manifest, "format_version": version}))
    with pytest.raises(IndexUnusable, match=message):
        open_retriever(index, encoder=encoder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other", "files": {}}', "null"])
def test_manifest_of_something_else_is_refused(
    text: str, index: Path, encoder: SentenceEncoder
) -> None:
    (index / "manifest.json").write_text(text)
    with pytest.raises(
        IndexUnusable, match=r"manifest\.json is damaged or belongs to something else"
    ):
        open_retriever(index, encoder=encoder)


@pytest.mark.parametrize("name", ["segments", "mode", "chunking", "encoder"])
def test_sealed_manifest_without_its_facts_is_refused(
    name: str, index: Path, encoder: SentenceEncoder
) -> None:
    manifest = json.loads((index / "manifest.json").read_bytes())
    del manifest[name]
    (index / "manifest.json").write_bytes(_render(manifest))
    with pytest.raises(IndexUnusable, match="damaged"):
        open_retriever(index, encoder=encoder)


@pytest.mark.parametrize("name", ["documents", "chunks", "dim"])
def test_sealed_manifest_that_lies_about_a_segment_is_refused(name: str, index: Path) -> None:
    manifest = json.loads((index / "manifest.json").read_bytes())
    manifest["segments"][0][name] += 1
    (index / "manifest.json").write_bytes(_render(manifest))
    with pytest.raises(IndexUnusable, match="damaged"):
        read_index(index)


def test_words_of_other_chunks_under_a_true_seal_are_refused(index: Path) -> None:
    path = the(index, "words-stops.npy")
    np.save(path, np.load(path)[:-1])
    manifest = json.loads((index / "manifest.json").read_bytes())
    manifest["files"][path.relative_to(index).as_posix()] = sha256_file(path)
    (index / "manifest.json").write_bytes(_render(manifest))
    with pytest.raises(IndexUnusable, match="holds the words of other chunks than promised"):
        read_index(index)


def test_saving_replaces_an_index_whole_or_damaged(
    index: Path, one_word: Retriever, encoder: SentenceEncoder
) -> None:
    one_word.save(index)
    assert len(open_retriever(index, encoder=encoder)) == 1
    assert len(list((index / "segments").iterdir())) == 1
    (index / "manifest.json").write_text("{")
    build_retriever(one_word.to_corpus(), encoder=encoder).save(index)
    assert len(open_retriever(index, encoder=encoder)) == 1
    flip(the(index, "texts.utf8"), 0)  # the new segment has the name of the damaged one
    build_retriever(one_word.to_corpus(), encoder=encoder).save(index)
    assert len(open_retriever(index, encoder=encoder)) == 1


def test_saving_fills_an_empty_folder(tmp_path: Path, one_word: Retriever) -> None:
    (tmp_path / "index").mkdir()
    one_word.save(tmp_path / "index")
    assert (tmp_path / "index" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "name", ["thesis.md", "sub/thesis.md", "manifest.json", "segments/thesis.md"]
)
def test_folder_that_is_no_index_is_never_replaced(
    name: str, tmp_path: Path, one_word: Retriever
) -> None:
    (tmp_path / "work" / name).parent.mkdir(parents=True)
    (tmp_path / "work" / name).write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=f"holds '{name}'.*choose a new or empty folder"):
        one_word.save(tmp_path / "work")
    assert [p.name for p in (tmp_path / "work").iterdir()] == [name.split("/")[0]]
    assert (tmp_path / "work" / name).read_text() == '{"format": "other"}'


@pytest.mark.parametrize("name", ["note.txt", "words-000001/note.txt", "segments/ab/note.txt"])
def test_index_with_a_foreign_file_is_not_replaced(
    name: str, index: Path, one_word: Retriever
) -> None:
    (index / name).parent.mkdir(exist_ok=True)
    (index / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds '{name}'"):
        one_word.save(index)
    assert (index / name).read_text() == "mine"


def test_file_is_not_replaced_by_an_index(tmp_path: Path, one_word: Retriever) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        one_word.save(tmp_path / "file")


def test_an_index_of_the_first_format_is_replaced(tmp_path: Path, one_word: Retriever) -> None:
    folder = tmp_path / "index"
    (folder / "lexical").mkdir(parents=True)
    files = {"documents.jsonl": "", "chunks.jsonl": "", "lexical/settings.json": ""}
    for name in files:
        (folder / name).write_text("old")
    manifest = {"format": "workbench-index", "format_version": 1, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    one_word.save(folder)
    assert held(folder) == {"eel.txt": "Eel."}
    assert not (folder / "chunks.jsonl").exists() and not (folder / "lexical").exists()


# -- changing an index --------------------------------------------------------------------------------------------


def test_an_update_embeds_only_what_changed(tmp_path: Path) -> None:
    recipe = Recipe(Lengths())
    encoder: Any = recipe.encoder
    first = update_index(tmp_path, documents("One.", "Two.", "Three."), recipe=recipe)
    assert (len(first.added), first.embedded) == (3, 3) and len(encoder.embedded) == 3
    encoder.embedded.clear()
    again = update_index(tmp_path, documents("One.", "Two.", "Three."), recipe=recipe)
    assert again.unchanged == ("0.txt", "1.txt", "2.txt") and not encoder.embedded
    changed = update_index(tmp_path, documents("One.", "Two, anew."), recipe=recipe)
    assert changed.replaced == ("1.txt",) and changed.removed == ("2.txt",)
    assert encoder.embedded == ["1\nTwo, anew."]
    assert held(tmp_path) == {"0.txt": "One.", "1.txt": "Two, anew."}
    more = [Document("9.txt", "Nine.", "9")]
    kept = update_index(tmp_path, more, recipe=recipe, keep_others=True)
    assert kept.added == ("9.txt",) and not kept.removed
    assert sorted(held(tmp_path)) == ["0.txt", "1.txt", "9.txt"]


def test_a_chunk_that_stays_in_a_changed_document_is_not_embedded_again(tmp_path: Path) -> None:
    recipe = Recipe(Lengths(), max_tokens=14)
    old = Document("a.txt", "The pump ran.\n\nThe valve fell.\n\nThe eel swam.", "a")
    update_index(tmp_path, [old], recipe=recipe)
    new = Document("a.txt", "The pump ran.\n\nThe valve rose.\n\nThe eel swam.", "a")
    changes = update_index(tmp_path, [new], recipe=recipe)
    assert (changes.embedded, changes.known) == (1, 2)
    opened = open_retriever(tmp_path, encoder=recipe.encoder)
    fresh = build_retriever(Corpus((new,)), encoder=Lengths(), max_tokens=14)
    for question in ("pump", "valve rose", "eel"):
        assert_same_hits(opened, fresh, question)


def test_deleting_documents_and_what_is_not_there(tmp_path: Path) -> None:
    recipe = Recipe(Lengths())
    update_index(tmp_path, documents("One.", "Two.", "Three."), recipe=recipe)
    with pytest.raises(InputError, match=r"no document '7\.txt' in the index.*nothing was deleted"):
        delete_from_index(tmp_path, ["0.txt", "7.txt"], encoder=recipe.encoder)
    assert len(held(tmp_path)) == 3
    delete_from_index(tmp_path, ["1.txt"], encoder=recipe.encoder)
    assert sorted(held(tmp_path)) == ["0.txt", "2.txt"]
    hits = open_retriever(tmp_path, encoder=recipe.encoder).search("Two.", k=2, mode="lexical")
    assert hits == []


def test_two_documents_of_one_id_leave_the_index_alone(tmp_path: Path) -> None:
    recipe = Recipe(Lengths())
    update_index(tmp_path, documents("One."), recipe=recipe)
    with pytest.raises(ValueError, match=r"two documents have the id '0\.txt'"):
        update_index(tmp_path, [*documents("New."), *documents("Other.")], recipe=recipe)
    assert held(tmp_path) == {"0.txt": "One."}


def test_another_recipe_or_damage_builds_anew(tmp_path: Path) -> None:
    update_index(tmp_path, documents("One.", "Two."), recipe=Recipe(Lengths()))
    changes = update_index(tmp_path, documents("One."), recipe=Recipe(Lengths(), max_tokens=64))
    assert changes.added == ("0.txt",) and held(tmp_path) == {"0.txt": "One."}
    the(tmp_path, "chunks.npy").write_bytes(b"")
    changes = update_index(tmp_path, documents("One.", "Two."), recipe=Recipe(Lengths()))
    assert len(changes.added) == 2 and len(held(tmp_path)) == 2


def test_many_updates_leave_few_segments_and_the_hits_of_a_fresh_build(tmp_path: Path) -> None:
    recipe = Recipe(Lengths())
    generator = np.random.default_rng(0)
    words = "pump valve lock eel tide herring dike gate".split()
    now: dict[str, str] = {}
    for step in range(25):
        for _ in range(3):
            name = f"{generator.integers(0, 12)}.txt"
            now[name] = " ".join(generator.choice(words, 6)) + f" {step}."
        if step % 4 == 3:
            now.pop(next(iter(now)))
        update_index(tmp_path, [Document(n, t, n) for n, t in now.items()], recipe=recipe)
        assert held(tmp_path) == now
    assert len(list((tmp_path / "segments").iterdir())) <= 4
    opened = open_retriever(tmp_path, encoder=recipe.encoder)
    fresh = build_retriever(
        Corpus(tuple(Document(n, t, n) for n, t in now.items())), encoder=Lengths()
    )
    for question in (*words, "pump eel", "tide gate 24"):
        assert_same_hits(opened, fresh, question)


def test_a_retriever_saves_only_what_changed(tmp_path: Path) -> None:
    retriever = build_retriever(Corpus(tuple(documents(*map(str, range(40))))), encoder=Lengths())
    retriever.save(tmp_path / "index")
    (first,) = (tmp_path / "index" / "segments").iterdir()
    stamp = the(first, "vectors.f32").stat()
    retriever.add([Document("new.txt", "New.", "new")])
    retriever.delete(["3.txt"])
    retriever.save(tmp_path / "index")
    assert len(list((tmp_path / "index" / "segments").iterdir())) == 2
    assert the(first, "vectors.f32").stat() == stamp
    opened = open_retriever(tmp_path / "index", encoder=Lengths())
    assert len(opened) == 40 and "new.txt" in opened.documents and "3.txt" not in opened.documents
    opened.delete(["new.txt"])
    opened.save(tmp_path / "index")
    with pytest.raises(IndexUnusable, match="was changed by another program since it was opened"):
        retriever.save(tmp_path / "index")
    retriever.save(tmp_path / "elsewhere")
    assert len(open_retriever(tmp_path / "elsewhere", encoder=Lengths())) == 40


def test_an_index_may_be_emptied_and_filled_again(tmp_path: Path) -> None:
    retriever = build_retriever(Corpus(tuple(documents("One."))), encoder=Lengths())
    retriever.delete(["0.txt"])
    assert len(retriever) == 0 and list(retriever.chunks) == []
    assert retriever.search("One?", k=1) == []
    retriever.add(documents("Two."))
    assert [hit.chunk.text for hit in retriever.search("Two?", k=1)] == ["Two."]


def test_an_unfinished_search_sees_the_index_as_it_was(tmp_path: Path) -> None:
    retriever = build_retriever(Corpus(tuple(documents("One.", "Two."))), encoder=Lengths())
    before = retriever.chunks
    retriever.delete(["0.txt"])
    assert [chunk.text for chunk in before] == ["One.", "Two."]
    assert [chunk.text for chunk in retriever.chunks] == ["Two."]


# -- several processes, full disks, kills ------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_a_dead_one_is_not_in_the_way(
    tmp_path: Path, one_word: Retriever
) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from workbench.retrieval.saved import writing_index\n"
            "with writing_index(Path(sys.argv[1])):\n"
            "    print('locked', flush=True); time.sleep(60)",
            str(tmp_path / "index"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(IndexUnusable, match="another process is writing the index"):
        one_word.save(tmp_path / "index")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    one_word.save(tmp_path / "index")
    assert held(tmp_path / "index") == {"eel.txt": "Eel."}


def test_a_full_disk_at_any_write_leaves_the_old_index_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(Lengths())
    update_index(tmp_path, documents("One."), recipe=recipe)
    failures = 0
    for step in range(1, 60):
        count = 0

        def counted(call: Callable[..., Any], step: int = step) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    raise OSError(28, "No space left on device")
                return call(*arguments, **named)

            return wrapper

        with monkeypatch.context() as patch:
            for module, name in ((np, "save"), (os, "fsync"), (os, "replace"), (json, "dump")):
                patch.setattr(module, name, counted(getattr(module, name)))
            try:
                update_index(tmp_path, documents("One.", f"Two {step}."), recipe=recipe)
            except OSError as error:
                assert "No space" in str(error)
                failures += 1
                assert set(held(tmp_path)) in ({"0.txt"}, {"0.txt", "1.txt"})
            else:
                break
    assert failures > 5
    assert held(tmp_path)["1.txt"] == f"Two {step}."


def test_reader_never_sees_half_of_a_replacement(
    index: Path, one_word: Retriever, retriever: Retriever, encoder: SentenceEncoder
) -> None:
    stop = threading.Event()
    corpora = (one_word.to_corpus(), retriever.to_corpus())

    def replace() -> None:
        while not stop.is_set():
            for corpus in corpora:
                update_index(index, corpus, recipe=Recipe(encoder))

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(10):
            opened = open_retriever(index, encoder=encoder)
            assert len(opened) in (1, len(retriever))
            assert opened.search("eel", k=1)[0].chunk.document_id in opened.documents
    finally:
        stop.set()
        writer.join()


KILLED_AT_STEP = """
import os, shutil, signal, sys, json
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_saved import Lengths, documents
from workbench.retrieval.building import Recipe, update_index

seen, step = 0, int(sys.argv[2])
def counted(call):
    def wrapper(*arguments, **named):
        global seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapper
for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"),
                     (os, "open"), (os, "mkdir"), (shutil, "rmtree"), (np, "save"), (json, "dump")):
    setattr(module, name, counted(getattr(module, name)))
texts = sys.argv[3].split("|")
print(len(update_index(Path(sys.argv[1]), documents(*texts), recipe=Recipe(Lengths())).added))
"""


def _update_killed_at(folder: Path, step: int, *texts: str) -> int:
    """Update in a process that kills itself at its `step`-th change of the disk; 0 when it was not reached."""
    place = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED_AT_STEP, str(folder), str(step), "|".join(texts), place]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode


@pytest.mark.kill
@pytest.mark.smoke
def test_a_killed_update_leaves_a_whole_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert _update_killed_at(folder, 0, "old") == 0
    for step in (2, 19):
        assert _update_killed_at(folder, step, "old", "new") == -signal.SIGKILL
        assert held(folder)["0.txt"] == "old"


@pytest.mark.kill
def test_kill_at_any_step_of_an_update_leaves_the_old_or_the_new_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert _update_killed_at(folder, 0, "old", "gone") == 0
    codes = []
    for step in range(1, 300):
        codes.append(_update_killed_at(folder, step, "old", f"new {step}"))
        now = held(folder)
        assert now["0.txt"] == "old" and now["1.txt"].split()[0] in ("gone", "new"), step
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and len(codes) > 10
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert now["1.txt"] == f"new {step}"
    assert len(list(folder.iterdir())) <= 7  # what the killed ones left behind is gone


@pytest.mark.kill
def test_a_killed_build_embeds_at_most_one_batch_again(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_saved import Lengths, documents
from workbench.retrieval.building import Recipe, update_index
class Mortal(Lengths):
    def encode(self, texts, **options):
        if len(self.embedded) + len(texts) > int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts, **options)
encoder = Mortal()
update_index(Path(sys.argv[1]), documents(*map(str, range(2000))), recipe=Recipe(encoder))
print(len(encoder.embedded))
"""
    place = str(Path(__file__).parent)

    def run(limit: int) -> str:
        command = [sys.executable, "-c", program, str(tmp_path / "index"), str(limit), place]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    assert run(1100) == "" and run(700) == ""
    left = int(run(10_000))
    assert left == 2000 - 1024 - 512
    assert len(held(tmp_path / "index")) == 2000


KILLED_AT_ANY_MOMENT = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_saved import Lengths, documents, held
from workbench.retrieval.building import CACHE, Recipe, update_index
from workbench.retrieval.embedding_cache import EmbeddingCache

folder, rng = Path(sys.argv[1]), random.Random(0)

def texts(version):  # two thirds of them are new in each version
    return [f"Text {n} of version {version if n % 3 else 0}." for n in range(1500)]

def update(version, told):
    encoder = Lengths()
    def tell(progress):
        if progress.stage == "embed":
            os.write(told, b"%d\\n" % len(encoder.embedded))
    update_index(folder, documents(*texts(version)), recipe=Recipe(encoder), progress=tell)
    os.write(told, b"done\\n")

def embedded_so_far():
    try:
        with EmbeddingCache(folder / CACHE, Lengths.identity) as cache:
            return len(cache)
    except FileNotFoundError:
        return 0

begun = time.monotonic()
update(0, os.open(os.devnull, os.O_WRONLY))
whole = time.monotonic() - begun
now, kills, finished, version = 0, 0, 0, 0
while kills < 50:
    version += 1
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        update(version, writing)
        os._exit(0)
    os.close(writing)
    time.sleep(rng.uniform(0, 1.1 * whole))
    os.kill(child, signal.SIGKILL)
    code = os.waitpid(child, 0)[1]
    told = os.fdopen(reading, "rb").read().split()
    kills += code == signal.SIGKILL
    is_done = b"done" in told
    finished += is_done
    there = held(folder)
    found = [there[f"{n}.txt"] for n in range(len(there))]
    assert found in ([texts(version)] if is_done else [texts(now), texts(version)]), (version, told)
    if found == texts(now) and told:
        assert embedded_so_far() >= int(told[-1]), (version, told)
    now = version if found == texts(version) else now
print(kills, finished)
"""


@pytest.mark.kill
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")
def test_kills_at_fifty_random_moments_lose_nothing_that_was_told(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        KILLED_AT_ANY_MOMENT,
        str(tmp_path),
        str(Path(__file__).parent),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "50"


def test_a_writer_cleans_up_after_one_that_died(tmp_path: Path) -> None:
    recipe = Recipe(Lengths())
    update_index(tmp_path, documents("One."), recipe=recipe)
    with writing_index(tmp_path) as writer:
        segment = writer.new_segment(dim=3)
        segment.close()
    (tmp_path / "embeddings.cache").write_bytes(b"half")
    assert held(tmp_path) == {"0.txt": "One."}
    update_index(tmp_path, documents("One.", "Two."), recipe=recipe)
    assert len(list((tmp_path / "segments").iterdir())) == 1
    assert not (tmp_path / "embeddings.cache").exists()


# -- what a review found ------------------------------------------------------------------------------------------


def test_a_view_of_a_changed_retriever_searches_and_saves_all(tmp_path: Path) -> None:
    build_retriever(Corpus(tuple(documents(*"abcdefghij"))), encoder=Lengths()).save(tmp_path / "i")
    retriever = open_retriever(tmp_path / "i", encoder=Lengths())
    retriever.add([Document(f"n{n}.txt", f"New {n}.", "") for n in range(10)])
    view = retriever.view()
    assert len(view.search("New", k=20, mode="dense")) == 20
    view.save(tmp_path / "i")
    assert len(held(tmp_path / "i")) == 20
    with pytest.raises(IndexUnusable, match="was changed by another program"):
        retriever.save(tmp_path / "i")


@pytest.mark.slow
def test_every_segment_is_written_however_often_others_were_merged_away(tmp_path: Path) -> None:
    import gc

    retriever = build_retriever(Corpus(tuple(documents(*"abcdefgh"))), encoder=Lengths())
    retriever.save(tmp_path)
    for step in range(60):
        retriever.add(
            [Document(f"s{step}-{n}.txt", f"{step} {n}", "") for n in range(step % 5 + 1)]
        )
        gc.collect()
        if step % 3 == 2:
            retriever.save(tmp_path)
            assert len(held(tmp_path)) == len(retriever.documents)


@pytest.mark.parametrize("spoil", ["recipe", "byte", "version"])
def test_adding_to_an_index_that_cannot_be_gone_on_with_is_refused(
    spoil: str, tmp_path: Path
) -> None:
    update_index(tmp_path, documents("One.", "Two."), recipe=Recipe(Lengths()))
    recipe = Recipe(Lengths(), max_tokens=64) if spoil == "recipe" else Recipe(Lengths())
    if spoil == "byte":
        flip(the(tmp_path, "texts.utf8"), 0)
    if spoil == "version":
        manifest = json.loads((tmp_path / "manifest.json").read_bytes())
        (tmp_path / "manifest.json").write_bytes(_render({**manifest, "format_version": 4}))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(IndexUnusable, match=r"another chunking|is damaged|newer than this"):
        update_index(tmp_path, [Document("x", "X.", "")], recipe=recipe, keep_others=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    if spoil == "version":
        with pytest.raises(IndexUnusable, match="newer than this program's 3; update workbench"):
            update_index(tmp_path, documents("One."), recipe=recipe)


def test_another_structure_is_built_without_embedding_again(tmp_path: Path) -> None:
    recipe = Recipe(Lengths(), index="hnsw")
    update_index(tmp_path, documents(*map(str, range(50))), recipe=Recipe(Lengths()))
    changes = update_index(tmp_path, documents(*map(str, range(50))), recipe=recipe)
    encoder: Any = recipe.encoder
    assert len(changes.unchanged) == 50 and not encoder.embedded
    report = open_retriever(tmp_path, encoder=encoder).report
    assert report is not None and report.kind == "hnsw" and len(held(tmp_path)) == 50


def test_saving_the_same_corpus_again_never_takes_the_index_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(tuple(documents("One.", "Two.")))
    build_retriever(corpus, encoder=Lengths()).save(tmp_path)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", dies)
    monkeypatch.setattr("workbench.retrieval.saved.write_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        build_retriever(corpus, encoder=Lengths()).save(tmp_path)
    assert len(held(tmp_path)) == 2


def test_files_that_are_not_ours_survive_and_those_of_the_system_do_not_hinder(
    tmp_path: Path,
) -> None:
    index = tmp_path / "index"
    update_index(index, documents("One."), recipe=Recipe(Lengths()))
    (index / ".DS_Store").write_bytes(b"x")
    (index / "..workbenchignore.abc123").write_bytes(
        b""
    )  # of a writer that died in its first moment

    def during(step: Any) -> None:
        (index / "mine").mkdir(exist_ok=True)
        (index / "mine" / "notes.txt").write_text("mine")

    update_index(index, documents("One.", "Two."), recipe=Recipe(Lengths()), progress=during)
    assert len(held(index)) == 2
    assert (index / "mine" / "notes.txt").read_text() == "mine" and (index / ".DS_Store").exists()


def test_a_sweep_that_fails_does_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = build_retriever(Corpus(tuple(documents("One."))), encoder=Lengths())
    retriever.save(tmp_path)
    real = Path.unlink

    def busy(path: Path, **named: Any) -> None:
        if path.name.endswith((".npy", ".json")) and "words" in path.as_posix():
            raise OSError(16, "Device or resource busy")
        real(path, **named)

    monkeypatch.setattr(Path, "unlink", busy)
    for n in range(3):
        retriever.add([Document(f"n{n}.txt", f"New {n}.", "")])
        retriever.save(tmp_path)
    assert len(held(tmp_path)) == 4


@pytest.mark.parametrize(("value", "what"), [(np.nan, "not finite"), (0.0, "zero")])
def test_a_vector_without_direction_is_refused_before_it_is_kept(
    value: float, what: str, tmp_path: Path
) -> None:
    class Broken(Lengths):
        def encode(self, texts: Any, **options: Any) -> np.ndarray:
            vectors = super().encode(texts, **options)
            vectors[0] = value
            return vectors

    with pytest.raises(ValueError, match=f"vector 0 of 2 is {what}; check the encoder"):
        build_retriever(Corpus(tuple(documents("One.", "Two."))), encoder=Broken())
    with pytest.raises(ValueError, match=f"vector 0 of 2 is {what}"):
        update_index(tmp_path, documents("One.", "Two."), recipe=Recipe(Broken()))
    assert not (tmp_path / "manifest.json").exists()


def test_metadata_mean_the_same_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    from datetime import date

    given = [
        Document("a", "A.", "", metadata={"tags": (1, 2), "year": 1999}),
        Document("b", "B.", "", metadata={"tags": [2, 3]}),
    ]
    retriever = build_retriever(Corpus(tuple(given)), encoder=Lengths())
    retriever.save(tmp_path)
    opened = open_retriever(tmp_path, encoder=Lengths())
    for where in ({"tags": [1, 2]}, {"tags": 2}, {"tags": (1, 2)}, {"year": {"$gte": np.int64(1)}}):
        found = [
            {hit.chunk.document_id for hit in r.search("A", k=2, mode="dense", where=where)}
            for r in (retriever, opened)
        ]
        assert found[0] == found[1] and "a" in found[0]
    opened.add([Document("d", "D.", "", metadata={"when": date(2020, 1, 1)})])
    hits = opened.search("A", mode="dense", where={"when": {"$lt": date(2020, 1, 2)}})
    assert [hit.chunk.document_id for hit in hits] == ["d"]
    assert opened.documents["d"].metadata == {"when": "2020-01-01"}
    bad = Document("c", "C.", "", metadata={"when": object()})
    with pytest.raises(ValueError, match="metadata of document 'c' are no JSON values"):
        retriever.add([bad])
    with pytest.raises(ValueError, match="metadata of document 'c' are no JSON values"):
        update_index(tmp_path, [bad], recipe=Recipe(Lengths()))


def test_documents_without_text_give_a_sentence_whatever_the_structure(tmp_path: Path) -> None:
    for kind in ("flat", "hnsw", "ivf-sq8"):
        with pytest.raises(InputError, match="no text to index in 1 document"):
            build_retriever(
                Corpus((Document("a", "", "a"),)),
                encoder=Lengths(),
                index=kind,  # type: ignore[arg-type]
            )


def test_two_long_filters_are_told_apart() -> None:
    given = documents(*map(str, range(40)))
    retriever = build_retriever(Corpus(tuple(given)), encoder=Lengths())
    ids = [f"{n}.txt" for n in range(2000)]
    one, two = np.array(ids[5:]), np.array([*ids[5:20], *ids[500:]])
    for wanted, count in ((one, 35), (two, 15)):
        where = {"document": {"$in": wanted}}
        assert len(retriever.search("x", k=40, mode="dense", where=where)) == count


def test_adding_many_documents_takes_time_in_proportion() -> None:
    class Never(Document):
        def __eq__(self, other: object) -> bool:
            raise AssertionError("documents are compared one with all others")

        __hash__ = None  # type: ignore[assignment]

    retriever = build_retriever(Corpus(tuple(documents("One."))), encoder=Lengths())
    retriever.add([Never(f"n{n}", f"N {n}.", "") for n in range(50)])
    assert len(retriever) == 51
