"""What keys and values in 8 bits change: answers, log-probabilities, experts and bytes, ours and transformers' own.

Run: python benchmarks/kv_precision.py [--generator G] [--questions 40]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from long_document import QUESTIONS, long_text
from tables import heading, table
from transformers import QuantizedCache

import workbench as wb
from workbench.generation.kv_cache import make_cache
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import plain_prompt
from workbench.routing.capture import RoutingRecorder

NEW_TOKENS = 32


def teacher_forced(model: Any, ids: list[int], cache: Any, chunk: int) -> tuple[Any, Any]:
    """Log-probabilities [tokens, vocabulary] and experts [tokens, layers, k] of a fixed sequence fed in chunks."""
    laws = []
    with torch.inference_mode(), RoutingRecorder(model) as recorder:
        for at in range(0, len(ids), chunk):
            part = torch.tensor([ids[at : at + chunk]], device=model.device)
            output = model(input_ids=part, past_key_values=cache, use_cache=True)
            laws.append(output.logits[0].float().log_softmax(-1).cpu())
    return torch.cat(laws).numpy(), recorder.choices(ids).experts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--questions", type=int, default=40)
    arguments = parser.parse_args()
    loaded = wb.load_generator(arguments.generator)
    text = long_text(loaded.tokenizer, 60_000)
    prompts = [
        plain_prompt(
            f"{text[3000 * n : 3000 * n + 2500]}\n\nQuestion: {QUESTIONS[n % len(QUESTIONS)]}",
            tokenizer=loaded.tokenizer,
            budget_tokens=loaded.context,
        )
        for n in range(arguments.questions)
    ]
    generator = replace(loaded, prefixes=PrefixCache(0))
    model, rows = generator.model, []
    makers = {
        "int8, a scale a token and head": lambda: make_cache(model.config, "int8", 2048),
        "fp8, a scale a token and head": lambda: make_cache(model.config, "fp8", 2048),
        "transformers' fp8, one frozen scale a layer": lambda: QuantizedCache("fp8", model.config),
    }
    exact, sequences = [], []
    for prompt in prompts:
        found = generator.generate(prompt, max_new_tokens=NEW_TOKENS)
        sequences.append([*prompt.token_ids, *found.token_ids])
        exact.append(found)
    for name, make in makers.items():
        errors, top, agreement = [], [], []
        for ids in sequences:
            right, experts = teacher_forced(
                model, ids, make_cache(model.config, "reserved", 2048), 128
            )
            near, moved = teacher_forced(model, ids, make(), 128)
            likeliest = right.argmax(axis=1)
            at = np.arange(len(likeliest))
            errors.append(np.abs(near[at, likeliest] - right[at, likeliest]))
            top.append(near.argmax(axis=1) == likeliest)
            agreement.append((np.sort(moved, axis=-1) == np.sort(experts, axis=-1)).all(axis=-1))
        error = np.concatenate(errors)
        answers = "–"
        kind = name.split(",")[0]
        if kind in ("int8", "fp8"):
            same = sum(
                generator.generate(
                    p, max_new_tokens=NEW_TOKENS, decoding=Decoding(cache=kind)
                ).token_ids
                == e.token_ids
                for p, e in zip(prompts, exact, strict=True)
            )
            answers = f"{same} of {len(prompts)}"
        rows.append(
            [
                name,
                f"{error.mean():.4f}",
                f"{np.percentile(error, 99):.3f}",
                f"{np.concatenate(top).mean():.4f}",
                f"{np.concatenate(agreement).mean():.4f}",
                answers,
            ]
        )
    held = {}
    for kind in ("reserved", "fp8"):
        cache = make_cache(model.config, kind, 100)
        with torch.inference_mode():
            model(torch.tensor([sequences[0][:100]], device=model.device), past_key_values=cache)
        from workbench.generation.kv_cache import held_bytes

        held[kind] = held_bytes(cache) / 100
    item = model.dtype.itemsize
    print(
        heading(
            f"Keys and values in 8 bits against {model.dtype} ({generator.name})",
            packages=("torch", "transformers"),
            seed=None,
            note=f"{len(prompts)} prompts of about {len(prompts[0].token_ids)} tokens and greedy answers of up to "
            f"{NEW_TOKENS}, fed again 128 tokens at a time; errors of the log-probability (nats) of the likeliest "
            f"token without rounding. Bytes a token: {held['reserved']:.0f} in {model.dtype}, "
            f"{held['reserved'] * 2 / item:.0f} in 16 bits, {held['fp8']:.0f} in 8.",
        )
    )
    print()
    print(
        table(
            [
                "cache",
                "mean error",
                "99th percentile",
                "same likeliest token",
                "same experts",
                "equal answers",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
