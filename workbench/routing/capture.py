"""Forward passes of a Phi-MoE or Mixtral → routing trace, by hooks on the routers. Knows nothing of prompts or answers.

The true choice and gate of every token are taken where the model computes them; nothing is derived from router logits
afterwards (that would be wrong for sparsemixer). A ledger keyed by (row, absolute position), last write wins, keeps
only what belongs to the final tokens: tokens fed twice, rejected drafts and padding are never counted.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.routing.trace import DECODE, PREFILL, RoutingTrace, TracedSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the routers of one kind of model (transformers' ``model_type``) are found and read."""

    router: str  # their class, in transformers.models.<kind>.modeling_<kind>
    gating: str  # what makes gate weights of router logits
    returns: tuple[
        str, str, str
    ]  # what a router returns, in this order, by the names of ``Choices``
    experts: str  # where the config says how many there are
    k: int | None  # the only number of experts a token it can have; None for what the config says


# Mixtral's gate weights are the softmax of all logits, the k largest divided by their sum (arXiv:2401.04088)
ARCHITECTURES = {
    "phimoe": Architecture(
        router="PhimoeTopKRouter",
        gating="sparsemixer",
        returns=("router_logits", "gate_weights", "experts"),
        experts="num_local_experts",
        k=2,
    ),
    "mixtral": Architecture(
        router="MixtralTopKRouter",
        gating="renormalised softmax",
        returns=("router_logits", "gate_weights", "experts"),
        experts="num_local_experts",
        k=None,
    ),
}


@dataclass(slots=True)
class _Call:
    """One forward pass: the slots it filled and, by name and layer, what was seen of [rows × tokens].

    The names are those of ``Choices``; each tensor is [rows * tokens, k], [rows * tokens, experts] or [rows * tokens].
    """

    offset: int
    token_ids: torch.Tensor  # [rows, tokens]
    seen: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    came_from: torch.Tensor | None = (
        None  # the row that each row of the next pass continues; None: the same
    )

    def see(self, name: str, values: torch.Tensor) -> None:
        """What is known of the next layer."""
        self.seen.setdefault(name, []).append(values)

    def continued(self, row: int) -> int:
        """The row of this pass that `row` of the next one continues."""
        return row if self.came_from is None else int(self.came_from[row])


