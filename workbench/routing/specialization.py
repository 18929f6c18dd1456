"""Do groups of tokens (registers, languages, segments) use different experts? A divergence, and what chance would give.

Two null hypotheses, because either alone misleads. Labels shuffled among whole documents: documents differ from one
another in any case. Labels shuffled among the tokens of one vocabulary entry: a group that has other words uses other
experts even when every expert only looks at the word; what is left above this null is more than vocabulary. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array, check_labels
from workbench.routing.statistics import group_counts, shannon_bits


@dataclass(frozen=True, slots=True, eq=False)
class Specialization:
    """Divergence of the groups' expert usage in bits: `bits` [layers]; under shuffled labels `null_bits` [n, layers].

    0 bits: all groups use the experts alike; log2(number of groups) bits: no two groups share an expert.
    """

    bits: NDArray[np.float64]
    null_bits: NDArray[np.float64]

    @property
    def p_values(self) -> NDArray[np.float64]:
        """Share of shuffles that diverge as much, the observation counted among them: [layers].

        Phipson and Smyth, "Permutation p-values should never be zero" (2010).
        """
        reached = (self.null_bits >= self.bits).sum(axis=0)
        return np.asarray((1 + reached) / (1 + len(self.null_bits)))

    @property
    def excess_bits(self) -> NDArray[np.float64]:
        """Divergence above the mean of the shuffles: [layers]."""
        return np.asarray(self.bits - self.null_bits.mean(axis=0))


def jensen_shannon_bits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of groups of equal weight in bits, layer by layer: [layers].

    `counts` [groups, layers, experts] need not be normalised; every group needs a token. J. Lin, "Divergence measures
    based on the Shannon entropy" (1991), for more than two distributions.

    >>> jensen_shannon_bits(np.array([[[4.0, 0.0]], [[0.0, 2.0]]])).tolist()
    [1.0]
    """
    check_array("counts", counts, "groups, layers, experts")
    total = counts.sum(axis=2, keepdims=True)
    if np.any(total <= 0):
        raise ValueError("a group without any routed token has no usage to compare")
    share = counts / total
    between = shannon_bits(share.mean(axis=0)) - shannon_bits(share).mean(axis=0)
    return np.asarray(between.clip(min=0.0))


def specialization(
    experts: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    exchangeable: NDArray[np.integer],
    n_experts: int,
    whole: bool,
    permutations: int = 500,
    seed: int = 0,
) -> Specialization:
    """Divergence between groups, with the labels shuffled `permutations` times.

    `experts` [tokens, layers, k] and `groups` [tokens] (from 0). `exchangeable` [tokens] says what the shuffles keep
    together: with ``whole=True`` it numbers documents, each of one group, and whole documents exchange their labels;
    with ``whole=False`` it holds token ids, and the tokens of one id exchange theirs.

    >>> experts = np.array([[[0]], [[0]], [[1]], [[1]]])
    >>> found = specialization(experts, np.array([0, 0, 1, 1]), exchangeable=np.array([5, 5, 6, 6]), n_experts=2,
    ...                        whole=False)
    >>> found.bits.tolist(), found.excess_bits.tolist()    # the words explain it all
    ([1.0], [0.0])
    """
    check_array("experts", experts, "tokens, layers, k")
    check_labels(experts, groups=groups, exchangeable=exchangeable)
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(seed)

    def usage_divergence(labels: NDArray[np.integer]) -> NDArray[np.float64]:
        counts = group_counts(experts, labels, n_groups=n_groups, n_experts=n_experts)
        return jensen_shannon_bits(counts.astype(np.float64))

    observed = usage_divergence(groups)
    if whole:
        _, first, number = np.unique(exchangeable, return_index=True, return_inverse=True)
        labels = groups[first]
        if np.any(labels[number] != groups):
            raise ValueError(
                "a document has tokens of more than one group; shuffle token ids instead"
            )
        shuffled: Iterator[NDArray[np.integer]] = (
            rng.permutation(labels)[number] for _ in range(permutations)
        )
    else:
        shuffled = shuffles_within(groups, exchangeable, permutations=permutations, generator=rng)
    null = [usage_divergence(g) for g in shuffled]
    return Specialization(observed, np.array(null))


def shuffles_within(
    groups: NDArray[np.integer],
    ids: NDArray[np.integer],
    *,
    permutations: int,
    generator: np.random.Generator,
) -> Iterator[NDArray[np.integer]]:
    """The groups [tokens], shuffled among the tokens of each id, one shuffle after another.

    >>> generator = np.random.default_rng(0)
    >>> next(shuffles_within(np.array([0, 1, 2]), np.array([7, 8, 8]), permutations=1, generator=generator))[0].item()
    0
    """
    order = np.argsort(ids, kind="stable")
    for _ in range(permutations):
        drawn = np.lexsort((generator.random(len(ids)), ids))
        made = np.empty_like(groups)
        made[order] = groups[drawn]
        yield made
