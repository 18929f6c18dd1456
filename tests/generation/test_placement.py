"""A model over several places, disk the second: the same answers, routing and effects wherever a layer lies."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

import workbench as wb
from workbench.checkpoints.cache_places import cache_folder
from workbench.effects.cases import Case
from workbench.errors import CheckpointError, DoesNotFit
from workbench.generation import loading
from workbench.generation.loading import load_generator
from workbench.generation.placement import find_placement, parameters_with_values
from workbench.generation.prompts import plain_prompt
from workbench.generation.weights import weights_digest
from workbench.routing.intervene import Edit

SPREAD = {
    "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu",
    "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk", "model.layers.3": "cpu",
    "model.layers.4": "disk",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return load_generator("pocket", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def spread():
    return load_generator("pocket", device=SPREAD, dtype="float32")


def asking(generator, text="Which valve failed first? Valve V-14 failed at 22:47. "):
    return plain_prompt(text * 3, tokenizer=generator.tokenizer, budget_tokens=500)


def same(one, two):
    """The same choices; numbers as far as products of weights at other addresses are rounded alike."""
    assert one.token_ids == two.token_ids
    np.testing.assert_array_equal(one.routing.experts, two.routing.experts)
    np.testing.assert_array_equal(one.routing.routed, two.routing.routed)
    for name in ("gate_weights", "contributions", "router_logits", "output_norms"):
        mine, other = getattr(one.routing, name), getattr(two.routing, name)
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(one.log_probabilities, two.log_probabilities, atol=1e-5)


def test_layers_lie_where_the_map_says(spread):
    layers = spread.model.model.layers
    assert [layer.mlp.router.weight.is_meta for layer in layers] == [False, True, True, False, True]
    assert spread.device == "cpu" and "MoE, on cpu, disk, context" in repr(spread)


def test_capture_is_exact_across_places(plain, spread):
    prompt = asking(plain)
    one, two = (g.generate(prompt, max_new_tokens=10, capture="all") for g in (plain, spread))
    same(one, two)
    again = spread.generate(prompt, max_new_tokens=10, capture="all")
    assert again.cache.reused_tokens > 0
    same(one, again)


def test_edits_batches_scores_and_scans_work_across_places(plain, spread):
    prompt = asking(plain)
    with plain.intervened([Edit("ban", 3)]), spread.intervened([Edit("ban", 3)]):
        np.testing.assert_array_equal(plain.read(prompt).experts, spread.read(prompt).experts)
    rows = spread.generate_batch(
        [prompt, asking(plain, "Who signed? Ms Okafor. ")], max_new_tokens=4
    )
    alone = plain.generate(prompt, max_new_tokens=4)
    assert rows[0].token_ids == alone.token_ids
    case = Case("valve", prompt, alone.token_ids)
    scans = [wb.scan_experts(g, [case], segment="question").effects for g in (plain, spread)]
    assert np.abs(scans[0]).max() > 0.01
    np.testing.assert_allclose(scans[0], scans[1], atol=1e-4)


def test_weights_elsewhere_are_read_for_their_digest_and_checks(plain, spread):
    assert weights_digest(plain.model) == weights_digest(spread.model)
    one, two = (dict(parameters_with_values(g.model)) for g in (plain, spread))
    assert list(one) == list(two)
    assert all(p.is_meta for n, p in spread.model.named_parameters() if ".layers.1." in n)


def test_another_context_shares_what_lies_elsewhere(plain, spread):
    longer = spread.with_context(8192)
    prompt = asking(plain)
    same(
        plain.with_context(8192).generate(prompt, max_new_tokens=5, capture="all"),
        longer.generate(prompt, max_new_tokens=5, capture="all"),
    )
    hooks = [g.model.model.layers[1].mlp.router._hf_hook for g in (spread, longer)]
    assert hooks[0] is not hooks[1] and hooks[0].weights_map is hooks[1].weights_map
    same(
        plain.generate(prompt, max_new_tokens=5, capture="all"),
        spread.generate(prompt, max_new_tokens=5, capture="all"),
    )


def test_quantized_weights_are_not_read_from_disk():
    """accelerate would read what the checkpoint holds, not what became of it."""
    with pytest.raises(ValueError, match="quantization='8bit' and a map with 'disk'"):
        load_generator("pocket", device=SPREAD, dtype="float32", quantization="8bit")


def test_quantized_weights_that_are_copied_at_every_pass_are_the_same():
    """What accelerate does with "cpu" beside a GPU, with the CPU in the GPU's place."""
    one, two = (
        load_generator("pocket", device="cpu", dtype="float32", quantization="4bit") for _ in "ab"
    )
    for layer in two.model.model.layers[1:4]:
        cpu_offload(layer, execution_device=torch.device("cpu"))
    assert two.model.model.layers[2].mlp.experts.gate_up_proj.is_meta
    prompt = asking(one)
    same(*(g.generate(prompt, max_new_tokens=5, capture="all") for g in (one, two)))
    assert weights_digest(one.model) == weights_digest(two.model)


