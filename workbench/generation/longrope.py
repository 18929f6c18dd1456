"""One rotary embedding for Phi-3.5 with its LongRoPE regime pinned, and the self-test that shows it is right.

LongRoPE (Ding et al. 2024, arXiv 2402.13753) has two sets of frequency factors: "short" for sequences up to the
original window (4,096 tokens in Phi-3.5) and "long" beyond. transformers 5.15–5.23 never applies the long set in
Phimoe, and in Phi3 chooses anew in every forward pass, which makes cached keys of one regime meet queries of the other.
Here the regime is decided once, from the longest sequence a generator may reach.
"""

from __future__ import annotations

import math
import types
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Regime = Literal["short", "long", "fixed"]


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
    if not 0 < context <= longest:
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
    if f"{regime}_mscale" in rope:
        return float(rope[f"{regime}_mscale"])
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = config.max_position_embeddings / original_window(config)
    return (
        1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_window(config)))
    )


def pin_regime(model: Any, regime: Regime) -> None:
    """Replace the model's rotary embedding by one of `regime`, in place; "fixed" leaves the model as it is.

    ``generate`` of Phi3 and Phimoe throws the cache away where a sequence crosses the original window; with one regime
    for all positions nothing becomes stale, so that step is left out.
    """
    if regime == "fixed":
        return
    from transformers import GenerationMixin

    model.model.rotary_emb = _pinned_rotary(model.config, regime)
    model.prepare_inputs_for_generation = types.MethodType(
        GenerationMixin.prepare_inputs_for_generation, model
    )


def check_regime(model: Any, regime: Regime) -> None:
    """Compare the angles the model uses with the checkpoint's factors, before and after the original window.

    Raises ``CheckpointError`` if they differ: then every answer would be silently wrong.
    """
    if regime == "fixed":
        return
    import torch

    window = original_window(model.config)
    positions = np.array(
        [0, 1, window - 1, window, window + 1, model.config.max_position_embeddings - 1]
    )
    angles = (
        positions[:, None] * inverse_frequencies(model.config, regime)[None, :]
    )  # [positions, d / 2]
    expected = np.cos(np.concatenate([angles, angles], axis=1)) * attention_scale(
        model.config, regime
    )
    probe = torch.zeros(1, 1, dtype=torch.float32, device=model.device)
    row = torch.tensor(positions, device=model.device)[None, :]
    cosines, _ = model.model.rotary_emb(probe, position_ids=row)
    # float32 angles at position 131,071 carry an error of about 131,071 · 2⁻²⁴ ≈ 0.008
    if not np.allclose(cosines[0].float().cpu().numpy(), expected, atol=0.03):
        raise CheckpointError(
            f"the rotary embedding does not follow the checkpoint's {regime} factors"
        )


def _pinned_rotary(config: Any, regime: Regime) -> torch.nn.Module:
    import torch

    class PinnedLongRope(torch.nn.Module):
        """Cosine and sine [rows, tokens, d] of positions [rows, tokens], always with the factors of one regime."""

        def __init__(self) -> None:
            super().__init__()
            self.regime = regime
            self.scale = attention_scale(config, regime)
            # no buffer: model.to(torch.bfloat16) would round the frequencies
            self.inv_freq = torch.tensor(inverse_frequencies(config, regime), dtype=torch.float32)

        @torch.no_grad()
        def forward(
            self, x: torch.Tensor, position_ids: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.inv_freq = self.inv_freq.to(x.device)
            half = position_ids[..., None].float() * self.inv_freq
            angles = torch.cat((half, half), dim=-1)
            return (angles.cos() * self.scale).to(x.dtype), (angles.sin() * self.scale).to(x.dtype)

    return PinnedLongRope()
