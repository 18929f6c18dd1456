"""Does the same text keep its experts under another precision, regime, cache or way of computing? Agreement, by layer.

Every document of corpora/ is read under a condition and under the reference (float32, short regime, one pass, no
prefix); the share of its experts that a token keeps is 1 where nothing changed. What should be lossless must be 1.
Run: python benchmarks/routing_conditions.py [--generator G] [--documents N]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.checkpoints.finding import find_checkpoint
from workbench.checkpoints.folders import compress_checkpoint
from workbench.routing.trace import RoutingTrace

CHARACTERS = 4000


def decompressed(name: str) -> wb.Generator:
    """The same checkpoint, compressed by ZipNN and loaded from that."""
    source = Path(find_checkpoint(name).source)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "compressed"
        compress_checkpoint(source, home)
        return wb.load_generator(home, dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--documents", type=int, default=20)
    given = parser.parse_args()
    generator = wb.load_generator(given.generator, dtype="float32")
    halved = wb.load_generator(given.generator, dtype="bfloat16")
    fewer = {
        bits: wb.load_generator(given.generator, dtype="float32", quantization=bits)
        for bits in ("8bit", "4bit")
    }
    cached = wb.load_generator(given.generator, dtype="float32", expert_cache=4)
    longest = int(generator.model.config.max_position_embeddings)
    long = generator.with_context(longest)
    corpus = list(wb.read_corpus("corpora"))[: given.documents]
    prompts = [
        wb.plain_prompt(
            document.text[:CHARACTERS],
            tokenizer=generator.tokenizer,
            budget_tokens=generator.context,
        )
        for document in corpus
    ]

    def read(of: wb.Generator, decoding: wb.Decoding = wb.Decoding()) -> list[RoutingTrace]:  # noqa: B008
        of.prefixes.clear()
        other = replace(of, decoding=decoding)
        return [other.read(prompt) for prompt in prompts]

    def after_a_prefix() -> list[RoutingTrace]:
        generator.prefixes.clear()
        found = []
        for document, prompt in zip(corpus, prompts, strict=True):
            text = document.text[: CHARACTERS // 2]
            part = wb.plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=4096)
            generator.read(part)
            found.append(generator.read(prompt))
        return found

    def together() -> list[RoutingTrace]:
        generator.prefixes.clear()
        made = generator.generate_batch(prompts, max_new_tokens=1)
        return [one.routing for one in made if one.routing is not None]

    reference = read(generator)
    conditions: dict[str, Callable[[], list[RoutingTrace]]] = {
        "once more": lambda: read(generator),
        "in chunks of 64 tokens": lambda: read(generator, wb.Decoding(prefill_tokens=64)),
        "after half of it was kept as a prefix": after_a_prefix,
        "in batches": together,
        "keys and values as 8-bit integers": lambda: read(generator, wb.Decoding(cache="int8")),
        "keys and values as fp8": lambda: read(generator, wb.Decoding(cache="fp8")),
        "long regime": lambda: read(long),
        "bfloat16": lambda: read(halved),
        "weights in 8 bits": lambda: read(fewer["8bit"]),
        "weights in 4 bits": lambda: read(fewer["4bit"]),
        "experts in host memory": lambda: read(cached),
        "decompressed from ZipNN": lambda: read(decompressed(given.generator)),
    }
    rows = []
    for name, condition in conditions.items():
        found = wb.compare_routing(reference, condition(), segment="question")
        low, high = found.agreement_low.mean(), found.agreement_high.mean()
        rows.append(
            [
                name,
                f"{found.agreement.mean():.4f} ({low:.4f} to {high:.4f})",
                " ".join(f"{share:.3f}" for share in found.agreement),
                f"{np.max(np.abs(found.usage_a - found.usage_b)):.4f}",
                ", ".join(found.differs) or "–",
            ]
        )
    tokens = sum(int(trace.rows("question").sum()) for trace in reference)
    print(
        heading(
            f"The same text under other conditions ({generator.name})",
            packages=("torch", "transformers"),
            seed=0,
            note=f"{len(corpus)} documents, {tokens:,} tokens; documents are drawn for the intervals.",
        )
    )
    print()
    header = [
        "condition",
        "experts kept",
        "by layer",
        "largest change of a usage",
        "generators differ in",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
