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
    """`arms` sets of random experts, each with one of the same layer and nearly the same load for each of `experts`.

    `counts` [layers, experts] say how often each is chosen. Each stand-in is drawn among the `nearest` of its layer by
    load that are not meant themselves and not in the set already. Raises ``ValueError`` where a layer has none.

    >>> load_matched(np.array([[9, 10, 2, 0]]), [ExpertPlace(0, 0)], arms=2, nearest=1)
    [(ExpertPlace(layer=0, expert=1),), (ExpertPlace(layer=0, expert=1),)]
    """
    if not experts:
        raise ValueError("there is no expert to match")
    layers, n_experts = counts.shape
    for place in experts:
        if not (0 <= place.layer < layers and 0 <= place.expert < n_experts):
            raise ValueError(f"{place} is not among {layers} layers of {n_experts} experts")
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(arms):
        arm: list[ExpertPlace] = []
        for place in experts:
            own = counts[place.layer]
            taken = {p.expert for p in (*experts, *arm) if p.layer == place.layer}
            free = np.array([e for e in range(n_experts) if own[e] > 0 and e not in taken])
            if not len(free):
                raise ValueError(
                    f"layer {place.layer} has no other expert that is used, to stand for expert {place.expert}"
                )
            far = np.abs(np.log(own[free]) - np.log(max(1, own[place.expert])))
            near = free[np.argsort(far, kind="stable")[:nearest]]
            arm.append(ExpertPlace(place.layer, int(draws.choice(near))))
        found.append(tuple(arm))
    return found
