"""What every generator of training text yields: passages of units, and what can be asked about each unit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from workbench.pocket.names import Names


@dataclass(frozen=True, slots=True)
class Ask:
    """A question that one unit answers; `short` is the answer in a few words, copied from that unit.

    `verdict` is "yes" or "no" for a question that asks for it; `short` is then what decides.
    """

    question: str
    short: str
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """One numbered line of the evidence, and the questions it answers."""

    text: str
    asks: tuple[Ask, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """Units under one header, and near-miss questions that nothing in the evidence answers."""

    header: str
    units: tuple[Unit, ...]
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class World:
    """What the generators of one evidence share: randomness, names, and the subjects that are already taken.

    `split` is "train", "entities" (held-out names and word pairs), "wordings" or "relations" (held out as well).
    """

    rng: random.Random
    split: str
    taken: set[str] = field(default_factory=set)
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        if self.split not in ("train", "entities", "wordings", "relations"):
            raise ValueError(
                f"split={self.split!r} is none of train, entities, wordings, relations"
            )
        self.names = Names(self.rng, held_out=self.held_out)

    @property
    def held_out(self) -> bool:
        """Whether this evidence is for evaluation."""
        return self.split != "train"

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self.rng.random() < share

    def fresh(self, kind: str) -> str:
        """A phrase of a kind that this evidence has not used yet (after 20 tries: a made-up name)."""
        for _ in range(20):
            phrase = self.names.draw(kind)
            if phrase.lower() not in self.taken:
                self.taken.add(phrase.lower())
                return phrase
        return self.names.name()


def capital(text: str) -> str:
    """`text` with its first letter in upper case.

    >>> capital("the pump")
    'The pump'
    """
    return text[:1].upper() + text[1:]


def title(text: str) -> str:
    """A phrase as a heading: no article, first letter in upper case.

    >>> title("the old mill")
    'Old mill'
    """
    return capital(text.removeprefix("the ").strip("“”"))
