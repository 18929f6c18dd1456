"""Weights in 8 and 4 bits: what is held, what is computed from it, and that everything else works as ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from workbench.cli import main
from workbench.generation.loading import load_generator
from workbench.generation.planning import plan_memory
from workbench.generation.prompts import plain_prompt
from workbench.generation.quantized import (
    QuantizedExperts,
    QuantizedLinear,
    dequantize,
    quantization_of,
    quantize,
)
from workbench.routing.agreement import agreement
from workbench.routing.intervene import Edit

BITS = ("8bit", "4bit")


def by_hand(weight: np.ndarray, quantization: str) -> np.ndarray:
    """The same once more, number by number."""
    out = np.zeros(weight.shape, np.float64)
    for r, row in enumerate(weight.astype(np.float64)):
        if quantization == "8bit":
            scale = np.float32(abs(row).max()) / np.float32(127)
            out[r] = [
                round(float(x / np.float64(scale))) * float(scale) if scale else 0.0 for x in row
            ]
            continue
        for start in range(0, len(row), 32):
            group = row[start : start + 32]
            scale = float(np.float16(group[int(abs(group).argmax())] / -8))
            q = [min(7, max(-8, round(x / scale))) if scale else 0 for x in group]
            out[r, start : start + 32] = [x * scale for x in q]
    return out


@pytest.mark.parametrize("quantization", BITS)
def test_weights_are_what_the_formula_says(quantization):
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[2] = 0
    held, scale = quantize(weight, quantization)
    found = dequantize(held, scale, torch.float32).numpy()
    np.testing.assert_allclose(found, by_hand(weight.numpy(), quantization), atol=2e-6)
    assert (found[2] == 0).all()
    assert held.numel() == weight.numel() // (1 if quantization == "8bit" else 2)
    error = np.abs(found - weight.numpy())
    step = np.abs(weight.numpy()).max(axis=1, keepdims=True) / (
        127 if quantization == "8bit" else 8
    )
    assert (error <= step * (0.5001 if quantization == "8bit" else 1.001)).all()


def test_experts_are_quantized_one_by_one():
    weight = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1))
    for quantization in BITS:
        held, scale = quantize(weight, quantization)
        for number, part in enumerate(weight):
            alone, own = quantize(part, quantization)
            assert torch.equal(held[number], alone) and torch.equal(scale[number], own)


@pytest.fixture(scope="module")
def pocket():
    return load_generator("pocket", device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=BITS)
def held(request):
    return load_generator("pocket", device="cpu", dtype="float32", quantization=request.param)


def spelled_out(model: nn.Module, quantization: str) -> None:
    """The oracle: the plain model's own weights replaced by what the integers stand for."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_linear = name.endswith("_proj.weight")
            if is_linear or name.endswith(("gate_up_proj", "down_proj")):
                parameter.copy_(dequantize(*quantize(parameter, quantization), parameter.dtype))


def asking(generator):
    text = (
        "Which valve failed first? Valve V-14 failed at 22:47 because its hinge pin sheared. " * 3
    )
    return plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=500)


def test_a_quantized_model_computes_what_its_weights_stand_for(held):
    quantization = quantization_of(held.model)
    plain = load_generator("pocket", device="cpu", dtype="float32")
    spelled_out(plain.model, quantization)
    prompt = asking(plain)
    one, two = (g.generate(prompt, max_new_tokens=8, capture="all") for g in (plain, held))
    assert one.token_ids == two.token_ids
    np.testing.assert_allclose(one.log_probabilities, two.log_probabilities, atol=2e-4)
    rows = one.routing.rows()
    np.testing.assert_array_equal(one.routing.experts[rows], two.routing.experts[rows])
    np.testing.assert_allclose(
        one.routing.contributions[rows], two.routing.contributions[rows], rtol=5e-3, atol=5e-3
    )


def test_a_dense_model_is_quantized_too(dense_folder):
    plain = load_generator(dense_folder, device="cpu", dtype="float32")
    other = load_generator(dense_folder, device="cpu", dtype="float32", quantization="8bit")
    prompt = asking(plain)
    spelled_out(plain.model, "8bit")
    one, two = (g.generate(prompt, max_new_tokens=6) for g in (plain, other))
    assert one.token_ids == two.token_ids
    np.testing.assert_allclose(one.log_probabilities, two.log_probabilities, atol=2e-4)
    kinds = {type(module) for module in other.model.modules()}
    assert QuantizedLinear in kinds and QuantizedExperts not in kinds


