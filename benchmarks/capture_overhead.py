"""What recording costs: generation with each kind of capture against none, interleaved in one process.

Run: OMP_NUM_THREADS=1 python benchmarks/capture_overhead.py [--generator G]
"""

from __future__ import annotations

import argparse
import statistics
import time

from tables import heading, table

import workbench as wb
from workbench.generation.options import Capture, Decoding
from workbench.generation.prompts import plain_prompt

REPEATS, NEW_TOKENS = 9, 48
WAYS: dict[Capture, str] = {
    False: "nothing",
    True: "experts and gate weights",
    "logits": "and router logits",
    "contributions": "and contributions",
    "all": "and both",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    arguments = parser.parse_args()
    generator = wb.load_generator(arguments.generator)
    rows = []
    for prompt_tokens in (200, 1000):
        text = "The pump was stopped at noon and the valve was opened by hand. " * (
            prompt_tokens // 14
        )
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=generator.context)
        seconds: dict[Capture, list[float]] = {capture: [] for capture in WAYS}
        for repeat in range(REPEATS + 1):
            ways = list(WAYS)
            for capture in ways[repeat % len(ways) :] + ways[: repeat % len(ways)]:
                started = time.process_time()
                generator.generate(
                    prompt,
                    max_new_tokens=NEW_TOKENS,
                    decoding=Decoding(reuse_prefix=False),
                    capture=capture,
                )
                if repeat:  # the first round warms up
                    seconds[capture].append(time.process_time() - started)
        for capture, name in WAYS.items():
            ratios = [a / b for a, b in zip(seconds[capture], seconds[False], strict=True)]
            rows.append(
                [
                    len(prompt.token_ids),
                    name,
                    f"{statistics.median(seconds[capture]):.3f}",
                    f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
                    if capture
                    else "1",
                ]
            )
    print(
        heading(
            f"Capture of routing against plain generate ({generator.name})",
            packages=("torch", "transformers"),
            seed=None,
            note=f"CPU seconds of one prompt and up to {NEW_TOKENS} new tokens, the trace assembled; "
            f"median of {REPEATS}, interleaved.",
        )
    )
    print()
    print(table(["prompt tokens", "recorded", "seconds", "ratio (least–most)"], rows))


if __name__ == "__main__":
    main()
