"""Experts and a group of each token (domain, language, segment) → how much each group uses which expert. NumPy only.

A group that has other words uses other experts even where every expert only looks at the word. So beside each share
stands what the group's words alone would give: the mean over all shuffles of the groups among tokens of one id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.routing.arrays import check_experts, check_labels
from workbench.routing.specialization import shuffles_within
from workbench.routing.statistics import (
    group_counts,
    ratio,
    shannon_bits,
    uniform_usage,
    weighted_counts,
)

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 256  # groups × shuffles, or words, that are added up at once


@dataclass(frozen=True, slots=True, eq=False)
class GroupUsage:
    """The share of each group's tokens that each expert got: `usage` [groups, layers, experts]. Made by
    :func:`group_usage`.

    `tokens` [groups] is how many each has; without any, its rows are nan. `uniform` is the share that even use would
    give, k / experts. `information` [layers], from 0 to 1, is how much of the entropy of the groups the experts tell,
    MI(expert; group) / H(group); biased upwards for few tokens, so compare it with `information_null`.

    Where token ids were given, `expected` [groups, layers, experts] is what the groups' words alone would give. Where
    there were shuffles too, `low` and `high` are the 2.5 and 97.5 percentiles of usage with the groups shuffled among
    tokens of one id, and `information_null` [layers] is the mean of `information` so. None where they were not.
    """

    usage: NDArray[np.float64]
    tokens: NDArray[np.int64]
    uniform: float
    information: NDArray[np.float64]
    expected: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    information_null: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        groups, layers, experts = self.usage.shape
        beside = "" if self.expected is None else ", .lift_over_words"
        return (
            f"GroupUsage({groups} groups × {layers} layers × {experts} experts, {self.tokens.sum()} tokens; "
            f"next: .lift{beside}, .to_frame(names))"
        )

    @property
    def lift(self) -> NDArray[np.float64]:
        """Usage over even use: [groups, layers, experts]; 1 where an expert gets as much as any."""
        return np.asarray(self.usage / self.uniform)

    @property
    def lift_over_words(self) -> NDArray[np.float64]:
        """Usage over what the words alone would give, nan where that is nothing: [groups, layers, experts].

        Raises
        ------
        ValueError
            The usage was counted without token ids.
        """
        if self.expected is None:
            raise ValueError("nothing is known of the words; call group_usage with token_ids")
        return ratio(self.usage, self.expected)

    def to_frame(self, names: Sequence[str]) -> pd.DataFrame:
        """One row per group, layer and expert; `names` are those of the groups, in their order."""
        import pandas as pd

        if len(names) != len(self.usage):
            raise ValueError(f"{len(names)} names for {len(self.usage)} groups; name each")
        group, layer, expert = (place.reshape(-1) for place in np.indices(self.usage.shape))
        columns: dict[str, Any] = {
            "group": np.asarray(list(names), dtype=object)[group],
            "layer": layer,
            "expert": expert,
            "tokens": self.tokens[group],
            "usage": self.usage.reshape(-1),
            "lift": self.lift.reshape(-1),
        }
        if self.expected is not None:
            columns["expected"] = self.expected.reshape(-1)
            columns["lift_over_words"] = self.lift_over_words.reshape(-1)
        if self.low is not None and self.high is not None:
            columns["low"], columns["high"] = self.low.reshape(-1), self.high.reshape(-1)
        return pd.DataFrame(columns)


def group_usage(
    experts: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    n_groups: int,
    n_experts: int,
    token_ids: NDArray[np.integer] | None = None,
    permutations: int = 0,
    seed: int = 0,
) -> GroupUsage:
    """The share of each group's tokens that each expert got, N_eD / N_D, beside what the words alone would give.

    `experts` [tokens, layers, k] and `groups` [tokens] (from 0 to `n_groups` - 1) of routed tokens. Muennighoff et al.,
    arXiv:2409.02060, section 5.3, call it domain specialization. With `token_ids` [tokens], :func:`expected_usage`
    stands beside it; with `permutations` too, a band of chance. The band takes tokens for independent, those of one
    document are not: see :func:`workbench.routing.contrasts.contrast` for documents.

    >>> experts = np.array([[[0]], [[0]], [[1]], [[1]]])
    >>> found = group_usage(experts, np.array([0, 0, 0, 1]), n_groups=2, n_experts=2, token_ids=np.array([5, 5, 6, 6]))
    >>> found.usage[:, 0].round(3).tolist(), found.lift[:, 0].round(3).tolist()
    ([[0.667, 0.333], [0.0, 1.0]], [[1.333, 0.667], [0.0, 2.0]])
    >>> found.lift_over_words[0, 0].round(3).tolist()    # the words explain it all
    [1.0, 1.0]
    """
    check_experts(experts, n_experts=n_experts)
    check_labels(experts, groups=groups, token_ids=token_ids)
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < n_groups:
        raise ValueError(
            f"groups run from {groups.min()} to {groups.max()}, they must be from 0 to n_groups - 1 = {n_groups - 1}"
        )
    if permutations and token_ids is None:
        raise ValueError("shuffles keep each token's word; give token_ids, or permutations=0")
    tokens = np.bincount(groups, minlength=n_groups)
    counts = group_counts(experts, groups, n_groups=n_groups, n_experts=n_experts)
    found: dict[str, Any] = {}
    if token_ids is not None:
        found["expected"] = expected_usage(
            experts, groups, token_ids, n_groups=n_groups, n_experts=n_experts
        )
    if permutations and token_ids is not None:
        generator = np.random.default_rng(seed)
        drawn = shuffles_within(groups, token_ids, permutations=permutations, generator=generator)
        shuffled = np.concatenate(
            list(_counted(experts, drawn, n_groups=n_groups, n_experts=n_experts))
        )
        edges = np.percentile(ratio(shuffled, tokens[:, None, None]), (2.5, 97.5), axis=0)
        found["low"], found["high"] = edges
        found["information_null"] = np.mean([_information(one) for one in shuffled], axis=0)
    return GroupUsage(
        usage=ratio(counts, tokens[:, None, None]),
        tokens=tokens,
        uniform=uniform_usage(n_experts, experts.shape[2]),
        information=_information(counts),
        **found,
    )


def expected_usage(
    experts: NDArray[np.integer],
    groups: NDArray[np.integer],
    token_ids: NDArray[np.integer],
    *,
    n_groups: int,
    n_experts: int,
) -> NDArray[np.float64]:
    """The usage that each group's words give if a word is routed alike in all groups: [groups, layers, experts].

    Σ_x N_xD / N_D · N_xe / N_x over token ids x: every token is given the mean routing of all tokens of its id. That is
    exactly the mean over all shuffles of the groups among tokens of one id. nan for groups without tokens.

    >>> experts = np.array([[[0]], [[1]], [[0]]])
    >>> expected_usage(experts, np.array([0, 1, 1]), np.array([7, 7, 8]), n_groups=2, n_experts=2)[:, 0].tolist()
    [[0.5, 0.5], [0.75, 0.25]]
    """
    check_experts(experts, n_experts=n_experts)
    check_labels(experts, groups=groups, token_ids=token_ids)
    ids, entry = np.unique(token_ids, return_inverse=True)
    met = np.bincount(entry * n_groups + groups, minlength=len(ids) * n_groups)
    of_group = met.reshape(len(ids), n_groups)  # [ids, groups]
    share = of_group / of_group.sum(axis=1, keepdims=True)
    counts = group_counts(experts, entry, n_groups=len(ids), n_experts=n_experts)
    found = np.zeros((n_groups, *counts.shape[1:]))
    for start in range(0, len(ids), _AT_ONCE):  # so that no second copy of the counts is made
        block = slice(start, start + _AT_ONCE)
        found += np.tensordot(share[block], counts[block].astype(np.float64), axes=(0, 0))
    return ratio(found, of_group.sum(axis=0)[:, None, None])


def log_odds(
    counts_x: NDArray[Any], counts_y: NDArray[Any], *, prior: ArrayLike
) -> NDArray[np.float64]:
    """How surely each item's odds are higher in X than in Y, as z-scores: the shape of the counts, items last.

    `counts_x` and `counts_y` [.., items] count the items (experts of a layer, words of an expert) in two groups;
    `prior` are the counts α added to both, of a shape that fits theirs and above 0: the larger, the more evidence it
    takes. With y of n counts the log-odds are log((y + α) / (n + α₀ - y - α)), α₀ = Σ α; their difference is divided by
    its standard error: Monroe, Colaresi and Quinn, "Fightin' Words" (2008), equations 15 to 22. The terms
    1 / (n + α₀ - y - α) of its variance, which the paper leaves out because words are rare, are kept: experts are not.

    >>> log_odds(np.array([30, 10]), np.array([10, 30]), prior=1.0).round(2).tolist()
    [4.18, -4.18]
    """
    x, y, alpha = np.broadcast_arrays(
        np.asarray(counts_x, np.float64),
        np.asarray(counts_y, np.float64),
        np.asarray(prior, np.float64),
    )
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ValueError(f"odds need two items or more, the counts have shape {list(x.shape)}")
    if np.any(alpha <= 0):
        raise ValueError(f"a prior count is {alpha.min():g}; each must be above 0")
    if np.any(x < 0) or np.any(y < 0):
        raise ValueError("a count is negative")
    difference, variance = np.zeros_like(x), np.zeros_like(x)
    for sign, counts in ((1, x), (-1, y)):
        taken = counts + alpha
        left = taken.sum(axis=-1, keepdims=True) - taken
        difference += sign * (np.log(taken) - np.log(left))
        variance += 1 / taken + 1 / left
    return np.asarray(difference / np.sqrt(variance))


def _counted(
    experts: NDArray[np.integer],
    labels: Iterator[NDArray[np.integer]],
    *,
    n_groups: int,
    n_experts: int,
) -> Iterator[NDArray[np.float64]]:
    """The counts under each of many labels, some at a time: [labels of a block, groups, layers, experts]."""
    at_once = max(1, _AT_ONCE // n_groups)
    rows = np.arange(len(experts))
    while block := [drawn for _, drawn in zip(range(at_once), labels, strict=False)]:
        weights = np.zeros((len(experts), len(block) * n_groups), dtype=np.float32)
        for number, drawn in enumerate(block):
            weights[rows, number * n_groups + drawn] = 1
        counts = weighted_counts(experts, weights, n_experts=n_experts)
        yield counts.reshape(len(block), n_groups, *counts.shape[1:])


def _information(counts: NDArray[Any]) -> NDArray[np.float64]:
    """MI(expert; group) / H(group) of counts [groups, layers, experts], 0 where there is one group: [layers]."""
    joint = counts / counts.sum(axis=(0, 2), keepdims=True)
    group, expert = joint.sum(axis=2), joint.sum(axis=0)  # [groups, layers], [layers, experts]
    entropy = shannon_bits(group.T)
    together = shannon_bits(np.moveaxis(joint, 0, 1).reshape(joint.shape[1], -1))
    information = (entropy + shannon_bits(expert) - together).clip(min=0.0)
    return np.asarray(
        np.divide(information, entropy, out=np.zeros_like(entropy), where=entropy > 0)
    )
