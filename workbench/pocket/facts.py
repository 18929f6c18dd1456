"""Passages of facts: subjects, relations between them, in four languages; tables and code that state facts."""

from __future__ import annotations

from workbench.pocket.passages import Ask, Passage, Unit, World, capital, title
from workbench.pocket.thesaurus import reworded
from workbench.pocket.wordings import Relation, chosen, relations

_FRAMES = (
    "According to the yearbook, {x}",
    "As far as anyone knows, {x}",
    "Today {x}",
    "Note that {x}",
    "In short, {x}",
    "The guide says that {x}",
    "{x}, as the records show",
    "{x}, although few people know it",
    "{x} (see the annex)",
    "Surprisingly, {x}",
    "On paper, {x}",
    "It is well known that {x}",
    "{x}, at least officially",
)
_OPENERS = (
    "According to the text, {q}",
    "Please tell me: {q}",
    "From the passages: {q}",
    "I would like to know: {q}",
    "Quick question: {q}",
    "{Q} Quote the sentence.",
    "{Q} Please give the source.",
    "My question is this: {q}",
)
_LISTED = frozenset("person place name material food tool animal colour".split())
_PRONOUNS = {"person": ("He", "She"), "species": ("It",), "org": ("It",), "party": ("They",)}
_SECTIONS = (
    "Overview",
    "History",
    "Details",
    "Notes",
    "Facts and figures",
    "Appendix",
    "Background",
    "Register",
    "General",
    "Summary",
    "Part 2",
    "Data sheet",
    "Profile",
    "Portrait",
)


def fact_passages(world: World, size: int, language: str = "en") -> list[Passage]:
    """Passages with about `size` units; the subjects share their relations, so that each distracts from the other."""
    rng = world.rng
    usable = [r for r in relations(language) if r.held_out == (world.split == "relations")]
    kind = rng.choice(usable).subject
    pool = [r for r in usable if r.subject == kind]
    shared = rng.sample(pool, min(len(pool), rng.randint(1, 4))) if world.chance(0.6) else None
    passages: list[Passage] = []
    count = 0
    while count < size:
        about = [world.fresh(kind) for _ in range(rng.choice([1, 1, 2, 3]))]
        made = _passage(world, about, shared, pool, language)
        passages.append(made)
        count += len(made.units)
    return passages


def _passage(
    world: World,
    about: list[str],
    shared: list[Relation] | None,
    pool: list[Relation],
    language: str,
) -> Passage:
    rng = world.rng
    units: list[Unit] = []
    missing: list[str] = []
    anchored = language == "en" and len(about) == 1 and world.chance(0.2)
    for subject in about:
        stated = shared or rng.sample(pool, min(len(pool), rng.randint(1, 4)))
        stated = rng.sample(stated, len(stated))
        texts: list[str] = []
        asks: list[Ask] = []
        for place, relation in enumerate(stated):
            obj = _object(world, relation.object, language)
            text, pronoun = _statement(
                world, relation, subject, obj, language, free=anchored or place > 0
            )
            ask = Ask(_question(world, relation, subject), obj)
            if texts and (pronoun or world.chance(0.12)) and not anchored:
                texts[-1] += " " + text
                units[-1] = Unit(texts[-1], (*units[-1].asks, ask))
            else:
                texts.append(text)
                units.append(Unit(text, (ask,)))
            asks.append(ask)
        unstated = [r for r in pool if r not in stated]
        if unstated:
            missing.append(_question(world, rng.choice(unstated), subject))
    stranger = world.fresh(pool[0].subject)
    missing.append(_question(world, rng.choice(shared or pool), stranger))
    heading = title(about[0]) if anchored or world.chance(0.4) else title(world.names.draw("noun"))
    if not anchored and len(about) > 1:
        rng.shuffle(units)
    return Passage(_header(world, heading), tuple(units), tuple(missing))


def _header(world: World, heading: str) -> str:
    return f"{heading} › {world.rng.choice(_SECTIONS)}" if world.chance(0.6) else heading


def _statement(
    world: World, relation: Relation, subject: str, obj: str, language: str, *, free: bool
) -> tuple[str, bool]:
    """One sentence that states the fact, and whether it names its subject by a pronoun only."""
    rng = world.rng
    wordings = relation.statements
    wording = wordings[-1] if world.split == "wordings" else rng.choice(wordings[:-1])
    pronoun = free and language == "en" and wording.startswith("{s} ") and world.chance(0.35)
    name = rng.choice(_PRONOUNS.get(relation.subject, ("It",))) if pronoun else subject
    text = chosen(rng, wording).format(s=name, o=obj)
    if language == "en" and world.chance(0.15):
        plain = pronoun or text.startswith(
            ("The ", "A ", "At ", "On ", "In ", "It ", "If ", "To ", "With ")
        )
        clause = text[:1].lower() + text[1:-1] if plain else text[:-1]
        text = rng.choice(_FRAMES).format(x=clause) + "."
    return capital(text), pronoun


