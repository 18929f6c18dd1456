"""Oracles: torch's own attention under a dense mask, and the experts of transformers as they come."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from workbench.pocket.kernels import (  # noqa: E402 (after importorskip)
    EXPERTS,
    Extent,
    Layout,
    attention_of_rows,
    branched_attention,
    register_kernels,
)
from workbench.pocket.structured import Shape, structured_model  # noqa: E402 (after importorskip)

ROWS = (
    Extent(64, 50, (16, 12, 3)),
    Extent(0, 0, (40,)),
    Extent(192, 190, (32, 9)),
    Extent(32, 32, ()),
    Extent(0, 0, (5, 7)),
)


def dense_mask(extents: tuple[Extent, ...]) -> torch.Tensor:
    """Which key each query sees, token by token: [tokens, tokens]."""
    about = [
        (row, branch, place < extent.real)
        for row, extent in enumerate(extents)
        for branch, places in [
            (-1, range(extent.shared)),
            *((b, range(n)) for b, n in enumerate(extent.lengths)),
        ]
        for place in places
    ]
    rows = []
    for q, (row, branch, _) in enumerate(about):
        rows.append(
            [
                k <= q and r == row and (b == branch or (b == -1 and is_text))
                for k, (r, b, is_text) in enumerate(about)
            ]
        )
    return torch.tensor(rows)


def test_branch_sees_its_beginning_and_itself() -> None:
    """The oracle of this file, by hand."""
    assert dense_mask((Extent(3, 2, (2, 1)), Extent(1, 1, ()))).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],  # padding: sees, and is seen by no branch
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("extents", [ROWS, (Extent(300, 300, ()),), (Extent(32, 1, (1,)),)])
def test_attention_and_its_gradients_are_those_under_the_mask(
    extents: tuple[Extent, ...], on_gpu: bool
) -> None:
    layout = Layout(extents)
    tokens = sum(extent.tokens for extent in extents)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(1, heads, tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    if on_gpu:  # the way of a GPU, on the CPU
        ours = attention_of_rows(q, k, v, layout.on(q.device), 0.3)
    else:
        ours, _ = branched_attention(None, q, k, v, None, scaling=0.3, layout=layout)
    seen = dense_mask(extents)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-12)
    slope = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(ours, (q, k, v), slope),
        torch.autograd.grad(theirs, (q, k, v), slope),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-12)


def test_attention_without_a_layout_is_causal() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    ours, _ = branched_attention(None, q, k, v, None, scaling=0.5)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-6)


def test_sorted_experts_and_their_gradients_are_those_of_transformers() -> None:
    register_kernels()
    shape = Shape(vocabulary=600, dim=32, layers=1, heads=4, key_value_heads=2, feed_forward=16)
    model = structured_model(shape, [""] * 600)
    experts = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(150, 32, generator=generator)
    chosen = torch.rand(150, 16, generator=generator).topk(2).indices
    chosen[:, 0] = chosen[:, 0] % 3  # some experts get most of the tokens, and others may get none
    chosen[:, 1] = 3 + chosen[:, 1] % 9
    weights = torch.rand(150, 2, generator=generator)
    results = []
    for name in (EXPERTS, "eager"):
        model.config._experts_implementation = name
        x = tokens.clone().requires_grad_()
        out = experts(x, chosen, weights)
        results.append(
            [
                out,
                *torch.autograd.grad(
                    out.square().sum(), (x, experts.gate_up_proj, experts.down_proj)
                ),
            ]
        )
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
