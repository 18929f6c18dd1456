"""Forward passes of a Phi-MoE → routing trace, by hooks on the routers. Knows nothing of prompts or answers.

The true choice and gate of every token are taken where the model computes them; nothing is derived from router logits
afterwards (that would be wrong for sparsemixer). A ledger keyed by (row, absolute position), last write wins, keeps
only what belongs to the final tokens: tokens fed twice, rejected drafts and padding are never counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.routing.trace import DECODE, PREFILL, RoutingTrace

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Call:
    """One forward pass: the slots it filled and, per layer, what the router returned for [rows × tokens]."""

    offset: int
    token_ids: torch.Tensor  # [rows, tokens]
    experts: list[torch.Tensor] = field(default_factory=list)  # per layer [rows * tokens, k]
    gate_weights: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """What each token of a finished sequence is: see the fields of the same name in ``RoutingTrace``."""

    token_ids: Sequence[int]
    texts: tuple[str, ...]
    segments: NDArray[np.int16]
    segment_names: tuple[str, ...]
    spans: NDArray[np.int32]
    prompt_tokens: int


class RoutingRecorder:
    """Records routers while active: ``with RoutingRecorder(model) as recorder: model.generate(…)``."""

    def __init__(self, model: Any) -> None:
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
        self.n_experts = int(model.config.num_local_experts)
        self.k = int(routers[0].top_k)
        if self.k != 2:
            raise ValueError(
                f"num_experts_per_tok is {self.k}, but sparsemixer always takes 2: the config is wrong"
            )

    def __enter__(self) -> RoutingRecorder:
        inner = self._model.model
        self._handles.append(inner.register_forward_pre_hook(self._begin, with_kwargs=True))
        for router in self._routers:
            self._handles.append(router.register_forward_hook(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        token_ids: torch.Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        self._calls.append(_Call(offset, token_ids))

    def _record(self, _module: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
        _logits, gate_weights, experts = output
        self._calls[-1].experts.append(experts)
        self._calls[-1].gate_weights.append(gate_weights)

    def trace(self, table: TokenTable, *, row: int = 0, left_padding: int = 0) -> RoutingTrace:
        """The routing of one finished row.

        `left_padding` is the number of padding slots before the row's first token. A token that was never fed to the
        model (the last generated one) has ``routed`` False.
        """
        import torch

        tokens, layers = len(table.token_ids), len(self._routers)
        experts = np.zeros((tokens, layers, self.k), dtype=np.uint8)
        gates = np.zeros((tokens, layers, self.k), dtype=np.float16)
        phases = np.full(tokens, DECODE, dtype=np.uint8)
        phases[: table.prompt_tokens] = PREFILL
        routed = np.zeros(tokens, dtype=np.bool_)
        final = np.asarray(table.token_ids, dtype=np.int64)
        for call in self._calls:
            if len(call.experts) != layers:  # interrupted in the middle of a pass
                continue
            fed = call.token_ids[row].cpu().numpy()  # [tokens of this call]
            positions = call.offset - left_padding + np.arange(len(fed))
            # what stood here or beyond is no longer in the cache
            routed[max(0, call.offset - left_padding) :] = False
            inside = (positions >= 0) & (positions < tokens)
            inside[inside] = final[positions[inside]] == fed[inside]
            block = slice(row * len(fed), (row + 1) * len(fed))
            chosen = torch.stack([e[block].cpu() for e in call.experts], dim=1)
            weight = torch.stack([g[block].cpu() for g in call.gate_weights], dim=1)
            experts[positions[inside]] = chosen.to(torch.uint8).numpy()[inside]
            gates[positions[inside]] = weight.to(torch.float16).numpy()[inside]
            routed[positions[inside]] = True
        return RoutingTrace(
            experts=experts,
            gate_weights=gates,
            n_experts=self.n_experts,
            token_ids=final,
            token_texts=table.texts,
            phases=phases,
            segments=table.segments,
            segment_names=table.segment_names,
            spans=table.spans,
            routed=routed,
        )


def find_routers(model: Any) -> list[Any]:
    """The sparsemixer routers of `model` in layer order; empty for a dense model."""
    from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

    return [module for module in model.modules() if isinstance(module, PhimoeTopKRouter)]
