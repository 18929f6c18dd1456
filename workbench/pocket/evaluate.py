"""Measure a pocket model on held-out data: which sentence it cites, and what it says, by number of passages and place.

``python -m workbench.pocket.evaluate --weights FOLDER`` prints the tables of the model card.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.evaluation.answers import is_contained, is_exact, token_f1, typed_span
from workbench.generation.loading import load_generator
from workbench.generation.prompts import ABSTENTION, chat_prompt, known_marks
from workbench.pocket import WEIGHTS
from workbench.pocket.batches import collate, encode
from workbench.pocket.data import Example, Turn, example
from workbench.pocket.kernels import ATTENTION, EXPERTS, Layout, register_kernels
from workbench.pocket.tokenizer import FIRST_MARK

PASSAGES = (1, 3, 5, 8)


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """A kind of question that training never saw."""

    name: str
    family: str
    split: str
    style: str = "quote"
    abstain: bool = False


SETS = (
    HeldOutSet("scenes, unseen", "scenes", "entities"),
    HeldOutSet("facts, new names", "facts", "entities"),
    HeldOutSet("facts, new wordings", "facts", "wordings"),
    HeldOutSet("facts, new relations", "facts", "relations"),
    HeldOutSet("events, new pairs", "events", "entities"),
    HeldOutSet("events, new wordings", "events", "wordings"),
    HeldOutSet("real prose, new documents", "prose", "entities"),
    HeldOutSet("German, French, Spanish", "languages", "entities"),
    HeldOutSet("question in another language", "crossing", "entities"),
    HeldOutSet("tables", "table", "entities"),
    HeldOutSet("code", "code", "entities"),
    HeldOutSet("scenes, few words", "scenes", "entities", style="free"),
    HeldOutSet("facts, few words", "facts", "entities", style="free"),
    HeldOutSet("facts, few words, new wordings", "facts", "wordings", style="free"),
    HeldOutSet("events, few words", "events", "entities", style="free"),
    HeldOutSet("scenes, no answer", "scenes", "entities", abstain=True),
    HeldOutSet("facts, no answer", "facts", "entities", abstain=True),
    HeldOutSet("events, no answer", "events", "entities", abstain=True),
    HeldOutSet("real prose, no answer", "prose", "entities", abstain=True),
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One question: what was right. Shares are 0 or 1, but for `f1`.

    `cited` is the right mark, or the abstention where that is right, as the likeliest first token among the marks of
    the evidence and the abstention's. `chosen` leaves the abstention out of the choice. `exact`, `contained` and `f1`
    are of the words that greedy decoding says (few words) or of the cited sentence (quotes); an abstention has none.
    `overlap` is what the word-overlap baseline cites, `overlap_f1` its sentence's best typed span. `place` is the gold
    passage's place among them, from 0 to 1.
    """

    set: str
    passages: int
    place: float
    is_answerable: bool
    cited: float
    chosen: float
    abstained: float
    exact: float
    contained: float
    f1: float
    overlap: float
    overlap_f1: float


def evaluate(
    folder: Path | str, *, passages: Sequence[int] = PASSAGES, questions: int = 40, seed: int = 99
) -> list[Judgement]:
    """Every held-out set at every number of passages, `questions` or more questions each (8 share an evidence)."""
    generator = load_generator(str(folder))
    found: list[Judgement] = []
    for held_out in SETS:
        for count in passages:
            for made in _examples(
                held_out, count, questions, seed, known_marks(generator.tokenizer)
            ):
                found += _judged(generator, held_out, count, made)
    return found


