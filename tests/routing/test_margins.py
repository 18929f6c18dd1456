from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.routing.margins import BFLOAT16, decisiveness, fragile, margins


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_margin_is_that_of_the_sorted_logits(seed: int, k: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((4, 2, 6)).astype(np.float32)
    found = margins(logits, k=k)
    for t in range(4):
        for layer in range(2):
            ordered = sorted(logits[t, layer].tolist(), reverse=True)
            last, left = ordered[k - 1], ordered[k]
            assert found[t, layer] == pytest.approx((last - left) / max(abs(last), abs(left)))
    assert (found >= 0).all()


def test_margins_of_many_float16_tokens_are_those_of_sorting_in_float64() -> None:
    logits = np.random.default_rng(0).standard_normal((1300, 2, 16)).astype(np.float16)
    ordered = np.sort(logits.astype(np.float64), axis=2)
    last, left = ordered[:, :, -2], ordered[:, :, -3]
    expected = (last - left) / np.maximum(abs(last), abs(left))
    assert (margins(logits) == expected).all()


def test_ties_and_zeros_are_fragile() -> None:
    logits = np.array([[[3.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]], [[9.0, 8.0, -8.0, -9.0]]])
    assert fragile(logits).tolist() == [[True], [True], [False]]


def test_what_is_fragile_is_what_rounding_to_bfloat16_can_change() -> None:
    """Every token whose set of experts differs after rounding its logits to bfloat16 was called fragile."""
    import torch

    logits = torch.randn(20_000, 1, 16, generator=torch.Generator().manual_seed(0))
    rounded = logits.to(torch.bfloat16).float()
    chosen, again = (x.topk(2, dim=2).indices.sort(dim=2).values for x in (logits, rounded))
    changed = (chosen != again).any(dim=2).numpy()
    called = fragile(logits.numpy(), precision=BFLOAT16)
    assert changed.sum() > 10 and called[changed].all() and called.mean() < 0.05


def test_a_tiny_model_is_as_decisive_as_its_gates_say(tiny_moe) -> None:
    from workbench.generation.prompts import plain_prompt

    prompt = plain_prompt("Which valve? " * 30, tokenizer=tiny_moe.tokenizer, budget_tokens=900)
    trace = tiny_moe.read(prompt, capture="logits")
    rows = trace.rows()
    found = decisiveness(trace.gate_weights[rows])
    for layer in range(trace.layers):
        gates = trace.gate_weights[rows, layer].astype(float)
        assert found.whole_first[layer] == np.mean([g == 1 for g in gates[:, 0]])
        assert found.gate_sum[layer] == pytest.approx(np.mean(gates.sum(axis=1)))
    ordered = np.sort(trace.router_logits[rows].astype(float), axis=2)
    near = (ordered[:, :, -1] - ordered[:, :, -2]) <= 0.02 * np.abs(ordered[:, :, -2:]).max(axis=2)
    assert ((trace.gate_weights[rows][:, :, 0] < 1) <= near).mean() > 0.99


def test_what_has_no_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="with more than k=2 experts"):
        margins(np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match=r"router_logits must be \[tokens, layers, experts\]"):
        margins(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="of at least one token"):
        decisiveness(np.zeros((0, 2, 2)))
    with pytest.raises(ValueError, match=r"\[tokens, layers, 2\]"):
        decisiveness(np.zeros((3, 2, 1)))
