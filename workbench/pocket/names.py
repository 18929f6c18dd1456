"""Random names, numbers, dates and phrases. A made-up word belongs to training or to evaluation, never to both."""

from __future__ import annotations

import random
import zlib

from workbench.pocket.lexicon import words

_VOWELS = "a e i o u a e i o ai ea ou ia y".split()
_CONSONANTS = (
    "b c d f g h j k l m n p r s t v w z th sh ch br cr dr gr tr st sk pl kl fl v l r n m".split()
)
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_ENDINGS = ["", "", "", "n", "r", "l", "s", "k", "x", "nd", "rt", "m", "th", "ss", "ck"]


def is_held_out(word: str) -> bool:
    """Whether a made-up word is kept for evaluation: one in ten, by checksum."""
    return zlib.crc32(word.lower().encode()) % 10 == 0


class Names:
    """Draws made-up entities from `rng`; with ``held_out`` only names that training never sees.

    >>> Names(random.Random(1), held_out=False).name()
    'Gukith'
    """

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def draw(self, kind: str) -> str:
        """One phrase of a kind: a generated one ("person", "date", …) or one of the word lists."""
        method = getattr(self, kind, None)
        return method() if method else self.rng.choice(words(kind))

    def word(self) -> str:
        """A made-up lower-case word."""
        rng = self.rng
        while True:
            syllables = rng.choice([1, 2, 2, 2, 3])
            made = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
            made += rng.choice(_ENDINGS)
            if len(made) > 3 and is_held_out(made) == self.held_out:
                return made

    def name(self) -> str:
        """A made-up proper name."""
        return self.word().capitalize()

    def person(self) -> str:
        """A given name and a family name, or one of them; family names are mostly made up."""
        first = self.rng.choice(words("first")) if self.rng.random() < 0.75 else self.name()
        return f"{first} {self.family()}" if self.rng.random() < 0.85 else self.name()

    def family(self) -> str:
        """A family name, made up or a common one."""
        return self.name() if self.rng.random() < 0.6 else self.rng.choice(words("family"))

    def region(self) -> str:
        """A made-up country or region."""
        name, share = self.name(), self.rng.random()
        if share < 0.6:
            return name + self.rng.choice(["ia", "land", "stan", "onia", "ria", "e"])
        return (
            f"{self.rng.choice(['North ', 'Upper ', 'Lower ', 'East ', 'the Republic of '])}{name}"
        )

    def place(self) -> str:
        """A town."""
        name, share = self.name(), self.rng.random()
        if share < 0.6:
            return name
        if share < 0.8:
            return self.rng.choice(["Port ", "New ", "Lake ", "San ", "Upper "]) + name
        return name + self.rng.choice(["burg", "ville", "ton", "stad", " Bay", " Valley"])

    def org(self) -> str:
        """An organisation, with or without an article."""
        the = "the " if self.rng.random() < 0.4 else ""
        return f"{the}{self.name()} {self.rng.choice(words('org'))}"

    def thing(self) -> str:
        """A building, machine or work of art."""
        share = self.rng.random()
        if share < 0.4:
            return f"the {self.name()} {self.rng.choice(words('vessel'))}"
        if share < 0.55:
            return f"{self.name()}-{self.rng.randint(2, 99)}"
        if share < 0.85:
            return f"the {self.rng.choice(words('adjective'))} {self.rng.choice(words('vessel'))}"
        return f"the {self.rng.choice(words('vessel'))} of {self.place()}"

    def species(self) -> str:
        """A kind of animal, with its article."""
        first = self.name() if self.rng.random() < 0.5 else self.rng.choice(words("adjective"))
        return f"the {first} {self.rng.choice(words('animal'))}"

    def project(self) -> str:
        """A project, study or plan."""
        rng = self.rng
        made = [
            f"project {self.name()}",
            f"the {self.name()} project",
            f"the {rng.choice(words('noun'))} study",
            f"the {rng.choice(words('adjective'))} {rng.choice(words('noun'))} plan",
        ]
        return rng.choice(made)

    def book(self) -> str:
        """A title in quotation marks."""
        rng = self.rng
        made = [
            f"“The {rng.choice(words('adjective')).title()} {rng.choice(words('noun')).title()}”",
            f"“{self.name()} and the {rng.choice(words('noun')).title()}”",
            f"the novel “{self.name()}”",
        ]
        return rng.choice(made)

    def noun(self) -> str:
        """A thing in general, often with an attribute."""
        noun = self.rng.choice(words("noun"))
        share = self.rng.random()
        if share < 0.4:
            return f"{self.rng.choice(words('adjective'))} {noun}"
        return noun if share < 0.7 else f"{self.word()} {noun}"

    def year(self) -> str:
        """A year from 1700 to 2035."""
        return str(self.rng.randint(1700, 2035))

    def num(self) -> str:
        """A whole number."""
        rng, share = self.rng, self.rng.random()
        if share < 0.5:
            return str(rng.randint(2, 99))
        if share < 0.8:
            return str(rng.randint(100, 999))
        return f"{rng.randint(1, 99)},{rng.randint(0, 999):03d}"

    def small(self) -> str:
        """A whole number from 2 to 20, in figures or, up to twelve, in words."""
        number = self.rng.randint(2, 20)
        return _NUMBERS[number] if number <= 12 and self.rng.random() < 0.5 else str(number)

    def percent(self) -> str:
        """A share of a hundred."""
        sign = "%" if self.rng.random() < 0.5 else " percent"
        return f"{self.rng.randint(1, 99)}{self.rng.choice(['', '', '.5', '.2'])}{sign}"

    def code(self) -> str:
        """The sign of a part or model, such as V-14."""
        rng = self.rng
        letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(rng.randint(1, 2)))
        return f"{letters}{rng.choice(['-', '-', '', ' '])}{rng.randint(2, 9999)}"

    def decimal(self) -> str:
        """A number, sometimes with one decimal."""
        return (
            f"{self.rng.randint(0, 99)}.{self.rng.randint(1, 9)}"
            if self.rng.random() < 0.4
            else self.num()
        )

    def date(self) -> str:
        """A date in one of four forms."""
        rng, month, day = self.rng, self.rng.choice(words("month")), self.rng.randint(1, 28)
        return rng.choice(
            [
                f"{day} {month} {self.year()}",
                f"{month} {day}, {self.year()}",
                f"{day} {month}",
                f"{self.year()}-{rng.randint(1, 12):02d}-{day:02d}",
            ]
        )

    def time(self) -> str:
        """A time of day."""
        rng = self.rng
        return rng.choice(
            [f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}", f"{rng.randint(1, 12)} o'clock"]
        )

    def money(self) -> str:
        """A sum with its currency."""
        return f"{self.decimal()} " + self.rng.choice(
            ["euros", "dollars", "pounds", "francs", "million euros"]
        )

    def length(self) -> str:
        """A length with its unit."""
        return f"{self.decimal()} " + self.rng.choice(
            ["metres", "km", "miles", "feet", "kilometres"]
        )

    def weight(self) -> str:
        """A weight with its unit."""
        return f"{self.decimal()} " + self.rng.choice(
            ["kilograms", "kg", "tonnes", "grams", "pounds"]
        )

    def speed(self) -> str:
        """A speed with its unit."""
        return f"{self.decimal()} " + self.rng.choice(
            ["km/h", "knots", "metres per second", "miles per hour"]
        )

    def force(self) -> str:
        """A torque or pressure with its unit."""
        return f"{self.decimal()} " + self.rng.choice(["Nm", "newton metres", "bar", "psi", "kPa"])

    def value(self) -> str:
        """A reading with its unit."""
        return f"{self.decimal()} " + self.rng.choice(
            ["bar", "degrees", "°C", "volts", "rpm", "percent", "litres"]
        )

    def amount(self) -> str:
        """An amount of an ingredient."""
        return f"{self.decimal()} " + self.rng.choice(
            ["grams", "g", "spoons", "cups", "ml", "litres", "ounces"]
        )

    def minutes(self) -> str:
        """A cooking time."""
        return f"{self.rng.randint(2, 90)} " + self.rng.choice(["minutes", "min", "hours"])

    def period(self) -> str:
        """A span of time."""
        unit = self.rng.choice(["days", "weeks", "months", "years", "hours", "working days"])
        return f"{self.rng.choice(['two', 'three', 'six', 'ten', str(self.rng.randint(2, 90))])} {unit}"

    def phone(self) -> str:
        """A telephone number."""
        return f"{self.rng.randint(10, 999):03d} {self.rng.randint(1000, 99999)}"