def counterfactual(
    folder: Path | str, *, questions: int = 60, seed: int = 7
) -> tuple[int, int, int]:
    """Swap the fact in the gold passage: (right before, of these right again with the new fact, asked).

    The few words of the answer are replaced, in their sentence, by those of another question of like form.
    """
    generator = load_generator(str(folder))
    held_out = HeldOutSet("swap", "facts", "entities", style="free")
    made = list(_examples(held_out, 3, 3 * questions, seed, known_marks(generator.tokenizer)))
    spans = [_words(turn) for one in made for turn in one.turns]
    rng = random.Random(seed)
    before: list[tuple[Example, Turn]] = []
    after: list[tuple[Example, Turn]] = []
    for one in made:
        for turn in one.turns:
            old = _words(turn)
            others = [s for s in spans if _form(s) == _form(old) and s not in one.evidence]
            line = one.units[(turn.unit or 1) - 1]
            if len(before) == questions or not others or line.count(old) != 1:
                continue
            new = rng.choice(others)
            changed = replace(one, evidence=one.evidence.replace(line, line.replace(old, new)))
            before.append((one, turn))
            after.append((changed, replace(turn, answer=turn.answer.replace(old, new))))
    right = [
        said.strip() == turn.answer
        for pairs in (before, after)
        for said, (_, turn) in zip(_say(generator, pairs), pairs, strict=True)
    ]
    first, second = right[: len(before)], right[len(before) :]
    return sum(first), sum(a and b for a, b in zip(first, second, strict=True)), len(before)


def expert_usage(model: Any, tokenizer: Any, *, seed: int = 99) -> NDArray[np.float64]:
    """Share of the routed slots of each expert on held-out text of every set: [layers, experts], rows sum to 1."""
    import torch

    _prepare(model)
    usage: NDArray[np.float64] | int = 0
    for held_out in SETS:
        made = next(_examples(held_out, 3, 1, seed, known_marks(tokenizer)))
        batch = collate([encode(tokenizer, made, isolated=True)])
        with torch.no_grad():
            out = _forward(model, batch.ids, batch.position, batch.layout, router=True)
        rows = [
            torch.bincount(
                layer.reshape(-1, layer.shape[-1]).topk(2, -1).indices.reshape(-1),
                minlength=layer.shape[-1],
            )
            for layer in out.router_logits
        ]
        usage = usage + torch.stack(rows).double().numpy()
    shares: NDArray[np.float64] = np.asarray(usage, dtype=np.float64)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def overlap_choice(units: tuple[str, ...], question: str) -> int | None:
    """The baseline: the number of the sentence that shares the rarest words with the question, None without any.

    >>> overlap_choice(("The pump leaks.", "The fan is loud."), "Which pump leaks?")
    1
    """
    sets = [set(re.findall(r"\w+", unit.lower())) for unit in units]
    spread = Counter(word for words in sets for word in words)
    asked = set(re.findall(r"\w+", question.lower()))
    scores = [sum(math.log((len(units) + 1) / spread[w]) for w in words & asked) for words in sets]
    best = max(scores)
    return scores.index(best) + 1 if best > 0 else None


def _examples(
    held_out: HeldOutSet, passages: int, questions: int, seed: int, marks: int | None
) -> Iterator[Example]:
    asked = index = 0
    while asked < questions:
        made = example(
            seed=f"evaluation-{seed}-{held_out.name}-{passages}-{index}",
            passages=passages,
            split=held_out.split,
            family=held_out.family,
            style=held_out.style,
            turns=8,
            abstain=1.0 if held_out.abstain else 0.0,
        )
        index += 1
        turns = tuple(turn for turn in made.turns if (turn.unit is None) == held_out.abstain)
        if turns and len(made.units) <= (marks or len(made.units)):
            asked += len(turns)
            yield replace(made, turns=turns)


