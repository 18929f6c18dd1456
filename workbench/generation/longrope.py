"""One rotary embedding for Phi-3.5 with its LongRoPE regime pinned, and the self-test that shows it is right.

LongRoPE (Ding et al. 2024, arXiv 2402.13753) has two sets of frequency factors: "short" for sequences up to the
original window (4,096 tokens in Phi-3.5) and "long" beyond. transformers 5.15–5.23 never applies the long set in
Phimoe, and in Phi3 chooses anew in every forward pass, which makes cached keys of one regime meet queries of the other.
Here the regime is decided once, from the longest sequence a generator may reach. The stock embedding is probed first:
where it already gives the regime's angles everywhere (an upstream fix), it stays and nothing is corrected.
"""

from __future__ import annotations

import functools
import math
import types
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Regime = Literal["short", "long", "fixed"]


@dataclass(frozen=True, slots=True)
class RopeStatus:
    """Who computes the rotary angles of a loaded model, and what the probe of the stock embedding found."""

    regime: Regime
    is_pinned: bool
    reason: str


def original_window(config: Any) -> int:
    """Tokens up to which the short regime holds; the whole window for a checkpoint without LongRoPE."""
    rope = config.rope_parameters
    if rope["rope_type"] != "longrope":
        return int(config.max_position_embeddings)
    return int(rope["original_max_position_embeddings"])


def regime_for(config: Any, context: int) -> Regime:
    """The regime of sequences up to `context` tokens: "fixed" if the checkpoint has no LongRoPE.

    Raises ``ValueError`` if `context` exceeds what the checkpoint was made for.
    """
    longest = int(config.max_position_embeddings)
    if not isinstance(context, Integral) or not 0 < context <= longest:
        raise ValueError(f"context={context} is outside 1…{longest}, the window of this checkpoint")
    if config.rope_parameters["rope_type"] != "longrope":
        return "fixed"
    return "long" if context > original_window(config) else "short"


def inverse_frequencies(config: Any, regime: Regime) -> NDArray[np.float64]:
    """1 / (factor_i · theta^(2i/d)) for the d/2 rotated pairs of a head: [d / 2] (equation 2 of the LongRoPE paper)."""
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dim = int(head * rope.get("partial_rotary_factor", 1.0))
    factors = np.asarray(rope[f"{regime}_factor"], dtype=np.float64)
    if len(factors) != dim // 2:
        raise CheckpointError(
            f"config.json has {len(factors)} {regime}_factor values, the heads need {dim // 2}"
        )
    return 1.0 / (factors * float(rope["rope_theta"]) ** (np.arange(0, dim, 2) / dim))


def attention_scale(config: Any, regime: Regime) -> float:
    """What cosine and sine are multiplied with: Phimoe's ``short_mscale``/``long_mscale``, else Phi3's formula."""
    rope = config.rope_parameters
    if config.model_type == "phimoe":
        return float(rope[f"{regime}_mscale"])
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = rope.get("factor") or config.max_position_embeddings / original_window(config)
    return (
        1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_window(config)))
    )


def pin_regime(model: Any, regime: Regime) -> None:
    """See to it that every angle of the model is of `regime`, in place; what was found is ``rope_status(model)``.

    The stock embedding of this transformers is probed; if any of its angles differ from the checkpoint's factors of
    `regime`, an embedding of our own takes its place. "fixed" leaves the model as it is. ``generate`` of Phi3 and
    Phimoe throws the cache away where a sequence crosses the original window; with one regime for all positions nothing
    becomes stale, so a pinned model leaves that step out.
    """
    if regime == "fixed":
        model.rope_status = RopeStatus(regime, False, "the checkpoint has no LongRoPE")
        return
    import transformers

    config, present = model.config, model.model.rotary_emb
    stock_class: Any = (
        present.stock_class if isinstance(present, _pinned_rotary()) else type(present)
    )
    # made anew: deep copies share the buffers of the old one, and a cast of the model would have rounded them
    stock = stock_class(config).to(model.device)
    wrong = _wrong_angles(stock, config, regime, model.device)
    library = f"stock transformers {transformers.__version__}"
    if wrong is None:
        model.model.rotary_emb = stock
        vars(model).pop("prepare_inputs_for_generation", None)  # the class's own shows again
        reason = f"{library} follows the {regime} factors everywhere"
    else:
        model.model.rotary_emb = _pinned_rotary()(config, regime, stock_class, model.device)
        model.prepare_inputs_for_generation = types.MethodType(
            transformers.GenerationMixin.prepare_inputs_for_generation, model
        )
        reason = f"pinned by workbench: {library} gives {wrong}"
    model.rope_status = RopeStatus(regime, wrong is not None, reason)


