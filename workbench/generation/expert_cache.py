"""Experts in host memory, the most used of each layer on the device too: a MoE on a card that holds only some of them.

A token uses 2 of 16 experts in a layer, so most of the weights lie idle, and which ones are used is no accident. Each
layer has a few slots on the device. An expert that is asked for and is in none is copied into the slot of the one that
was used least of late: uses in answers are counted, and what was counted fades by 2 % with every token (LRFU, Lee et
al., IEEE Transactions on Computers 50, 2001), so that the cache follows its user's questions. What is computed is the
same bit for bit, wherever an expert lay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.phimoe.modeling_phimoe import PhimoeExperts

from workbench.generation.memory import size
from workbench.generation.quantized import LoopedExperts, QuantizedExperts

FADING = 0.98
log = logging.getLogger("workbench")


@dataclass(frozen=True, slots=True, eq=False)
class ExpertUse:
    """How often tokens chose experts of each layer, and these were on the device: ``asked`` and ``held`` [layers].

    Counted are passes of up to as many tokens as there are experts, as answers make them; reading a prompt asks for
    nearly all experts at once. ``copied_bytes`` is what all passes copied to the device.
    """

    asked: NDArray[np.int64]
    held: NDArray[np.int64]
    copied_bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of choices whose expert was on the device, over all layers; nan before an answer was made."""
        asked = int(self.asked.sum())
        return int(self.held.sum()) / asked if asked else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Counts over all layers, as JSON takes them; ``hit_rate`` is None before an answer was made."""
        asked, held = int(self.asked.sum()), int(self.held.sum())
        rate = self.hit_rate if asked else None
        return {"asked": asked, "held": held, "hit_rate": rate, "copied_bytes": self.copied_bytes}

    def __str__(self) -> str:
        asked = int(self.asked.sum())
        found = f"{self.hit_rate:.0%} of {asked:,} choices" if asked else "no choice yet"
        return f"experts found on the device: {found}; {size(self.copied_bytes)} copied"

    def __sub__(self, earlier: ExpertUse) -> ExpertUse:
        """What came since `earlier`."""
        return ExpertUse(
            self.asked - earlier.asked,
            self.held - earlier.held,
            self.copied_bytes - earlier.copied_bytes,
        )


class CachedExperts(LoopedExperts):
    """The experts of a layer in host memory, `slots` of them on `device` too. ``model.to(…)`` leaves both there."""

    def __init__(self, experts: Any, slots: int, device: torch.device) -> None:
        super().__init__(experts)
        for name, parameter in experts.named_parameters(recurse=False):
            held = parameter.detach()
            if device.type == "cuda":
                held = pinned(held)
            self.register_parameter(name, nn.Parameter(held, requires_grad=False))
        self.slots = Slots(dict(self.named_parameters()), slots, device)

    def weights_of(self, chosen: Tensor) -> Generator[tuple[int, dict[str, Tensor]]]:
        """Each expert that was chosen, those in a slot first; its weights are good until the next one is asked for."""
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).cpu().numpy()
        with self.slots.lock:
            self.slots.follow(dict(self.named_parameters()))
            for expert in self.slots.order(counts):
                yield expert, self.slots.fetch(expert)

    def _apply(self, fn: Any, recurse: bool = True) -> CachedExperts:
        return self


class Slots:
    """What a layer has on the device, and what decides about it; all copies of a model share it."""

    def __init__(self, host: dict[str, Tensor], count: int, device: torch.device) -> None:
        self.lock = threading.Lock()
        self.asked = self.held = self.copied_bytes = 0
        self._host, self._version = host, _version(host)
        self._tensors = {
            name: torch.empty((count, *all_.shape[1:]), dtype=all_.dtype, device=device)
            for name, all_ in host.items()
        }
        self.count = count
        self._place: dict[int, int] = {}
        self._use = np.zeros(len(next(iter(host.values()))))

    def __deepcopy__(self, _memo: Any) -> Slots:
        return self

    @property
    def bytes(self) -> int:
        """What the slots take on the device."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def follow(self, host: dict[str, Tensor]) -> None:
        """Forget the copies if the weights in host memory were replaced or written to since they were made."""
        found = _version(host)
        if found != self._version:
            self._place.clear()
            self._host, self._version = host, found

    def order(self, counts: NDArray[np.int64]) -> list[int]:
        """The experts that a pass asks for by `counts` [experts], and in which order; uses are counted."""
        tokens, wanted = int(counts.sum()) // 2, np.flatnonzero(counts).tolist()
        if tokens <= len(counts):  # a prompt asks for all, and says little of what its answer will
            self._use = self._use * FADING**tokens + counts
            self.asked += int(counts.sum())
            self.held += int(counts[list(self._place)].sum())
        return sorted(wanted, key=lambda expert: (expert not in self._place, -self._use[expert]))

    def fetch(self, expert: int) -> dict[str, Tensor]:
        """The weights of `expert` on the device, copied there unless they are there."""
        place = self._place.get(expert)
        if place is None:
            if len(self._place) == self.count:
                del self._place[min(self._place, key=lambda one: self._use[one])]
            # not the number of those in use: an interrupted copy leaves a gap
            place = min(set(range(self.count)) - set(self._place.values()))
            for name, tensor in self._tensors.items():
                tensor[place].copy_(self._host[name][expert], non_blocking=True)
                self.copied_bytes += tensor[place].nbytes
            self._place[expert] = place
        return {name: tensor[place] for name, tensor in self._tensors.items()}


def _version(host: dict[str, Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in host.values())


def pinned(tensor: Tensor) -> Tensor:
    """`tensor` in memory that a GPU can copy from by itself, or as it is where the system has no more of that."""
    try:
        return tensor.pin_memory()
    except RuntimeError as error:
        log.warning(
            f"experts stay in ordinary memory, from where copies take longer: {' '.join(str(error).split())[:100]}"
        )
        return tensor


def cache_experts(model: Any, slots: int, device: str) -> None:
    """Leave the experts of `model`, which lies in host memory, there with `slots` a layer on `device`; move the rest.

    >>> from workbench.generation.loading import load_generator
    >>> generator = load_generator("pocket", expert_cache=4)
    >>> generator.model.model.layers[0].mlp.experts.slots.bytes / 2**20     # of 16 experts with 4.5 MiB
    1.125
    """
    kinds = (PhimoeExperts, QuantizedExperts)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    for name in names:  # one layer at a time is there twice
        experts = CachedExperts(model.get_submodule(name), slots, torch.device(device))
        model.set_submodule(name, experts)
    model.to(device)


def all_slots(model: Any) -> list[Slots]:
    """The slots of every layer; none where the experts lie on the device."""
    return [module.slots for module in model.modules() if isinstance(module, CachedExperts)]


def expert_use(model: Any) -> ExpertUse | None:
    """What the expert caches of a model were asked for since it was loaded; None for a model without them."""
    found = all_slots(model)
    if not found:
        return None
    return ExpertUse(
        np.array([one.asked for one in found]),
        np.array([one.held for one in found]),
        sum(one.copied_bytes for one in found),
    )
