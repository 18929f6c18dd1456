"""Weights held in 8 or 4 bits: a quantizer for transformers' own loading, which the fused experts of Phi-MoE get too.

bitsandbytes takes linear layers alone, and 96 % of Phi-3.5-MoE's weights are experts, fused to parameters of three
dimensions. Here both are held as integers with scales: 8 bits by rows (absmax, Dettmers et al., arXiv:2208.07339,
equation 2, without their outliers), 4 bits by groups of 32 (the number of largest size becomes -8, as in GGML's Q4_0).
A weight is spelled out in the compute dtype when it is used, one expert at a time. Embeddings, head, routers and norms
stay as they are. Each weight is quantized as it is read, so that the whole model never lies in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from torch import Tensor

Quantization = Literal["8bit", "4bit"]
METHOD = "workbench"
GROUP = 32
_EXPERTS = "PhimoeExperts"


def quantize(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """A weight [.., rows, columns] as integers and their scales.

    8 bits: int8 [.., rows, columns] and float32 [.., rows, 1]. 4 bits: two numbers a byte, uint8 [.., rows,
    columns / 2], the first in the lower half, and float16 [.., rows, columns / 32].

    >>> held, scale = quantize(torch.tensor([[1.0, -0.5, 0.25]]), "8bit")
    >>> held.tolist(), dequantize(held, scale, torch.float32).round(decimals=2).tolist()
    ([[127, -64, 32]], [[1.0, -0.5, 0.25]])
    """
    if weight.dim() > 2:  # one expert after another, so that little is held in float32 at a time
        parts = [quantize(part, quantization) for part in weight]
        return torch.stack([held for held, _ in parts]), torch.stack([scale for _, scale in parts])
    wide = weight.float()
    if quantization == "8bit":
        scale = wide.abs().amax(dim=-1, keepdim=True) / 127
        scale = torch.where(scale == 0, 1.0, scale)
        return torch.round(wide / scale).to(torch.int8), scale
    groups = wide.reshape(*wide.shape[:-1], -1, GROUP)
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    scale = (largest / -8).to(torch.float16)
    scale = torch.where(scale == 0, 1.0, scale)
    numbers = (torch.round(groups / scale.float()).clamp(-8, 7) + 8).to(torch.uint8).flatten(-2)
    return numbers[..., 0::2] | numbers[..., 1::2] << 4, scale.squeeze(-1)


def dequantize(held: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [.., rows, columns] that integers and scales stand for."""
    if held.dtype == torch.int8:
        return (held * scale).to(dtype)
    numbers = torch.stack([held & 15, held >> 4], dim=-1).flatten(-2).to(torch.int8) - 8
    groups = numbers.to(dtype).reshape(*numbers.shape[:-1], -1, GROUP)
    return (groups * scale.to(dtype).unsqueeze(-1)).flatten(-2)


def product(states: Tensor, held: Tensor, scale: Tensor | None) -> Tensor:
    """States [.., columns] times a weight [rows, columns] held as integers, or as it is without a scale: [.., rows].

    8 bits are scaled after the product, for a row has one scale: the integers alone are spelled out, exactly.
    """
    if scale is None:
        return nn.functional.linear(states, held)
    if held.dtype != torch.int8:
        return nn.functional.linear(states, dequantize(held, scale, states.dtype))
    found = nn.functional.linear(states, held.to(states.dtype))
    return (found.float() * scale.squeeze(-1)).to(states.dtype)


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is spelled out at every call."""

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.weight_scale = _empty(linear.weight.shape, quantization)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """The layer's output: [.., out_features]."""
        found = product(states, self.weight, self.weight_scale)
        return found if self.bias is None else found + self.bias


class LoopedExperts(nn.Module):
    """The experts of a Phi-MoE layer, computed one after another from parameters named as in ``PhimoeExperts``."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim = experts.num_experts, experts.hidden_dim
        self.intermediate_dim, self.act_fn = experts.intermediate_dim, experts.act_fn

    def weights_of(self, chosen: Tensor) -> Generator[tuple[int, dict[str, Tensor]]]:
        """The number and the weights, by their names, of each expert in `chosen` [tokens, k]."""
        for expert in torch.unique(chosen).tolist():
            yield expert, {name: held[expert] for name, held in self.named_parameters()}

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As ``PhimoeExperts``: [tokens, hidden] from [tokens, hidden], and [tokens, k] of experts and of gates."""
        out = torch.zeros_like(hidden_states)
        with closing(self.weights_of(top_k_index)) as weights:  # also where an interrupt ends it
            for expert, held in weights:
                tokens, places = torch.where(top_k_index == expert)
                fused, scale = held["gate_up_proj"], held.get("gate_up_proj_scale")
                gate, up = product(hidden_states[tokens], fused, scale).chunk(2, dim=-1)
                down, scale = held["down_proj"], held.get("down_proj_scale")
                found = product(self.act_fn(gate) * up, down, scale)
                weighted = found * top_k_weights[tokens, places, None]
                out.index_add_(0, tokens, weighted.to(out.dtype))
        return out


