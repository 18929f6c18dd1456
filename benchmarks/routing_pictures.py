"""How long the pictures of a long trace take, to the PNG: 131,072 tokens × 32 layers, 2 of 16 experts.

Run: python benchmarks/routing_pictures.py [--tokens N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from tables import heading, table

from workbench.plots.figures import png_bytes
from workbench.plots.layers import plot_token_layers
from workbench.plots.routing import plot_expert_usage
from workbench.routing.trace import RoutingTrace

LAYERS, EXPERTS = 32, 16


def made(tokens: int) -> RoutingTrace:
    """A random trace whose experts depend on the place, so that pictures are not plain noise."""
    draws = np.random.default_rng(0)
    keys = draws.random((tokens, LAYERS, 2)) ** 2
    first = ((keys[:, :, 0] * EXPERTS).astype(int) + np.arange(tokens)[:, None] // 4096) % EXPERTS
    second = (first + 1 + (keys[:, :, 1] * (EXPERTS - 1)).astype(int)) % EXPERTS
    return RoutingTrace(
        experts=np.stack([first, second], axis=2).astype(np.uint8),
        gate_weights=None,
        n_experts=EXPERTS,
        token_ids=np.arange(tokens),
        token_texts=("token",) * tokens,
        phases=np.zeros(tokens, np.uint8),
        segments=(np.arange(tokens) * 6 // tokens).astype(np.int16),
        segment_names=("template", "system", "evidence 1", "evidence 2", "question", "answer"),
        spans=np.zeros((tokens, 2), np.int32),
        routed=np.arange(tokens) < tokens - 1,
    )


def seconds(work: Callable[[], bytes]) -> float:
    """Median of five, after one that is not counted."""
    work()
    found = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=131_072)
    given = parser.parse_args()
    trace = made(given.tokens)
    rows = [
        ["layers × experts heatmap", f"{seconds(lambda: png_bytes(plot_expert_usage(trace))):.2f}", "0.3"],
        ["token × layer strip", f"{seconds(lambda: png_bytes(plot_token_layers(trace))):.2f}", "2"],
    ]  # fmt: skip
    print(
        heading(
            f"Pictures of a trace of {given.tokens:,} tokens",
            packages=("numpy", "matplotlib"),
            seed=0,
            note=f"{LAYERS} layers, 2 of {EXPERTS} experts a token; drawn and written as a PNG, median of 5.",
        )
    )
    print()
    print(table(["picture", "seconds", "target"], rows))


if __name__ == "__main__":
    main()
