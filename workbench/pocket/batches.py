"""Turn examples into padded batches of token ids with targets, positions and attention masks.

One evidence serves several questions. In the isolated layout (most of the time) each question sees the evidence and
itself only, at the positions it would have alone: a batch row then equals so many single-turn prompts. In the chat
layout the questions follow one another as turns.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.pocket.data import MAX_UNITS, Example, example
from workbench.pocket.tokenizer import END, FIRST_MARK, MARKS, PAD

if TYPE_CHECKING:
    import torch

LEVELS = (4, 8, 12, 20, 32, 44)  # the most units of one evidence, by level of the curriculum
MAX_TOKENS = 2048
_CHAT_SHARE = 0.15
_LOOKUP_SHARE = 0.08
_ALIGN = 700  # rows longer than this are aligned at their branches
_POOL = 144  # examples that are sorted by length and cut into batches together


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One example as tokens: the shared beginning, then branches that do not see each other.

    `target` and `branch` run over the tokens after the beginning; `branch` is the number of each token's branch.
    """

    shared: list[int]
    ids: list[int]
    target: list[bool]
    branch: list[int]

    def __len__(self) -> int:
        return len(self.shared) + len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Padded rows: ids, target, real and position are [rows, tokens].

    mask [rows, 1, queries, tokens] says what the last `queries` tokens see; the tokens before them are causal.
    """

    ids: torch.Tensor
    target: torch.Tensor
    real: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor


def prompt_texts(made: Example) -> tuple[str, list[str]]:
    """What all questions share (system message and evidence), and the rest of the prompt of each question."""
    shared = f"<|system|>\n{made.system}<|end|>\n<|user|>\n{made.evidence}"
    return shared, [f"\n\n{turn.line}<|end|>\n<|assistant|>\n" for turn in made.turns]


def encode(tokenizer: Any, made: Example, *, isolated: bool) -> Row:
    """The row of an example; in the chat layout all turns are one branch, each later question a new user turn."""
    shared, rests = prompt_texts(made)
    row = Row(_ids(tokenizer, shared), [], [], [])
    for number, (rest, turn) in enumerate(zip(rests, made.turns, strict=True)):
        if number and not isolated:
            rest = "\n<|user|>" + rest[1:]
        for text, target in ((rest, False), (turn.answer + "<|end|>", True)):
            part = _ids(tokenizer, text)
            row.ids.extend(part)
            row.target.extend([target] * len(part))
            row.branch.extend([number if isolated else 0] * len(part))
    return row


def collate(rows: list[Row]) -> Batch:
    """Pad rows to one length. In long batches all branches start in one column, so that the beginnings stay causal."""
    import torch

    aligned = max(map(len, rows)) > _ALIGN
    first = max(len(row.shared) for row in rows) if aligned else 0
    width = first + max(len(row.ids) for row in rows) if aligned else max(map(len, rows))
    shape = (len(rows), width)
    ids = torch.full(shape, PAD)
    target, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    position, branch = torch.zeros(shape, dtype=torch.long), torch.full(shape, -2)
    for index, row in enumerate(rows):
        length = len(row.shared)
        start = first if aligned else length
        stop = start + len(row.ids)
        ids[index, :length] = torch.tensor(row.shared)
        ids[index, start:stop] = torch.tensor(row.ids)
        target[index, start:stop] = torch.tensor(row.target)
        real[index, :length] = real[index, start:stop] = True
        position[index, :length] = torch.arange(length)
        position[index, start:stop] = torch.tensor(
            [length + place for place in _places(row.branch)]
        )
        branch[index, :length], branch[index, start:stop] = -1, torch.tensor(row.branch)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()[first:]
    own = branch[:, None, :] == branch[:, first:, None]  # [rows, query, key]
    seen = own | (branch[:, None, :] == -1)
    return Batch(ids, target, real, position, (seen & earlier)[:, None])


def _places(branch: list[int]) -> list[int]:
    """Place of each token within its branch."""
    places: list[int] = []
    for index, number in enumerate(branch):
        places.append(places[-1] + 1 if index and branch[index - 1] == number else 0)
    return places


def pool(tokenizer: Any, *, seed: int, number: int, level: int, batch_tokens: int) -> list[Batch]:
    """The batches of pool `number`: a function of its arguments alone, so that a resumed run finds the same ones."""
    rng = random.Random(f"pool:{seed}:{number}")
    rows = []
    for index in range(_POOL):
        most = LEVELS[level]
        if rng.random() < _LOOKUP_SHARE:
            rows.append(lookup_row(rng, tokenizer, units=min(MAX_UNITS, rng.randint(4, 4 + most))))
            continue
        units = min(MAX_UNITS, 3 + int((most - 2) * rng.random() ** 1.7))
        turns = 1 if rng.random() < 0.03 else rng.randint(4, 6 + units // 4)
        made = example(seed=f"{seed}:{number}:{index}", units=units, turns=turns)
        row = encode(tokenizer, made, isolated=rng.random() >= _CHAT_SHARE)
        if len(row) <= min(MAX_TOKENS, batch_tokens):
            rows.append(row)
    rows.sort(key=len)
    groups: list[list[Row]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row) > batch_tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return [collate(group) for group in groups]


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


def warm_up_batch(tokenizer: Any, *, seed: int, step: int, steps: int, batch_tokens: int) -> Batch:
    """Batch `step` of the `steps` before the curriculum: induction for an eighth, then lookup among ever more units."""
    rng = random.Random(f"warm-up:{seed}:{step}")
    done = step / steps
    rows: list[Row] = []
    units = 3 + int(12 * max(0.0, done - 0.3))
    while not rows or (len(rows) + 1) * max(map(len, rows)) <= batch_tokens:
        if done < 1 / 8 or rng.random() < 0.1:
            rows.append(induction_row(rng, len(tokenizer)))
        else:
            rows.append(lookup_row(rng, tokenizer, units=units))
    return collate(rows)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
