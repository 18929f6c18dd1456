"""How long every statistic of a routing trace takes, and how much memory beyond the trace.

Run: OMP_NUM_THREADS=1 python benchmarks/routing_statistics.py [--tokens N] [--layers N] [--experts N] [--logits]
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tables import heading, table

from workbench.routing.agreement import agreement, weighted_agreement
from workbench.routing.contrasts import contrast
from workbench.routing.distances import evidence_affinity, routing_distances
from workbench.routing.drift import position_drift
from workbench.routing.groups import group_usage
from workbench.routing.margins import margins
from workbench.routing.pairs import (
    cache_hits,
    coactivation,
    locality,
    transition_information,
    transitions,
)
from workbench.routing.specialization import specialization
from workbench.routing.statistics import balance, expert_counts, group_counts
from workbench.routing.vocabulary import top_tokens, vocabulary_specialization

SEED, REPEATS, GROUPS, CLUSTERS, WORDS, PART = 0, 3, 8, 50, 32_064, 16_384
DESCRIPTIVE, TESTED, PARTIAL = "descriptive", "with shuffles", "on a part"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A random trace: uniform experts, words by Zipf's law, contiguous groups and clusters of tokens."""

    experts: NDArray[np.uint8]
    n_experts: int
    words: NDArray[np.int64]
    groups: NDArray[np.int64]
    clusters: NDArray[np.int64]

    @property
    def part(self) -> NDArray[np.uint8]:
        """The first tokens, as many as are measured in part."""
        return self.experts[:PART]


def random_trace(tokens: int, layers: int, n_experts: int) -> Trace:
    generator = np.random.default_rng(SEED)
    experts = np.empty((tokens, layers, 2), dtype=np.uint8)
    experts[:, :, 0] = generator.integers(0, n_experts, (tokens, layers), dtype=np.uint8)
    other = generator.integers(1, n_experts, (tokens, layers), dtype=np.uint8)
    experts[:, :, 1] = (experts[:, :, 0].astype(np.int16) + other) % n_experts
    place = np.arange(tokens)
    return Trace(
        experts=experts,
        n_experts=n_experts,
        words=generator.zipf(1.2, tokens) % WORDS,
        groups=place * 4 * GROUPS // tokens % GROUPS,
        clusters=place * CLUSTERS // tokens,
    )


def random_logits(part: NDArray[np.uint8], n_experts: int) -> NDArray[np.float16]:
    generator = np.random.default_rng(SEED)
    shape = (*part.shape[:2], n_experts)
    return generator.standard_normal(shape, dtype=np.float32).astype(np.float16)


def calls(trace: Trace) -> dict[str, tuple[str, Callable[[], object]]]:
    """Every statistic: its kind and the call."""
    e, n = trace.experts, trace.n_experts
    own = {"n_groups": GROUPS, "n_experts": n}
    sources = np.where(trace.groups < GROUPS - 1, trace.groups, -1)

    def words() -> object:
        found = vocabulary_specialization(e, trace.words, n_experts=n)
        return top_tokens(found, layer=0, expert=0)

    def affinity() -> object:
        return evidence_affinity(
            e, sources, is_answer=sources < 0, token_ids=trace.words, n_sources=GROUPS - 1, n_experts=n,
            permutations=20,
        )  # fmt: skip

    def distances() -> object:
        counts = group_counts(e, trace.clusters, n_groups=CLUSTERS, n_experts=n)
        return routing_distances(counts)

    def by_words() -> object:
        return specialization(
            e, trace.groups, exchangeable=trace.words, n_experts=n, whole=False, permutations=20
        )

    def usage(permutations: int) -> object:
        return group_usage(e, trace.groups, token_ids=trace.words, permutations=permutations, **own)

    def drift(permutations: int) -> object:
        return position_drift(e, np.arange(len(e)), n_experts=n, permutations=permutations)

    def contrasted() -> object:
        return contrast(e, trace.clusters % 2 == 0, trace.clusters, n_experts=n)

    ones = np.ones(trace.part.shape, dtype=np.float16)
    return {
        "usage and balance": (DESCRIPTIVE, lambda: balance(expert_counts(e, n))),
        "co-activation": (DESCRIPTIVE, lambda: coactivation(e, n_experts=n)),
        "transitions": (DESCRIPTIVE, lambda: transitions(e, n_experts=n)),
        "transition information": (DESCRIPTIVE, lambda: transition_information(e, n_experts=n)),
        "locality": (DESCRIPTIVE, lambda: locality(e, n_experts=n)),
        "cache of 4": (DESCRIPTIVE, lambda: cache_hits(e, capacity=4)),
        "agreement": (DESCRIPTIVE, lambda: agreement(e, e[::-1])),
        f"usage by {GROUPS} groups, beside the words": (DESCRIPTIVE, lambda: usage(0)),
        "words of the experts": (DESCRIPTIVE, words),
        "drift in 8 buckets": (DESCRIPTIVE, lambda: drift(0)),
        f"distances of {CLUSTERS} runs": (DESCRIPTIVE, distances),
        "affinity of 7 sources, 20 shuffles": (TESTED, affinity),
        "drift, 200 shuffles": (TESTED, lambda: drift(200)),
        "usage by groups, 20 shuffles": (TESTED, lambda: usage(20)),
        "specialization, 20 shuffles": (TESTED, by_words),
        f"contrast of {CLUSTERS} clusters, 9,999 shuffles": (TESTED, contrasted),
        f"weighted agreement, {PART:,} tokens": (
            PARTIAL, lambda: weighted_agreement(trace.part, ones, trace.part, ones)
        ),
    }  # fmt: skip


def margin_call(trace: Trace, is_whole: bool) -> tuple[str, Callable[[], object]]:
    part = trace.experts if is_whole else trace.part
    logits = random_logits(part, trace.n_experts)
    return (DESCRIPTIVE if is_whole else PARTIAL), lambda: margins(logits)


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Median seconds, and the peak of the memory that one more call holds in MiB."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return statistics.median(seconds), peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--logits", action="store_true", help="margins of all tokens, not a part")
    given = parser.parse_args()
    trace = random_trace(given.tokens, given.layers, given.experts)
    name = "margins" if given.logits else f"margins, {PART:,} tokens"
    rows: list[list[object]] = []
    total, most = 0.0, 0.0
    for statistic, (kind, call) in {
        **calls(trace),
        name: margin_call(trace, given.logits),
    }.items():
        seconds, peak = measure(call)
        rows.append([statistic, kind, f"{seconds:.3f}", f"{peak:,.0f}"])
        if kind == DESCRIPTIVE:
            total, most = total + seconds, max(most, peak)
    rows.append(["all descriptive ones", "", f"{total:.2f}", f"{most:,.0f}"])
    note = (
        f"A random trace of {given.tokens:,} tokens × {given.layers} layers × 2 of {given.experts} experts "
        f"({trace.experts.nbytes / 2**20:.0f} MiB). Wall time, median of {REPEATS}. Memory is the peak of what a call "
        "holds beyond the trace (tracemalloc, in a call of its own); in the last row the largest of them."
    )
    print(heading("Statistics of routing", packages=("numpy",), seed=SEED, note=note) + "\n")
    print(table(["statistic", "kind", "seconds", "MiB"], rows))


if __name__ == "__main__":
    main()
