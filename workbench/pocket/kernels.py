"""Faster kernels for training on a CPU: padded batched experts, and attention in float32. Inference never needs them.

Both give what the transformers implementations give (a test compares them); they only differ in how the work is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXPERTS = "workbench_padded"
ATTENTION = "workbench_float32"
_BLOCK = (
    128  # capacities are multiples of it, so that oneDNN meets few shapes and reuses its kernels
)


def register_kernels() -> None:
    """Make both kernels known to transformers, under ``EXPERTS`` and ``ATTENTION``."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, padded_experts)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, float32_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def padded_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Outputs of the chosen experts, weighted and summed: [tokens, dim]. No token is dropped.

    `top_k_index` and `top_k_weights` are [tokens, k]. Tokens are sorted by expert, each expert's share padded to the
    largest (rounded up to a block), and all experts multiplied at once.
    """
    import torch

    tokens, dim = hidden_states.shape
    k, experts, device = top_k_index.shape[-1], self.num_experts, hidden_states.device
    chosen = top_k_index.reshape(-1)  # [tokens * k]
    order = torch.argsort(chosen, stable=True)
    count = torch.bincount(chosen, minlength=experts)
    capacity = (int(count.max()) + _BLOCK - 1) // _BLOCK * _BLOCK
    first = torch.cumsum(count, 0) - count
    ranked = chosen[order]
    slot = ranked * capacity + torch.arange(tokens * k, device=device) - first[ranked]
    slot_of = torch.empty_like(order)
    slot_of[order] = slot
    token_of = torch.full(
        (experts * capacity,), tokens, dtype=torch.long, device=device
    )  # `tokens` is the zero row
    token_of[slot] = order // k
    padded = torch.cat([hidden_states, hidden_states.new_zeros(1, dim)])
    x = padded.index_select(0, token_of).view(experts, capacity, dim)
    gate, up = torch.bmm(x, self.gate_up_proj.transpose(1, 2)).chunk(2, -1)
    y = torch.bmm(self.act_fn(gate) * up, self.down_proj.transpose(1, 2)).reshape(
        experts * capacity, dim
    )
    y = y.index_select(0, slot_of).view(tokens, k, dim)
    return (y * top_k_weights.unsqueeze(-1).to(y.dtype)).sum(1)


def float32_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot product attention computed in float32: its bfloat16 backward pass is the slower one on a CPU.

    A mask [rows, 1, q, tokens] with q < tokens speaks of the last q queries; the queries before them are causal.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    groups = module.num_key_value_groups
    queries = query.float()
    keys, values = (
        key.float().repeat_interleave(groups, 1),
        value.float().repeat_interleave(groups, 1),
    )
    first = queries.shape[2] - (0 if attention_mask is None else attention_mask.shape[2])
    parts = []
    if first:
        parts.append(
            scaled_dot_product_attention(
                queries[:, :, :first],
                keys[:, :, :first],
                values[:, :, :first],
                is_causal=True,
                scale=scaling,
            )
        )
    if attention_mask is not None:
        parts.append(
            scaled_dot_product_attention(
                queries[:, :, first:], keys, values, attn_mask=attention_mask, scale=scaling
            )
        )
    out = torch.cat(parts, 2)
    return out.transpose(1, 2).to(query.dtype).contiguous(), None
