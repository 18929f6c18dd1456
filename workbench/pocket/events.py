"""Passages of events (who did what, where, when, why) in four languages, as prose, log lines and minutes of meetings.

A question names some roles of an event and asks for another, often in other words or in another language. It is
answerable when exactly one event of the evidence fits the named roles and has the asked one, and missing when none
does.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from workbench.pocket.facts import decorated
from workbench.pocket.lexicon import LANGUAGES, ideas
from workbench.pocket.passages import Ask, Passage, Unit, World, capital

_FIELDS = ("subject", "verb", "object", "place", "time", "reason")
# Placeholders: s subject, o object, b base form, p past, v participle, pl place, ti time, re reason (with the comma).
_STATEMENTS = {
    "en": (
        "{s} {p} {o}{pl}{ti}{re}.",
        "{s} {p} {o}{ti}{pl}{re}.",
        "{ti,}{s} {p} {o}{pl}{re}.",
        "{o} was {v} by {s}{pl}{ti}{re}.",
        "{pl,}{o} was {v} by {s}{ti}{re}.",
        "it was {s} who {p} {o}{ti}{pl}{re}.",
        "what {s} {p}{ti} was {o}{pl}{re}.",
        "{ti,}{o} was {v}{pl} by {s}{re}.",
    ),
    "de": (
        "{s} hat {o}{ti}{pl} {v}{re}.",
        "{ti^} hat {s} {o}{pl} {v}{re}.",
        "{pl^} hat {s} {o}{ti} {v}{re}.",
    ),
    "fr": (
        "{s} a {v} {o}{pl}{ti}{re}.",
        "{ti,}{s} a {v} {o}{pl}{re}.",
        "{pl,}{s} a {v} {o}{ti}{re}.",
    ),
    "es": ("{s} {p} {o}{pl}{ti}{re}.", "{ti,}{s} {p} {o}{pl}{re}.", "{pl,}{s} {p} {o}{ti}{re}."),
}
_QUESTIONS = {
    "en": {
        "subject": (
            "Who {p} {o}?",
            "By whom was {o} {v}?",
            "Which person {p} {o}?",
            "Who {p} {o}{ti}?",
            "Who was it that {p} {o}?",
            "{o} {v} by whom?",
            "Whose work was it to {b} {o}?",
            "Who had {o} {v}?",
        ),
        "object": (
            "What did {s} {b}?",
            "What was {v} by {s}?",
            "What did {s} {b}{ti}?",
            "Which thing did {s} {b}{pl}?",
            "What had {s} {v}?",
            "What is it that {s} {p}?",
        ),
        "place": (
            "Where did {s} {b} {o}?",
            "Where was {o} {v}?",
            "In which place was {o} {v}{ti}?",
            "Where exactly did {s} {b} {o}?",
            "At what spot was {o} {v} by {s}?",
        ),
        "time": (
            "When did {s} {b} {o}?",
            "When was {o} {v}?",
            "At what time was {o} {v} by {s}?",
            "On which day was {o} {v}?",
            "How long ago did {s} {b} {o}?",
        ),
        "reason": (
            "Why did {s} {b} {o}?",
            "Why was {o} {v}?",
            "For what reason did {s} {b} {o}?",
            "How come {o} was {v}?",
            "What made {s} {b} {o}?",
            "What was the reason that {o} was {v}?",
            "What led {s} to {b} {o}?",
        ),
    },
    "de": {
        "subject": ("Wer hat {o} {v}?", "Wer hat{ti} {o} {v}?", "Wer war es, der {o} {v} hat?"),
        "object": ("Was hat {s} {v}?", "Was hat {s}{ti} {v}?", "Was wurde von {s} {v}?"),
        "place": ("Wo hat {s} {o} {v}?", "An welchem Ort hat {s} {o} {v}?"),
        "time": (
            "Wann hat {s} {o} {v}?",
            "An welchem Tag hat {s} {o} {v}?",
            "Zu welcher Zeit hat {s} {o} {v}?",
        ),
        "reason": (
            "Warum hat {s} {o} {v}?",
            "Weshalb hat {s} {o} {v}?",
            "Aus welchem Grund hat {s} {o} {v}?",
        ),
    },
    "fr": {
        "subject": ("Qui a {v} {o} ?", "Qui est-ce qui a {v} {o}{ti} ?", "Par qui fut {v} {o} ?"),
        "object": ("Qu'est-ce que {s} a {v} ?", "Qu'a {v} {s} ?", "Quelle chose {s} a {v}{ti} ?"),
        "place": ("Où est-ce que {s} a {v} {o} ?", "À quel endroit {s} a {v} {o} ?"),
        "time": ("Quand est-ce que {s} a {v} {o} ?", "À quel moment {s} a {v} {o} ?"),
        "reason": ("Pourquoi {s} a {v} {o} ?", "Pour quelle raison {s} a {v} {o} ?"),
    },
    "es": {
        "subject": ("¿Quién {p} {o}?", "¿Quién fue el que {p} {o}?", "¿Quién {p} {o}{ti}?"),
        "object": ("¿Qué {p} {s}?", "¿Qué cosa {p} {s}{ti}?", "¿Qué fue lo que {p} {s}?"),
        "place": ("¿Dónde {p} {s} {o}?", "¿En qué lugar {p} {s} {o}?"),
        "time": ("¿Cuándo {p} {s} {o}?", "¿En qué momento {p} {s} {o}?"),
        "reason": ("¿Por qué {p} {s} {o}?", "¿Por qué motivo {p} {s} {o}?"),
    },
}
_HEADERS = (
    "Logbook",
    "Night report",
    "Diary",
    "Minutes",
    "Protokoll",
    "Bericht",
    "Compte rendu",
    "Informe",
    "News",
    "Letter",
)


@dataclass(frozen=True, slots=True)
class Event:
    """Ideas by role: an index into ``ideas(role)``, -1 when the event does not say, or a proper name as subject."""

    roles: dict[str, int | str] = field(hash=False)

    def has(self, role: str) -> bool:
        """Whether the event says who, what, where, when or why."""
        return self.roles[role] != -1

    def fits(self, known: dict[str, int | str]) -> bool:
        """Whether the event has all `known` roles."""
        return all(self.roles[role] == idea for role, idea in known.items())


def is_held_out_pair(verb: int, obj: int) -> bool:
    """Whether a verb with its object is kept for evaluation: one pair in ten."""
    return zlib.crc32(f"{verb}-{obj}".encode()) % 10 == 0


def event_passages(
    world: World, size: int, language: str = "en", *, ask_in: str | None = None
) -> list[Passage]:
    """Passages with `size` event units in `language`; questions in `ask_in` (the same language unless told)."""
    rng = world.rng
    events = _events(world, size)
    shape = rng.choice(["prose", "prose", "log", "meeting"]) if language == "en" else "prose"
    units = []
    for event in events:
        text = _tell(world, event, language, shape)
        made = (
            _ask(
                world, events, event, role, ask_in or language, _short(event, role, language, text)
            )
            for role in _FIELDS
            if role != "verb"
        )
        units.append(Unit(text, tuple(ask for ask in made if ask)))
    missing = [
        m for _ in range(max(2, size // 3)) if (m := _missing(world, events, ask_in or language))
    ]
    passages = []
    start = 0
    while start < len(units):
        stop = start + rng.randint(2, 6)
        header = (
            rng.choice(_HEADERS)
            if world.chance(0.5)
            else f"{capital(world.names.draw('noun'))} › {rng.choice(_HEADERS)}"
        )
        passages.append(
            Passage(header, tuple(units[start:stop]), tuple(missing) if start == 0 else ())
        )
        start = stop
    return passages


def _events(world: World, size: int) -> list[Event]:
    """Distinct events drawn from small pools, so that they share subjects, verbs and objects."""
    rng = world.rng
    width = max(2, int(size * rng.uniform(0.3, 1.0)))
    subjects: list[int | str] = [
        i if world.chance(0.55) else world.fresh("person")
        for i in rng.sample(range(len(ideas("subject"))), min(width, len(ideas("subject"))))
    ]
    variety = max(width, 24 if world.held_out else 4)  # of ten pairs one is held out
    verbs = rng.sample(range(len(ideas("verb"))), min(variety, len(ideas("verb"))))
    objects = rng.sample(range(len(ideas("object"))), min(variety, len(ideas("object"))))
    events: list[Event] = []
    seen = set()
    for _ in range(size * 12):
        verb, obj = rng.choice(verbs), rng.choice(objects)
        if is_held_out_pair(verb, obj) != world.held_out or (
            (verb, obj) in seen and world.chance(0.7)
        ):
            continue
        roles: dict[str, int | str] = {"subject": rng.choice(subjects), "verb": verb, "object": obj}
        for role, share in (("place", 0.5), ("time", 0.5), ("reason", 0.4)):
            roles[role] = rng.randrange(len(ideas(role))) if world.chance(share) else -1
        event = Event(roles)
        if any(e.fits({k: roles[k] for k in ("subject", "verb", "object")}) for e in events):
            continue
        seen.add((verb, obj))
        events.append(event)
        if len(events) == size:
            break
    return events


def _phrase(world: World, role: str, idea: int | str, language: str) -> str:
    if isinstance(idea, str):
        return idea
    return "" if idea == -1 else world.rng.choice(ideas(role)[idea][LANGUAGES.index(language)])


def _slots(world: World, roles: dict[str, int | str], language: str) -> dict[str, str]:
    """Placeholder -> words, each synonym drawn anew."""
    verb = _phrase(world, "verb", roles["verb"], language)
    base, past, participle = verb.split(",") if language == "en" else (verb, verb, verb)
    slots = {
        "s": _phrase(world, "subject", roles["subject"], language),
        "o": _phrase(world, "object", roles["object"], language),
        "b": base,
        "p": past,
        "v": participle,
    }
    for short, role in (("pl", "place"), ("ti", "time"), ("re", "reason")):
        phrase = _phrase(world, role, roles[role], language)
        comma = "," if role == "reason" and language == "de" else ""
        slots[short] = f"{comma} {phrase}" if phrase else ""
        slots[short + ","] = f"{phrase}, " if phrase else ""
        slots[short + "^"] = phrase
    return slots


def _fill(wording: str, slots: dict[str, str]) -> str:
    for name, phrase in slots.items():
        wording = wording.replace("{" + name + "}", phrase)
    return wording


def _tell(world: World, event: Event, language: str, shape: str) -> str:
    rng = world.rng
    slots = _slots(world, event.roles, language)
    if shape == "log":
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        return _fill(
            rng.choice(
                [
                    f"{clock} {{s}} {{p}} {{o}}{{pl}}{{re}}.",
                    f"{clock} {{o}} {{v}} by {{s}}{{pl}}{{re}}",
                    f"{clock} INFO {{s}}: {{p}} {{o}}{{pl}}{{ti}}{{re}}",
                ]
            ),
            slots,
        )
    if shape == "meeting" and isinstance(event.roles["subject"], str):
        speaker = event.roles["subject"] if world.chance(0.5) else event.roles["subject"].upper()
        said = rng.choice(
            ["I {p} {o}{pl}{ti}{re}.", "{ti,}I {p} {o}{pl}{re}.", "Yes, I {p} {o}{ti}{re}{pl}."]
        )
        return f"{speaker}: {capital(_fill(said, slots))}"
    usable = [
        w
        for w in _STATEMENTS[language]
        if "^" not in w or (slots["ti^"] if "{ti^}" in w else slots["pl^"])
    ]
    return capital(_fill(rng.choice(usable), slots))


def _known(wording: str, event: Event) -> dict[str, int | str] | None:
    """The roles that a question names; None when it names one that the event lacks."""
    named = {"subject": "{s}", "verb": "{", "object": "{o}", "place": "{pl}", "time": "{ti}"}
    known = {role: event.roles[role] for role, mark in named.items() if mark in wording}
    return None if -1 in known.values() else known


def _ask(
    world: World, events: list[Event], event: Event, role: str, language: str, short: str | None
) -> Ask | None:
    """A question for `role` that no other event answers as well; `short` is how the unit words that role."""
    if short is None:
        return None
    for wording in world.rng.sample(_wordings(world, language, role), 2):
        known = _known(wording, event)
        if known is None or role in known:
            continue
        fitting = [e for e in events if e.fits(known)]
        if len(fitting) == 1:
            question = _fill(wording, _slots(world, event.roles, language))
            return Ask(decorated(world, capital(question)), short)
    return None


def _short(event: Event, role: str, language: str, text: str) -> str | None:
    """How `text` words a role of the event, or None when it does not."""
    idea = event.roles[role]
    if idea == -1:
        return None
    phrases = (idea,) if isinstance(idea, str) else ideas(role)[idea][LANGUAGES.index(language)]
    for phrase in phrases:
        start = text.lower().find(phrase.lower())
        if start >= 0:
            return text[start : start + len(phrase)]
    return None


def _wordings(world: World, language: str, role: str) -> list[str]:
    """Question wordings of a role; the last one is held out, and alone (twice) in the split "wordings"."""
    wordings = _QUESTIONS[language][role]
    if world.split == "wordings":
        return [wordings[-1]] * 2
    return list(wordings[:-1]) if len(wordings) > 2 else [wordings[0]] * 2


def _missing(world: World, events: list[Event], language: str) -> str | None:
    """A question that mixes the roles of two events, or asks for a role that the event does not state."""
    rng = world.rng
    first, second = rng.choice(events), rng.choice(events)
    role = rng.choice(["subject", "object", "place", "time", "reason"])
    roles = dict(first.roles)
    if world.chance(0.6):
        changed = rng.choice(["verb", "object", "subject"])
        roles[changed] = second.roles[changed]
    mixed = Event(roles)
    wording = rng.choice(_wordings(world, language, role))
    known = _known(wording, mixed)
    if known is None or role in known:
        return None
    if any(e.fits(known) and e.has(role) for e in events):
        return None
    return decorated(world, capital(_fill(wording, _slots(world, roles, language))))
