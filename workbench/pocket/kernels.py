"""Faster kernels for training on flat batches: attention of branches, and experts without padding to the largest.

Both give what the transformers implementations give (a test compares them); they only differ in how the work is cut.
Inference never needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXPERTS = "workbench_sorted"
ATTENTION = "workbench_branched"
_EXPERT_BLOCK = 64  # shares of experts are multiples of it, so that oneDNN meets few shapes and reuses its kernels
_QUERY_BLOCK = 128  # queries of a shared beginning that are computed together


@dataclass(frozen=True)
class Extent:
    """One row of a flat batch: a shared beginning of `shared` tokens, then branches of `lengths` tokens each.

    Of the beginning only the first `real` tokens are text; the rest is padding that no branch sees. A branch is padded
    at its end, which nothing sees because attention is causal.
    """

    shared: int
    real: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the row in the flat batch, padding included."""
        return self.shared + sum(self.lengths)

    @cached_property
    def flat(self) -> torch.Tensor:
        """The place of every branch token in a rectangle [branches, longest], flattened."""
        import torch

        longest = max(self.lengths)
        places = [torch.arange(n) + b * longest for b, n in enumerate(self.lengths)]
        return torch.cat(places)


@dataclass(frozen=True, slots=True, eq=False)
class Rectangle:
    """The rows of a flat batch side by side, padded to the longest: what a GPU computes in one launch.

    `places` [rows, longest] are the tokens of each row in the flat batch, `mask` [rows, 1, longest, longest] says which
    key each query sees, `back` [tokens] is each token's place in the flattened rectangle.
    """

    places: torch.Tensor
    mask: torch.Tensor
    back: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """How a flat batch of [tokens] falls into rows."""

    extents: tuple[Extent, ...]

    def on(self, device: torch.device) -> Rectangle:
        """The rectangle on a device, made once."""
        if device not in self._rectangles:
            self._rectangles[device] = _rectangle(self.extents, device)
        return self._rectangles[device]

    @cached_property
    def _rectangles(self) -> dict[torch.device, Rectangle]:
        return {}


def _rectangle(extents: tuple[Extent, ...], device: torch.device) -> Rectangle:
    import torch

    tokens = torch.tensor([extent.tokens for extent in extents], device=device)
    longest = int(tokens.max())
    place = torch.arange(longest, device=device)
    starts = tokens.cumsum(0) - tokens
    inside = place < tokens[:, None]  # [rows, longest]
    places = torch.where(inside, starts[:, None] + place, 0)
    branch = torch.full(inside.shape, -1, device=device)
    hidden = ~inside
    for row, extent in enumerate(extents):
        lengths = torch.tensor(extent.lengths, dtype=torch.long, device=device)
        numbers = torch.arange(len(extent.lengths), device=device).repeat_interleave(lengths)
        branch[row, extent.shared : extent.tokens] = numbers
        if extent.lengths:
            hidden[row, extent.real : extent.shared] = True
    own = branch[:, :, None] == branch[:, None, :]
    shared = ((branch == -1) & ~hidden)[:, None, :]
    mask = (own | shared) & (place <= place[:, None])  # a query of the padding sees itself
    return Rectangle(places, mask[:, None], inside.flatten().nonzero().flatten())


def register_kernels() -> None:
    """Make both kernels known to transformers, under ``EXPERTS`` and ``ATTENTION``."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, sorted_experts)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, branched_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *_, **__: None)


def sorted_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Outputs of the chosen experts, weighted and summed: [tokens, dim]. No token is dropped.

    `top_k_index` and `top_k_weights` are [tokens, k]. Tokens are sorted by expert; each expert's share is rounded up to
    a block of rows, and each expert multiplies its own rows only.
    """
    import torch

    tokens, dim = hidden_states.shape
    k, experts, device = top_k_index.shape[-1], self.num_experts, hidden_states.device
    chosen = top_k_index.reshape(-1)  # [tokens * k]
    order = torch.argsort(chosen, stable=True)
    count = torch.bincount(chosen, minlength=experts)
    rows = (count + _EXPERT_BLOCK - 1) // _EXPERT_BLOCK * _EXPERT_BLOCK
    ranked = chosen[order]
    rank = torch.arange(tokens * k, device=device) - (torch.cumsum(count, 0) - count)[ranked]
    slot = (torch.cumsum(rows, 0) - rows)[ranked] + rank
    slot_of = torch.empty_like(order)
    slot_of[order] = slot
    token_of = torch.full((int(rows.sum()),), tokens, device=device)  # `tokens` is the zero row
    token_of[slot] = order // k
    shares = rows.tolist()
    padded = torch.cat([hidden_states, hidden_states.new_zeros(1, dim)])
    x = padded.index_select(0, token_of)
    linear = _sorted_linear()
    gate, up = linear.apply(x, self.gate_up_proj, shares).chunk(2, -1)
    y = linear.apply(self.act_fn(gate) * up, self.down_proj, shares)
    y = y.index_select(0, slot_of).view(tokens, k, dim)
    weighted: torch.Tensor = y * top_k_weights.unsqueeze(-1).to(y.dtype)
    return weighted.sum(1)


