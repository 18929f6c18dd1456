from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import IndexUnusable
from workbench.retrieval.lexical import LexicalIndex, TextWords, telling_words, words

TEXTS = [
    "The pump drains the lock, the lock drains the pond.",
    "Valve V-14 leaked; valve V-15 did not.",
    "",
    "The keeper logs the tide.",
    "Das Schöpfwerk entwässert den Polder. The the THE",
]


def bm25(query: list[str], texts: list[list[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """BM25 as Lucene has it (Kamphuis et al. 2020, table 1), from the formula."""
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        counts, score = Counter(text), 0.0
        for word in query:
            holding = sum(word in other for other in texts)
            if counts[word]:
                idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                length = k1 * (1 - b + b * len(text) / average)
                score += idf * counts[word] / (counts[word] + length)
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    ("query", "counted"),
    [
        ("the lock", ["lock"]),
        ("V-14", ["v-14", "v14", "v", "14"]),
        ("entwässert the pond pond", ["entwassert", "pond", "pond"]),
        ("keeper unknown", ["keeper", "unknown"]),
        ("THE", ["the"]),
    ],
)
def test_scores_follow_the_formula(query: str, counted: list[str]) -> None:
    expected = bm25(counted, [words(text) for text in TEXTS])
    found = LexicalIndex.build(TEXTS).scores(query)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("question", "telling"),
    [
        (
            "Was für eine Anzeige blieb in der Nacht stehen?",
            ["anzeige", "blieb", "nacht", "stehen"],
        ),
        ("¿En qué ciudad nació la capitana?", ["ciudad", "nacio", "capitana"]),
        ("Qui a quitté le port en dernier ?", ["quitte", "port", "dernier"]),
        ("the war in the north", ["war", "north"]),
        ("war of the dikes", ["war", "dikes"]),
        (
            "die cast pump",
            ["die", "cast", "pump"],
        ),  # one German function word is no German question
        ("to be or not to be", ["to", "be", "or", "not", "to", "be"]),
        ("", []),
    ],
)
def test_question_loses_the_function_words_of_its_language(
    question: str, telling: list[str]
) -> None:
    assert telling_words(question) == telling


def test_function_words_of_a_question_find_no_text_of_its_language() -> None:
    texts = ["Der Deich und die Schleuse im Hafen.", "The captain is called Adeyemi.", "Fish."]
    index = LexicalIndex.build(texts)
    assert index.search("Wo ist die Kapitänin Adeyemi im Hafen geboren?", 3).rows.tolist() == [1, 0]


def test_search_is_the_positive_scores_sorted() -> None:
    index = LexicalIndex.build(TEXTS)
    scores = index.scores("the valve")
    found = index.search("the valve", 5)
    assert found.rows.tolist() == sorted(
        np.flatnonzero(scores).tolist(), key=lambda row: (-scores[row], row)
    )
    assert (found.scores == scores[found.rows]).all() and (found.scores > 0).all()


def test_equal_scores_keep_the_order_of_texts() -> None:
    index = LexicalIndex.build(["eel pond", "eel lock", "cod pond", "eel tide"])
    assert index.search("eel", 4).rows.tolist() == [0, 1, 3]
    assert index.search("eel", 2).rows.tolist() == [0, 1]


@pytest.mark.parametrize("texts", [[], [""], ["", "!?"], ["pump"]])
@pytest.mark.parametrize("query", ["", "???", "unknown", "V-14 unknown"])
def test_nothing_in_common_is_no_hit(texts: list[str], query: str) -> None:
    index = LexicalIndex.build(texts)
    assert index.search(query, 9).rows.tolist() == []
    assert index.scores(query).tolist() == [0.0] * len(texts)


def test_k_beyond_the_texts_gives_what_there_is() -> None:
    assert LexicalIndex.build(["pump"]).search("pump", 100).rows.tolist() == [0]


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k=0"):
        LexicalIndex.build(["pump"]).search("pump", 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("V-14", ["v-14", "v14", "v", "14"]),
        ("V\u201114", ["v-14", "v14", "v", "14"]),  # non-breaking hyphen
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("Über Ångström", ["uber", "angstrom"]),
        ("ﬁnd", ["find"]),
        ("１４ｍ", ["14m"]),
        ("l'eau", ["l", "eau"]),
        ("wa\u00adter", ["water"]),
        ("set_up", ["set_up", "set", "up"]),
        ("3.5", ["3.5", "3", "5"]),
        ("東京駅", ["東京", "京駅"]),
        ("水", ["水"]),
        ("GPUで計算", ["gpu", "で計", "計算"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Ποῦ", ["που"]),
        ("мой", ["мои"]),
        ("-- ... !", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_composed_and_decomposed_letters_are_one_word() -> None:
    assert words("caf\u00e9 が") == words("cafe\u0301 か\u3099")


@settings(max_examples=50, deadline=None)  # the first call builds the pattern
@given(st.text())
def test_words_never_fail_and_hold_no_space(text: str) -> None:
    assert all(word and not any(c.isspace() for c in word) for word in words(text))


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x24F), max_size=30))
def test_words_do_not_depend_on_case(text: str) -> None:
    assert words(text.casefold()) == words(text)


def test_save_and_open_give_the_same_scores(tmp_path: Path) -> None:
    index = LexicalIndex.build(TEXTS)
    index.save(tmp_path / "lexical")
    again = LexicalIndex.open(tmp_path / "lexical")
    assert len(again) == len(TEXTS)
    for query in ("the valve", "unknown", "Schöpfwerk"):
        assert (again.scores(query) == index.scores(query)).all()


def test_index_without_words_opens_again(tmp_path: Path) -> None:
    LexicalIndex.build(["", "?"]).save(tmp_path)
    assert LexicalIndex.open(tmp_path).scores("pump").tolist() == [0.0, 0.0]


def test_saved_files_hold_no_pickle(tmp_path: Path) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".npy", ".json"}
    for path in tmp_path.glob("*.npy"):
        assert np.load(path, allow_pickle=False).dtype.kind in "if"


def test_same_texts_give_the_same_files_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from workbench.retrieval.lexical import LexicalIndex; "
        "LexicalIndex.build(['pump lock eel', 'valve lock tide']).save(Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_other_word_rules_are_refused(tmp_path: Path) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path)
    facts = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**facts, "tokenizer": "other/9"}))
    with pytest.raises(IndexUnusable, match="made with 'other/9'"):
        LexicalIndex.open(tmp_path)


