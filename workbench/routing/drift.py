"""Experts and positions → does usage change along a text, and is the change more than chance? NumPy only.

Two parts of a text never use the experts quite alike: few tokens differ by chance, and neighbours are alike, so a few
sentences differ more than as many tokens drawn singly. Hence the null hypothesis: whole blocks of neighbours change
places. What is left may still be other words: see :func:`workbench.routing.groups.group_usage` with buckets as groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_experts, check_labels
from workbench.routing.contrasts import false_discovery_rate
from workbench.routing.specialization import jensen_shannon_bits
from workbench.routing.statistics import group_counts

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 1 << 22  # numbers of a block of shuffles


@dataclass(frozen=True, slots=True, eq=False)
class PositionDrift:
    """Usage along a text, and how far it is from that at the beginning. Made by :func:`position_drift`.

    Bucket b holds the positions from `edges[b]` to `edges[b + 1]`, the latter left out: `edges` [buckets + 1], `tokens`
    [buckets]. `usage` [buckets, layers, experts] are shares of tokens, `bits` [buckets, layers] the Jensen-Shannon
    divergence of each bucket's usage from the first one's, in bits from 0 to 1, and `null_bits` [permutations, buckets,
    layers] the same with blocks of neighbours in random order.
    """

    edges: NDArray[np.int64]
    tokens: NDArray[np.int64]
    usage: NDArray[np.float64]
    bits: NDArray[np.float64]
    null_bits: NDArray[np.float64]

    def __repr__(self) -> str:
        buckets, layers, _ = self.usage.shape
        found = int((self.q_values <= 0.05).sum())
        return (
            f"PositionDrift({buckets} buckets × {layers} layers, {self.tokens.sum()} tokens; {found} differ from the "
            "first at q ≤ 0.05; next: .bits, .excess_bits, .to_frame())"
        )

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Share of shuffles that are as far from the first bucket, the text itself counted in: [buckets, layers].

        Phipson and Smyth (2010). 1 for the first bucket, and everywhere if there were no shuffles.
        """
        reached = (self.null_bits >= self.bits - 1e-12).sum(axis=0)
        return np.asarray((1 + reached) / (1 + len(self.null_bits)))

    @property
    def q_values(self) -> NDArray[np.float64]:
        """The p-values after Benjamini and Hochberg over all buckets but the first: [buckets, layers]."""
        found = np.ones_like(self.bits)
        found[1:] = false_discovery_rate(self.p_values[1:])
        return found

    @property
    def excess_bits(self) -> NDArray[np.float64]:
        """Divergence above the mean of the shuffles, nan if there were none: [buckets, layers]."""
        if not len(self.null_bits):
            return np.full_like(self.bits, np.nan)
        return np.asarray(self.bits - self.null_bits.mean(axis=0))

    def to_frame(self) -> pd.DataFrame:
        """One row per bucket and layer."""
        import pandas as pd

        bucket, layer = (place.reshape(-1) for place in np.indices(self.bits.shape))
        columns = {
            "bucket": bucket, "start": self.edges[bucket], "stop": self.edges[bucket + 1],
            "tokens": self.tokens[bucket], "layer": layer, "bits": self.bits.reshape(-1),
            "excess_bits": self.excess_bits.reshape(-1), "p": self.p_values.reshape(-1),
            "q": self.q_values.reshape(-1),
        }  # fmt: skip
        return pd.DataFrame(columns)


