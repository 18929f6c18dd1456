"""Scenes: short texts written by hand with slots, and questions about each of their sentences (``texts/*.scenes``).

A scene is ``# title``, then sentences, each followed by its questions (``? question > short answer``), and questions
that nothing in it answers (``! question``). ``{A:year}`` introduces a value and ``{A}`` repeats it; ``[a|b]`` is a
choice and ``[X=a|b]`` one that ``{X}`` repeats. One scene in twelve is held out whole.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache

from workbench.pocket.facts import decorated
from workbench.pocket.passages import Ask, Passage, Unit, World, capital
from workbench.pocket.thesaurus import reworded
from workbench.pocket.wordings import blocks

_SLOT = re.compile(r"\{([A-Za-z])(?::([a-z]+))?\}")
_CHOICE = re.compile(r"\[(?:([A-Z])=)?([^\[\]]*\|[^\[\]]*)\]")
_NAMES = frozenset("person family place region org name thing book code word".split())
_GRAMMAR = frozenset(
    """
    what when where which whom whose does have that this with from were they their there then will would could should
    into about much many long been being quick question text according passages please tell know like sentence quote
    welche welcher welches wann warum wurde wird hatte haben quel quelle quand pourquoi combien cuando donde cuanto
    """.split()
)
_SECTIONS = (
    "Part 1",
    "Notes",
    "Background",
    "Details",
    "Section 3",
    "Report",
    "Remarks",
    "Contents",
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence with slots; `asks` are (question, short answer)."""

    text: str
    asks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A title, sentences, and the questions that none of them answers."""

    title: str
    sentences: tuple[Sentence, ...]
    missing: tuple[str, ...]
    language: str = "en"

    @property
    def held_out(self) -> bool:
        """Whether the scene is kept for evaluation."""
        return zlib.crc32(self.title.encode()) % 12 == 0


@cache
def scenes(language: str, *, held_out: bool) -> tuple[Scene, ...]:
    """The scenes of a language ("en", "de", "fr", "es", "it") of one side of the split.

    >>> bool(set(scenes("en", held_out=True)) & set(scenes("en", held_out=False)))
    False
    """
    parsed = (_parse(block, language) for block in blocks(f"{language}_*.scenes"))
    return tuple(scene for scene in parsed if scene.held_out == held_out)


def scene_passages(world: World, size: int, language: str = "en") -> list[Passage]:
    """Passages with about `size` units: whole scenes or runs of their sentences, some told twice with other values.

    The questions of sentences that were left out, and of a scene that is not there at all, have no answer.
    """
    rng = world.rng
    source = scenes(language, held_out=world.held_out)
    picked = rng.sample(source, min(len(source), 1 + size))
    absent = picked.pop() if len(picked) > 1 else None
    passages: list[Passage] = []
    count = 0
    alone = size < 8
    for scene in picked:
        told = [_told(world, scene)]
        if world.chance(0.25) and size - count > len(scene.sentences):
            told = _distinct(told[0], _told(world, scene))
        for passage in told:
            passages.append(_run(world, passage if alone else _telling(passage)))
            count += len(passages[-1].units)
        if count >= size:
            break
    strange = [a.question for u in _told(world, absent).units for a in u.asks] if absent else []
    if strange:
        first = passages[0]
        missing = (*first.missing, rng.choice(strange))
        passages[0] = Passage(first.header, first.units, missing)
    return passages


def _told(world: World, scene: Scene) -> Passage:
    """The scene with its slots filled; questions whose short answer is not in their sentence are left out."""
    fill = _Filling(world, scene)
    units = []
    for sentence in scene.sentences:
        text = capital(fill(sentence.text))
        asks = []
        for question, answer in sentence.asks:
            verdict, _, span = (
                answer.rpartition(": ") if answer[:4] in ("yes:", "no: ") else ("", "", answer)
            )
            place = text.lower().find(fill(span).lower())
            if place >= 0:
                short = text[place : place + len(fill(span))]
                asks.append(Ask(_asked(world, fill(question)), short, verdict))
        units.append(Unit(text, tuple(asks)))
    title = capital(fill(scene.title))
    if world.chance(0.4):
        title = f"{title} › {world.rng.choice(_SECTIONS)}"
    return Passage(title, tuple(units), tuple(_asked(world, fill(q)) for q in scene.missing))


def _asked(world: World, question: str) -> str:
    return decorated(world, reworded(world.rng, question, 0.12 if world.chance(0.5) else 0.0))


def _distinct(first: Passage, second: Passage) -> list[Passage]:
    """Two tellings of one scene, each with the questions only that name a value which the other lacks."""
    told = []
    for one, other in ((first, second), (second, first)):
        words = set(
            re.findall(r"\w+", " ".join([other.header, *(u.text for u in other.units)]).lower())
        )

        def names_own(question: str, words: set[str] = words, own: Passage = one) -> bool:
            asked = set(re.findall(r"\w+", question.lower())) - words
            text = " ".join([own.header, *(u.text for u in own.units)]).lower()
            return any(re.search(rf"\b{re.escape(word)}\b", text) for word in asked)

        units = tuple(
            Unit(u.text, tuple(a for a in u.asks if names_own(a.question))) for u in one.units
        )
        told.append(Passage(one.header, units, tuple(filter(names_own, one.missing))))
    return told


def _telling(passage: Passage) -> Passage:
    """The passage with the questions only that say enough to be asked among other passages."""
    units = tuple(
        Unit(u.text, tuple(a for a in u.asks if _is_telling(a.question))) for u in passage.units
    )
    return Passage(passage.header, units, tuple(filter(_is_telling, passage.missing)))


def _is_telling(question: str) -> bool:
    """Whether a question has two words that are neither grammar nor short, or a name."""
    words = re.findall(r"\w+", question)
    return sum(len(w) > 3 and w.lower() not in _GRAMMAR for w in words) >= 2 or any(
        w[:1].isupper() for w in words[1:]
    )


def _run(world: World, passage: Passage) -> Passage:
    """The passage, a run of its sentences, or all but one; what was left out can still be asked for."""
    units = list(passage.units)
    start, stop, hole = 0, len(units), -1
    share = world.rng.random()
    if share < 0.35:
        start = world.rng.randrange(len(units) - 1)
        stop = world.rng.randint(start + 2, len(units))
    elif share < 0.6:
        hole = world.rng.randrange(1, len(units))
    kept = [u for n, u in enumerate(units) if start <= n < stop and n != hole]
    gone = [
        a.question
        for n, u in enumerate(units)
        if not start <= n < stop or n == hole
        for a in u.asks
    ]
    return Passage(passage.header, tuple(kept), (*passage.missing, *gone[:4]))


class _Filling:
    """Fills the slots and choices of one telling of a scene, the same everywhere."""

    def __init__(self, world: World, scene: Scene) -> None:
        self.values: dict[str, str] = {}
        self.choices: dict[str, str] = {}
        self.world = world
        asked = (q for s in scene.sentences for q, _ in s.asks)
        lines = [scene.title, *(s.text for s in scene.sentences), *asked, *scene.missing]
        for line in lines:
            for name, options in _CHOICE.findall(line):
                if name:
                    self.values[name] = self._choice(options)
            for name, kind in _SLOT.findall(line):
                if kind == "small" and scene.language != "en":
                    self.values[name] = str(
                        world.rng.randint(2, 20)
                    )  # words for numbers are English
                elif kind:
                    self.values[name] = self._value(kind)

    def __call__(self, text: str) -> str:
        text = _CHOICE.sub(lambda m: self.values[m[1]] if m[1] else self._choice(m[2]), text)
        return _SLOT.sub(lambda m: self.values[m[1]], text).replace("the the ", "the ")

    def _value(self, kind: str) -> str:
        """A value that nothing else in the scene has, where the kind is large enough; names are new to the evidence."""
        if kind in _NAMES:
            return self.world.fresh(kind)
        for _ in range(8):
            value = self.world.names.draw(kind)
            if value not in self.values.values():
                break
        return value

    def _choice(self, options: str) -> str:
        if options not in self.choices:
            self.choices[options] = self.world.rng.choice(options.split("|"))
        return self.choices[options]


def _parse(block: str, language: str = "en") -> Scene:
    head, *lines = block.strip().splitlines()
    sentences: list[Sentence] = []
    missing = []
    for line in lines:
        if line.startswith("? "):
            question, _, answer = line[2:].rpartition(" > ")
            last = sentences[-1]
            sentences[-1] = Sentence(last.text, (*last.asks, (question.strip(), answer.strip())))
        elif line.startswith("! "):
            missing.append(line[2:].strip())
        elif line.strip():
            sentences.append(Sentence(line.strip(), ()))
    return Scene(head.removeprefix("# ").strip(), tuple(sentences), tuple(missing), language)
