"""Counts of chosen experts → how evenly each layer uses them. NumPy only; `counts` are [layers, experts] throughout.

A token chooses k experts a layer, so a row of counts sums to k × tokens; ``RoutingTrace.counts`` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array, check_labels

if TYPE_CHECKING:
    import pandas as pd

    from workbench.routing.trace import RoutingTrace

RARE = 0.1  # of the uniform share: what is used less than this is rarely used
_BLOCK = 1 << 12  # tokens counted at once: what is being counted stays in the processor's cache


def group_counts(
    experts: NDArray[np.integer], groups: NDArray[np.integer], *, n_groups: int, n_experts: int
) -> NDArray[np.int64]:
    """How often each group of tokens chose each expert: [groups, layers, experts].

    `experts` [tokens, layers, k]; `groups` [tokens] from 0 to `n_groups` - 1.

    >>> group_counts(np.array([[[0, 1]], [[0, 2]]]), np.array([1, 1]), n_groups=2, n_experts=3).tolist()
    [[[0, 0, 0]], [[2, 1, 1]]]
    """
    check_array("experts", experts, "tokens, layers, k")
    layers = experts.shape[1]
    flat = np.zeros(n_groups * layers * n_experts, dtype=np.int64)
    first = (np.arange(layers) * n_experts)[None, :, None]
    start_of = groups.astype(np.int64) * (layers * n_experts)
    # At least as many tokens as groups × experts, else adding up the blocks takes longer than counting
    size = max(_BLOCK, n_groups * n_experts)
    for start in range(0, len(experts), size):
        block = slice(start, start + size)
        place = (start_of[block, None, None] + first) + experts[block]
        flat += np.bincount(place.reshape(-1), minlength=len(flat))
    return flat.reshape(n_groups, layers, n_experts)


def weighted_counts(
    experts: NDArray[np.integer], weights: NDArray[np.floating], *, n_experts: int
) -> NDArray[np.float64]:
    """The weight of the tokens that chose each expert, for several weightings at once: [columns, layers, experts].

    `experts` [tokens, layers, k]; `weights` [tokens, columns]. With weights of 0 and 1 in float32 the counts are exact
    and quicker than those of :func:`group_counts` where there are many columns.

    >>> weighted_counts(np.array([[[0, 1]], [[0, 2]]]), np.array([[1.0], [0.5]]), n_experts=3).tolist()
    [[[1.5, 1.0, 0.5]]]
    """
    tokens, layers, k = experts.shape
    found = np.zeros((weights.shape[1], layers * n_experts))
    size = _BLOCK // 8
    chose = np.empty((size * layers, n_experts), dtype=weights.dtype)
    for start in range(0, tokens, size):
        block = experts[start : start + size].reshape(-1, k)
        chose.fill(0)
        rows = np.arange(len(block))
        for choice in range(k):
            chose[rows, block[:, choice]] += 1
        dense = chose[: len(block)].reshape(-1, layers * n_experts)  # [tokens of the block, cells]
        found += weights[start : start + size].T @ dense
    return found.reshape(-1, layers, n_experts)


def expert_counts(experts: NDArray[np.integer], n_experts: int) -> NDArray[np.int64]:
    """How often all tokens together chose each expert: [layers, experts]."""
    check_array("experts", experts, "tokens, layers, k")
    groups = np.zeros(len(experts), dtype=np.int64)
    found: NDArray[np.int64] = group_counts(experts, groups, n_groups=1, n_experts=n_experts)[0]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """How evenly each layer uses its experts, one number a layer: [layers] each. Made by :func:`balance`.

    `entropy` is Shannon's in bits as observed, `entropy_corrected` less biased for few tokens (Miller and Madow);
    `effective_experts` is two to the power of the corrected one: as many experts used alike would have it. `cv` is the
    standard deviation of the shares over their mean (Shazeer et al., arXiv:1701.06538), `max_violation` how far the
    most used expert is above the uniform share, over that share (Wang et al., arXiv:2408.15664), `gini` 0 if all are
    used alike and (experts - 1) / experts if one alone is. `dead` counts experts that were never chosen, `rare` those
    chosen less than a tenth as often as the uniform share, dead ones included.
    """

    entropy: NDArray[np.float64]
    entropy_corrected: NDArray[np.float64]
    effective_experts: NDArray[np.float64]
    cv: NDArray[np.float64]
    max_violation: NDArray[np.float64]
    gini: NDArray[np.float64]
    dead: NDArray[np.int64]
    rare: NDArray[np.int64]

    def to_frame(self) -> pd.DataFrame:
        """One row a layer."""
        import pandas as pd

        table = pd.DataFrame({field.name: getattr(self, field.name) for field in fields(self)})
        return table.rename_axis("layer")


def balance(counts: NDArray[np.integer]) -> Balance:
    """Entropy, effective experts, CV, MaxVio, Gini, dead and rare experts of each layer.

    Raises
    ------
    ValueError
        A layer has no routed token, or a count is negative.

    >>> found = balance(np.array([[5, 5, 5, 5], [20, 0, 0, 0]]))
    >>> found.entropy.tolist(), found.gini.tolist(), found.max_violation.tolist(), found.dead.tolist()
    ([2.0, 0.0], [0.0, 0.75], [0.0, 3.0], [0, 3])
    """
    share = _shares(counts)
    experts = share.shape[1]
    entropy = entropy_bits(counts, correct=False)
    corrected = entropy_bits(counts, correct=True)
    ordered = np.sort(share, axis=1)
    ranks = 2 * np.arange(1, experts + 1) - experts - 1
    return Balance(
        entropy=entropy,
        entropy_corrected=corrected,
        effective_experts=2.0**corrected,
        cv=share.std(axis=1) * experts,
        max_violation=share.max(axis=1) * experts - 1,
        gini=np.abs(ordered @ ranks) / experts,
        dead=(share == 0).sum(axis=1),
        rare=(share < RARE / experts).sum(axis=1),
    )


def entropy_bits(counts: NDArray[np.integer], *, correct: bool) -> NDArray[np.float64]:
    """Shannon entropy of the choices of each layer in bits, at most log2(experts): [layers].

    The entropy of observed shares is too small on average. With `correct` it is raised by (m - 1) / (2 n ln 2), where m
    experts were observed in n choices: G. Miller, "Note on the bias of information estimates" (1955).

    >>> entropy_bits(np.array([[4, 4, 0, 0]]), correct=False).tolist()
    [1.0]
    >>> entropy_bits(np.array([[4, 4, 0, 0]]), correct=True).round(4).tolist()    # 1 + 1 / (2 * 8 * ln 2)
    [1.0902]
    """
    share = _shares(counts)
    bits = shannon_bits(share)
    if correct:
        observed = (counts > 0).sum(axis=1)
        bits = bits + (observed - 1) / (2 * counts.sum(axis=1) * np.log(2))
    return np.asarray(np.clip(bits, 0.0, np.log2(share.shape[1])))


@dataclass(frozen=True, slots=True, eq=False)
class EffectiveExperts:
    """How many experts used alike would have the entropy of each layer, with an interval: [layers] each.

    `number` is ``Balance.effective_experts``; `low` and `high` are nan where there is one cluster alone. `tokens` and
    `clusters` are how many there were, `n_experts` is the most that there could be. Made by :func:`effective_experts`.
    """

    number: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_experts: int
    tokens: int
    clusters: int
    confidence: float

    def __repr__(self) -> str:
        return (
            f"EffectiveExperts({len(self.number)} layers, {self.number.min():.1f} to {self.number.max():.1f} of "
            f"{self.n_experts} experts, {self.tokens} tokens, {self.clusters} clusters; "
            "next: workbench.plots.balance.plot_balance({name: this}))"
        )


def effective_experts(
    experts: NDArray[np.integer],
    clusters: NDArray[np.integer],
    *,
    n_experts: int,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> EffectiveExperts:
    """Two to the power of each layer's entropy, with an interval that draws whole clusters of tokens.

    `experts` [tokens, layers, k]; `clusters` [tokens] numbers what is drawn together: documents, or blocks of
    neighbouring tokens (``np.arange(tokens) // 32``), for a token's choice depends on the one before. The interval is
    the basic bootstrap's of the entropy in bits (Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
    section 5.2): observed entropy is too small, resampled entropy is so once more, and the difference corrects it.

    >>> found = effective_experts(np.array([[[0]], [[1]], [[0]], [[1]]]), np.array([0, 0, 1, 1]), n_experts=2)
    >>> found.number.tolist(), found.low.tolist(), found.high.tolist()
    ([2.0], [2.0], [2.0])
    """
    check_array("experts", experts, "tokens, layers, k")
    check_labels(experts, clusters=clusters)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is outside 0 to 1")
    names, of_token = np.unique(clusters, return_inverse=True)
    count, layers = len(names), experts.shape[1]
    each = group_counts(experts, of_token, n_groups=count, n_experts=n_experts)
    total = each.sum(axis=0)
    number = 2.0 ** entropy_bits(total, correct=True)
    low, high = np.full(layers, np.nan), np.full(layers, np.nan)
    if count > 1:
        generator = np.random.default_rng(seed)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        drawn = (weights @ each.reshape(count, -1)).reshape(resamples * layers, n_experts)
        bits = entropy_bits(drawn, correct=False).reshape(resamples, layers)
        edges = (50 * (1 + confidence), 50 * (1 - confidence))
        turned = 2 * entropy_bits(total, correct=False) - np.percentile(bits, edges, axis=0)
        low, high = 2.0 ** np.clip(turned, 0.0, np.log2(n_experts))
    return EffectiveExperts(
        number=number,
        low=low,
        high=high,
        n_experts=n_experts,
        tokens=len(experts),
        clusters=count,
        confidence=confidence,
    )


def effective_experts_by_segment(
    trace: RoutingTrace, *, block_tokens: int = 16, confidence: float = 0.95, seed: int = 0
) -> dict[str, EffectiveExperts]:
    """Effective experts of each kind of segment, blocks of `block_tokens` neighbouring tokens drawn together.

    All evidence is taken together, as is history; segments without a routed token are left out.

    >>> from workbench.routing.trace import example_trace
    >>> {name: found.tokens for name, found in effective_experts_by_segment(example_trace()).items()}
    {'question': 1, 'answer': 1}
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens={block_tokens} is no number of tokens")
    found = {}
    for name in dict.fromkeys(name.split(" ")[0] for name in trace.segment_names):
        rows = trace.rows(name)
        if rows.any():
            found[name] = effective_experts(
                trace.experts[rows],
                np.arange(int(rows.sum())) // block_tokens,
                n_experts=trace.n_experts,
                confidence=confidence,
                seed=seed,
            )
    return found