class _Beam:
    """Which row of each pass a sequence found by beam search was computed in."""

    def __init__(self, beam_indices: Sequence[int], tokens: int) -> None:
        if np.ndim(beam_indices) != 1:
            raise ValueError("beam_indices are those of one sequence: pass output.beam_indices[0]")
        rows = [int(row) for row in beam_indices]
        while rows and rows[-1] < 0:  # transformers' padding of a sequence that ended earlier
            rows.pop()
        self.prompt_tokens = tokens - len(beam_indices)
        if not rows or min(rows) < 0 or self.prompt_tokens < 1:
            raise ValueError(
                f"beam_indices must name a row for each generated one of the {tokens} tokens, got {len(beam_indices)} "
                f"of which {len(rows)} are there"
            )
        self._rows = rows
        self.fed = self.prompt_tokens + len(rows) - 1  # all but the last generated one

    def row_at(self, stop: int) -> int | None:
        """The row of the pass that fed tokens up to `stop`; None when the sequence had ended."""
        step = max(0, stop - self.prompt_tokens)  # chunks of a prompt go to where its last one goes
        return self._rows[step] if step < len(self._rows) else None


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Router choices of the tokens of one sequence; rows that are not ``routed`` hold 0.

    ``router_logits``, ``contributions`` and ``output_norms`` are None where they were not asked for.
    """

    experts: NDArray[np.uint8]  # [tokens, layers, k]
    gate_weights: NDArray[np.float16]  # [tokens, layers, k]
    routed: NDArray[np.bool_]  # [tokens]
    router_logits: NDArray[np.float16] | None = None  # [tokens, layers, experts]
    contributions: NDArray[np.float16] | None = None  # [tokens, layers, k]
    output_norms: NDArray[np.float16] | None = None  # [tokens, layers]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fields that are there, by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: array for name, array in found.items() if array is not None}

    def first(self, count: int) -> Choices:
        """Those of the first `count` tokens."""
        return Choices(**{name: array[:count] for name, array in self.arrays().items()})

    def forget_last(self) -> None:
        """Count the last token as not routed."""
        for array in self.arrays().values():
            array[-1:] = 0

    def take(self, others: Choices) -> None:
        """Write `others`, which hold the same kinds of facts, over the first tokens."""
        count = min(len(others.routed), len(self.routed))
        theirs = others.arrays()
        for name, own in self.arrays().items():
            own[:count] = theirs[name][:count]


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
            contributions=choices.contributions,
            output_norms=choices.output_norms,
            log_probabilities=logs,
            sources=self.sources,
            origin=self.origin,
        )


class RoutingRecorder:
    """Records routers while active: ``with RoutingRecorder(model) as recorder: model.generate(…)``.

    For Phi-MoE and Mixtral. With `logits` also what the routers computed before they chose: as float16, six times the
    memory. With `contributions` also the Euclidean norms of what each chosen expert adds to the layer's output, ‖gate
    weight × expert output‖, and of their sum. For these the model's own implementation of the experts, whichever it
    is, is asked for each choice by itself, and what it answers is added up: nothing is computed twice, and results are
    the same bit by bit where that implementation adds up in the model's precision (Phi).
    """

    def __init__(self, model: Any, *, logits: bool = False, contributions: bool = False) -> None:
        architecture, routers = architecture_of(model), find_routers(model)
        if architecture is None or not routers:
            raise ValueError(_why_nothing(model))
        if model.training:
            raise ValueError(
                "the model is in training mode, where routing is random: call model.eval() first"
            )
        self._model = model
        self._routers = routers
        self._calls: list[_Call] = []
        self._handles: list[Any] = []
        self._is_paused = False
        self._watched = contextlib.ExitStack()  # caches whose reordering is noted
        self._has_logits = logits
        self._has_contributions = contributions
        self._is_split = False  # whether the experts are asked by this recorder for each choice
        self._returns = architecture.returns
        self._is_checked = False  # whether what is called logits was seen to be logits
        self.n_experts = int(getattr(model.config, architecture.experts))
        self.k = int(routers[0].top_k)
        if architecture.k not in (None, self.k):
            raise ValueError(
                f"num_experts_per_tok is {self.k}, but {architecture.gating} always takes {architecture.k}: the config "
                "is wrong"
            )

    def __enter__(self) -> RoutingRecorder:
        self._calls.clear()
        self._is_paused = False
        try:
            inner = self._model.model
            self._handles.append(inner.register_forward_pre_hook(self._begin, with_kwargs=True))
            for router in self._routers:
                self._handles.append(router.register_forward_hook(self._record))
            if self._has_contributions:
                for experts in _find_experts(self._model):
                    self._handles.append(experts.register_forward_pre_hook(self._split))
                    # before the hook of whoever split first, who adds up
                    self._handles.append(experts.register_forward_hook(self._add_up, prepend=True))
        except BaseException:  # an interrupt must not leave hooks behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_paused = True  # whatever happens now, nothing more is recorded
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._watched.close()

    def another(self) -> RoutingRecorder:
        """A recorder of the same model, for passes that do not belong to this one's sequence: see ``paused``."""
        return RoutingRecorder(
            self._model, logits=self._has_logits, contributions=self._has_contributions
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the forward passes within: those of other sequences."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_paused:
            return
        token_ids = fed_ids(args, kwargs)
        cache = kwargs.get("past_key_values")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        self._calls.append(_Call(offset, token_ids))
        if len(token_ids) > 1 and hasattr(cache, "reorder_cache"):
            self._watch(cache)

    def _watch(self, cache: Any) -> None:
        """Note where the rows of `cache` go when they change places, as they do in beam search."""
        before = vars(cache).get("reorder_cache")
        if getattr(before, "recorder", None) is self:
            return
        reorder = cache.reorder_cache

        def noted(rows: torch.Tensor) -> None:
            if not self._is_paused:
                call = self._calls[-1]
                call.came_from = rows if call.came_from is None else call.came_from[rows]
            reorder(rows)

        noted.recorder = self  # type: ignore[attr-defined]
        cache.reorder_cache = noted
        if before is None:
            self._watched.callback(vars(cache).pop, "reorder_cache")
        else:
            self._watched.callback(setattr, cache, "reorder_cache", before)

    def _record(self, _module: Any, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
        if self._is_paused:
            return
        returned = dict(zip(self._returns, output, strict=True))
        if self._has_logits and not self._is_checked:
            _check_raw(returned["router_logits"])
            self._is_checked = True
        for name, values in returned.items():
            if name != "router_logits" or self._has_logits:
                self._calls[-1].see(name, values)

    def _split(self, _module: Any, args: tuple[torch.Tensor, ...]) -> Any:
        """Ask for every choice of every token as if it were a token of its own: [rows * tokens * k, 1]."""
        hidden, experts, weights = args
        self._is_split = not self._is_paused and experts.shape[1] == self.k
        if not self._is_split:  # another recorder has done so
            return None
        return (
            hidden.repeat_interleave(self.k, dim=0),
            experts.reshape(-1, 1),
            weights.reshape(-1, 1),
        )

    def _add_up(self, _module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Note the norms of `output` [rows * tokens * k, hidden]; the output of the layer, if it was split here."""
        import torch

        if self._is_paused:
            return None
        each = output.view(-1, self.k, output.shape[1])
        together = each.sum(dim=1)
        norm = torch.linalg.vector_norm
        self._calls[-1].see("contributions", norm(each, dim=2, dtype=torch.float32))
        self._calls[-1].see("output_norms", norm(together, dim=1, dtype=torch.float32))
        return together if self._is_split else None

    def choices(
        self,
        token_ids: Sequence[int],
        *,
        row: int = 0,
        positions: NDArray[np.int64] | None = None,
        before: Choices | None = None,
        beam_indices: Sequence[int] | None = None,
    ) -> Choices:
        """What the routers chose for every token of one finished row, also those in a cached prefix (`before`).

        `positions` [slots] is the place in `token_ids` of what stands in each slot of the row's cache, -1 for padding;
        by default slot and place are the same. A token that was never fed (the last generated one) is not ``routed``.

        In beam search rows change places after every pass. There `beam_indices` [generated tokens] say in which row
        each generated token of `token_ids` was found, and `row` means nothing: for ``output.sequences[n]`` of
        ``generate(…, return_dict_in_generate=True)`` they are ``output.beam_indices[n]``, cut where the tokens are cut.
        It is checked that each pass went on from the row of the one before, as the cache was reordered, and that all
        tokens but the last were fed. Without `beam_indices` a row is refused whose cache went to another place, or
        which is one of several and was fed another token than `token_ids` have there.
        """
        tokens = len(token_ids)
        beam = None if beam_indices is None else _Beam(beam_indices, tokens)
        found = self._nothing(tokens)
        if before is not None:
            found.take(before)
        final = np.asarray(token_ids, dtype=np.int64)
        is_other = np.zeros(tokens, dtype=np.bool_)  # another token was fed, to one of several rows
        is_moved, last = False, None
        for call in self._calls:
            if not self._is_whole(call):  # interrupted in the middle of a pass
                continue
            slots = call.offset + np.arange(call.token_ids.shape[1])
            places = slots if positions is None else positions[slots]
            own = row if beam is None else beam.row_at(int(places[-1]) + 1)
            if own is None:
                continue
            if own >= len(call.token_ids):
                raise ValueError(f"row {own} is asked for, a pass had {len(call.token_ids)} rows")
            if call.offset == 0:
                is_moved = False
            elif last is not None:
                is_moved |= last[0].continued(own) != last[1]
            last = call, own
            fed = call.token_ids[own].cpu().numpy()  # [tokens of this call]
            # what stood here or beyond is no longer in the cache
            if (places >= 0).any():
                found.routed[places[places >= 0].min() :] = False
                is_other[places[places >= 0].min() :] = False
            inside = (places >= 0) & (places < tokens)
            is_other[places[inside]] = (final[places[inside]] != fed[inside]) & (
                len(call.token_ids) > 1
            )
            inside[inside] = final[places[inside]] == fed[inside]
            self._write(found, call, own, places, inside)
        if beam is not None and (is_moved or not found.routed[: beam.fed].all()):
            raise ValueError(
                "beam_indices and token_ids are not of one sequence that was recorded here: pass "
                "output.beam_indices[n] with output.sequences[n], both cut after the same token"
            )
        if beam is None and (is_moved or is_other[:-1].any()):
            raise ValueError(
                f"row {row} was fed other tokens than these, or changed places with other rows as in beam search: call "
                "generate with return_dict_in_generate=True and pass beam_indices=output.beam_indices[0]"
            )
        return found

    def _is_whole(self, call: _Call) -> bool:
        """Whether every layer of a pass was seen."""
        names = self._nothing(0).arrays().keys() - {"routed"}
        return all(len(call.seen.get(name, ())) == len(self._routers) for name in names)

    def _write(
        self,
        found: Choices,
        call: _Call,
        row: int,
        places: NDArray[np.int64],
        inside: NDArray[np.bool_],
    ) -> None:
        """Write what was seen of `row` to `places`, of those tokens that are `inside`."""
        import torch

        block = slice(row * len(places), (row + 1) * len(places))
        for name, kept in found.arrays().items():
            if name != "routed":
                seen = torch.stack([layer[block].cpu() for layer in call.seen[name]], dim=1)
                kept[places[inside]] = seen.to(torch.from_numpy(kept).dtype).numpy()[inside]
        found.routed[places[inside]] = True

    def _nothing(self, tokens: int) -> Choices:
        """Choices of as many tokens of which none is routed."""
        layers, halves = len(self._routers), np.float16
        has = self._has_contributions
        return Choices(
            experts=np.zeros((tokens, layers, self.k), dtype=np.uint8),
            gate_weights=np.zeros((tokens, layers, self.k), dtype=halves),
            routed=np.zeros(tokens, dtype=np.bool_),
            router_logits=np.zeros((tokens, layers, self.n_experts), dtype=halves)
            if self._has_logits
            else None,
            contributions=np.zeros((tokens, layers, self.k), dtype=halves) if has else None,
            output_norms=np.zeros((tokens, layers), dtype=halves) if has else None,
        )


def architecture_of(model: Any) -> Architecture | None:
    """How the routers of `model` are read; None where it has none, or of another kind."""
    return ARCHITECTURES.get(model.config.model_type)


def fed_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The token ids [rows, tokens] that a model is called with; raises ``ValueError`` for embeddings in their place."""
    found = kwargs.get("input_ids", args[0] if args else None)
    if found is None:
        raise ValueError(
            "the model is fed with embeddings, and what is recorded or changed here goes by token ids: pass input_ids"
        )
    ids: torch.Tensor = found
    return ids


def find_routers(model: Any) -> list[Any]:
    """The routers of `model` in layer order; empty for a dense model, or a kind that is not in ``ARCHITECTURES``."""
    architecture = architecture_of(model)
    if architecture is None:
        return []
    kind = model.config.model_type
    of_kind = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    router = getattr(of_kind, architecture.router)
    return [module for module in model.modules() if isinstance(module, router)]


def _why_nothing(model: Any) -> str:
    """What to say of a model whose routing cannot be recorded."""
    name = type(model).__name__
    if any(getattr(model.config, field, None) for field in ("num_local_experts", "num_experts")):
        return (
            f"{name} has experts, but routers of a kind that is not known here ({model.config.model_type}): known are "
            f"{' and '.join(ARCHITECTURES)}"
        )
    return f"{name} is dense; the MoE is microsoft/Phi-3.5-MoE-instruct, or the embedded 'pocket'"


def _check_raw(logits: torch.Tensor) -> None:
    """Refuse probabilities [tokens, experts], which routers of some transformers 5 versions return as their logits."""
    sums = logits.float().sum(dim=1)
    if bool((logits >= 0).all()) and bool(((sums - 1).abs() < 0.02).all()):
        raise ValueError(
            "this version of transformers returns probabilities as router logits: record without logits, or update "
            "transformers"
        )


def _find_experts(model: Any) -> list[Any]:
    """The experts beside each router, in layer order."""
    routers = {id(router) for router in find_routers(model)}
    return [
        module.experts
        for module in model.modules()
        if any(id(child) in routers for child in module.children())
    ]
