"""Use other experts than the router would: ban, drop, force or bias them, in some layers and for some tokens.

Everything happens where sparsemixer decides, in the space of its raw logits; it runs again on what was changed, so that
gates stay what the model would make of them. Nothing of the weights is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from workbench.routing.capture import architecture_of, fed_ids, find_routers

if TYPE_CHECKING:
    import torch

Action = Literal["ban", "drop", "force", "bias"]
MOST_BIAS = 60_000  # router logits are tens at most; float16 ends at 65,504
_intervened: WeakKeyDictionary[Any, str] = (
    WeakKeyDictionary()
)  # models under an intervention, and which


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to the use of one expert, in `layers` or in all of them (None).

    ``ban``: it cannot be chosen; the next best is, with the gate that sparsemixer gives it. ``drop``: where it is
    chosen its output counts nothing, and nothing takes its place. ``force``: every token uses it; where a token had not
    chosen it, it takes the place of the second choice with a gate of 1, where it had, the gate stays. ``bias``:
    `amount` is added to its logit.

    >>> Edit("ban", expert=3, layers=(0, 2))
    Edit(action='ban', expert=3, layers=(0, 2), amount=0.0)
    """

    action: Action
    expert: int
    layers: tuple[int, ...] | None = None
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            known = ", ".join(get_args(Action))
            raise ValueError(f"action={self.action!r} is not known; use one of {known}")
        if not isinstance(self.expert, (int, np.integer)) or self.expert < 0:
            raise ValueError(f"expert={self.expert!r} is no expert's number, 0 or more")
        if self.layers is not None:
            is_right = isinstance(self.layers, tuple) and all(
                isinstance(layer, (int, np.integer)) for layer in self.layers
            )
            if not is_right or not self.layers:
                raise ValueError(
                    f"layers={self.layers!r} must be a tuple of layers, like (3,), or None for all"
                )
        if not isinstance(self.amount, (int, float)):
            raise ValueError(f"amount={self.amount!r} is no number")
        if self.amount and self.action != "bias":
            raise ValueError(f"amount={self.amount} is for 'bias' alone")
        if not abs(self.amount) <= MOST_BIAS:
            raise ValueError(
                f"amount={self.amount:g} is no number from -{MOST_BIAS:,} to {MOST_BIAS:,}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class TokenMask:
    """Which tokens of a sequence are meant: `inside` [tokens] for the first ones, `beyond` for all after them.

    `token_ids` [tokens] are those that the sequence must begin with, None for any; `segment` is what the tokens are
    called.
    """

    inside: NDArray[np.bool_]
    beyond: bool = False
    token_ids: NDArray[np.int64] | None = None
    segment: str = ""

    def at(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether the tokens from `start` to `stop` are meant: [stop - start].

        >>> TokenMask(np.array([True, False]), beyond=True).at(1, 4).tolist()
        [False, True, True]
        """
        found = np.full(stop - start, self.beyond)
        known = self.inside[start:stop]
        found[: len(known)] = known
        return found


@contextlib.contextmanager
def intervened(
    model: Any, edits: Sequence[Edit], *, tokens: TokenMask | None = None
) -> Iterator[None]:
    """Within the block the routers of `model` decide as `edits` say, for `tokens` or for all.

    Raises
    ------
    ValueError
        The model is dense or gates otherwise (Mixtral), another intervention is under way, an expert or layer does not
        exist, or fewer than two experts would be left in a layer.
    """
    routers = _routers(model)
    by_layer = check_edits(model, edits)
    if not edits:
        raise ValueError("no edit is given; nothing would change")
    call = _Call(tokens)
    handles: list[Any] = []
    where = "" if tokens is None else f" for {tokens.segment or 'some tokens'}"
    _intervened[model] = described(edits) + where
    try:
        if tokens is not None:
            handles.append(model.model.register_forward_pre_hook(call.begin, with_kwargs=True))
        for router, own in zip(routers, by_layer, strict=True):
            if own:
                # before any recorder, which is to see what was decided
                handles.append(router.register_forward_hook(_Hook(own, call), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _intervened.pop(model, None)


@contextlib.contextmanager
def intervened_rows(
    model: Any, rows: Sequence[Sequence[Edit]], *, meant: NDArray[np.bool_] | None = None
) -> Iterator[None]:
    """The same for a batch whose rows are to differ: row r is routed as ``rows[r]`` says, as ever where that is empty.

    Every pass within must have as many rows, of one length; `meant` [tokens] says for which tokens of a row edits hold.
    """
    import torch

    routers = _routers(model)
    by_row = [check_edits(model, edits) for edits in rows]
    meant_there = None if meant is None else torch.from_numpy(meant).to(model.device)
    handles: list[Any] = []
    _intervened[model] = "edits by row"
    try:
        for layer, router in enumerate(routers):
            own = [edits[layer] for edits in by_row]
            if any(own):
                hook = _RowHook(own, meant_there)
                handles.append(router.register_forward_hook(hook, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _intervened.pop(model, None)


def described(edits: Sequence[Edit]) -> str:
    """Edits in words, as a trace keeps them.

    >>> described([Edit("ban", 3, (0, 2)), Edit("bias", 4, amount=0.5)])
    'ban 3 in layers 0, 2; bias 4 by +0.5 in all layers'
    """
    parts = []
    for edit in edits:
        by = f" by {edit.amount:+g}" if edit.action == "bias" else ""
        layers = (
            "all layers" if edit.layers is None else "layers " + ", ".join(map(str, edit.layers))
        )
        parts.append(f"{edit.action} {edit.expert}{by} in {layers}")
    return "; ".join(parts)


def intervention_in(model: Any) -> str:
    """The intervention that is under way, in words; empty if there is none."""
    return _intervened.get(model, "")


def is_intervened(model: Any) -> bool:
    """Whether an intervention in `model` is under way: a copy of it would keep the hooks."""
    return model in _intervened


class _Call:
    """Which of the tokens that are fed now are meant."""

    def __init__(self, tokens: TokenMask | None) -> None:
        self._tokens = tokens
        self.rows: torch.Tensor | None = None  # [tokens fed], None for all

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        assert self._tokens is not None
        ids = fed_ids(args, kwargs)
        if len(ids) > 1:
            raise ValueError(
                "an intervention in some tokens is for one sequence at a time; intervene in all, or use generate"
            )
        cache = kwargs.get("past_key_values")
        start = int(cache.get_seq_length()) if cache is not None else 0
        known = self._tokens.token_ids
        if known is not None and start < len(known):
            own = known[start : start + ids.shape[1]]
            if not np.array_equal(ids[0, : len(own)].cpu().numpy(), own):
                raise ValueError(
                    "the intervention is in a segment of another prompt than the one that is read; give the prompt "
                    "that will be answered"
                )
        rows = self._tokens.at(start, start + ids.shape[1])
        self.rows = torch.from_numpy(rows).to(ids.device)


class _Hook:
    """What happens to one router's answer."""

    def __init__(self, edits: Sequence[Edit], call: _Call) -> None:
        self._edits, self._call = edits, call

    def __call__(self, router: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        return _rerouted(router, output, self._edits, self._call.rows)


class _RowHook:
    """What happens to one router's answer where every row of a batch has edits of its own, or none."""

    def __init__(self, edits: Sequence[Sequence[Edit]], meant: torch.Tensor | None) -> None:
        self._edits, self._meant = edits, meant

    def __call__(self, router: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        import torch

        parts = [part.chunk(len(self._edits)) for part in output]
        rows = [
            _rerouted(router, row, edits, self._meant) if edits else row
            for row, edits in zip(zip(*parts, strict=True), self._edits, strict=True)
        ]
        return tuple(torch.cat(part) for part in zip(*rows, strict=True))


def _rerouted(
    router: Any,
    output: tuple[torch.Tensor, ...],
    edits: Sequence[Edit],
    meant: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The router's answer for some tokens as `edits` would have it, where they are `meant` [tokens]."""
    import torch
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    raw, weights, experts = output
    logits = raw.clone()
    for edit in edits:
        if edit.action == "ban":
            logits[:, edit.expert] = float("-inf")
        elif edit.action == "bias":
            logits[:, edit.expert] += edit.amount
    new_weights, new_experts = sparsemixer(  # type: ignore[no-untyped-call]
        logits, jitter_eps=router.router_jitter_noise, training=False, top_k=router.top_k
    )
    for edit in edits:
        if edit.action == "force":
            is_missing = (new_experts != edit.expert).all(dim=1)
            new_experts[is_missing, -1] = edit.expert
            new_weights[is_missing, -1] = 1.0
    for edit in edits:
        if edit.action == "drop":
            new_weights = new_weights.masked_fill(new_experts == edit.expert, 0.0)
    if meant is None:
        return logits, new_weights, new_experts
    meant = meant.to(raw.device)  # the layer may lie on another device than the first
    return (
        torch.where(meant[:, None], logits, raw),
        torch.where(meant[:, None], new_weights, weights),
        torch.where(meant[:, None], new_experts, experts),
    )


def _routers(model: Any) -> list[Any]:
    routers, architecture = find_routers(model), architecture_of(model)
    if not routers or architecture is None:
        raise ValueError(
            f"{type(model).__name__} has no sparsemixer router: it cannot be intervened in"
        )
    if architecture.gating != "sparsemixer":
        raise ValueError(
            f"{type(model).__name__} gates by {architecture.gating}, and an intervention decides anew by sparsemixer: "
            "only a Phi-MoE can be intervened in"
        )
    if is_intervened(model):
        raise ValueError("this model is being intervened in already; give all edits together")
    return routers


def check_edits(model: Any, edits: Sequence[Edit]) -> list[list[Edit]]:
    """The edits of each layer; raises ``ValueError`` for those that cannot be made together."""
    if isinstance(edits, (str, Edit)) or not all(isinstance(edit, Edit) for edit in edits):
        raise ValueError(f'edits={edits!r} must be a list of Edit, like [Edit("ban", 3, (0,))]')
    layers = len(find_routers(model))
    found = [
        [edit for edit in edits if edit.layers is None or layer in edit.layers]
        for layer in range(layers)
    ]
    _check(edits, found, int(model.config.num_local_experts))
    return found


def _check(edits: Sequence[Edit], by_layer: Sequence[Sequence[Edit]], n_experts: int) -> None:
    for edit in edits:
        if not 0 <= edit.expert < n_experts:
            raise ValueError(
                f"there is no expert to {described([edit])}; there are 0 to {n_experts - 1}"
            )
        for layer in edit.layers or ():
            if not 0 <= layer < len(by_layer):
                raise ValueError(
                    f"there is no layer to {described([edit])}; there are 0 to {len(by_layer) - 1}"
                )
    for layer, own in enumerate(by_layer):
        banned = {edit.expert for edit in own if edit.action == "ban"}
        if n_experts - len(banned) < 2:
            raise ValueError(
                f"{len(banned)} of {n_experts} experts would be banned in layer {layer}; two must be left"
            )
        forced = {edit.expert for edit in own if edit.action == "force"}
        if len(forced) > 1:
            raise ValueError(f"{len(forced)} experts would be forced in layer {layer}; one can be")
        edited = [edit.expert for edit in own]
        twice = [expert for expert in edited if edited.count(expert) > 1]
        if twice:
            actions = " and ".join(edit.action for edit in own if edit.expert == twice[0])
            raise ValueError(
                f"expert {twice[0]} of layer {layer} is edited more than once ({actions}): give one edit of it"
            )
