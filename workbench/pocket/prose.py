"""Real English prose for training: the Python reference and the docstrings that ship with every CPython.

Read from the running Python when training, never stored. Questions about a sentence are made from its own words:
some dropped, some replaced by synonyms or other forms, put in another order behind a question word.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

from workbench.pocket.passages import Ask, Passage, Unit, World, capital
from workbench.pocket.thesaurus import other_words
from workbench.pocket.wordings import TEXTS

_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}
_STOP = frozenset(
    """
    a an the and or but if of in on at to for from by with as is are was were be been being it
    its this that these those which who whom whose what when where why how not no nor so than
    then there their they them he she his her you your we our i me my can could may might must
    shall should will would do does did done has have had having also any all each such only
    other into about over under same more most some one two while until unless both between
    after before up down out off very just use used using e.g i.e
    """.split()
)


@cache
def frames() -> tuple[str, ...]:
    """Questions around the keywords ``{a}`` and ``{b}`` of a sentence."""
    return tuple((TEXTS / "frames.txt").read_text(encoding="utf-8").splitlines())


@cache
def documents(*, held_out: bool) -> tuple[tuple[str, ...], ...]:
    """Documents as sentences, in the order of the standard library; one in twelve is held out."""
    kept = (d for i, d in enumerate(_all_documents()) if (i % 12 == 0) == held_out)
    return tuple(d for d in kept if len(d) >= 2)


def prose_passages(world: World, size: int) -> list[Passage]:
    """Runs of neighbouring sentences of real documents, asked for by their words."""
    rng = world.rng
    source = documents(held_out=world.held_out)
    passages: list[Passage] = []
    texts: list[str] = []
    unseen: list[str] = []
    while len(texts) < size:
        document = rng.choice(source)
        start = rng.randrange(len(document))
        run = document[start : start + rng.randint(2, 8)]
        passages.append(Passage(_header(run[0]), tuple(Unit(s) for s in run)))
        texts += run
        unseen += document[start + 8 : start + 10] + rng.choice(source)[:1]
    sets = content_sets([*texts, *unseen])
    asked = [
        Passage(p.header, tuple(Unit(u.text, _asks(world, u.text, texts, sets)) for u in p.units))
        for p in passages
    ]
    missing = [
        q
        for text in unseen
        if text not in texts and (q := keyword_question(world, text, texts, sets))
    ]
    return [Passage(asked[0].header, asked[0].units, tuple(missing)), *asked[1:]]


def central_sentence(texts: list[str]) -> int | None:
    """Index of the sentence that shares most words with the others; None when the lead is not clear (10 %).

    Words count by the number of other sentences that hold them, divided by the root of the sentence's length
    (the degree centrality of LexRank without its threshold); the first sentence gets a bonus of a fifth.
    """
    sets = [set(_content(text, lower=True)) for text in texts]
    spread = Counter(word for words in sets for word in words)
    scores = [
        sum(spread[w] - 1 for w in words) / max(len(words), 4) ** 0.5 * (1.2 if i == 0 else 1.0)
        for i, words in enumerate(sets)
    ]
    first, second = sorted(scores, reverse=True)[:2]
    return scores.index(first) if first > 1.1 * second else None


def _asks(world: World, text: str, texts: list[str], sets: dict[str, set[str]]) -> tuple[Ask, ...]:
    if texts.count(text) > 1:
        return ()
    made = []
    question = keyword_question(world, text, [t for t in texts if t != text], sets)
    if question:
        made.append(Ask(question, text))
    words = text.rstrip(".!?").split()
    if world.chance(0.35):
        start = world.rng.randrange(len(words))
        stop = min(len(words), start + world.rng.choice([1, 1, 2, 3]))
        gap = [
            *words[:start],
            world.rng.choice(["what", "which thing", "who", "how many"]),
            *words[stop:],
        ]
        around = gap[max(0, start - 6) : start + 7]
        if len(set(map(str.lower, around)) - _STOP) >= 3:
            made.append(Ask(capital(" ".join(around)) + "?", " ".join(words[start:stop])))
    return tuple(made)


def content_sets(texts: list[str]) -> dict[str, set[str]]:
    """The content words of every text, in lower case."""
    return {text: set(_content(text, lower=True)) for text in texts}


def keyword_question(
    world: World, text: str, others: list[str], sets: dict[str, set[str]]
) -> str | None:
    """A question from some content words of `text`; None when another sentence holds nearly as many of them.

    `sets` are the content words of each of `others`.
    """
    rng = world.rng
    words = _content(text)
    if len(words) < 3:
        return None
    count = min(len(words), rng.choice([2, 3, 3, 4, 5, 6]))
    start = rng.randint(0, len(words) - count)
    asked = words[start : start + count] if world.chance(0.4) else rng.sample(words, count)
    low = {w.lower() for w in asked}
    if any(len(low & sets[o]) > max(0, len(low) - 2) for o in others):
        return None
    is_english = len(words) < 0.75 * len(text.split())  # in other languages nearly all words count
    reworded = [_reworded(world, w) if is_english else w.lower() for w in asked]
    frame = rng.choice(frames()).replace("{a}", reworded[0]).replace("{b}", " ".join(reworded[1:]))
    return capital(frame) if world.chance(0.5) else frame


def _reworded(world: World, word: str) -> str:
    low = word.lower()
    share = world.rng.random()
    if low in other_words() and share < 0.35:
        return world.rng.choice(other_words()[low])
    if share < 0.45 and len(low) > 5:
        return low[:-3] if low.endswith("ing") else low[:-1] if low[-1] in "sd" else low + "s"
    return low if share < 0.85 else word


def _content(text: str, *, lower: bool = False) -> list[str]:
    words = [
        w
        for w in re.findall(r"[^\W\d_][^\W\d_'-]*(?:['-][^\W\d_]+)*", text)
        if w.lower() not in _STOP and len(w) > 2
    ]
    return [w.lower() for w in words] if lower else words


def _header(sentence: str) -> str:
    words = _content(sentence)[:2]
    return capital(" ".join(words)) or "Notes"


@cache
def _all_documents() -> tuple[tuple[str, ...], ...]:
    from pydoc_data import topics

    texts = [text for _, text in sorted(topics.topics.items())]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if not _SKIPPED.intersection(path.parts):
            texts += _docstrings(path)
    seen: set[str] = set()
    found = []
    for text in texts:
        fresh = [s for s in _sentences(text) if s not in seen]
        seen.update(fresh)
        if fresh:
            found.append(tuple(dict.fromkeys(fresh)))
    return tuple(found)


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    nodes = (
        n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))
    )
    return [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 120]


def _sentences(text: str) -> list[str]:
    """Whole prose sentences of 6 to 34 words; markup, code and tables are left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r"^\s*(>>>|\.\.\.|\+[-=]|\|)", paragraph, re.MULTILINE):
            continue
        line = re.sub(r"\s+", " ", paragraph).strip()
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z*\"])", line):
            clean = sentence.strip().replace("*", "").replace("[", "(").replace("]", ")")
            plain = sum(c.isalpha() or c in " ,.'-" for c in clean)
            if 6 <= len(clean.split()) <= 34 and clean[-1] in ".!?" and plain / len(clean) > 0.93:
                found.append(clean)
    return found