def _judged(
    generator: Any, held_out: HeldOutSet, passages: int, made: Example
) -> Iterator[Judgement]:
    logits, silent = _first_logits(generator, made)
    spoken = held_out.style == "free"
    texts = (
        _say(generator, [(made, turn) for turn in made.turns]) if spoken else [""] * len(made.turns)
    )
    blocks = made.evidence.split("\n\n")
    ends = np.cumsum([len(re.findall(r"^\[\d+\] ", block, re.MULTILINE)) for block in blocks])
    for turn, row, text in zip(made.turns, logits, texts, strict=True):
        marks = row[FIRST_MARK : FIRST_MARK + len(made.units)]
        best = int(marks.argmax()) + 1
        abstained = bool(row[silent] > marks.max())
        cited = None if abstained else best
        place = (
            0.0
            if turn.unit is None
            else float(np.searchsorted(ends, turn.unit)) / max(1, len(blocks) - 1)
        )
        question = turn.line.removeprefix("Question: ")
        guessed = overlap_choice(made.units, question)
        span = typed_span(question, made.units[guessed - 1]) if guessed else ""
        if not spoken:
            said, wanted = ("" if cited is None else made.units[cited - 1]), ""
            wanted = "" if turn.unit is None else made.units[turn.unit - 1]
        else:
            said, wanted = re.sub(r"^\[\d+\] ?", "", text), _words(turn)
        yield Judgement(
            set=held_out.name,
            passages=passages,
            place=place,
            is_answerable=turn.unit is not None,
            cited=float(cited == turn.unit),
            chosen=float(best == turn.unit),
            abstained=float(abstained),
            exact=float(is_exact(said, [wanted])),
            contained=float(is_contained(said, [wanted])),
            f1=token_f1(said, [wanted]),
            overlap=float(guessed == turn.unit),
            overlap_f1=token_f1(span, [wanted]) if spoken else 0.0,
        )


def _first_logits(generator: Any, made: Example) -> tuple[NDArray[np.float32], int]:
    """Logits of the first token of every answer, all in one pass: [questions, vocabulary]; and the abstention's id."""
    import torch

    model, tokenizer = generator.model, generator.tokenizer
    row = encode(tokenizer, made, isolated=True)
    batch = collate([row])
    kept = model.config._attn_implementation, model.config._experts_implementation
    _prepare(model)
    with torch.no_grad():
        hidden = _forward(model, batch.ids, batch.position, batch.layout).last_hidden_state[0]
        begins = (batch.target[1:] & ~batch.target[:-1]).nonzero().flatten()
        logits = model.lm_head(hidden[begins]).float().numpy()
    model.config._attn_implementation, model.config._experts_implementation = kept
    return logits, tokenizer(ABSTENTION, add_special_tokens=False)["input_ids"][0]


def _say(generator: Any, asked: Sequence[tuple[Example, Turn]]) -> list[str]:
    """What greedy decoding answers, through the generator that users have."""
    prompts = [
        chat_prompt(
            [("system", made.system), ("user", f"{made.evidence}\n\n{turn.line}")],
            tokenizer=generator.tokenizer,
            budget_tokens=generator.context - 64,
        )
        for made, turn in asked
    ]
    said = generator.generate_batch(prompts, max_new_tokens=48, capture=False)
    return [generation.text for generation in said]


def _words(turn: Turn) -> str:
    """The answer of a turn without mark and verdict."""
    return re.sub(r"^(\[\d+\] )?((Yes|No): )?", "", turn.answer)


def _form(span: str) -> str:
    """Digits, small and capital letters of a span by class, each run once: "12 May 1907" is "9 Aa 9"."""
    classes = re.sub(r"[a-zà-ÿ]+", "a", re.sub(r"[A-ZÀ-Þ]", "A", re.sub(r"\d+", "9", span)))
    return re.sub(r"A+", "A", classes)


def _prepare(model: Any) -> None:
    register_kernels()
    model.config._attn_implementation = ATTENTION
    model.config._experts_implementation = EXPERTS
    model.eval()


def _forward(model: Any, ids: Any, position: Any, layout: Layout, *, router: bool = False) -> Any:
    return model.model(
        input_ids=ids[None],
        position_ids=position[None],
        layout=layout,
        use_cache=False,
        output_router_logits=router,
    )