@cache
def _sorted_linear() -> Any:
    """An autograd function: rows [n, in], weights [experts, out, in] and each expert's number of rows -> [n, out]."""
    import torch

    class SortedLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, shares: list[int]) -> Any:
            ctx.save_for_backward(x, weight)
            ctx.shares = shares
            out = x.new_empty(len(x), weight.shape[1])
            for e, (rows, to) in enumerate(
                zip(*(torch.split(t, shares) for t in (x, out)), strict=True)
            ):
                torch.mm(rows, weight[e].T, out=to)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            x, weight = ctx.saved_tensors
            gradient = gradients[0].contiguous()
            to_x, to_weight = torch.empty_like(x), torch.empty_like(weight)
            parts = (part.split(ctx.shares) for part in (x, gradient, to_x))
            for e, (rows, slopes, to) in enumerate(zip(*parts, strict=True)):
                torch.mm(slopes, weight[e], out=to)
                torch.mm(slopes.T, rows, out=to_weight[e])
            return to_x, to_weight, None

    return SortedLinear


def branched_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a flat batch: each branch sees the beginning of its row and itself, causally.

    query is [1, heads, tokens, width], key and value [1, groups, tokens, width]; `layout` cuts the tokens into rows.
    Without one the batch is a single causal row. The result is [1, tokens, heads, width].
    """
    import torch

    tokens = query.shape[2]
    layout = layout or Layout((Extent(tokens, tokens, ()),))
    if query.device.type != "cpu":
        return attention_of_rows(query, key, value, layout.on(query.device), scaling), None
    sizes = [n for e in layout.extents for n in (e.shared, sum(e.lengths))]
    parts = [torch.split(x[0], sizes, 1) for x in (query * scaling, key, value)]
    causal, branched = _attention_functions()
    done = []
    for number, extent in enumerate(layout.extents):
        beginning = [part[2 * number] for part in parts]
        if extent.shared:
            done.append(causal.apply(*beginning))
        if extent.lengths:
            own = [part[2 * number + 1] for part in parts]
            done.append(branched.apply(*own, *beginning[1:], extent))
    return torch.cat(done, 1).transpose(0, 1)[None], None


def attention_of_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rectangle, scaling: float
) -> torch.Tensor:
    """The same in one call of torch's attention over all rows; shapes as in :func:`branched_attention`."""
    import torch

    q, k, v = (x[0][:, rows.places].transpose(0, 1) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=rows.mask, scale=scaling, enable_gqa=True
    )  # [rows, heads, longest, width]
    return out.transpose(1, 2).flatten(0, 1)[rows.back][None]


