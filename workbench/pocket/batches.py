"""Turn examples into flat batches of token ids with targets and positions.

One evidence serves several questions. In the isolated layout (most of the time) each question sees the evidence and
itself only, at the positions it would have alone: a row then equals so many single-turn prompts. In the chat layout the
questions follow one another as turns.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.pocket.data import MAX_UNITS, Example, example
from workbench.pocket.kernels import Extent, Layout
from workbench.pocket.tokenizer import END, FIRST_MARK, MARKS, PAD

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the curriculum.

    `most` units of one evidence, a share `lexical` of them asked for by their own words, a share `written` of the
    written questions kept; `families` says how often each kind of text comes, those of ``data.FAMILIES`` if None; a
    share `wide` of the rows has more units all the same.
    """

    most: int
    lexical: float
    written: float
    families: Mapping[str, int] | None = None
    wide: float = 0.0


# What can be learned from regular texts in the tokens there are; the written scenes ask for more knowledge of words.
_REGULAR = {
    "facts": 30,
    "events": 20,
    "scenes": 14,
    "prose": 10,
    "languages": 9,
    "table": 6,
    "code": 4,
    "crossing": 4,
    "copy": 3,
}
# Matching words comes first, among many units; wording comes on top of it; then shorter evidence of regular texts.
LEVELS = (
    Level(24, 1.0, 0.0),
    Level(40, 0.8, 0.3),
    Level(60, 0.5, 0.7),
    Level(60, 0.3, 1.0),
    Level(32, 0.25, 1.0, _REGULAR, 0.12),
)
# Nearly all rows of the last level fit: 19 in 20 examples, the longest have 2,500 tokens.
TRAINED_TOKENS = 2048
_CHAT_SHARE = 0.08
_LOOKUP_SHARE = 0.08
_WHOLE_SHARE = 0.35  # rows of quotes that are trained to their end; the others to the first words
_QUOTED = 6  # tokens of the answer, mark included, in the rows that are not
_ROUND = 32  # beginnings, and all branches of a row together, are padded to multiples of it


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One example as tokens: the shared beginning, then branches that do not see each other.

    `target` and `branch` run over the tokens after the beginning; `branch` is the number of each token's branch.
    """

    shared: list[int]
    ids: list[int]
    target: list[bool]
    branch: list[int]

    def extent(self) -> Extent:
        """How the row lies in a flat batch: beginning and branches each padded to a multiple of tokens."""
        lengths = [self.branch.count(b) for b in range(self.branch[-1] + 1)] if self.branch else []
        if lengths:
            lengths[-1] += -sum(lengths) % _ROUND
        length = len(self.shared)
        return Extent(length + -length % _ROUND, length, tuple(lengths))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows behind one another: ids, target, real and position are [tokens]; `layout` says what sees what."""

    ids: torch.Tensor
    target: torch.Tensor
    real: torch.Tensor
    position: torch.Tensor
    layout: Layout


def prompt_texts(made: Example) -> tuple[str, list[str]]:
    """What all questions share (system message and evidence), and the rest of the prompt of each question."""
    shared = f"<|system|>\n{made.system}<|end|>\n<|user|>\n{made.evidence}"
    return shared, [f"\n\n{turn.line}<|end|>\n<|assistant|>\n" for turn in made.turns]


def encode(tokenizer: Any, made: Example, *, isolated: bool, most: int | None = None) -> Row:
    """The row of an example; in the chat layout all turns are one branch, each later question a new user turn.

    Answers stop after `most` tokens, if told.
    """
    shared, rests = prompt_texts(made)
    row = Row(_ids(tokenizer, shared), [], [], [])
    for number, (rest, turn) in enumerate(zip(rests, made.turns, strict=True)):
        if number and not isolated:
            rest = "\n<|user|>" + rest[1:]
        for text, target in ((rest, False), (turn.answer + "<|end|>", True)):
            part = _ids(tokenizer, text)[: most if target else None]
            row.ids.extend(part)
            row.target.extend([target] * len(part))
            row.branch.extend([number if isolated else 0] * len(part))
    return row


def collate(rows: list[Row]) -> Batch:
    """Lay rows behind one another, beginnings and branches padded at their ends."""
    import torch

    ids: list[int] = []
    target: list[bool] = []
    position: list[int] = []
    real: list[bool] = []
    extents = [row.extent() for row in rows]
    for row, extent in zip(rows, extents, strict=True):
        parts = [(row.shared, [False] * len(row.shared), 0, extent.shared)]
        start = 0
        for branch, length in enumerate(extent.lengths):
            stop = start + row.branch.count(branch)
            parts.append((row.ids[start:stop], row.target[start:stop], extent.real, length))
            start = stop
        for tokens, targets, first, length in parts:
            gap = length - len(tokens)
            ids += tokens + [PAD] * gap
            target += targets + [False] * gap
            real += [True] * len(tokens) + [False] * gap
            position += [first + place for place in range(length)]
    layout = Layout(tuple(extents))
    columns = [torch.tensor(column) for column in (ids, target, real, position)]
    return Batch(columns[0], columns[1], columns[2], columns[3], layout)


