"""Which experts go together: chosen for one token, in one layer after another, for one token after another. NumPy only.

`experts` [tokens, layers, k] holds routed tokens alone, in their order: ``trace.experts[trace.rows()]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array, check_experts
from workbench.routing.statistics import expert_counts, ratio, shannon_bits

_STEPS = 1 << 13  # of a simulated cache that are looked at together
_BLOCK = 1 << 12  # tokens that are counted at once


@dataclass(frozen=True, slots=True, eq=False)
class Coactivation:
    """How often two experts of a layer were chosen for the same token: `together` [layers, experts, experts].

    The diagonal holds how often each was chosen at all; `tokens` is how many there were.
    """

    together: NDArray[np.int64]
    tokens: int

    def conditional(self) -> NDArray[np.float64]:
        """P(j is chosen | i is chosen), nan for an i that never was, 1 on the diagonal: [layers, i, j].

        Muennighoff et al., arXiv:2409.02060, section 5.2, over all pairs of choices.
        """
        chosen = np.diagonal(self.together, axis1=1, axis2=2)[:, :, None]
        return ratio(self.together, chosen)

    def lift(self) -> NDArray[np.float64]:
        """How much more often two experts meet than if they were chosen independently, nan where one never was.

        N_ij · N / (N_i · N_j): [layers, i, j]. With k of E distinct experts a token, all alike, it is
        (k - 1) · E / (k · (E - 1)), which is 0.53 for 2 of 16, not 1.
        """
        chosen = np.diagonal(self.together, axis1=1, axis2=2).astype(np.float64)
        expected = chosen[:, :, None] * chosen[:, None, :]
        return ratio(self.together * np.float64(self.tokens), expected)


def coactivation(experts: NDArray[np.integer], *, n_experts: int) -> Coactivation:
    """Count the pairs of experts that one token chose in a layer.

    >>> found = coactivation(np.array([[[0, 1]], [[0, 2]]]), n_experts=3)
    >>> found.together[0].tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    >>> found.conditional()[0, 1].tolist()
    [1.0, 1.0, 0.0]
    """
    check_experts(experts, n_experts=n_experts)
    return Coactivation(_met(experts, experts, n_experts), len(experts))


def seriation(similarity: NDArray[np.floating]) -> NDArray[np.int64]:
    """An order of the rows that puts what is alike side by side: [n], from a symmetric `similarity` [n, n], 0 or more.

    Sorted by the second eigenvector of the Laplacian, which gives back any order in which similarity only falls with
    distance (Atkins, Boman and Hendrickson, "A spectral algorithm for seriation and the consecutive ones problem",
    1998). Groups that share nothing are sorted one by one, the largest first. The diagonal does not count, nan is 0.

    >>> seriation(np.array([[0, 1, 9], [1, 0, 3], [9, 3, 0]])).tolist()    # 0 and 1 both are more like 2
    [0, 2, 1]
    """
    weights = np.nan_to_num(np.array(similarity, dtype=np.float64))
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or np.any(weights != weights.T):
        raise ValueError(f"similarity must be [n, n] and symmetric, got {list(weights.shape)}")
    if np.any(weights < 0):
        raise ValueError("a similarity is negative")
    np.fill_diagonal(weights, 0.0)
    groups = sorted(_connected(weights > 0), key=len, reverse=True)
    return np.concatenate([group[_second_eigenvector(weights, group)] for group in groups])


def transitions(experts: NDArray[np.integer], *, n_experts: int) -> NDArray[np.float64]:
    """P(expert j in the next layer | expert i in this one), nan for an i never chosen: [layers - 1, i, j].

    All k × k pairs of a token's choices count, each 1 / k of the next layer's, so rows sum to one.

    >>> transitions(np.array([[[0, 1], [2, 3]], [[0, 3], [2, 1]]]), n_experts=4)[0, 0].tolist()
    [0.0, 0.25, 0.5, 0.25]
    """
    check_experts(experts, n_experts=n_experts)
    met = _met(experts[:, :-1], experts[:, 1:], n_experts)
    return ratio(met, met.sum(axis=2, keepdims=True))


def transition_information(experts: NDArray[np.integer], *, n_experts: int) -> NDArray[np.float64]:
    """Mutual information of the choices of neighbouring layers over the next layer's entropy, 0 to 1: [layers - 1].

    0 if a layer's expert tells nothing of the next one's. Biased upwards for few tokens: compare with shuffled ones.

    >>> transition_information(np.array([[[0], [1]], [[1], [0]]]), n_experts=2).tolist()
    [1.0]
    """
    check_experts(experts, n_experts=n_experts)
    met = _met(experts[:, :-1], experts[:, 1:], n_experts).astype(np.float64)
    total = met.sum(axis=(1, 2), keepdims=True)
    joint = met / np.maximum(total, 1)
    here, after = joint.sum(axis=2, keepdims=True), joint.sum(axis=1, keepdims=True)
    ratio = np.divide(joint, here * after, out=np.ones_like(joint), where=joint > 0)
    information = (joint * np.log2(ratio)).sum(axis=(1, 2))
    entropy = shannon_bits(after[:, 0])
    return np.asarray(
        np.divide(information, entropy, out=np.zeros_like(entropy), where=entropy > 0)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Locality:
    """How often a token uses experts of the token before it: [layers] each.

    `first_repeats` is the share of tokens whose first choice is the first choice before, `any_repeats` that of tokens
    that share an expert. `first_by_chance` and `any_by_chance` are what tokens in random order would have;
    `uniform_first` and `uniform_any` what even use would have: 6.25 % and 24.2 % for 2 of 16, as in Jiang et al.
    (Mixtral), arXiv:2401.04088, section 5.
    """

    first_repeats: NDArray[np.float64]
    any_repeats: NDArray[np.float64]
    first_by_chance: NDArray[np.float64]
    any_by_chance: NDArray[np.float64]
    uniform_first: float
    uniform_any: float


def locality(
    experts: NDArray[np.integer], *, n_experts: int, follows: NDArray[np.bool_] | None = None
) -> Locality:
    """How much experts repeat from a token to the next.

    `follows` [tokens] says which tokens directly follow the one before in their sequence; by default all but the first.
    By chance is exact: the mean over all pairs of two different tokens.

    >>> found = locality(np.array([[[0, 1]], [[0, 2]], [[3, 0]]]), n_experts=16)
    >>> found.first_repeats.tolist(), found.any_repeats.tolist(), found.uniform_first, round(found.uniform_any, 3)
    ([0.5], [1.0], 0.0625, 0.242)
    """
    check_experts(experts, n_experts=n_experts)
    tokens, layers, k = experts.shape
    if follows is None:
        follows = np.arange(tokens) > 0
    after = np.flatnonzero(follows)
    if follows.shape != (tokens,) or (tokens and follows[0]):
        raise ValueError(f"follows must be [{tokens}] booleans, and the first token follows none")
    if not len(after):
        raise ValueError("no token follows another: there is nothing to repeat")
    first = experts[:, :, 0]
    here, before = experts[after], experts[after - 1]
    shared = np.zeros((len(after), layers), dtype=bool)
    for one in range(k):
        for other in range(k):
            shared |= here[:, :, one] == before[:, :, other]
    counts = expert_counts(first[:, :, None], n_experts).astype(np.float64)
    pairs = tokens * (tokens - 1)
    same = (counts * (counts - 1)).sum(axis=1) / max(pairs, 1)
    return Locality(
        first_repeats=np.asarray((first[after] == first[after - 1]).mean(axis=0)),
        any_repeats=np.asarray(shared.mean(axis=0)),
        first_by_chance=same,
        any_by_chance=_meeting_by_chance(experts, n_experts),
        uniform_first=1 / n_experts,
        uniform_any=1 - comb(n_experts - k, k) / comb(n_experts, k),
    )


def cache_hits(experts: NDArray[np.integer], *, capacity: int) -> NDArray[np.float64]:
    """Share of choices that a cache of the `capacity` last used experts of each layer would have held: [layers].

    What keeping some experts on a GPU and the rest in host memory would save, with the least recently used given up.

    A token asks for its experts one after another, the first choice first.

    >>> cache_hits(np.array([[[0, 1]], [[0, 2]], [[1, 0]], [[1, 0]]]), capacity=2).tolist()    # 0, then 1 and 0
    [0.375]
    """
    check_array("experts", experts, "tokens, layers, k")
    tokens, layers, k = experts.shape
    if not tokens:
        raise ValueError("no token has chosen an expert")
    if capacity < 1:
        raise ValueError(f"capacity={capacity} is no number of experts")
    hits = np.zeros(layers)
    for layer in range(layers):
        asked = experts[:, layer].reshape(-1)
        before = np.full(int(asked.max()) + 1, -1, dtype=np.int32)
        for start in range(0, len(asked), _STEPS):
            now = asked[start : start + _STEPS]
            steps = np.arange(len(now))
            # when each expert was last asked for before each step: [experts, steps]
            last = np.full((len(before), len(now) + 1), -1, dtype=np.int32)
            last[:, 0] = before
            last[now, steps + 1] = start + steps
            np.maximum.accumulate(last, axis=1, out=last)
            before = last[:, -1]
            own = last[now, steps]
            others_since = (last[:, :-1] > own).sum(axis=0, dtype=np.uint8)
            hits[layer] += ((own >= 0) & (others_since < capacity)).sum()
    return np.asarray(hits / (tokens * k))


def _connected(is_joined: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The groups that a symmetric [n, n] joins, directly or through others, by their first member."""
    left = np.ones(len(is_joined), dtype=bool)
    found = []
    while left.any():
        group = np.zeros(len(left), dtype=bool)
        group[left.argmax()] = True
        while (wider := group | is_joined[group].any(axis=0)).sum() > group.sum():
            group = wider
        left &= ~group
        found.append(np.flatnonzero(group))
    return found