def tables(found: Sequence[Judgement]) -> Iterator[str]:
    """The figures of the model card as Markdown: by set and passages, by place, and abstention over all."""
    sizes = sorted({j.passages for j in found})
    yield "citation / exact words / word overlap's citation, in percent\n"
    yield "| held-out set | " + " | ".join(f"{size} passages" for size in sizes) + " |"
    yield "|---" * (len(sizes) + 1) + "|"
    for name in dict.fromkeys(j.set for j in found):
        cells = []
        for size in sizes:
            of = [j for j in found if (j.set, j.passages) == (name, size)]
            cells.append(f"{_mean(of, 'cited')} / {_mean(of, 'exact')} / {_mean(of, 'overlap')}")
        yield f"| {name} | " + " | ".join(cells) + " |"
    answerable = [j for j in found if j.is_answerable]
    yield (
        "\n| answerable questions, mean of all sets | "
        + " | ".join(f"{s} passages" for s in sizes)
        + " |"
    )
    yield "|---" * (len(sizes) + 1) + "|"
    for label, name in (
        ("cited (abstaining allowed)", "cited"),
        ("chosen (a sentence must be chosen)", "chosen"),
        ("word overlap", "overlap"),
    ):
        cells = [_mean([j for j in answerable if j.passages == s], name) for s in sizes]
        yield f"| {label} | " + " | ".join(cells) + " |"
    spoken = [j for j in answerable if "few words" in j.set]
    yield "\n| few words | exact | contained | token F1 | F1 of the typed span in the overlap sentence |"
    yield "|---|---|---|---|---|"
    columns = [_mean(spoken, name) for name in ("exact", "contained", "f1", "overlap_f1")]
    yield f"| all | {' | '.join(columns)} |"
    yield "\n| place of the gold passage (5 and 8 passages) | cited |\n|---|---|"
    for name, low, high in (("first", -0.1, 0.01), ("between", 0.01, 0.99), ("last", 0.99, 1.1)):
        of = [j for j in answerable if j.passages in (5, 8) and low < j.place <= high]
        yield f"| {name} | {_mean(of, 'cited')} |"
    cited = [j for j in found if not j.abstained]
    right = sum(j.cited for j in cited if j.is_answerable)
    unanswerable = [j for j in found if not j.is_answerable]
    balanced = (
        np.mean([1 - j.abstained for j in answerable])
        + np.mean([j.abstained for j in unanswerable])
    ) / 2
    yield f"\ncitation precision {right / max(1, len(cited)):.1%}, recall {right / max(1, len(answerable)):.1%}; "
    yield f"abstention accuracy (mean of both kinds) {balanced:.1%}"


def _mean(of: Iterable[Judgement], name: str) -> str:
    values = [getattr(j, name) for j in of]
    return f"{100 * np.mean(values):.0f}" if values else "–"


def main(arguments: list[str] | None = None) -> None:
    """Command line of the evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.pocket.evaluate", description=__doc__
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--questions", type=int, default=40, help="questions for each set and size")
    parser.add_argument("--out", type=Path, help="write every judgement to this .csv as well")
    given = parser.parse_args(arguments)
    found = evaluate(given.weights, questions=given.questions)
    sys.stdout.write("\n".join(tables(found)) + "\n")
    before, again, asked = counterfactual(given.weights, questions=2 * given.questions)
    sys.stdout.write(
        f"swapped facts: {before} of {asked} right before, {again} of these right with the new fact\n"
    )
    generator = load_generator(str(given.weights))
    for layer, row in enumerate(expert_usage(generator.model, generator.tokenizer)):
        sys.stdout.write(
            f"layer {layer}: experts get {100 * row.min():.1f} to {100 * row.max():.1f} % of the slots\n"
        )
    if given.out:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Judgement)])
            writer.writeheader()
            writer.writerows(asdict(judgement) for judgement in found)


if __name__ == "__main__":
    main()