def usage_entropy(usage: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy of each layer's expert usage in bits: [layers].

    `usage` is [layers, experts] with non-negative rows of any positive sum; log2(experts) means perfectly even.

    >>> usage_entropy(np.array([[0.5, 0.5, 0.5, 0.5], [2.0, 0.0, 0.0, 0.0]])).tolist()
    [2.0, 0.0]
    """
    return shannon_bits(_shares(usage))


def shannon_bits(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of distributions along the last axis, which sum to one."""
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.abs((share * logs).sum(axis=-1)))


def balance_loss(
    counts: NDArray[np.integer], mean_probabilities: NDArray[np.float64], *, k: int
) -> NDArray[np.float64]:
    """The auxiliary loss that training adds to make usage even, layer by layer, 1 if it is even: [layers].

    experts · Σ_e f_e · P_e / k with f_e the share of tokens that chose expert e and P_e the mean softmax of the router
    logits (`mean_probabilities` [layers, experts]): Fedus et al., arXiv:2101.03961, equations 4 to 6, for k choices.
    transformers pools all layers instead (``load_balancing_loss_func``).

    >>> balance_loss(np.array([[2, 2], [4, 0]]), np.array([[0.5, 0.5], [0.75, 0.25]]), k=1).tolist()
    [1.0, 1.5]
    """
    share = _shares(counts)
    if mean_probabilities.shape != share.shape:
        raise ValueError(
            f"mean_probabilities {mean_probabilities.shape} and counts {share.shape} differ in shape"
        )
    if k < 1:
        raise ValueError(f"k={k} is not a number of choices")
    return np.asarray(share.shape[1] * (share * mean_probabilities).sum(axis=1))


def uniform_usage(n_experts: int, k: int) -> float:
    """The share of tokens each expert would get if all were used alike: k / experts.

    >>> uniform_usage(16, 2)
    0.125
    """
    return k / n_experts


def ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """One array over another, nan where that is not above 0.

    >>> ratio(np.array([1, 1]), np.array([2, 0])).tolist()
    [0.5, nan]
    """
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    check_array("counts", counts, "layers, experts")
    if np.any(counts < 0):
        raise ValueError("a count is negative")
    total = counts.sum(axis=1, keepdims=True)
    if np.any(total <= 0):
        raise ValueError("a layer without any routed token has no usage to describe")
    return np.asarray(counts / total, dtype=np.float64)