def _second_eigenvector(
    weights: NDArray[np.float64], group: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The order of a joined group's members; of the two directions, that in which the first member comes earlier."""
    if len(group) < 3:
        return np.arange(len(group))
    inner = weights[np.ix_(group, group)]
    _, vectors = np.linalg.eigh(np.diag(inner.sum(axis=1)) - inner)
    # rounded, so that what is equal keeps its order on every machine
    order = np.argsort(vectors[:, 1].round(9), kind="stable")
    return order if np.flatnonzero(order == 0)[0] <= (len(group) - 1) / 2 else order[::-1]


def _met(
    here: NDArray[np.integer], there: NDArray[np.integer], n_experts: int
) -> NDArray[np.int64]:
    """How often expert i of `here` and j of `there`, both [tokens, layers, k], met in a token: [layers, i, j]."""
    layers, k = here.shape[1:]
    found = np.zeros(layers * n_experts * n_experts, dtype=np.int64)
    first = np.arange(layers, dtype=np.int64)[None, :] * n_experts
    for start in range(0, len(here), _BLOCK):
        block = slice(start, start + _BLOCK)
        for one in range(k):
            row = (first + here[block, :, one]) * n_experts
            for other in range(k):
                place = row + there[block, :, other]
                found += np.bincount(place.reshape(-1), minlength=len(found))
    return found.reshape(layers, n_experts, n_experts)


def _meeting_by_chance(experts: NDArray[np.integer], n_experts: int) -> NDArray[np.float64]:
    """P(two different tokens share an expert), over all pairs, layer by layer; sets of k experts are few."""
    tokens, layers, k = experts.shape
    found = np.zeros(layers)
    for layer in range(layers):
        sets = np.sort(experts[:, layer], axis=1).astype(np.int64)
        code = sets[:, 0]  # one number for each set
        for choice in range(1, k):
            if int(code.max()) >= 2**62 // n_experts:
                code = np.unique(code, return_inverse=True)[1]
            code = code * n_experts + sets[:, choice]
        small = code.astype(np.min_scalar_type(int(code.max())))  # is sorted faster
        _, first, counts = np.unique(small, return_index=True, return_counts=True)
        kinds = np.zeros((len(first), n_experts))
        np.put_along_axis(kinds, sets[first], 1.0, axis=1)
        meets = (kinds @ kinds.T) > 0
        pairs = counts @ meets @ counts - tokens  # less each token with itself
        found[layer] = pairs / max(tokens * (tokens - 1), 1)
    return found
