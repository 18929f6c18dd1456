"""How sure a router was: the distance from the expert that was chosen to the one that was not. NumPy only.

`router_logits` are [tokens, layers, experts] as the router gives them, before sparsemixer; `gate_weights` [tokens,
layers, k]. Rows of tokens that were not routed belong left out: ``trace.router_logits[trace.rows()]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_array

BFLOAT16 = (
    2.0**-7
)  # how far two neighbouring numbers of this type are apart at most, over their size
FLOAT16 = 2.0**-10
_BLOCK = 1 << 9  # tokens that are ranked at once


def margins(router_logits: NDArray[np.floating], *, k: int = 2) -> NDArray[np.float64]:
    """Gap between the last expert chosen and the first one not chosen, over the larger size of both: [tokens, layers].

    0 is a tie; what is below the precision that the model computes in may be chosen otherwise on another machine.

    >>> margins(np.array([[[4.0, 1.0, 2.0, 1.5]]])).tolist()    # chosen: 4 and 2; not chosen: 1.5
    [[0.25]]
    """
    check_array("router_logits", router_logits, "tokens, layers, experts")
    if not 1 <= k < router_logits.shape[2]:
        raise ValueError(
            f"router_logits must be [tokens, layers, experts] with more than k={k} experts, got "
            f"{list(router_logits.shape)}"
        )
    chosen, left = _ranked(router_logits, k + 1)[-2:].astype(np.float64)
    size = np.maximum(np.maximum(np.abs(chosen), np.abs(left)), np.finfo(np.float32).tiny)
    return np.asarray((chosen - left) / size)


def fragile(
    router_logits: NDArray[np.floating], *, precision: float = BFLOAT16, k: int = 2
) -> NDArray[np.bool_]:
    """Which choices a rounding error of the router's own `precision` could change: [tokens, layers].

    Logits that were recorded as float16 know no margins below 2**-10.

    >>> fragile(np.array([[[4.0, 1.0, 2.0, 1.99]], [[4.0, 1.0, 2.0, 1.5]]])).tolist()
    [[True], [False]]
    """
    return np.asarray(margins(router_logits, k=k) <= precision)


@dataclass(frozen=True, slots=True, eq=False)
class Decisiveness:
    """How much of a choice each layer gives away, [layers] each.

    `whole_first` and `whole_second` are the shares of tokens whose first and second gate weight is 1: no other expert
    was within sparsemixer's 2 % of it. `gate_sum` is the mean of both together, 2 at most.
    """

    whole_first: NDArray[np.float64]
    whole_second: NDArray[np.float64]
    gate_sum: NDArray[np.float64]


def decisiveness(gate_weights: NDArray[np.floating]) -> Decisiveness:
    """Shares of gate weights of one, and the mean sum of a token's two, layer by layer.

    >>> found = decisiveness(np.array([[[1.0, 1.0]], [[1.0, 0.5]]]))
    >>> found.whole_first.tolist(), found.whole_second.tolist(), found.gate_sum.tolist()
    ([1.0], [0.5], [1.75])
    """
    check_array("gate_weights", gate_weights, "tokens, layers, k")
    if gate_weights.shape[2] != 2 or not len(gate_weights):
        raise ValueError(
            f"gate_weights must be [tokens, layers, 2] of at least one token, got {list(gate_weights.shape)}"
        )
    weights = gate_weights.astype(np.float64)
    whole = weights >= 1 - FLOAT16
    return Decisiveness(
        whole_first=np.asarray(whole[:, :, 0].mean(axis=0)),
        whole_second=np.asarray(whole[:, :, 1].mean(axis=0)),
        gate_sum=np.asarray(weights.sum(axis=2).mean(axis=0)),
    )


def _ranked(router_logits: NDArray[np.floating], n: int) -> NDArray[np.floating]:
    """The `n` largest logits, the largest first: [n, tokens, layers]. Quicker than sorting where experts are few."""
    tokens, layers, _ = router_logits.shape
    # float16 is compared slowly, and float32 holds all its numbers
    precise = np.result_type(router_logits.dtype, np.float32)
    ranked = np.empty((n, tokens, layers), dtype=precise)
    for start in range(0, tokens, _BLOCK):
        block = router_logits[start : start + _BLOCK]
        best = ranked[:, start : start + _BLOCK]
        best.fill(-np.inf)
        for one in np.ascontiguousarray(np.moveaxis(block, 2, 0), dtype=precise):
            for place in best:  # each place keeps the larger and passes the smaller on
                passed = np.minimum(place, one)
                np.maximum(place, one, out=place)
                one = passed
    return ranked