def pool(
    tokenizer: Any, *, seed: str, number: int, level: int, batch_tokens: int, count: int = 24
) -> list[Batch]:
    """`count` batches, pool `number`: a function of its arguments alone, so that a resumed run finds the same ones."""
    rng = random.Random(f"pool:{seed}:{number}")
    groups: list[list[Row]] = [[]]
    size = index = 0
    while True:
        row = _row(rng, tokenizer, seed=f"{seed}:{number}:{index}", level=level)
        tokens = row.extent().tokens
        index += 1
        if tokens > batch_tokens:
            continue
        if size + tokens > batch_tokens:
            if len(groups) == count:
                return [collate(group) for group in groups]
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += tokens


def _row(rng: random.Random, tokenizer: Any, *, seed: str, level: int) -> Row:
    """A row of a pool: mostly an example, its questions apart; now and then a lookup or a chat."""
    of = LEVELS[level]
    most = MAX_UNITS if of.wide and rng.random() < of.wide else of.most
    if rng.random() < _LOOKUP_SHARE:
        return lookup_row(rng, tokenizer, units=min(MAX_UNITS, rng.randint(4, 4 + most)))
    units = min(MAX_UNITS, 3 + int((most - 2) * rng.random() ** 1.6))
    isolated = rng.random() >= _CHAT_SHARE
    turns = min(24, 4 + int(1.3 * units)) if isolated else rng.randint(3, 6)
    made = example(
        seed=seed,
        units=units,
        style=None if of.written else "quote",
        turns=turns,
        lexical=of.lexical,
        written=of.written,
        families=of.families,
    )
    cut = made.style == "quote" and isolated and rng.random() >= _WHOLE_SHARE
    return encode(tokenizer, made, isolated=isolated, most=_QUOTED if cut else None)


def induction_row(rng: random.Random, vocabulary: int, *, length: int = 96) -> Row:
    """Random tokens repeated with random gaps; the targets are the tokens that the repetition foretells."""
    motif = [rng.randrange(FIRST_MARK, vocabulary) for _ in range(rng.randint(4, 28))]
    ids: list[int] = []
    while len(ids) < length:
        ids += motif + [rng.randrange(FIRST_MARK, vocabulary) for _ in range(rng.randint(0, 8))]
    ids = ids[:length]
    seen: set[tuple[int, int]] = set()
    target = [False]
    for pair in pairwise(ids):
        target.append(pair in seen)
        seen.add(pair)
    return Row([], ids, target, [0] * length)


def lookup_row(rng: random.Random, tokenizer: Any, *, units: int) -> Row:
    """Numbered units of random tokens, asked for by a few of them: the bare skill of finding and copying.

    Some tokens are common to many units and appear in questions too, where they tell nothing.
    """
    first = FIRST_MARK + len(MARKS) + 256
    common = [rng.randrange(first, len(tokenizer)) for _ in range(12)]
    line, ask, end = (
        _ids(tokenizer, text) for text in ("\n", "\n\nQuestion:", "<|end|>\n<|assistant|>\n")
    )
    row = Row(_ids(tokenizer, "<|system|>"), [], [], [])
    own: list[list[int]] = []
    lines: list[list[int]] = []
    for number in range(units):
        own.append([rng.randrange(first, len(tokenizer)) for _ in range(rng.randint(3, 7))])
        lines.append(own[-1] + rng.sample(common, rng.randint(0, 4)))
        rng.shuffle(lines[-1])
        row.shared.extend([*line, FIRST_MARK + number, *lines[-1]])
    for branch in range(min(units * 2, 16)):
        number = rng.randrange(units)
        words = rng.sample(own[number], rng.randint(1, min(4, len(own[number])))) + rng.sample(
            common, rng.randint(0, 3)
        )
        rng.shuffle(words)
        question = [*ask, *words, *end]
        answer = [FIRST_MARK + number, *lines[number], END]
        row.ids.extend(question + answer)
        row.target.extend([False] * len(question) + [True] * len(answer))
        row.branch.extend([branch] * (len(question) + len(answer)))
    return row


def warm_up_batch(tokenizer: Any, *, seed: str, step: int, steps: int, batch_tokens: int) -> Batch:
    """Batch `step` of the `steps` before the curriculum: induction for an eighth, then lookup among ever more units."""
    rng = random.Random(f"warm-up:{seed}:{step}")
    done = step / steps
    rows: list[Row] = []
    units = 3 + int(50 * max(0.0, done - 0.2))
    while sum(row.extent().tokens for row in rows) < batch_tokens - 800:
        if done < 1 / 8 or rng.random() < 0.1:
            rows.append(induction_row(rng, len(tokenizer)))
        else:
            rows.append(lookup_row(rng, tokenizer, units=units))
    return collate(rows)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
