"""Texts become a BM25 index over words of any script. The only module that imports bm25s.

Every word is indexed and none is stemmed, for documents come in several languages. Only a question
loses the function words of its language: among texts of another they are rare, and would count.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import IndexUnusable
from workbench.retrieval.index_structures import Ranking

TOKENIZER = "unicode-words/1"  # raise the number whenever words() gives other words
K1, B = 1.5, 0.75  # within what Robertson & Zaragoza 2009, section 3.5, found good: 1.2-2, 0.5-0.8
WORD_FILES = ("words.npy", "words-stops.npy", "words.json")
SETTINGS = {"tokenizer": TOKENIZER, "method": "lucene", "k1": K1, "b": B}  # of the saved scores

# Scripts without spaces (Han, kana, Thai, Lao, Burmese, Khmer), and hangul with its particles.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_HYPHENS = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
_INVISIBLE = dict.fromkeys([0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF])
_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u0652]")


class LexicalIndex:
    """BM25 (Lucene's variant) over texts.

    >>> index = LexicalIndex.build(["Valve V-14 leaked.", "The pump ran dry."])
    >>> index.search("which valve leaked?", 2).rows.tolist()
    [0]
    """

    def __init__(self, bm25: Any, count: int) -> None:
        self._bm25 = bm25  # None when no text has a word: bm25s cannot index an empty vocabulary
        self._count = count

    @classmethod
    def build(cls, texts: Iterable[str]) -> LexicalIndex:
        """Index of `texts`, in their order; they are read once, and only the numbers of their words are kept."""
        numbered = TextWords()
        for text in texts:
            numbered.add(words(text))
        return cls.of([numbered])

    @classmethod
    def of(cls, parts: Sequence[TextWords]) -> LexicalIndex:
        """Index of all texts of all `parts`, whose words are known."""
        together = TextWords.joined(parts)
        if not together.vocabulary:
            return cls(None, len(together))
        bm25 = _bm25s().BM25(k1=K1, b=B, method="lucene", backend="numpy", csc_backend="numpy")
        numbers = {word: number for number, word in enumerate(together.vocabulary)}
        corpus = _bm25s().tokenization.Tokenized(ids=_Numbers(together), vocab=numbers)
        bm25.index(corpus, create_empty_token=False, show_progress=False)
        return cls(bm25, len(together))

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"LexicalIndex({len(self)} texts; next: .search('…', k), .scores('…'))"

    def scores(self, query: str) -> NDArray[np.float32]:
        """BM25 score of every text, 0 where no word is shared: [texts].

        >>> LexicalIndex.build(["a pump", "a valve"]).scores("motor").tolist()
        [0.0, 0.0]
        """
        known = self._bm25.get_tokens_ids(telling_words(query)) if self._bm25 is not None else []
        if not known:
            return np.zeros(len(self), dtype=np.float32)
        return np.asarray(self._bm25.get_scores_from_ids(known), dtype=np.float32)

    def search(self, query: str, k: int, *, allowed: NDArray[np.bool_] | None = None) -> Ranking:
        """Find the best texts, among those `allowed` [texts], that share a word with `query`, at most `k`: [found]."""
        if k < 1:
            raise ValueError(f"k={k} is not a number of hits; ask for k >= 1")
        scores = self.scores(query)
        rows = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
        rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
        return Ranking(scores[rows], rows)

    def shares(self, query: str, row: int) -> dict[str, float]:
        """What each telling word of `query` adds to the score of one text; 0 for a word it does not hold.

        >>> index = LexicalIndex.build(["a pump", "a valve"])
        >>> {word: round(share, 2) for word, share in index.shares("Which pump?", 0).items()}
        {'which': 0.0, 'pump': 0.28}
        """
        found = dict.fromkeys(telling_words(query), 0.0)
        if self._bm25 is None:
            return found
        vocabulary, parts = self._bm25.vocab_dict, self._bm25.scores
        for word in telling_words(query):
            if word in vocabulary:
                token = vocabulary[word]
                start, stop = parts["indptr"][token : token + 2]
                place = start + np.searchsorted(parts["indices"][start:stop], row)
                if place < stop and parts["indices"][place] == row:
                    found[word] += float(parts["data"][place])
        return found

    def save(self, folder: Path) -> None:
        """Write arrays and vocabulary below `folder`, as .npy and JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {**SETTINGS, "texts": len(self), "has_words": self._bm25 is not None}
        (folder / "settings.json").write_text(
            json.dumps(settings, sort_keys=True), encoding="utf-8"
        )
        if self._bm25 is not None:
            self._bm25.save(folder, show_progress=False, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> LexicalIndex:
        """Read an index that :meth:`save` wrote; anything else raises ``IndexUnusable``."""
        try:
            settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            if {name: settings[name] for name in SETTINGS} != SETTINGS:
                raise IndexUnusable(
                    f"the word index was made with {settings['tokenizer']!r}, this program reads "
                    f"words with {TOKENIZER!r}; build the index again"
                )
            if not settings["has_words"]:
                return cls(None, settings["texts"])
            bm25 = _bm25s().BM25.load(folder, allow_pickle=False, show_progress=False)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise IndexUnusable(
                f"{folder.name} is no readable word index; build the index again"
            ) from error
        return cls(bm25, settings["texts"])


class TextWords:
    """The words of texts, in order, four bytes a word: so that an index that changes reads no text twice.

    >>> known = TextWords()
    >>> known.add(["valve", "14", "valve"])
    >>> known.add(["pump", "14"])
    >>> known.vocabulary, known[1], known.kept(np.array([False, True])).vocabulary
    (['valve', '14', 'pump'], ['pump', '14'], ['pump', '14'])
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._numbers: array[int] | NDArray[np.int32] = array("i")
        self._stops: array[int] | NDArray[np.int64] = array("q")
        self.vocabulary: list[str] = []  # by first sight: the same texts give the same numbers

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, text: int) -> list[str]:
        """The words of one text."""
        start = self._stops[text - 1] if text else 0
        return [self.vocabulary[n] for n in self._numbers[start : self._stops[text]]]

    def add(self, words: Iterable[str]) -> None:
        """Append a text of these words."""
        if not isinstance(self._numbers, array) or not isinstance(self._stops, array):
            raise ValueError("what was opened or joined takes no more texts")
        places = self._places
        self._numbers.extend(places.setdefault(word, len(places)) for word in words)
        self._stops.append(len(self._numbers))
        if len(places) > len(self.vocabulary):
            self.vocabulary += list(islice(places, len(self.vocabulary), None))

    def kept(self, rows: NDArray[np.bool_]) -> TextWords:
        """The texts that `rows` [texts] says, alone."""
        numbers, lengths = self._arrays()
        return _renumbered([(numbers[np.repeat(rows, lengths)], self.vocabulary)], lengths[rows])

    @classmethod
    def joined(cls, parts: Sequence[TextWords]) -> TextWords:
        """All texts of all `parts`."""
        if len(parts) == 1:
            return parts[0]
        held = [part._arrays() for part in parts]
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *(own for _, own in held)])
        vocabularies = (part.vocabulary for part in parts)
        return _renumbered(list(zip((n for n, _ in held), vocabularies, strict=True)), lengths)

    def save(self, folder: Path) -> None:
        """Write the three files of :data:`WORD_FILES` below `folder`."""
        numbers, stops, vocabulary = (folder / name for name in WORD_FILES)
        np.save(numbers, np.asarray(self._numbers, dtype=np.int32), allow_pickle=False)
        np.save(stops, np.asarray(self._stops, dtype=np.int64), allow_pickle=False)
        vocabulary.write_text(json.dumps(self.vocabulary), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> TextWords:
        """What :meth:`save` wrote, read where it is needed."""
        numbers, stops, vocabulary = (folder / name for name in WORD_FILES)
        return cls._of(
            _mapped(numbers), _mapped(stops), json.loads(vocabulary.read_text(encoding="utf-8"))
        )

    @classmethod
    def _of(
        cls, numbers: NDArray[np.int32], stops: NDArray[np.int64], vocabulary: list[str]
    ) -> TextWords:
        made = cls()
        made._numbers, made._stops, made.vocabulary = numbers, stops, vocabulary
        return made

    def _arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The numbers of all words [words], and how many each text has [texts]."""
        stops = np.asarray(self._stops, dtype=np.int64)
        return np.asarray(self._numbers, dtype=np.int32), np.diff(stops, prepend=0)


def _renumbered(
    parts: Sequence[tuple[NDArray[np.int32], Sequence[str]]], lengths: NDArray[np.int64]
) -> TextWords:
    """Words by the number of their first sight in all `parts`, whose texts have these `lengths`."""
    places: dict[str, int] = {}
    found: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    for numbers, vocabulary in parts:
        distinct, first = np.unique(numbers, return_index=True)
        mapping = np.zeros(len(vocabulary), dtype=np.int32)
        for number in distinct[np.argsort(first)].tolist():
            mapping[number] = places.setdefault(vocabulary[number], len(places))
        found.append(mapping[numbers])
    return TextWords._of(np.concatenate(found), np.cumsum(lengths), list(places))


class _Numbers:
    """The numbers of the words of each text, as lists, one after another: what bm25s reads."""

    def __init__(self, texts: TextWords) -> None:
        self._numbers, self._lengths = texts._arrays()

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in pairwise((0, *np.cumsum(self._lengths).tolist())):
            yield self._numbers[start:stop].tolist()


def _mapped(path: Path) -> NDArray[Any]:
    """An array in a file, mapped into memory unless it is empty."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an empty one cannot be mapped, a damaged one cannot be loaded either
        found = np.load(path, allow_pickle=False)
    return found


def words(text: str) -> list[str]:
    """Words of `text` as BM25 counts them, case and accents folded.

    A compound keeps its whole beside its parts, an identifier also a spelling without separators;
    scripts without spaces give pairs of characters.

    >>> words("Ventil V-14, Öl")
    ['ventil', 'v-14', 'v14', 'v', '14', 'ol']
    >>> words("東京駅")
    ['東京', '京駅']
    """
    found = []
    for match in _word_pattern().finditer(_fold(text)):
        word = match[0]
        if match["unspaced"]:
            found += [word[i : i + 2] for i in range(len(word) - 1)] or [word]
            continue
        found.append(word)
        parts = re.split(r"[-_./]", word)
        if len(parts) > 1:
            joined = "".join(parts)
            if any(c.isdigit() for c in joined) and any(c.isalpha() for c in joined):
                found.append(joined)
            found += parts
    return found


def telling_words(question: str) -> list[str]:
    """Words of `question` without the function words of its language; all if there are no others.

    The language is the one whose function words are most among them. Any other than English must
    show two more than English: "die" and "war" are words of both.

    >>> telling_words("Which of the valves leaked?"), telling_words("Wo war die Pumpe undicht?")
    (['which', 'valves', 'leaked'], ['pumpe', 'undicht'])
    """
    found = words(question)
    english, *others = _function_words()
    shown = [sum(word in language for word in found) for language in (english, *others)]
    best = max(range(len(shown)), key=shown.__getitem__)
    if best == 0 or shown[best] < shown[0] + 2:
        dropped = frozenset(words(" ".join(_stopwords().STOPWORDS_EN)))
    else:
        dropped = others[best - 1]
    return [word for word in found if word not in dropped] or found


@lru_cache(maxsize=1)
def _function_words() -> tuple[frozenset[str], ...]:
    """Function words as :func:`words` folds them, a set a language, English first."""
    lists = _stopwords()
    names = (
        "EN_PLUS GERMAN FRENCH SPANISH DUTCH ITALIAN PORTUGUESE DANISH NORWEGIAN SWEDISH RUSSIAN"
    )
    found = (getattr(lists, f"STOPWORDS_{name}") for name in names.split())
    return tuple(frozenset(words(" ".join(language))) for language in found)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", text.translate(_HYPHENS).translate(_INVISIBLE))
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", text)).casefold()


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """Letters, digits and their marks; parts joined by one of ``- _ . /`` are one word."""
    marks = "".join(
        chr(code)
        for code in range(0x300, min(sys.maxunicode, 0xFFFF))
        if unicodedata.category(chr(code))[0] == "M"
    )
    part = rf"(?:(?![{_UNSPACED}])[^\W_]|[{marks}])+"
    return re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|{part}(?:[-_./]{part})*")


def _stopwords() -> Any:
    return _bm25s().stopwords


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "lexical search needs bm25s, a dependency of this project; run `make setup`"
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when imported
    return bm25s