def position_drift(
    experts: NDArray[np.integer],
    positions: NDArray[np.integer],
    *,
    n_experts: int,
    n_buckets: int = 8,
    edges: NDArray[np.integer] | None = None,
    block_tokens: int = 32,
    permutations: int = 200,
    seed: int = 0,
) -> PositionDrift:
    """Usage in each part of a text and its divergence from the usage in the first part.

    `experts` [tokens, layers, k] and `positions` [tokens] of the routed tokens of one sequence, in their order. Buckets
    are `n_buckets` of almost as many tokens each, or go from edge to edge: `edges` [buckets + 1] rise, tokens outside
    them are left out. Each bucket is cut into blocks of about `block_tokens` neighbours, and for the null hypothesis
    blocks change places, as many to a bucket as it has; take blocks as long as what belongs together, a sentence or a
    paragraph. With few blocks the p-values cannot be small.

    Raises
    ------
    ValueError
        Positions or edges do not rise, or a bucket has no token.

    >>> experts = np.repeat([0, 1], 64)[:, None, None]
    >>> found = position_drift(experts, np.arange(128), n_experts=2, n_buckets=4, block_tokens=4)
    >>> found.edges.tolist(), found.bits[:, 0].tolist(), found.q_values[:, 0].round(3).tolist()
    ([0, 32, 64, 96, 128], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.007, 0.007])
    """
    check_experts(experts, n_experts=n_experts)
    check_labels(experts, positions=positions)
    if np.any(np.diff(positions.astype(np.int64)) <= 0):
        raise ValueError("positions must rise from token to token; give one sequence at a time")
    if block_tokens < 1:
        raise ValueError(f"block_tokens={block_tokens}; a block has one token at least")
    edges = _even_edges(positions, n_buckets) if edges is None else np.asarray(edges, np.int64)
    if edges.ndim != 1 or len(edges) < 3 or np.any(np.diff(edges) <= 0):
        raise ValueError(f"edges must be three numbers or more that rise, got {edges.tolist()}")
    places = np.searchsorted(positions, edges)  # the first token of each bucket
    tokens = np.diff(places)
    if not tokens.all():
        empty = int(np.flatnonzero(tokens == 0)[0])
        raise ValueError(
            f"no routed token between the positions {edges[empty]} and {edges[empty + 1]}; ask for fewer buckets"
        )
    blocks = np.maximum(1, np.round(tokens / block_tokens)).astype(np.int64)
    bucket_of = np.repeat(np.arange(len(tokens)), blocks)  # [blocks]
    inside = experts[places[0] : places[-1]]
    counts = group_counts(
        inside, _block_of(tokens, blocks), n_groups=len(bucket_of), n_experts=n_experts
    ).astype(np.float32)
    layers = counts.shape[1]
    flat = counts.reshape(len(bucket_of), -1)  # [blocks, cells]; sums are exact up to 2**24 tokens
    generator = np.random.default_rng(seed)
    size = max(1, _AT_ONCE // (len(tokens) * max(flat.shape)))
    null = np.empty((permutations, len(tokens), layers))
    for start in range(0, permutations, size):
        found = null[start : start + size]
        is_in = np.zeros((len(found), len(tokens), len(bucket_of)), dtype=np.float32)
        for one in is_in:
            one[generator.permutation(bucket_of), np.arange(len(bucket_of))] = 1
        drawn = is_in.reshape(-1, len(bucket_of)) @ flat
        found[:] = _from_first(drawn.reshape(len(found), len(tokens), layers, n_experts))
    observed = np.add.reduceat(counts.astype(np.float64), np.cumsum(blocks) - blocks, axis=0)
    return PositionDrift(
        edges=edges,
        tokens=tokens,
        usage=observed / tokens[:, None, None],
        bits=_from_first(observed[None])[0],
        null_bits=null,
    )


def _even_edges(positions: NDArray[np.integer], n_buckets: int) -> NDArray[np.int64]:
    """Positions that part the tokens into buckets of almost the same number."""
    if not 2 <= n_buckets <= len(positions):
        raise ValueError(f"n_buckets={n_buckets} must be from 2 to the {len(positions)} tokens")
    first = np.arange(n_buckets) * len(positions) // n_buckets
    return np.append(positions[first], positions[-1] + 1).astype(np.int64)


def _block_of(tokens: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each token's block, where each bucket is cut into blocks of almost the same length: [tokens]."""
    first = np.cumsum(blocks) - blocks
    parts = zip(tokens, blocks, first, strict=True)
    return np.concatenate([start + np.arange(t) * b // t for t, b, start in parts])


def _from_first(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """The divergence of each bucket from the first in bits, of counts [n, buckets, layers, experts]."""
    first = np.broadcast_to(counts[:, :1], counts.shape)
    pairs = np.stack([first, counts]).astype(np.float64)
    bits = jensen_shannon_bits(pairs.reshape(2, -1, counts.shape[-1]))
    return bits.reshape(counts.shape[:-1])
