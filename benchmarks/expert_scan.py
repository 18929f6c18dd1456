"""What a scan of all experts costs, against one pass for every expert of every layer: work, time, and the same effects.

Both take every expert of every layer away from given answers. The naive one bans it on the whole model and scores the
answer, for used and unused experts alike; its time is that of a sample of experts, times their number.
Run: python benchmarks/expert_scan.py [--generator G] [--questions N]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from tables import heading, table

import workbench as wb
from workbench.effects.cases import cases_of

QUESTIONS = (
    "Which valve failed first?",
    "How heavy is the flap that jammed across the pipe of the resting pump?",
    "Who raised the alarm about the dangerous tide in 1987?",
    "What kind of grease does a pump motor need at the top?",
    "Who rescued the bakers' leaven from the flooded cellar?",
)
SAMPLE = 20  # experts that are banned one by one, of each question and segment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    given = parser.parse_args()
    generator = wb.load_generator(given.generator)
    retriever = wb.build_retriever(wb.read_corpus("corpora"))
    answers = [
        wb.ask(q, k=2, retriever=retriever, generator=generator)
        for q in QUESTIONS[: given.questions]
    ]
    cases = cases_of(answers, generator=generator)
    draws = np.random.default_rng(0)
    rows = []
    for segment in (None, "evidence", "question", "answer"):
        started = time.perf_counter()
        scan = wb.scan_experts(generator, cases, segment=segment)
        seconds = time.perf_counter() - started
        single, far = [], []
        for place, case in enumerate(cases):
            of = {"prompt": case.prompt, "segment": segment} if segment else {}
            cells = draws.choice(scan.effects[0].size, SAMPLE, replace=False)
            for cell in cells:
                layer, expert = np.unravel_index(cell, scan.effects[0].shape)
                generator.prefixes.clear()
                started = time.perf_counter()
                with generator.intervened([wb.Edit("ban", int(expert), (int(layer),))], **of):
                    logs = generator.score(
                        case.prompt, case.answer, capture=False
                    ).log_probabilities
                single.append(time.perf_counter() - started)
                effect = scan.log_probabilities[place] - logs.astype(np.float64).sum()
                far.append(abs(effect - scan.effects[place, layer, expert]))
        naive = float(np.mean(single)) * scan.effects.size
        rows.append(
            [
                segment or "all tokens",
                f"{scan.naive_passes:,}",
                f"{scan.passes:,.1f}",
                f"{scan.naive_passes / scan.passes:.1f}",
                f"{naive:.1f}",
                f"{seconds:.1f}",
                f"{naive / seconds:.1f}",
                f"{max(far):.1e}",
            ]
        )
    tokens = [len(case.prompt.token_ids) + len(case.answer) for case in cases]
    layers, experts = scan.effects.shape[1:]
    print(
        heading(
            f"A scan of all experts ({generator.name})",
            packages=("torch", "transformers"),
            seed=0,
            note=f"{len(cases)} answers of {min(tokens)} to {max(tokens)} tokens with their prompts, {layers} layers × "
            f"{experts} experts. A pass is one of prompt and answer through all layers. Naive seconds are those of "
            f"{SAMPLE} experts an answer, times their number.",
        )
    )
    print()
    header = [
        "taken away from", "naive passes", "passes", "ratio", "naive seconds", "seconds", "ratio",
        "largest difference of an effect (nats)",
    ]  # fmt: skip
    print(table(header, rows))


if __name__ == "__main__":
    main()
