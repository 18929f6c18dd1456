"""Experts in host memory, some on the device: how many choices find theirs there, predicted and measured.

Run: python benchmarks/expert_cache.py [--generator G] [--questions 40] [--quantization 4bit]. The first half of the
questions of corpora/ is what the cache learns from and what predictions are made of; the second half is measured. On a
CPU the "device" is host memory too: hits and bytes are real, and times would say nothing.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.demo import CORPORA
from workbench.generation.options import Decoding
from workbench.routing.pairs import cache_hits

NEW_TOKENS = 64
SHARES = (8, 4, 8 / 3, 2, 4 / 3)


def ask_all(questions: list[str], retriever: Any, generator: Any) -> tuple[list[Any], int]:
    """Traces, and how many answer tokens they hold."""
    traces, tokens = [], 0
    for question in questions:
        answer = wb.ask(
            question,
            retriever=retriever,
            generator=generator,
            style="free",
            max_new_tokens=NEW_TOKENS,
            decoding=Decoding(),
        )
        traces.append(answer.routing)
        tokens += int(answer.routing.rows("answer").sum())
    return traces, tokens


def chosen(traces: list[Any]) -> np.ndarray:
    return np.concatenate([trace.experts[trace.rows("answer")] for trace in traces])


def pinned_hits(learned: np.ndarray, asked: np.ndarray, capacity: int, n_experts: int) -> float:
    """Share of choices among the experts that were used most before, never exchanged."""
    found = []
    for layer in range(asked.shape[1]):
        counts = np.bincount(learned[:, layer].ravel(), minlength=n_experts)
        found.append(np.isin(asked[:, layer], np.argsort(-counts)[:capacity]).mean())
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--quantization", choices=["8bit", "4bit"])
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    retriever = wb.build_retriever(wb.read_corpus(CORPORA))
    lines = (CORPORA / "questions.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line)["question"] for line in lines][: given.questions]
    half = len(asked) // 2
    options: dict[str, Any] = {"quantization": given.quantization, "device": given.device}
    whole = wb.load_generator(given.generator, **options)
    n_experts = int(whole.model.config.num_local_experts)
    learned = chosen(ask_all(asked[:half], retriever, whole)[0])
    traces, tokens = ask_all(asked[half:], retriever, whole)
    measured = chosen(traces)
    rows = []
    for share in SHARES:
        slots = max(1, round(n_experts / share))
        generator = wb.load_generator(given.generator, expert_cache=slots, **options)
        ask_all(asked[:half], retriever, generator)
        before = generator.expert_use
        again, _ = ask_all(asked[half:], retriever, generator)
        same = all(
            np.array_equal(one.experts, other.experts)
            for one, other in zip(traces, again, strict=True)
        )
        use = generator.expert_use - before
        rows.append(
            (
                f"{slots} of {n_experts}",
                f"{slots / n_experts:.3f}",
                f"{cache_hits(learned, capacity=slots).mean():.3f}",
                f"{cache_hits(measured, capacity=slots).mean():.3f}",
                f"{pinned_hits(learned, measured, slots, n_experts):.3f}",
                f"{use.hit_rate:.3f}",
                "yes" if same else "no",
                f"{(1 - use.hit_rate) * measured.shape[2] / n_experts:.3f}",
            )
        )
    print(
        heading(
            "Experts in host memory",
            packages=("torch", "transformers"),
            seed=None,
            note=(
                f"{given.generator} on {whole.device}, {given.quantization or whole.model.dtype}; {half} questions of "
                f"corpora/ to learn from, {len(asked) - half} measured ({tokens:,} answer tokens, {measured.shape[1]} "
                "layers, two experts each). Hits are shares of the choices of answer tokens. By chance: even use. "
                "Predicted: `cache_hits` (least recently used) of the first half's traces. Least recently used: the "
                "same of the traces measured. Pinned: the most used of the first half, never exchanged. Measured: the "
                "product's, least used of late. Copied: for each answer token, of the bytes of all experts, which "
                "moving whole layers would copy."
            ),
        )
    )
    header = (
        "cached", "by chance", "predicted", "least recently used", "pinned", "measured", "same routing",
        "copied",
    )  # fmt: skip
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
