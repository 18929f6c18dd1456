"""Do the experts of a generator differ by register, language and segment, and by more than the words do?

Registers and languages are those of the generated held-out text of the pocket model (any generator can read it);
segments are those of question prompts over it. Run:
python benchmarks/specialization.py [--generator G] [--documents N] [--permutations N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.generation.prompts import chat_prompt, plain_prompt
from workbench.pocket.data import example
from workbench.pocket.passages import World
from workbench.pocket.scenes import scene_passages
from workbench.routing.specialization import specialization

SEED = 0
REGISTERS = ("scenes", "prose", "table", "code", "events", "facts")
LANGUAGES = ("en", "de", "fr", "es", "it")


def register_text(family: str, number: int) -> str:
    """Held-out text of one family, without marks."""
    made = example(
        seed=f"register-{number}", passages=2, family=family, split="entities", style="quote"
    )
    return "\n".join(made.units)


def language_text(language: str, number: int) -> str:
    """A scene in a language; other values each time, so that few held-out scenes are no obstacle."""
    import random

    world = World(random.Random(f"language-{number}"), "entities")
    return "\n".join(u.text for p in scene_passages(world, 6, language)[:1] for u in p.units)


def tokens_of(generator: wb.Generator, texts: Sequence[tuple[int, str]]) -> list[np.ndarray]:
    """Experts, group, document and token id of every token of the texts themselves."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for document, (group, text) in enumerate(texts):
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=generator.context)
        trace = generator.read(prompt)
        own = trace.routed & (trace.segments == trace.segment_names.index("question"))
        count = int(own.sum())
        for column, values in zip(
            columns,
            (
                trace.experts[own],
                np.full(count, group),
                np.full(count, document),
                trace.token_ids[own],
            ),
            strict=True,
        ):
            column.append(values)
    return [np.concatenate(column) for column in columns]


def segment_tokens(generator: wb.Generator, documents: int) -> list[np.ndarray]:
    """The same for the segments evidence (0), question (1) and answer (2) of answered prompts."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for number in range(documents):
        made = example(
            seed=f"segment-{number}", passages=2, family="scenes", split="entities", style="quote"
        )
        asked = f"{made.evidence}\n\n"
        messages = [("system", made.system), ("user", asked + made.turns[0].line)]
        prompt = chat_prompt(messages, tokenizer=generator.tokenizer, budget_tokens=2048)
        trace = generator.generate(prompt, max_new_tokens=40).routing
        place = dict((s.name, s) for s in prompt.segments)["question"]
        is_prompt = np.arange(len(trace.token_ids)) < len(prompt.token_ids)
        inside = is_prompt & (trace.segments == trace.segment_names.index("question"))
        late = trace.spans[:, 0] >= place.start + len(asked)
        answer = trace.segments == trace.segment_names.index("answer")
        group = np.select([inside & ~late, inside & late, answer], [0, 1, 2], default=-1)
        own = trace.routed & (group >= 0)
        for column, values in zip(
            columns,
            (trace.experts[own], group[own], np.full(int(own.sum()), number), trace.token_ids[own]),
            strict=True,
        ):
            column.append(values)
    return [np.concatenate(column) for column in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--documents", type=int, default=20, help="of each register and language")
    parser.add_argument("--permutations", type=int, default=300)
    given = parser.parse_args()
    generator = wb.load_generator(given.generator)
    numbers = range(given.documents)
    registers = [(g, register_text(f, n)) for g, f in enumerate(REGISTERS) for n in numbers]
    languages = [(g, language_text(name, n)) for g, name in enumerate(LANGUAGES) for n in numbers]
    data = {
        f"register ({', '.join(REGISTERS)})": tokens_of(generator, registers),
        f"language ({', '.join(LANGUAGES)})": tokens_of(generator, languages),
        "segment (evidence, question, answer)": segment_tokens(generator, given.documents),
    }
    rows = []
    for name, (experts, groups, documents, ids) in data.items():
        nulls = [(ids, False)]
        if not name.startswith("segment"):
            nulls.insert(0, (documents, True))
        for labels, whole in nulls:
            found = specialization(
                experts,
                groups,
                exchangeable=labels,
                n_experts=int(generator.model.config.num_local_experts),
                whole=whole,
                permutations=given.permutations,
                seed=SEED,
            )
            for layer in range(len(found.bits)):
                rows.append(
                    [
                        name,
                        "documents shuffled" if whole else "tokens of one word shuffled",
                        layer,
                        f"{found.bits[layer]:.4f}",
                        f"{found.null_bits[:, layer].mean():.4f}",
                        f"{found.excess_bits[layer]:+.4f}",
                        f"{found.p_values[layer]:.3f}",
                    ]
                )
    print(
        heading(
            f"Do experts specialise? ({generator.name})",
            packages=("torch", "transformers", "numpy"),
            seed=SEED,
            note=f"{given.documents} held-out texts of each register and language, {given.permutations} shuffles. "
            "Jensen-Shannon divergence between the groups' usage in bits; its mean under shuffled labels; what is "
            "left. The shuffle within words keeps every word's own experts: what is left above it is not vocabulary. "
            "It treats the tokens of a text as independent, so its p values are too small.",
        )
    )
    print()
    header = ["groups", "null hypothesis", "layer", "bits", "bits if null", "left", "p"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
