"""Prompt-lookup decoding against plain greedy decoding on answers that copy from the prompt, interleaved.

Run: python benchmarks/prompt_lookup.py [--generator G] [--questions 20]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from tables import heading, table

import workbench as wb
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import build_prompt

NEW_TOKENS, REPEATS, WIDTHS = 64, 3, (0, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--questions", type=int, default=20)
    arguments = parser.parse_args()
    corpora = Path(__file__).resolve().parent.parent / "corpora"
    corpus = wb.read_corpus(corpora)
    retriever = wb.build_retriever(corpus)
    generator = replace(wb.load_generator(arguments.generator), prefixes=PrefixCache(0))
    questions = [f"What does the text say about {document.title}?" for document in corpus] + [
        "Which valve failed first?",
        "What did the repair cost?",
    ]
    prompts = [
        build_prompt(
            question,
            retriever.search(question, k=3),
            documents=retriever.documents,
            tokenizer=generator.tokenizer,
            budget_tokens=generator.context - NEW_TOKENS,
            max_marks=generator.max_marks,
        )
        for question in questions[: arguments.questions]
    ]
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    passes: dict[int, int] = dict.fromkeys(WIDTHS, 0)
    tokens: dict[int, list[tuple[int, ...]]] = {width: [] for width in WIDTHS}
    count = 0

    def see(*_: object) -> None:
        nonlocal count
        count += 1

    handle = generator.model.model.register_forward_pre_hook(see)
    for repeat in range(REPEATS + 1):
        for width in WIDTHS:
            count, elapsed = 0, 0.0
            for prompt in prompts:
                decoding = Decoding(prompt_lookup_tokens=width)
                found = generator.generate(prompt, max_new_tokens=NEW_TOKENS, decoding=decoding)
                elapsed += found.timing.decode_seconds
                if repeat == 0:
                    tokens[width].append(found.token_ids)
            passes[width] = count
            if repeat:
                seconds[width].append(elapsed)
    handle.remove()
    rows = []
    for width in WIDTHS:
        ratios = [a / b for a, b in zip(seconds[0], seconds[width], strict=True)]
        equal = sum(a == b for a, b in zip(tokens[width], tokens[0], strict=True))
        rows.append(
            [
                width or "plain",
                f"{statistics.median(seconds[width]):.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                passes[width],
                f"{equal} of {len(prompts)}",
            ]
        )
    total = sum(map(len, tokens[0]))
    print(
        heading(
            f"Prompt-lookup decoding on answers that copy ({generator.name})",
            packages=("torch", "transformers"),
            seed=None,
            note=f"{len(prompts)} prompts with three passages and the instruction to copy a sentence; {total} answer "
            f"tokens in all, seconds after the first token; median of {REPEATS}, interleaved.",
        )
    )
    print()
    print(
        table(
            ["tokens looked up", "decode seconds", "speed (least–most)", "passes", "equal answers"],
            rows,
        )
    )


if __name__ == "__main__":
    main()