def rope_status(model: Any) -> RopeStatus:
    """What ``pin_regime`` found and did when the model was loaded.

    >>> from workbench.generation.loading import load_generator
    >>> rope_status(load_generator("pocket", context=8192).model).is_pinned
    True
    """
    status = getattr(model, "rope_status", None)
    if not isinstance(status, RopeStatus):
        raise ValueError("this model was not loaded by workbench: call pin_regime(model, regime)")
    return status


def check_regime(model: Any, regime: Regime) -> None:
    """Compare the angles the model uses with the checkpoint's factors, before and after the original window.

    Raises ``CheckpointError`` if they differ: then every answer would be silently wrong.
    """
    if regime == "fixed":
        return
    wrong = _wrong_angles(model.model.rotary_emb, model.config, regime, model.device)
    if wrong is not None:
        raise CheckpointError(
            f"the rotary embedding does not follow the checkpoint's {regime} factors: it gives {wrong}"
        )


def _wrong_angles(rotary: Any, config: Any, regime: Regime, device: Any) -> str | None:
    """In which kinds of forward pass an embedding leaves `regime`, in words; None if in none."""
    import torch

    window, longest = original_window(config), int(config.max_position_embeddings)
    middle, beyond = window // 2, min(window + 1, longest - 1)
    # the library may choose by the highest position it sees, so what is cut into pieces is tried in pieces
    passes = {
        "a whole long sequence": sorted({0, 1, window - 1, min(window, longest - 1), longest - 1}),
        "a chunk within the window": sorted({0, 1, middle, window - 1}),
        "a step within the window": [middle],
        "a step beyond the window": [beyond],
    }
    other: Regime = "short" if regime == "long" else "long"
    probe = torch.zeros(1, 1, dtype=torch.float32, device=device)
    wrong, all_other = [], True
    for name, positions in passes.items():
        with torch.inference_mode():
            found = rotary(probe, position_ids=torch.tensor([positions], device=device))
        if not _agree(found, config, regime, positions):
            wrong.append(name)
            all_other = all_other and _agree(found, config, other, positions)
    if not wrong:
        return None
    return f"{f'{other} factors' if all_other else 'other angles'} for {', '.join(wrong)}"


def _agree(found: Any, config: Any, regime: Regime, positions: list[int]) -> bool:
    """Whether cosines and sines, each [1, positions, d], are those of one regime."""
    places = np.array(positions, dtype=np.float64)[:, None]
    half = places * inverse_frequencies(config, regime)[None, :]  # [positions, d / 2]
    angles, scale = np.concatenate([half, half], axis=1), attention_scale(config, regime)
    # a float32 angle of p radians is off by up to about p · 2⁻²³: 0.016 at position 131,071
    room = scale * (1e-5 + places * 2.0**-22)
    return all(
        bool((np.abs(table[0].double().cpu().numpy() - expected * scale) <= room).all())
        for table, expected in zip(found, (np.cos(angles), np.sin(angles)), strict=True)
    )


@functools.cache
def _pinned_rotary() -> type[torch.nn.Module]:
    import torch

    class PinnedLongRope(torch.nn.Module):
        """Cosine and sine [rows, tokens, d] of positions [rows, tokens], always with the factors of one regime."""

        def __init__(self, config: Any, regime: Regime, stock_class: type, device: Any) -> None:
            super().__init__()
            self.regime = regime
            self.stock_class = stock_class
            self.scale = attention_scale(config, regime)
            # no buffer: model.to(torch.bfloat16) would round the frequencies
            self.inv_freq = torch.tensor(
                inverse_frequencies(config, regime), dtype=torch.float32, device=device
            )

        @torch.no_grad()
        def forward(
            self, x: torch.Tensor, position_ids: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.inv_freq = self.inv_freq.to(x.device)
            half = position_ids[..., None].float() * self.inv_freq
            angles = torch.cat((half, half), dim=-1)
            return (angles.cos() * self.scale).to(x.dtype), (angles.sin() * self.scale).to(x.dtype)

    return PinnedLongRope