class QuantizedExperts(LoopedExperts):
    """Experts held as integers; those that a token chose are spelled out."""

    def __init__(self, experts: Any, quantization: Quantization) -> None:
        super().__init__(experts)
        fused, down = experts.gate_up_proj.shape, experts.down_proj.shape
        self.gate_up_proj, self.gate_up_proj_scale = _empty(fused, quantization)
        self.down_proj, self.down_proj_scale = _empty(down, quantization)


@register_quantization_config(METHOD)  # type: ignore[no-untyped-call,untyped-decorator]
class QuantizationConfig(QuantizationConfigMixin):
    """What ``from_pretrained(…, quantization_config=…)`` takes."""

    def __init__(self, quantization: Quantization = "8bit", **_: Any) -> None:
        if quantization not in list(get_args(Quantization)):
            known = ", ".join(get_args(Quantization))
            raise ValueError(f"quantization={quantization!r} is none of {known}")
        self.quant_method, self.quantization = METHOD, quantization  # type: ignore[assignment]


class _Quantize(ConversionOps):
    """Turns a parameter into integers and scales, where transformers has it whole."""

    def __init__(self, quantization: Quantization) -> None:
        self._quantization = quantization

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], full_layer_name: str | None = None, **_: Any
    ) -> dict[str, Tensor]:
        (value,) = input_dict.values()
        weight = value[0] if isinstance(value, Sequence) else value
        held, scale = quantize(weight, self._quantization)
        return {f"{full_layer_name}": held, f"{full_layer_name}_scale": scale}


@register_quantizer(METHOD)  # type: ignore[no-untyped-call,untyped-decorator]
class Quantizer(HfQuantizer):
    """Replaces linear layers and experts while the model has no weights, and says which parameters are converted."""

    quantization_config: QuantizationConfig

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        quantization = self.quantization_config.quantization
        for name, module in list(model.named_modules()):
            if name == "lm_head" or name.endswith(".router"):
                continue
            with torch.device("meta"):
                if type(module).__name__ == _EXPERTS:
                    model.set_submodule(name, QuantizedExperts(module, quantization))
                elif type(module) is nn.Linear:
                    model.set_submodule(name, QuantizedLinear(module, quantization))
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a parameter of the checkpoint becomes integers and scales."""
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, QuantizedLinear):
            return name == "weight"
        return isinstance(module, QuantizedExperts) and not name.endswith("_scale")

    def get_quantize_ops(self) -> _Quantize:
        """What converts them."""
        return _Quantize(self.quantization_config.quantization)

    def is_serializable(self) -> bool:
        """A quantized model is not saved: it is made again of its checkpoint in about the time of reading it."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Integers have no gradient."""
        return False


def quantization_of(model: Any) -> Quantization | None:
    """How a model's weights are held; None for a model that was not quantized here."""
    config = getattr(model.config, "quantization_config", None)
    return config.quantization if isinstance(config, QuantizationConfig) else None


def check_quantizable(config: Any, quantization: Quantization) -> None:
    """Raise ``ValueError`` for a config whose rows 4-bit groups do not divide, or for an unknown quantization."""
    QuantizationConfig(quantization)
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    odd = [f"{name}={size}" for name, size in sizes.items() if size % GROUP]
    if quantization == "4bit" and odd:
        raise ValueError(
            f"4 bits are held in groups of {GROUP} numbers, which {odd[0]} does not divide into: use '8bit'"
        )


def _empty(shape: Sequence[int], quantization: Quantization) -> tuple[nn.Parameter, nn.Parameter]:
    *rows, columns = shape
    if quantization == "8bit":
        held = torch.empty((*rows, columns), dtype=torch.int8)
        scale = torch.empty((*rows, 1), dtype=torch.float32)
    else:
        held = torch.empty((*rows, columns // 2), dtype=torch.uint8)
        scale = torch.empty((*rows, columns // GROUP), dtype=torch.float16)
    return nn.Parameter(held, requires_grad=False), nn.Parameter(scale, requires_grad=False)