@pytest.mark.parametrize("name", ["settings.json", "vocab.index.json", "data.csc.index.npy"])
@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_damaged_file_is_index_unusable(name: str, damage: bytes | None, tmp_path: Path) -> None:
    LexicalIndex.build(TEXTS).save(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(IndexUnusable, match="no readable word index"):
        LexicalIndex.open(tmp_path)


def words_of(texts: list[str]) -> TextWords:
    found = TextWords()
    for text in texts:
        found.add(words(text))
    return found


pieces = st.lists(st.sampled_from([*TEXTS, "", "pump", "a pump, a lock", "!"]), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(pieces, st.lists(st.booleans(), min_size=8, max_size=8)), max_size=4))
def test_an_index_of_known_words_is_that_of_the_texts(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[list[str], list[bool]]]
) -> None:
    left, held = [], []
    for number, (texts, keep) in enumerate(parts):
        keep = keep[: len(texts)]
        left += [text for text, kept in zip(texts, keep, strict=True) if kept]
        known = words_of(texts)
        if number % 2:
            folder = tmp_path_factory.mktemp("words")
            known.save(folder)
            known = TextWords.open(folder)
        assert [known[n] for n in range(len(known))] == [words(text) for text in texts]
        held.append(known.kept(np.array(keep, dtype=bool)))
    joined, fresh = TextWords.joined(held), words_of(left)
    assert joined.vocabulary == fresh.vocabulary
    assert [joined[n] for n in range(len(joined))] == [words(text) for text in left]
    one, two = LexicalIndex.of(held), LexicalIndex.build(left)
    assert len(one) == len(left)
    for query in ("the valve", "pump lock", "Schöpfwerk"):
        assert (one.scores(query) == two.scores(query)).all()


def test_opened_words_take_no_more_texts(tmp_path: Path) -> None:
    words_of(["pump"]).save(tmp_path)
    with pytest.raises(ValueError, match="takes no more texts"):
        TextWords.open(tmp_path).add(["lock"])
