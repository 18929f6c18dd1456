"""Some experts → random others that are used as much: what taking any experts of that load away would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, order=True)
class ExpertPlace:
    """One expert of one layer, both counted from 0."""

    layer: int
    expert: int


def load_matched(
    counts: NDArray[np.integer],
    experts: Sequence[ExpertPlace],
    *,
    arms: int,
    nearest: int = 4,
    seed: int = 0,
) -> list[tuple[ExpertPlace, ...]]:
    """Up to `arms` different sets of random experts, with one of the same layer and nearly the same load for each.

    `counts` [layers, experts] say how often each is chosen. Each stand-in is drawn among the `nearest` of its layer by
    load that are not meant themselves and not in the set already; among more where these do not make enough sets. There
    are fewer sets where the layer has no more. Raises ``ValueError`` where a layer has no other expert that is used.

    >>> load_matched(np.array([[9, 10, 2, 0]]), [ExpertPlace(0, 0)], arms=3, nearest=1)    # 3 is not used
    [(ExpertPlace(layer=0, expert=1),), (ExpertPlace(layer=0, expert=2),)]
    """
    if not experts:
        raise ValueError("there is no expert to match")
    layers, n_experts = counts.shape
    for place in experts:
        if not (0 <= place.layer < layers and 0 <= place.expert < n_experts):
            raise ValueError(f"{place} is not among {layers} layers of {n_experts} experts")
    draws = np.random.default_rng(seed)
    found: dict[frozenset[ExpertPlace], tuple[ExpertPlace, ...]] = {}
    for among in range(nearest, max(nearest, n_experts) + 1):
        for _ in range(20 * arms):
            arm = _drawn(counts, experts, among, draws)
            if len(found) < arms:
                found.setdefault(frozenset(arm), arm)
        if len(found) == arms:
            break
    return list(found.values())


def _drawn(
    counts: NDArray[np.integer],
    experts: Sequence[ExpertPlace],
    nearest: int,
    draws: np.random.Generator,
) -> tuple[ExpertPlace, ...]:
    arm: list[ExpertPlace] = []
    for place in experts:
        own = counts[place.layer]
        taken = {p.expert for p in (*experts, *arm) if p.layer == place.layer}
        free = np.array([e for e in range(len(own)) if own[e] > 0 and e not in taken])
        if not len(free):
            raise ValueError(
                f"layer {place.layer} has no other expert that is used, to stand for expert {place.expert}"
            )
        far = np.abs(np.log(own[free]) - np.log(max(1, own[place.expert])))
        near = free[np.argsort(far, kind="stable")[:nearest]]
        arm.append(ExpertPlace(place.layer, int(draws.choice(near))))
    return tuple(arm)
