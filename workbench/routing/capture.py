"""Forward passes of a Phi-MoE → routing trace, by hooks on the routers. Knows nothing of prompts or answers.

The true choice and gate of every token are taken where the model computes them; nothing is derived from router logits
afterwards (that would be wrong for sparsemixer). A ledger keyed by (row, absolute position), last write wins, keeps
only what belongs to the final tokens: tokens fed twice, rejected drafts and padding are never counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.routing.trace import DECODE, PREFILL, RoutingTrace, TracedSource

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Call:
    """One forward pass: the slots it filled and, per layer, what the router returned for [rows × tokens]."""

    offset: int
    token_ids: torch.Tensor  # [rows, tokens]
    experts: list[torch.Tensor] = field(default_factory=list)  # per layer [rows * tokens, k]
    gate_weights: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)  # per layer [rows * tokens, experts]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Router choices of the tokens of one sequence; rows that are not ``routed`` hold 0."""

    experts: NDArray[np.uint8]  # [tokens, layers, k]
    gate_weights: NDArray[np.float16]  # [tokens, layers, k]
    routed: NDArray[np.bool_]  # [tokens]
    router_logits: NDArray[np.float16] | None = (
        None  # [tokens, layers, experts], if they were asked for
    )

    @property
    def _arrays(self) -> list[NDArray[Any]]:
        logits = [] if self.router_logits is None else [self.router_logits]
        return [self.experts, self.gate_weights, self.routed, *logits]

    def first(self, count: int) -> Choices:
        """Those of the first `count` tokens."""
        return Choices(*(array[:count] for array in self._arrays))

    def forget_last(self) -> None:
        """Count the last token as not routed."""
        for array in self._arrays:
            array[-1:] = 0

    def take(self, others: Choices) -> None:
        """Write `others`, which hold the same kinds of facts, over the first tokens."""
        count = min(len(others.routed), len(self.routed))
        for own, other in zip(self._arrays, others._arrays, strict=True):
            own[:count] = other[:count]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """What each token of a finished sequence is: see the fields of the same name in ``RoutingTrace``."""

    token_ids: Sequence[int]
    texts: tuple[str, ...]
    segments: NDArray[np.int16]
    segment_names: tuple[str, ...]
    spans: NDArray[np.int32]
    prompt_tokens: int
    log_probabilities: NDArray[np.float32]  # of the answer's tokens
    sources: tuple[TracedSource, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    def trace(self, choices: Choices, n_experts: int) -> RoutingTrace:
        """The routing of the sequence: what each token is, beside what the routers chose for it."""
        phases = np.full(len(self.token_ids), DECODE, dtype=np.uint8)
        phases[: self.prompt_tokens] = PREFILL
        logs = np.full(len(self.token_ids), np.nan, dtype=np.float32)
        logs[self.prompt_tokens :] = self.log_probabilities
        return RoutingTrace(
            experts=choices.experts,
            gate_weights=choices.gate_weights,
            n_experts=n_experts,
            token_ids=np.asarray(self.token_ids, dtype=np.int64),
            token_texts=self.texts,
            phases=phases,
            segments=self.segments,
            segment_names=self.segment_names,
            spans=self.spans,
            routed=choices.routed,
            router_logits=choices.router_logits,
            log_probabilities=logs,
            sources=self.sources,
            origin=self.origin,
        )


class RoutingRecorder:
    """Records routers while active: ``with RoutingRecorder(model) as recorder: model.generate(…)``.

    With `logits` also what the routers computed before sparsemixer chose: as float16, five times the memory.
    """

    def __init__(self, model: Any, *, logits: bool = False) -> None:
        routers = find_routers(model)
        if not routers:
            raise ValueError(
                f"{type(model).__name__} has no sparsemixer router: a dense model routes nothing"
            )
        if model.training:
            raise ValueError(
                "the model is in training mode, where experts are sampled: call model.eval() first"
            )
        self._model = model
        self._routers = routers
        self._calls: list[_Call] = []
        self._handles: list[Any] = []
        self._is_paused = False
        self._has_logits = logits
        self.n_experts = int(model.config.num_local_experts)
        self.k = int(routers[0].top_k)
        if self.k != 2:
            raise ValueError(
                f"num_experts_per_tok is {self.k}, but sparsemixer always takes 2: the config is wrong"
            )

    def __enter__(self) -> RoutingRecorder:
        try:
            inner = self._model.model
            self._handles.append(inner.register_forward_pre_hook(self._begin, with_kwargs=True))
            for router in self._routers:
                self._handles.append(router.register_forward_hook(self._record))
        except BaseException:  # an interrupt must not leave hooks behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_paused = True  # whatever happens now, nothing more is recorded
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()

    def another(self) -> RoutingRecorder:
        """A recorder of the same model, for passes that do not belong to this one's sequence: see ``paused``."""
        return RoutingRecorder(self._model, logits=self._has_logits)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the forward passes within: those of other sequences."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_paused:
            return
        token_ids: torch.Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        self._calls.append(_Call(offset, token_ids))

    def _record(self, _module: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
        if self._is_paused:
            return
        logits, gate_weights, experts = output
        if self._has_logits:
            self._calls[-1].logits.append(logits)
        self._calls[-1].experts.append(experts)
        self._calls[-1].gate_weights.append(gate_weights)

    def choices(
        self,
        token_ids: Sequence[int],
        *,
        row: int = 0,
        positions: NDArray[np.int64] | None = None,
        before: Choices | None = None,
    ) -> Choices:
        """What the routers chose for every token of one finished row, also those in a cached prefix (`before`).

        `positions` [slots] is the place in `token_ids` of what stands in each slot of the row's cache, -1 for padding;
        by default slot and place are the same. A token that was never fed (the last generated one) is not ``routed``.
        """
        import torch

        tokens, layers = len(token_ids), len(self._routers)
        found = Choices(
            experts=np.zeros((tokens, layers, self.k), dtype=np.uint8),
            gate_weights=np.zeros((tokens, layers, self.k), dtype=np.float16),
            routed=np.zeros(tokens, dtype=np.bool_),
            router_logits=np.zeros((tokens, layers, self.n_experts), dtype=np.float16)
            if self._has_logits
            else None,
        )
        if before is not None:
            found.take(before)
        final = np.asarray(token_ids, dtype=np.int64)
        for call in self._calls:
            if len(call.experts) != layers:  # interrupted in the middle of a pass
                continue
            fed = call.token_ids[row].cpu().numpy()  # [tokens of this call]
            slots = call.offset + np.arange(len(fed))
            places = slots if positions is None else positions[slots]
            # what stood here or beyond is no longer in the cache
            if (places >= 0).any():
                found.routed[places[places >= 0].min() :] = False
            inside = (places >= 0) & (places < tokens)
            inside[inside] = final[places[inside]] == fed[inside]
            block = slice(row * len(fed), (row + 1) * len(fed))
            chosen = torch.stack([e[block].cpu() for e in call.experts], dim=1)
            weight = torch.stack([g[block].cpu() for g in call.gate_weights], dim=1)
            found.experts[places[inside]] = chosen.to(torch.uint8).numpy()[inside]
            found.gate_weights[places[inside]] = weight.to(torch.float16).numpy()[inside]
            if found.router_logits is not None:
                logits = torch.stack([one[block].cpu() for one in call.logits], dim=1)
                found.router_logits[places[inside]] = logits.to(torch.float16).numpy()[inside]
            found.routed[places[inside]] = True
        return found


def find_routers(model: Any) -> list[Any]:
    """The sparsemixer routers of `model` in layer order; empty for a dense model."""
    from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

    return [module for module in model.modules() if isinstance(module, PhimoeTopKRouter)]
