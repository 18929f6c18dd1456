"""Compose training examples: numbered evidence from several passages, and questions with the sentence that answers.

Deterministic by seed: ``example(seed=7, …)`` is the same text everywhere (real prose follows the Python version).
Knows no tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.generation.prompts import (
    ABSTENTION,
    FREE_SYSTEM,
    QUOTE_SYSTEM,
    SUMMARY_REQUEST,
    SUMMARY_SYSTEM,
)
from workbench.pocket.events import event_passages
from workbench.pocket.facts import code_passages, copy_passages, fact_passages, table_passages
from workbench.pocket.passages import Ask, Passage, Unit, World
from workbench.pocket.prose import (
    central_sentence,
    content_sets,
    documents,
    keyword_question,
    prose_passages,
)
from workbench.pocket.scenes import scene_passages

MAX_UNITS = 64
_PASSAGE_UNITS = 6
SYSTEMS = {"quote": QUOTE_SYSTEM, "free": FREE_SYSTEM, "summary": SUMMARY_SYSTEM}
FAMILIES = {
    "scenes": 46,
    "facts": 20,
    "prose": 13,
    "events": 7,
    "languages": 5,
    "crossing": 3,
    "table": 3,
    "code": 2,
    "copy": 1,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """The last line of a user turn, and the answer; `unit` numbers the sentence it rests on, None to abstain."""

    line: str
    answer: str
    unit: int | None


@dataclass(frozen=True, slots=True)
class Example:
    """One evidence and several questions about it, all in one style."""

    style: str
    family: str
    evidence: str
    units: tuple[str, ...]
    turns: tuple[Turn, ...]

    @property
    def system(self) -> str:
        """The system message of the style."""
        return SYSTEMS[self.style]


def example(
    *,
    seed: int | str,
    units: int = MAX_UNITS,
    passages: int | None = None,
    split: str = "train",
    family: str | None = None,
    style: str | None = None,
    turns: int = 8,
    abstain: float = 0.18,
    lexical: float = 0.0,
    written: float = 1.0,
    families: Mapping[str, int] | None = None,
) -> Example:
    """An example with about `units` numbered sentences (never more) and at most `turns` questions.

    With `passages` the evidence is that many passages of one family, of at most six sentences each. A share `lexical`
    of the sentences is asked for, in quotes, by some of their own words as well: the skill to learn first. Of the
    questions that were written only a share `written` is kept. `families` are weights in place of ``FAMILIES``.

    >>> made = example(seed=7, units=6, family="facts", style="quote")
    >>> all(made.units[t.unit - 1] in t.answer for t in made.turns if t.unit)
    True
    """
    if not 1 <= units <= MAX_UNITS:
        raise ValueError(f"units={units} is outside 1 to {MAX_UNITS}, the marks of the tokenizer")
    rng = random.Random(f"example:{seed}")
    for _ in range(50):
        world = World(rng, split)
        chosen = style or rng.choices(["quote", "free", "summary"], [58, 38, 4])[0]
        made = (
            _summary(world, units)
            if chosen == "summary"
            else _questions(
                world,
                units,
                passages,
                family,
                chosen,
                turns,
                abstain,
                lexical,
                written,
                families or FAMILIES,
            )
        )
        if made is not None:
            return made
    raise RuntimeError(f"no example of family {family} with {units} units after 50 tries")


def evidence_text(passages: list[Passage]) -> str:
    r"""Blocks of a header and numbered sentences, a blank line between blocks.

    >>> evidence_text([Passage("Pump", (Unit("It runs."),)), Passage("Fan", (Unit("It turns."),))])
    'Pump\n[1] It runs.\n\nFan\n[2] It turns.'
    """
    blocks = []
    number = 0
    for passage in passages:
        lines = [passage.header]
        for unit in passage.units:
            number += 1
            lines.append(f"[{number}] {unit.text}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def passages_of(world: World, family: str, size: int) -> list[Passage]:
    """Passages of one family with about `size` units."""
    if family == "scenes":
        told = world.rng.choices(["en", "de", "fr", "es", "it"], [84, 6, 5, 3, 2])[0]
        return scene_passages(world, size, told)
    if family == "facts":
        return fact_passages(world, size)
    if family == "events":
        return event_passages(world, size)
    if family == "prose":
        return prose_passages(world, size)
    if family == "languages":
        language = world.rng.choice(["de", "fr", "es"])
        return (
            fact_passages(world, size, language)
            if world.chance(0.4)
            else event_passages(world, size, language)
        )
    if family == "crossing":
        told, asked = world.rng.sample(["en", "de", "fr", "es"], 2)
        return event_passages(world, size, told, ask_in=asked)
    return {"table": table_passages, "code": code_passages, "copy": copy_passages}[family](
        world, size
    )


def _questions(
    world: World,
    units: int,
    count: int | None,
    family: str | None,
    style: str,
    turns: int,
    abstain: float,
    lexical: float,
    written: float,
    families: Mapping[str, int],
) -> Example | None:
    rng = world.rng
    name = family or rng.choices(list(families), list(families.values()))[0]
    passages = passages_of(world, name, units) if count is None else _several(world, name, count)
    if family is None and units > 4 and world.chance(0.35):  # distractors of another family
        half = max(2, units // 2)
        other = rng.choice([f for f in ("scenes", "facts", "prose") if f != name])
        passages = _cut(passages, units - half) + passages_of(world, other, half)
    missing = [q for p in passages for q in p.missing]
    rng.shuffle(passages)
    passages = _cut(passages, units)
    asks = [
        (n, unit, ask)
        for n, unit in enumerate(_units(passages), 1)
        for ask in unit.asks
        if _usable(ask, unit, style)
    ]
    if written < 1:
        asks = [ask for ask in asks if world.chance(written)]
        missing = [question for question in missing if world.chance(written)]
    if lexical and style == "quote":
        asks += _lexical(world, _units(passages), lexical)
    rng.shuffle(asks)
    rng.shuffle(missing)
    made = []
    for _ in range(turns):
        if missing and world.chance(abstain):
            made.append(Turn(f"Question: {missing.pop()}", ABSTENTION, None))
        elif asks:
            number, unit, ask = asks.pop()
            made.append(
                Turn(
                    f"Question: {ask.question}",
                    f"[{number}] {unit.text if style == 'quote' else short_answer(ask)}",
                    number,
                )
            )
    if not made:
        return None
    return Example(
        style, name, evidence_text(passages), tuple(u.text for u in _units(passages)), tuple(made)
    )


def _several(world: World, family: str, count: int) -> list[Passage]:
    """`count` passages of at most six units."""
    made: list[Passage] = []
    while len(made) < count:
        made += passages_of(world, family, 7 * (count - len(made)))
    missing = tuple(question for passage in made for question in passage.missing)
    kept = [Passage(p.header, p.units[:_PASSAGE_UNITS]) for p in made[:count]]
    return [Passage(kept[0].header, kept[0].units, missing), *kept[1:]]


def _lexical(world: World, units: list[Unit], share: float) -> list[tuple[int, Unit, Ask]]:
    """Questions by keywords for a share of the units."""
    texts = [unit.text for unit in units]
    sets = content_sets(texts)
    made = []
    for number, unit in enumerate(units, 1):
        if world.chance(share) and texts.count(unit.text) == 1:
            others = [text for text in texts if text != unit.text]
            if question := keyword_question(world, unit.text, others, sets):
                made.append((number, unit, Ask(question, unit.text)))
    return made


def short_answer(ask: Ask) -> str:
    """The answer in few words: a span of the unit, after its verdict if the question asks for one.

    >>> short_answer(Ask("Is it open?", "closed for good", "no"))
    'No: closed for good'
    """
    return f"{ask.verdict.capitalize()}: {ask.short}" if ask.verdict else ask.short


def _usable(ask: Ask, unit: Unit, style: str) -> bool:
    return style == "quote" or (ask.short in unit.text and ask.short != unit.text)


def _summary(world: World, units: int) -> Example | None:
    """Neighbouring sentences of one real document, and the one that shares most words with the others."""
    rng = world.rng
    document = rng.choice([d for d in documents(held_out=world.held_out) if len(d) >= 4])
    size = min(len(document), max(4, units))
    start = rng.randint(0, len(document) - size)
    texts = list(document[start : start + size])
    best = central_sentence(texts)
    if best is None or size > units:
        return None
    passage = Passage(world.names.name(), tuple(Unit(t) for t in texts))
    turn = Turn(SUMMARY_REQUEST, f"[{best + 1}] {texts[best]}", best + 1)
    return Example("summary", "summary", evidence_text([passage]), tuple(texts), (turn,))


def _units(passages: list[Passage]) -> list[Unit]:
    return [unit for passage in passages for unit in passage.units]


def _cut(passages: list[Passage], units: int) -> list[Passage]:
    """The first `units` units of `passages`."""
    kept = []
    for passage in passages:
        if units > 0:
            kept.append(Passage(passage.header, passage.units[:units], passage.missing))
            units -= len(passage.units)
    return kept
