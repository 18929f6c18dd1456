"""A batch of 8 prompts against one at a time and against transformers' padded and continuous batching.

Run: python benchmarks/batching.py [--generator G] [--rows 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from long_document import QUESTIONS, long_text
from tables import heading, table

import workbench as wb
from workbench.generation.decoding import pad_id, stop_ids
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import Prompt, plain_prompt

NEW_TOKENS, REPEATS = 24, 5


def prompts_of(generator: Any, kind: str, rows: int) -> list[Prompt]:
    """Prompts over one document of 1,500 tokens, or each with a passage of its own of 150 to 1,500 tokens."""
    text = long_text(generator.tokenizer, 3000)
    passages = (
        [text[:4000]] * rows
        if kind == "one document"
        else [text[100 * n : 100 * n + 400 + 3600 * n // rows] for n in range(rows)]
    )
    return [
        plain_prompt(
            f"{passage}\n\nQuestion: {QUESTIONS[n % len(QUESTIONS)]}",
            tokenizer=generator.tokenizer,
            budget_tokens=generator.context,
        )
        for n, passage in enumerate(passages)
    ]


def padded(generator: Any, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    """Transformers' generate on a left-padded batch."""
    pad, longest = (
        pad_id(generator.model, generator.tokenizer),
        max(len(p.token_ids) for p in prompts),
    )
    ids = torch.tensor([[pad] * (longest - len(p.token_ids)) + list(p.token_ids) for p in prompts])
    mask = torch.tensor(
        [[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    )
    with torch.inference_mode():
        output = generator.model.generate(
            ids.to(generator.device),
            attention_mask=mask.to(generator.device),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=stop_ids(generator.model, generator.tokenizer),
            pad_token_id=pad,
        )
    return [tuple(row[longest:]) for row in output.tolist()]


def continuous(generator: Any, prompts: list[Prompt]) -> list[tuple[int, ...]]:
    """Transformers' continuous batching, its prefix sharing on."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=stop_ids(generator.model, generator.tokenizer)[0],
        pad_token_id=pad_id(generator.model, generator.tokenizer),
    )
    found = generator.model.generate_batch(
        inputs=[list(p.token_ids) for p in prompts],
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=64, num_blocks=512, max_batch_tokens=2048
        ),
        warmup=False,
        progress_bar=False,
    )
    return [
        tuple(found[key].generated_tokens)
        for key in sorted(found, key=lambda k: int(k.split("_")[-1]))
    ]


def until_stop(tokens: tuple[int, ...], stops: set[int]) -> tuple[int, ...]:
    for n, token in enumerate(tokens):
        if token in stops:
            return tokens[: n + 1]
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    loaded = wb.load_generator(arguments.generator)
    stops = set(stop_ids(loaded.model, loaded.tokenizer))
    lines = []
    for kind in ("one document", "a passage each"):
        prompts = prompts_of(loaded, kind, arguments.rows)

        def one_at_a_time(reuse: bool, prompts: list[Prompt] = prompts) -> list[tuple[int, ...]]:
            generator = replace(loaded, prefixes=PrefixCache(1 << 32 if reuse else 0))
            return [
                generator.generate(
                    p, max_new_tokens=NEW_TOKENS, decoding=Decoding(reuse_prefix=reuse)
                ).token_ids
                for p in prompts
            ]

        def batched(prompts: list[Prompt] = prompts) -> list[tuple[int, ...]]:
            generator = replace(loaded, prefixes=PrefixCache(1 << 32))
            found = generator.generate_batch(
                prompts, max_new_tokens=NEW_TOKENS, most_rows=arguments.rows
            )
            return [generation.token_ids for generation in found]

        ways: dict[str, Callable[[], list[tuple[int, ...]]]] = {
            "one at a time": lambda run=one_at_a_time: run(False),
            "one at a time, prefix reused": lambda run=one_at_a_time: run(True),
            "generate_batch": batched,
            "transformers, left-padded batch": lambda prompts=prompts: padded(loaded, prompts),
            "transformers, continuous batching": lambda prompts=prompts: continuous(
                loaded, prompts
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        tokens: dict[str, list[tuple[int, ...]]] = {}
        for repeat in range(REPEATS + 1):
            for name, run in ways.items():
                started = time.perf_counter()
                tokens[name] = [until_stop(row, stops) for row in run()]
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
        base = seconds["one at a time"]
        for name, values in seconds.items():
            ratios = [a / b for a, b in zip(base, values, strict=True)]
            equal = sum(a == b for a, b in zip(tokens[name], tokens["one at a time"], strict=True))
            lines.append(
                [
                    kind,
                    name,
                    f"{statistics.median(values):.2f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                    f"{equal} of {len(prompts)}",
                ]
            )
    print(
        heading(
            f"{arguments.rows} prompts together ({loaded.name})",
            packages=("torch", "transformers"),
            seed=None,
            note=f"Up to {NEW_TOKENS} new tokens a prompt, greedy, {loaded.model.dtype} on {loaded.device}; experts "
            f"recorded in the first three ways; median of {REPEATS}, interleaved.",
        )
    )
    print()
    print(
        table(
            [
                "prompts",
                "way",
                "seconds",
                "speed against one at a time (least–most)",
                "rows with equal tokens",
            ],
            lines,
        )
    )


if __name__ == "__main__":
    main()