@cache
def _attention_functions() -> tuple[Any, Any]:
    """Two autograd functions that keep the attention shares only: causal attention, and that of the branches of a row.

    Queries are [heads, tokens, width] and scaled, keys and values [groups, tokens, width]; so is the result of queries.
    """
    import torch

    slope_of_softmax = torch.ops.aten._softmax_backward_data

    def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
        """[heads, n, width] -> [groups, heads / groups * n, width]"""
        return x.reshape(groups, -1, x.shape[-1])

    def turned(rows: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """``shares.mT @ rows`` by the transpose of the small factor: that of the large one costs more."""
        return torch.bmm(rows.mT.contiguous(), shares).mT.contiguous()

    class Causal(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            heads, tokens, width = q.shape
            groups = len(k)
            k, v = k.contiguous(), v.contiguous()
            out = q.new_empty(heads, tokens, width)
            kept = []
            for start in range(0, tokens, _QUERY_BLOCK):
                stop = min(tokens, start + _QUERY_BLOCK)
                scores = torch.bmm(grouped(q[:, start:stop], groups), k[:, :stop].mT)
                by_query = scores.view(heads, stop - start, stop)
                by_query[..., start:] += _later(stop - start, q.dtype)
                kept.append(scores.softmax(-1))
                out[:, start:stop] = torch.bmm(kept[-1], v[:, :stop]).view(heads, -1, width)
            ctx.save_for_backward(q, k, v, *kept)
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            q, k, v, *kept = ctx.saved_tensors
            heads, tokens, width = q.shape
            groups = len(k)
            to_q = torch.empty(heads, tokens, width, dtype=q.dtype)
            to_k, to_v = torch.zeros_like(k), torch.zeros_like(v)
            for shares, start in zip(kept, range(0, tokens, _QUERY_BLOCK), strict=True):
                stop = min(tokens, start + _QUERY_BLOCK)
                asked = grouped(q[:, start:stop], groups)
                slope = grouped(gradients[0][:, start:stop], groups)
                to_v[:, :stop] += turned(slope, shares)
                to_scores = slope_of_softmax(torch.bmm(slope, v[:, :stop].mT), shares, -1, q.dtype)
                to_q[:, start:stop] = torch.bmm(to_scores, k[:, :stop]).view(heads, -1, width)
                to_k[:, :stop] += turned(asked, to_scores)
            return to_q, to_k, to_v

    def spread(x: torch.Tensor, groups: int, extent: Extent) -> torch.Tensor:
        """[groups * r, tokens, n] -> [groups * branches, r * longest, n], zero where a branch is shorter."""
        rows, _, n = x.shape
        count, longest = len(extent.lengths), max(extent.lengths)
        rectangle = x.new_zeros(rows, count * longest, n).index_copy_(1, extent.flat, x)
        by_group = rectangle.view(groups, rows // groups, count, longest, n).transpose(1, 2)
        return by_group.reshape(groups * count, -1, n)

    def gathered(x: torch.Tensor, groups: int, rows: int, extent: Extent) -> torch.Tensor:
        """The way back, to [rows, tokens, n]."""
        count, longest, n = len(extent.lengths), max(extent.lengths), x.shape[-1]
        by_row = x.view(groups, count, rows // groups, longest, n).transpose(1, 2)
        return by_row.reshape(rows, count * longest, n).index_select(1, extent.flat)

    class Branched(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            shared_k: torch.Tensor,
            shared_v: torch.Tensor,
            extent: Extent,
        ) -> torch.Tensor:
            heads, tokens, width = q.shape
            groups, longest = len(k), max(extent.lengths)
            q, shared_k, shared_v = q.contiguous(), shared_k.contiguous(), shared_v.contiguous()
            own_q, own_k, own_v = (spread(x, groups, extent) for x in (q, k, v))
            own = torch.bmm(own_q, own_k.mT).view(-1, heads // groups, longest, longest)
            own += _later(longest, q.dtype)
            scores = gathered(own.view(-1, own_q.shape[1], longest), groups, heads, extent)
            if extent.shared:
                across = torch.bmm(grouped(q, groups), shared_k.mT).view(heads, tokens, -1)
                across[..., extent.real :] = float("-inf")
                scores = torch.cat([across, scores], -1)
            shares = scores.softmax(-1)
            said = spread(shares[..., extent.shared :], groups, extent)
            out = gathered(torch.bmm(said, own_v), groups, heads, extent)
            if extent.shared:
                told = grouped(shares[..., : extent.shared], groups)
                out += torch.bmm(told, shared_v).view(heads, tokens, width)
            ctx.save_for_backward(q, own_q, own_k, own_v, shared_k, shared_v, shares)
            ctx.extent = extent
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            q, own_q, own_k, own_v, shared_k, shared_v, shares = ctx.saved_tensors
            extent, slope = ctx.extent, gradients[0].contiguous()
            heads, tokens, width = q.shape
            groups = len(shared_k)
            own_slope = spread(slope, groups, extent)
            said = spread(shares[..., extent.shared :], groups, extent)
            to_v = gathered(turned(own_slope, said), groups, groups, extent)
            to_shares = gathered(torch.bmm(own_slope, own_v.mT), groups, heads, extent)
            if extent.shared:
                told = grouped(shares[..., : extent.shared], groups)
                to_shared_v = turned(grouped(slope, groups), told)
                across = torch.bmm(grouped(slope, groups), shared_v.mT).view(heads, tokens, -1)
                to_shares = torch.cat([across, to_shares], -1)
            to_scores = slope_of_softmax(to_shares, shares, -1, q.dtype)
            to_own = spread(to_scores[..., extent.shared :], groups, extent)
            to_q = gathered(torch.bmm(to_own, own_k), groups, heads, extent)
            to_k = gathered(turned(own_q, to_own), groups, groups, extent)
            if not extent.shared:
                return (
                    to_q,
                    to_k,
                    to_v,
                    torch.zeros_like(shared_k),
                    torch.zeros_like(shared_v),
                    None,
                )
            to_across = grouped(to_scores[..., : extent.shared], groups)
            to_q += torch.bmm(to_across, shared_k).view(heads, tokens, width)
            to_shared_k = turned(grouped(q, groups), to_across)
            return to_q, to_k, to_v, to_shared_k, to_shared_v, None

    return Causal, Branched


@cache
def _later(length: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query may look, minus infinity at later keys: [length, length]."""
    import torch

    return torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