def test_experts_and_layers_are_integers_and_the_rest_is_not(held, pocket):
    layer, own = held.model.model.layers[0], pocket.model.model.layers[0]
    assert isinstance(layer.mlp.experts, QuantizedExperts)
    assert not layer.mlp.experts.gate_up_proj.is_floating_point()
    assert isinstance(layer.self_attn.q_proj, QuantizedLinear)
    assert torch.equal(layer.mlp.router.weight, own.mlp.router.weight)
    assert torch.equal(held.model.lm_head.weight, pocket.model.lm_head.weight)
    assert torch.equal(layer.self_attn.q_proj.bias, own.self_attn.q_proj.bias)


def test_the_plan_knows_the_bytes(held):
    quantization = quantization_of(held.model)
    plan = plan_memory("pocket", dtype="float32", quantization=quantization)
    real = sum(p.numel() * p.element_size() for p in held.model.parameters())
    assert abs(plan.weight_bytes - real) < 0.05 * real
    assert f"with {quantization[0]}-bit weights" in str(plan) and plan.quantization == quantization
    assert plan.weight_bytes < plan_memory("pocket", dtype="float32").weight_bytes / 2


def test_what_works_with_plain_weights_works_with_quantized_ones(held):
    prompt = asking(held)
    first = held.generate(prompt, max_new_tokens=4)
    again = held.generate(prompt, max_new_tokens=4)
    assert again.cache.reused_tokens > 0 and again.token_ids == first.token_ids
    rows = held.generate_batch([prompt, prompt], max_new_tokens=4)
    assert [row.token_ids for row in rows] == [first.token_ids] * 2
    busiest = int(first.routing.counts()[1].argmax())
    with held.intervened([Edit("ban", busiest, (1,))]):
        trace = held.read(prompt)
    assert trace.counts()[1, busiest] == 0
    assert trace.origin["quantization"] == quantization_of(held.model)
    longer = held.with_context(8192)
    assert isinstance(longer.model.model.layers[0].mlp.experts, QuantizedExperts)
    shared = longer.model.model.layers[0].mlp.experts.gate_up_proj
    assert shared.data_ptr() == held.model.model.layers[0].mlp.experts.gate_up_proj.data_ptr()


def test_eight_bits_keep_most_experts_and_more_than_four(pocket):
    prompt = asking(pocket)
    before = pocket.read(prompt)
    rows = before.rows()
    kept = []
    for quantization in BITS:
        other = load_generator("pocket", device="cpu", dtype="float32", quantization=quantization)
        after = other.read(prompt)
        kept.append(agreement(before.experts[rows], after.experts[rows]).mean())
    assert kept[0] > 0.97 and kept[0] > kept[1] > 0.7


@pytest.mark.parametrize(
    ("folder", "quantization", "words"),
    [
        ("pocket", "2bit", "quantization='2bit' is none of 8bit, 4bit"),
        ("pocket", ["8bit"], r"quantization=\['8bit'\] is none of 8bit, 4bit"),
        ("moe", "4bit", "groups of 32 numbers, which intermediate_size=48 does not divide into"),
    ],
)
def test_what_cannot_be_quantized_is_one_sentence(folder, quantization, words, moe_folder):
    spec = moe_folder if folder == "moe" else folder
    with pytest.raises(ValueError, match=words):
        load_generator(spec, device="cpu", quantization=quantization)


def test_the_command_line_takes_it(capsys):
    assert main(["doctor", "--quantization", "8bit", "--json"]) == 0
    assert "with 8-bit weights" in capsys.readouterr().out
    assert main(["route", "Which valve failed?", "--quantization", "4bit", "--json"]) == 0
    assert '"quantization": "4bit"' in capsys.readouterr().out


def test_a_refusal_names_the_bits_that_would_fit():
    plan = plan_memory(
        "microsoft/Phi-3.5-MoE-instruct",
        quantization="8bit",
        device="cuda",
        device_bytes=40 * 10**9,
    )
    assert not plan.fits
    assert any("quantization='4bit'" in one for one in plan.alternatives)
    assert not any("quantization='8bit'" in one for one in plan.alternatives)
