"""Measure a pocket model on held-out data: does it cite the right sentence, by number of sentences to choose from?

``python -m workbench.pocket.evaluate --weights FOLDER`` prints the table of the model card.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.generation.prompts import ABSTENTION
from workbench.pocket import WEIGHTS
from workbench.pocket.batches import Batch, collate, encode
from workbench.pocket.data import Example, example
from workbench.pocket.kernels import ATTENTION, EXPERTS, register_kernels
from workbench.pocket.tokenizer import FIRST_MARK


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """A kind of question that training never saw."""

    name: str
    family: str
    split: str
    style: str = "quote"
    abstain: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Shares from 0 to 1 over `questions` questions with about `units` sentences to choose from.

    `citation`: the right mark (or the abstention) has the highest logit among the marks of the evidence and the
    abstention's first token. `exact`: greedy decoding gives the whole answer. `overlap`: the baseline's citation.
    """

    set: str
    units: int
    questions: int
    citation: float
    exact: float
    overlap: float


SETS = (
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
    HeldOutSet("facts, few words", "facts", "entities", style="free"),
    HeldOutSet("events, few words", "events", "entities", style="free"),
    HeldOutSet("facts, no answer", "facts", "entities", abstain=True),
    HeldOutSet("events, no answer", "events", "entities", abstain=True),
    HeldOutSet("real prose, no answer", "prose", "entities", abstain=True),
    HeldOutSet("central sentence", "summary", "entities", style="summary"),
)


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    sizes: tuple[int, ...] = (5, 12, 24, 36),
    questions: int = 40,
    seed: int = 99,
) -> list[Score]:
    """Scores of every held-out set at every size, at least `questions` questions each (up to 6 share an evidence)."""
    _prepare(model)
    scores = []
    for held_out in SETS:
        for units in sizes:
            right = np.zeros(3)
            asked = 0
            for made in _examples(held_out, units, questions, seed):
                for verdict in _verdicts(model, tokenizer, made):
                    right += verdict
                    asked += 1
            citation, exact, overlap = (right / asked).tolist()
            scores.append(Score(held_out.name, units, asked, citation, exact, overlap))
    return scores


def expert_usage(model: Any, tokenizer: Any, *, seed: int = 99) -> NDArray[np.float64]:
    """Share of the routed slots of each expert on held-out text of every set: [layers, experts], rows sum to 1."""
    import torch

    _prepare(model)
    usage: NDArray[np.float64] | int = 0
    for held_out in SETS:
        made = next(_examples(held_out, 12, 1, seed))
        batch = collate([encode(tokenizer, made, isolated=True)])
        with torch.no_grad():
            out = _forward(model, batch, router=True)
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


def _examples(held_out: HeldOutSet, units: int, questions: int, seed: int) -> Iterator[Example]:
    asked = 0
    index = 0
    while asked < questions:
        made = example(
            seed=f"evaluation-{seed}-{held_out.name}-{units}-{index}",
            units=units,
            split=held_out.split,
            family=None if held_out.style == "summary" else held_out.family,
            style=held_out.style,
            turns=6,
            abstain=1.0 if held_out.abstain else 0.0,
        )
        index += 1
        turns = tuple(turn for turn in made.turns if (turn.unit is None) == held_out.abstain)
        if turns:
            asked += len(turns)
            yield Example(made.style, made.family, made.evidence, made.units, turns)


def _verdicts(model: Any, tokenizer: Any, made: Example) -> Iterator[NDArray[np.float64]]:
    """Per question: right citation, exact answer, right citation of the baseline (each 0 or 1)."""
    import torch

    row = encode(tokenizer, made, isolated=True)
    batch = collate([row])
    with torch.no_grad():
        hidden = _forward(model, batch).last_hidden_state[0]
        target = batch.target[0]
        logits = model.lm_head(hidden[:-1][target[1:]]).float()
    labels = batch.ids[0][target]
    begins = (target[1:] & ~target[:-1])[target[1:]].nonzero().flatten().tolist()
    silent = tokenizer(ABSTENTION, add_special_tokens=False)["input_ids"][0]
    choices = torch.tensor([silent, *range(FIRST_MARK, FIRST_MARK + len(made.units))])
    for turn, begin, end in zip(made.turns, begins, [*begins[1:], len(labels)], strict=True):
        chosen = int(choices[logits[begin, choices].argmax()])
        exact = bool((logits[begin:end].argmax(-1) == labels[begin:end]).all())
        baseline = overlap_choice(made.units, turn.line.removeprefix("Question: "))
        yield np.array(
            [chosen == int(labels[begin]), exact, baseline == turn.unit], dtype=np.float64
        )


def _prepare(model: Any) -> None:
    register_kernels()
    model.config._attn_implementation = ATTENTION
    model.config._experts_implementation = EXPERTS
    model.eval()


def _forward(model: Any, batch: Batch, *, router: bool = False) -> Any:
    return model.model(
        input_ids=batch.ids,
        position_ids=batch.position,
        attention_mask=batch.mask,
        use_cache=False,
        output_router_logits=router,
    )


def _table(scores: list[Score]) -> Iterator[str]:
    sizes = sorted({score.units for score in scores})
    yield "| held-out set | " + " | ".join(f"{size} sentences" for size in sizes) + " |"
    yield "|---" * (len(sizes) + 1) + "|"
    for name in dict.fromkeys(score.set for score in scores):
        cells = (
            f"{100 * s.citation:.0f} / {100 * s.exact:.0f} / {100 * s.overlap:.0f}"
            for s in scores
            if s.set == name
        )
        yield f"| {name} | " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Command line of the evaluation."""
    import torch
    from transformers import AutoTokenizer, PhimoeForCausalLM

    parser = argparse.ArgumentParser(
        prog="python -m workbench.pocket.evaluate", description=__doc__
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--questions", type=int, default=40, help="questions for each set and size")
    parser.add_argument("--out", type=Path, help="write the scores to this .csv as well")
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.weights)
    model = PhimoeForCausalLM.from_pretrained(given.weights, dtype=torch.float32)
    scores = evaluate(model, tokenizer, questions=given.questions)
    sys.stdout.write(
        "\n".join(
            ["citation / exact answer / citation of word overlap, in percent", *_table(scores)]
        )
        + "\n"
    )
    usage = expert_usage(model, tokenizer)
    for layer, row in enumerate(usage):
        sys.stdout.write(
            f"layer {layer}: experts get {100 * row.min():.1f} to {100 * row.max():.1f} % of the slots\n"
        )
    if given.out:
        with given.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Score)])
            writer.writeheader()
            writer.writerows(asdict(score) for score in scores)


if __name__ == "__main__":
    main()
