"""One long prompt: seconds and peak memory read in chunks and in one pass, each in a process of its own.

Run: python benchmarks/long_prompt.py [--generator G] [--tokens 32768]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from tables import heading, table

WAYS = {
    "by default (in one pass, memory permitting)": None,
    "in chunks of 4,096": 4096,
    "in one pass": 1 << 30,
}
BASE = "in one pass"


def peak_bytes(run: object, baseline: int) -> int:
    """Run `run` and return the largest anonymous memory seen, sampled every 2 ms, less `baseline`."""
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        run()  # type: ignore[operator]
    finally:
        done.set()
        thread.join()
    return peak - baseline


def anonymous_bytes() -> int:
    """Memory of the process itself, mapped files apart."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status: this benchmark needs Linux")


def measure(name: str, tokens: int, chunk: int | None) -> None:
    """The child: print what one prompt took."""
    from long_document import long_text

    import workbench as wb
    from workbench.generation.options import Decoding
    from workbench.generation.prompts import plain_prompt

    generator = wb.load_generator(name, context=tokens + 64)
    text = long_text(generator.tokenizer, tokens - 16)
    prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=tokens + 32)
    small = plain_prompt("warm up", tokenizer=generator.tokenizer, budget_tokens=99)
    generator.generate(small, max_new_tokens=2)
    seconds = []

    def run() -> None:
        started = time.perf_counter()
        found = generator.generate(
            prompt,
            max_new_tokens=8,
            decoding=Decoding(prefill_tokens=chunk, reuse_prefix=False),
        )
        seconds.append(time.perf_counter() - started)
        seconds.append(found.timing.prefill_seconds)

    peak = peak_bytes(run, anonymous_bytes())
    print(
        json.dumps(
            {
                "seconds": seconds[0],
                "peak": peak,
                "tokens": len(prompt.token_ids),
                "cache": generator.cache_bytes(len(prompt.token_ids) + 8),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        measure(arguments.generator, arguments.tokens, arguments.child or None)
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(arguments.repeats):
        for name, chunk in WAYS.items():
            command = [
                sys.executable, __file__, "--generator", arguments.generator,
                "--tokens", str(arguments.tokens), "--child", str(chunk or 0),
            ]  # fmt: skip
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs[name].append(json.loads(output.splitlines()[-1]))
    mib = 1 << 20
    rows = []
    for name, found in runs.items():
        times = [a["seconds"] / b["seconds"] for a, b in zip(found, runs[BASE], strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(run['seconds'] for run in found):.1f}",
                f"{statistics.median(times):.2f}",
                f"{statistics.median(run['peak'] for run in found) / mib:.0f}",
                f"{found[0]['cache'] / mib:.0f}",
            ]
        )
    first = runs[BASE][0]
    print(
        heading(
            f"One prompt of {first['tokens']:,} tokens ({arguments.generator})",
            packages=("torch", "transformers"),
            seed=None,
            note="Prompt and 8 new tokens, experts recorded; peak of the process's own memory over that before the "
            f"call; median of {arguments.repeats} process(es).",
        )
    )
    print()
    print(
        table(
            [
                "prompt read",
                "seconds",
                "seconds / one pass",
                "peak MiB",
                "of it keys and values, MiB",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
