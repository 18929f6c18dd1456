"""Two conditions, each as routing traces → how their routing differs, with intervals and what chance would give. NumPy
only.

The conditions may be two checkpoints or precisions that read the same tokens, a question with and without its evidence,
two languages, two registers. Where both sides hold the same tokens, each is compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.routing.agreement import agreement
from workbench.routing.contrasts import (
    FEW,
    Contrast,
    contrast_clusters,
    interval_edges,
    student_quantile,
)
from workbench.routing.specialization import jensen_shannon_bits
from workbench.routing.statistics import group_counts
from workbench.routing.trace import RoutingTrace, check_traces

if TYPE_CHECKING:
    import pandas as pd

SHUFFLES = 999  # for the divergence of layers
BLOCK = 32  # tokens of a lone trace that are drawn and shuffled together
_AT_ONCE = 1 << 22  # numbers of a block of shuffles


@dataclass(frozen=True, slots=True, eq=False)
class RoutingComparison:
    """How the routing of condition a differs from that of b. Made by :func:`compare_routing`.

    ``usage_a`` and ``usage_b`` [layers, experts] are means over clusters: traces, or runs of 32 tokens where one trace
    stands against one. ``contrast`` tests their difference cell by cell. ``divergence_bits`` [layers] is the
    Jensen-Shannon divergence of both, ``null_bits`` its mean when the conditions are shuffled, ``divergence_p`` the
    share of shuffles that diverge as much. ``agreement`` [layers] is the mean share of a token's experts that it keeps,
    with ``agreement_low`` and ``agreement_high``; nan where the two sides hold different tokens (``same_tokens`` is
    False then). ``tokens`` counts those compared (a, b). ``differs`` says what is not the same about the two
    generators.
    """

    usage_a: NDArray[np.float64]
    usage_b: NDArray[np.float64]
    contrast: Contrast
    divergence_bits: NDArray[np.float64]
    null_bits: NDArray[np.float64]
    divergence_p: NDArray[np.float64]
    agreement: NDArray[np.float64]
    agreement_low: NDArray[np.float64]
    agreement_high: NDArray[np.float64]
    same_tokens: bool
    tokens: tuple[int, int]
    differs: tuple[str, ...]

    def __repr__(self) -> str:
        if self.same_tokens:
            shared = f"the same tokens keep {self.agreement.mean():.1%} of their experts"
        else:
            shared = "different tokens"
        cells = int((self.contrast.q_values <= 0.05).sum())
        return (
            f"RoutingComparison({self.tokens[0]:,} and {self.tokens[1]:,} tokens, {shared}; divergence "
            f"{self.divergence_bits.mean():.3f} bits, {self.null_bits.mean():.3f} by chance; {cells} of "
            f"{self.usage_a.size} cells differ at q ≤ 0.05; next: .to_frame(), .contrast)"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        columns = {
            "divergence_bits": self.divergence_bits,
            "null_bits": self.null_bits,
            "p": self.divergence_p,
            "agreement": self.agreement,
            "agreement_low": self.agreement_low,
            "agreement_high": self.agreement_high,
        }
        return pd.DataFrame(columns).rename_axis("layer")


def compare_routing(
    a: RoutingTrace | Sequence[RoutingTrace],
    b: RoutingTrace | Sequence[RoutingTrace],
    *,
    segment: str | None = None,
    segment_b: str | None = None,
    is_paired: bool | None = None,
    block_tokens: int = BLOCK,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int | None = None,
    seed: int = 0,
) -> RoutingComparison:
    """Compare which experts two conditions use: differences, divergence and agreement, each with its interval.

    Give one trace of each, or as many of each as there are questions or documents: these are drawn and shuffled whole,
    and an interval of several says more than one of a single text. A lone trace is cut into runs of `block_tokens`;
    what is found then is true of these two texts and of no others, and where a topic is longer than a run, p is too
    small. `segment` is "answer", "question", "evidence", …, `segment_b` that of b if it is another. With `is_paired`
    the i-th traces of both belong together (a question in two languages); None pairs them where they hold the same
    tokens. The statistics are those of :func:`contrast`, :func:`jensen_shannon_bits` and :func:`agreement`.

    Raises
    ------
    ValueError
        The models have other layers, experts or k; one side mixes generators; a segment is missing or holds no token.

    >>> from workbench.generation.loading import load_generator
    >>> from workbench.generation.prompts import plain_prompt
    >>> generator = load_generator("pocket")
    >>> text = "The harbour was closed for two days because the northern gate had lost its hinge pin in the storm. "
    >>> trace = generator.read(plain_prompt(text * 3, tokenizer=generator.tokenizer, budget_tokens=500))
    >>> found = compare_routing(trace, trace, permutations=99)
    >>> found.agreement.tolist(), found.divergence_bits.tolist()
    ([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    sides = [check_traces(a, "a"), check_traces(b, "b")]
    n_experts = _check(sides)
    if block_tokens < 1:
        raise ValueError(f"block_tokens={block_tokens} must be at least 1")
    if segment_b is not None and a is b:
        for trace in sides[0]:
            both = int((trace.rows(segment) & trace.rows(segment_b)).sum())
            if both and segment != segment_b:
                raise ValueError(
                    f"{both} tokens are of {segment!r} and of {segment_b!r}: they cannot be compared"
                )
    segments = (segment, segment if segment_b is None else segment_b)
    rows = [
        [_rows(trace, own) for trace in side] for side, own in zip(sides, segments, strict=True)
    ]
    block = block_tokens if len(sides[0]) == len(sides[1]) == 1 else None
    same = len(sides[0]) == len(sides[1]) and all(
        np.array_equal(one.token_ids[i], other.token_ids[j])
        for one, other, i, j in zip(*sides, *rows, strict=True)
    )
    paired = same if is_paired is None else is_paired
    if paired and len(sides[0]) != len(sides[1]):
        raise ValueError(f"{len(sides[0])} and {len(sides[1])} traces cannot be paired")
    if paired and block and not same:
        raise ValueError("one trace of each is paired token by token, and their tokens differ")
    tables, sizes = [], []
    for side, own in zip(sides, rows, strict=True):
        counts, tokens = _cluster_counts(side, own, n_experts, block)
        if len(counts) < 2:
            raise ValueError(
                f"{int(tokens.sum())} tokens of one trace are too few to tell chance; give several traces of each, or "
                f"one of at least {2 * block_tokens} tokens"
            )
        tables.append(counts / tokens[:, None, None])
        sizes.append(int(tokens.sum()))
    in_a, in_b = tables
    found = contrast_clusters(
        in_a,
        in_b,
        is_paired=paired,
        confidence=confidence,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
        largest=1.0,
    )
    divergence = jensen_shannon_bits(np.stack([in_a.mean(axis=0), in_b.mean(axis=0)]))
    null = _shuffled_divergence(in_a, in_b, paired, min(permutations or SHUFFLES, SHUFFLES), seed)
    kept = _agreements(sides, rows, block) if same else None
    low, mean, high = _interval(kept, found.difference.shape[0], confidence, resamples, seed)
    return RoutingComparison(
        usage_a=in_a.mean(axis=0),
        usage_b=in_b.mean(axis=0),
        contrast=found,
        divergence_bits=divergence,
        null_bits=null.mean(axis=0),
        divergence_p=(1 + (null >= divergence - 1e-12).sum(axis=0)) / (1 + len(null)),
        agreement=mean,
        agreement_low=low,
        agreement_high=high,
        same_tokens=same,
        tokens=(sizes[0], sizes[1]),
        differs=_differences(sides[0][0], sides[1][0]),
    )


def _check(sides: Sequence[Sequence[RoutingTrace]]) -> int:
    first = sides[0][0]
    shape = (first.layers, first.n_experts, first.k)
    for name, side in zip("ab", sides, strict=True):
        for trace in side:
            if (trace.layers, trace.n_experts, trace.k) != shape:
                raise ValueError(
                    f"a trace of {name} has {trace.layers} layers, {trace.n_experts} experts and k={trace.k}, the "
                    f"first one of a {shape[0]}, {shape[1]} and k={shape[2]}: their models have nothing to compare"
                )
            differs = _differences(side[0], trace)
            if differs:
                raise ValueError(
                    f"the traces of {name} are not of one generator ({'; '.join(differs)}); give those of one as a, "
                    "those of the other as b"
                )
    return first.n_experts


def _differences(one: RoutingTrace, other: RoutingTrace) -> tuple[str, ...]:
    """What is not the same about who routed, in words."""
    keys = dict.fromkeys((*one.origin, *other.origin))
    pairs = {key: (one.origin.get(key, "none"), other.origin.get(key, "none")) for key in keys}
    return tuple(f"{key}: {x} and {y}" for key, (x, y) in pairs.items() if x != y)


def _rows(trace: RoutingTrace, segment: str | None) -> NDArray[np.intp]:
    rows = np.flatnonzero(trace.rows(segment))
    if not len(rows):
        raise ValueError(f"no routed token in segment {segment!r} of a trace")
    return rows


def _cluster_counts(
    traces: Sequence[RoutingTrace],
    rows: Sequence[NDArray[np.intp]],
    n_experts: int,
    block: int | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts [clusters, layers, experts] and tokens [clusters] of whole traces, or of runs of a lone one."""
    experts = np.concatenate([t.experts[own] for t, own in zip(traces, rows, strict=True)])
    if block:
        number = _blocks(len(experts), block)
    else:
        number = np.repeat(np.arange(len(traces)), [len(own) for own in rows])
    n = int(number[-1]) + 1
    return group_counts(experts, number, n_groups=n, n_experts=n_experts), np.bincount(number)


def _blocks(tokens: int, block: int) -> NDArray[np.int64]:
    """Runs of `block` tokens, the last one up to twice as long less one: [tokens]."""
    return np.minimum(np.arange(tokens) // block, max(tokens // block - 1, 0))


def _agreements(
    sides: Sequence[Sequence[RoutingTrace]],
    rows: Sequence[Sequence[NDArray[np.intp]]],
    block: int | None,
) -> NDArray[np.float64]:
    """The mean agreement of each cluster: [clusters, layers]."""
    each = [
        agreement(one.experts[i], other.experts[j])
        for one, other, i, j in zip(*sides, *rows, strict=True)
    ]
    if block:
        number = _blocks(len(each[0]), block)
        each = [each[0][number == n] for n in range(int(number[-1]) + 1)]
    return np.stack([part.mean(axis=0) for part in each])


def _interval(
    each: NDArray[np.float64] | None, layers: int, confidence: float, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lower bound, mean and upper bound over clusters, layer by layer; nan without any."""
    if each is None:
        nothing = np.full(layers, np.nan)
        return nothing, nothing, nothing
    count = len(each)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    edges = interval_edges(confidence, count)
    low, high = np.percentile(drawn @ each / count, edges, axis=0)
    reach = student_quantile(confidence, count - 1) * each.std(axis=0, ddof=1) / np.sqrt(count)
    mean = each.mean(axis=0)
    if count < FEW:
        low, high = (
            np.minimum(low, mean - reach).clip(0, 1),
            np.maximum(high, mean + reach).clip(0, 1),
        )
    return low, mean, high


def _shuffled_divergence(
    a: NDArray[np.float64], b: NDArray[np.float64], is_paired: bool, shuffles: int, seed: int
) -> NDArray[np.float64]:
    """Divergence when each cluster could as well be of the other condition: [shuffles, layers]."""
    generator = np.random.default_rng(seed)
    together = np.concatenate([a, b])
    found = []
    for start in range(0, shuffles, size := max(1, _AT_ONCE // together[0].size)):
        block = min(size, shuffles - start)
        if is_paired:
            swapped = generator.random((block, len(a))) < 0.5
            weights = np.concatenate([~swapped, swapped], axis=1) / len(a)
        else:
            chosen = np.tile(np.arange(len(together)) < len(a), (block, 1))
            weights = generator.permuted(chosen, axis=1) / len(a)
        first = np.tensordot(weights, together, 1)  # [block, layers, experts]
        # what is not in the one is in the other
        other = (together.sum(axis=0) - first * len(a)) / len(b)
        found += [jensen_shannon_bits(np.stack(pair)) for pair in zip(first, other, strict=True)]
    return np.stack(found)