def _object(world: World, kind: str, language: str) -> str:
    """A value of a kind; now and then a list of two or three."""
    if kind not in _LISTED or not world.chance(0.08):
        return world.names.draw(kind)
    drawn = list(dict.fromkeys(world.names.draw(kind) for _ in range(world.rng.randint(2, 3))))
    both = {"en": " and ", "de": " und ", "fr": " et ", "es": " y "}[language]
    return both.join([*filter(None, [", ".join(drawn[:-1])]), drawn[-1]])


def _question(world: World, relation: Relation, subject: str) -> str:
    wordings = relation.questions
    wording = wordings[-1] if world.split == "wordings" else world.rng.choice(wordings[:-1])
    asked = chosen(world.rng, wording).format(s=subject)
    return decorated(world, reworded(world.rng, asked, 0.1 if world.chance(0.4) else 0.0))


def decorated(world: World, question: str) -> str:
    """The question as people type it: sometimes with an opener, without its mark, or in lower case."""
    share = world.rng.random()
    if share < 0.1 and question[:1].isascii():
        return world.rng.choice(_OPENERS).format(
            q=question[:1].lower() + question[1:], Q=capital(question)
        )
    if share < 0.16:
        return question.rstrip("?").strip()
    return question.lower() if share < 0.2 else capital(question)


_COLUMNS = (
    ("year", "year"),
    ("city", "place"),
    ("price", "money"),
    ("count", "num"),
    ("owner", "person"),
    ("weight", "weight"),
    ("material", "material"),
    ("date", "date"),
    ("phone", "phone"),
    ("status", "state"),
)


def table_passages(world: World, size: int) -> list[Passage]:
    """Tables as pipes or comma-separated rows; every row is a unit, and so is the head."""
    rng = world.rng
    passages = []
    count = 0
    while count < size:
        columns = rng.sample(_COLUMNS, rng.randint(1, 4))
        absent = [c for c in _COLUMNS if c not in columns]
        pipes = world.chance(0.6)
        units = [Unit(_row(["name", *(c for c, _ in columns)], pipes))]
        missing = [f"What is the {rng.choice(columns)[0]} of {world.fresh('name')}?"]
        for _ in range(rng.randint(2, 6)):
            name = world.fresh("name")
            values = [world.names.draw(kind).replace(",", "") for _, kind in columns]
            asks = [
                Ask(_cell_question(world, c, name), v)
                for (c, _), v in zip(columns, values, strict=True)
            ]
            units.append(Unit(_row([name, *values], pipes), tuple(asks)))
            missing.append(_cell_question(world, rng.choice(absent)[0], name))
        passages.append(Passage(f"table {world.names.word()}.csv", tuple(units), tuple(missing)))
        count += len(units)
    return passages


def _row(cells: list[str], pipes: bool) -> str:
    return "| " + " | ".join(cells) + " |" if pipes else ",".join(cells)


def _cell_question(world: World, column: str, name: str) -> str:
    wording = world.rng.choice(
        [
            "What is the {c} of {n}?",
            "{n}: which {c}?",
            "Which {c} is listed for {n}?",
            "What {c} does {n} have?",
            "Look up the {c} for {n}.",
            "{c} {n}",
        ]
    )
    return wording.format(c=column, n=name)


def code_passages(world: World, size: int) -> list[Passage]:
    """Assignments, one-line functions and keys with values."""
    rng = world.rng
    units: list[Unit] = []
    for _ in range(size):
        name = "_".join(world.fresh("word") for _ in range(rng.randint(1, 2)))
        value = rng.choice(
            [
                world.names.num().replace(",", ""),
                f'"{world.names.word()}"',
                rng.choice(["True", "None"]),
                world.names.word() + "()",
            ]
        )
        shape = rng.choice(["assign", "function", "key", "config"])
        text = {
            "assign": f"{name} = {value}",
            "function": f"def {name}({world.names.word()}): return {value}",
            "key": f'"{name}": {value},',
            "config": f"{name}: {value}",
        }[shape]
        asks = (
            [
                "What does {n} return?",
                "What is the return value of {n}?",
                "What comes back from {n}?",
            ]
            if shape == "function"
            else ["What is the value of {n}?", "What is {n} set to?", "Which value has {n}?"]
        )
        units.append(Unit(text, (Ask(rng.choice(asks).format(n=name), value),)))
    missing = tuple(f"What is the value of {world.fresh('word')}?" for _ in range(2))
    return [Passage(f"{world.names.word()}.py", tuple(units), missing)]


def copy_passages(world: World, size: int) -> list[Passage]:
    """Strings of random words; asked for by some of their words: pure associative copying."""
    rng = world.rng
    units = []
    for _ in range(size):
        words = [
            world.fresh(rng.choice(["word", "word", "noun", "name", "num"]))
            for _ in range(rng.randint(3, 8))
        ]
        count = rng.randint(1, min(3, len(words)))
        start = rng.randrange(len(words) - count + 1)
        asked = words[start : start + count]
        rest = words[start + count :] or words[:start] or words
        units.append(Unit(" ".join(words) + ".", (Ask(" ".join(asked), " ".join(rest)),)))
    missing = tuple(f"{world.fresh('word')} {world.fresh('word')}" for _ in range(2))
    return [Passage(title(world.names.word()), tuple(units), missing)]
