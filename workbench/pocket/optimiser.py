"""Muon for the hidden matrices, AdamW for the rest, with float32 masters of a bfloat16 model.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the step is scaled by
0.2 sqrt(max(rows, columns)) as in "Muon is scalable for LLM training" (arXiv:2502.16982): one decay serves both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def orthogonalised(gradient: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: Newton-Schulz iterations on [..., rows, columns]."""
    x = gradient.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    result: torch.Tensor = (x.mT if tall else x).float()
    return result


class Optimiser:
    """Steps `model` in place. Its whole state is in :meth:`tensors` and `steps`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        adam_rate: float = 2e-3,
        muon_rate: float = 4e-3,
        decay: float = 0.05,
    ) -> None:
        import torch

        self.adam_rate, self.muon_rate, self.decay = adam_rate, muon_rate, decay
        self.steps = 0
        self.weights = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self.weights.items()}
        self.first = {name: torch.zeros_like(w) for name, w in self.masters.items()}
        self.second = {
            name: torch.zeros_like(w)
            for name, w in self.masters.items()
            if not self._is_hidden(name)
        }

    def _is_hidden(self, name: str) -> bool:
        plain = ("embed", "router", "lm_head")
        return self.masters[name].dim() >= 2 and not any(part in name for part in plain)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The weights' gradients in float32, taken from them."""
        taken = {name: p.grad.float() for name, p in self.weights.items() if p.grad is not None}
        for weight in self.weights.values():
            weight.grad = None
        return taken

    def step(self, scale: float, gradients: dict[str, torch.Tensor], *, clip: float = 1.0) -> float:
        """One step at `scale` times the rates; returns the norm of the gradients before clipping."""
        import torch

        self.steps += 1
        with torch.no_grad():
            norm = math.sqrt(sum(float(g.norm()) ** 2 for g in gradients.values()))
            for name, gradient in gradients.items():
                gradient.mul_(min(1.0, clip / (norm + 1e-6)))
                update = self._muon if self._is_hidden(name) else self._adam
                update(name, gradient, scale)
                self.weights[name].copy_(self.masters[name])
        return norm

    def tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, as live tensors."""
        parts = (("master", self.masters), ("first", self.first), ("second", self.second))
        return {f"{part}.{name}": tensor for part, table in parts for name, tensor in table.items()}

    def restore(self, saved: dict[str, torch.Tensor], steps: int) -> None:
        """Take back what :meth:`tensors` gave, and set the model's weights from the masters."""
        import torch

        self.steps = steps
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(saved[name])
            for name, weight in self.weights.items():
                weight.copy_(self.masters[name])

    def _muon(self, name: str, gradient: torch.Tensor, scale: float) -> None:
        import torch

        momentum = self.first[name].mul_(0.95).add_(gradient)
        nesterov = gradient.add(momentum, alpha=0.95)
        halves = (
            nesterov.chunk(2, 1) if name.endswith("gate_up_proj") else (nesterov,)
        )  # gate and up are two matrices
        update = torch.cat([orthogonalised(half) for half in halves], 1)
        rate = self.muon_rate * scale
        self.masters[name].mul_(1 - rate * self.decay)
        self.masters[name].add_(update, alpha=-rate * 0.2 * math.sqrt(max(update.shape[-2:])))

    def _adam(self, name: str, gradient: torch.Tensor, scale: float) -> None:
        first = self.first[name].mul_(0.9).add_(gradient, alpha=0.1)
        second = self.second[name].mul_(0.95).addcmul_(gradient, gradient, value=0.05)
        mean, square = first / (1 - 0.9**self.steps), second / (1 - 0.95**self.steps)
        rate = self.adam_rate * scale
        if self.masters[name].dim() >= 2 and "embed" not in name:
            self.masters[name].mul_(1 - rate * self.decay)
        self.masters[name].addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate)