def test_parts_of_a_layer_and_the_rest_can_be_named(plain):
    own = {"": "cpu", "model.layers.2.mlp.experts": "disk", "model.layers.4.self_attn": "disk"}
    generator = load_generator("pocket", device=own, dtype="float32")
    layers = generator.model.model.layers
    assert layers[2].mlp.experts.down_proj.is_meta and not layers[2].mlp.router.weight.is_meta
    assert layers[4].self_attn.q_proj.weight.is_meta
    prompt = asking(plain)
    same(*(g.generate(prompt, max_new_tokens=5, capture="all") for g in (plain, generator)))


def test_what_was_saved_on_disk_goes_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    generator = load_generator("pocket", device=SPREAD, dtype="float32")
    held = [path for path in cache_folder().rglob("*") if path.is_file()]
    assert held
    longer = generator.with_context(8192)
    del generator
    gc.collect()
    assert longer.generate(asking(longer), max_new_tokens=2).token_ids
    del longer
    gc.collect()
    assert not [path for path in cache_folder().rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({}, "must be a name like 'cuda', or a map"),
        (["cpu"], "must be a name like 'cuda', or a map"),
        ({"": "cuda:7"}, "device='cuda:7' is not here"),
        ({"": 3}, "device='cuda:3' is not here"),
        ({"": "tpu"}, "device='tpu' is none of"),
        ({"": "disk"}, "model.embed_tokens is placed on 'disk' and computes on cpu"),
        ({"": "cpu", "model.layers.0.moe": "cpu"}, "it has lm_head, .*model.layers.0.mlp"),
        ({"": None}, "device='None' is none of"),
        ({"": "cpu", 3: "cpu", "x": "cpu"}, "the map names 3, which the model has not"),
        ({"model.layers.0": "cpu"}, "gives no device for model.embed_tokens"),
        ({"": "cpu", "model.layers.9": "cpu"}, "model.layers.9, which the model has not"),
    ],
)
def test_a_wrong_map_is_one_sentence(device, words):
    with pytest.raises(ValueError, match=words):
        load_generator("pocket", device=device)


def test_a_map_is_not_planned():
    with pytest.raises(ValueError, match="is no name: a plan is for one kind of device"):
        wb.plan_memory("pocket", device={"": "cpu"})


def test_a_map_and_an_expert_cache_are_refused_together():
    with pytest.raises(ValueError, match="give device a name, not a map"):
        load_generator("pocket", device={"": "cpu"}, expert_cache=4)


def test_all_places_are_added_up(monkeypatch):
    import workbench.generation.placement as placement

    monkeypatch.setattr(placement, "device_memory", lambda place: {"cpu": 1 << 20}[place])
    assert find_placement({"": "cpu", "lm_head": "cpu"}).bytes == 1 << 20
    assert find_placement({"": "cpu", "lm_head": "disk"}).bytes > 1 << 20
    with pytest.raises(DoesNotFit):
        load_generator("pocket", device={"": "cpu"})


def test_a_damaged_layer_on_disk_is_noticed(tmp_path, moe_folder):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(moe_folder, tmp_path / "moe"))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name and "experts" in name)
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.isnan(load_file(folder / "model.safetensors")[name]).any()
    spread = {"": "cpu", "model.layers.1": "disk"}
    with pytest.raises(CheckpointError, match=r"layers\.1.*NaN"):
        loading.load_generator(folder, device=spread, dtype="float32")
