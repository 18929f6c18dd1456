"""The published shapes of the two Phi-3.5 models, so that they can be planned where none of their files is.

Source: config.json of microsoft/Phi-3.5-MoE-instruct and microsoft/Phi-3.5-mini-instruct on the Hugging Face hub. Only
what memory rests on; nothing is loaded by these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class KnownShape:
    """The fields of a transformers config that memory rests on, under the names it gives them."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_key_value_heads: int
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    vocab_size: int = 32064
    num_local_experts: int = 1
    num_experts_per_tok: int = 1
    attention_bias: bool = False
    lm_head_bias: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 131072
    original_window: int = 4096
    dtype: str = "bfloat16"

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The kind of rotary embedding and its original window; not the factors."""
        return {"rope_type": "longrope", "original_max_position_embeddings": self.original_window}


MOE, MINI = "microsoft/Phi-3.5-MoE-instruct", "microsoft/Phi-3.5-mini-instruct"
KNOWN_SHAPES = {
    MOE: KnownShape(
        "phimoe",
        hidden_size=4096,
        intermediate_size=6400,
        num_key_value_heads=8,
        num_local_experts=16,
        num_experts_per_tok=2,
        attention_bias=True,
        lm_head_bias=True,
    ),
    MINI: KnownShape("phi3", hidden_size=3072, intermediate_size=8192, num_key_value_heads=32),
}


def other_model(model: str) -> str | None:
    """The other of the two Phi-3.5 models; None for a model that is neither.

    >>> other_model("microsoft/Phi-3.5-MoE-instruct")
    'microsoft/Phi-3.5-mini-instruct'
    """
    return {MOE: MINI, MINI: MOE}.get(model)
