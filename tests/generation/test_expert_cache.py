"""Experts in host memory: what is computed does not change, what is on the device is what the policy says."""

from __future__ import annotations

import copy
import json
import threading

import numpy as np
import pytest
import torch

from workbench.cli import main
from workbench.generation import planning
from workbench.generation.expert_cache import FADING, CachedExperts, Slots, all_slots, pinned
from workbench.generation.known_shapes import KNOWN_SHAPES, MOE
from workbench.generation.loading import load_generator
from workbench.generation.memory import RESERVE, expert_bytes, plan_config
from workbench.generation.planning import plan_memory
from workbench.generation.prompts import plain_prompt
from workbench.routing.intervene import Edit

GB = 10**9


@pytest.fixture(scope="module")
def plain():
    generator = load_generator("pocket", device="cpu", dtype="float32")
    generator.model.set_experts_implementation("eager")
    return generator


@pytest.fixture(scope="module", params=[1, 4, 16])
def cached(request):
    return load_generator("pocket", device="cpu", dtype="float32", expert_cache=request.param)


def asking(generator, text="Which valve failed first? Valve V-14 failed at 22:47. "):
    return plain_prompt(text * 3, tokenizer=generator.tokenizer, budget_tokens=500)


def said(generator, prompt, tokens):
    """An answer whose prompt is read as a whole: products of other shapes are rounded otherwise."""
    generator.prefixes.clear()
    return generator.generate(prompt, max_new_tokens=tokens, capture="all")


def same(one, two):
    assert one.token_ids == two.token_ids
    for name in ("experts", "gate_weights", "contributions", "router_logits"):
        mine, other = getattr(one.routing, name), getattr(two.routing, name)
        np.testing.assert_array_equal(mine, other, err_msg=name)
    np.testing.assert_array_equal(one.log_probabilities, two.log_probabilities)


def test_answers_routing_and_logits_are_the_same_bit_by_bit(plain, cached):
    for text in (
        "Which valve failed first? Valve V-14 failed. ",
        "Who signed the log? Ms Okafor. ",
    ):
        prompt = asking(plain, text)
        same(*(said(generator, prompt, 12) for generator in (plain, cached)))


def test_quantized_experts_are_cached_as_they_are_held():
    one = load_generator("pocket", device="cpu", dtype="float32", quantization="4bit")
    two = load_generator(
        "pocket", device="cpu", dtype="float32", quantization="4bit", expert_cache=3
    )
    prompt = asking(one)
    same(*(said(generator, prompt, 8) for generator in (one, two)))
    integers = sum(p.nbytes for p in one.model.model.layers[0].mlp.experts.parameters())
    assert two.model.model.layers[0].mlp.experts.slots.bytes == integers * 3 // 16


def by_hand(experts, slots):
    """The policy once more, one token after another: which choices were held, and what is held in the end."""
    use, held, hits = np.zeros(16), [], 0
    for own in experts.tolist():
        use = use * FADING
        for expert in own:
            use[expert] += 1
        hits += sum(expert in held for expert in own)
        for expert in sorted(own, key=lambda one: (one not in held, -use[one])):
            if expert not in held:
                if len(held) == slots:
                    held.remove(min(held, key=lambda one: use[one]))
                held.append(expert)
    return hits, set(held)


@pytest.mark.parametrize("slots", [1, 2, 5, 16])
def test_a_layer_holds_what_the_policy_says(slots):
    draws = np.random.default_rng(0)
    weights = torch.arange(16.0)[:, None]
    layer = Slots({"w": weights}, slots, torch.device("cpu"))
    popular = draws.dirichlet(np.full(16, 0.5))
    experts = np.stack([draws.choice(16, 2, replace=False, p=popular) for _ in range(400)])
    for own in experts:
        for expert in layer.order(np.bincount(own, minlength=16)):
            assert layer.fetch(expert)["w"].item() == expert
    hits, held = by_hand(experts, slots)
    assert (layer.asked, layer.held) == (800, hits)
    assert layer.copied_bytes == (800 - hits) * 4
    assert set(layer._place) == held and len(held) == min(slots, len(set(experts.flat)))


def test_reading_a_prompt_leaves_what_answers_used():
    layer = Slots({"w": torch.arange(16.0)[:, None]}, 4, torch.device("cpu"))
    used = np.zeros(16, dtype=np.int64)
    for own in ((2, 5), (5, 9), (2, 9)):
        used[:] = 0
        used[list(own)] = 1
        for expert in layer.order(used):
            layer.fetch(expert)
    for expert in layer.order(np.full(16, 100)):  # 800 tokens, all experts
        assert layer.fetch(expert)["w"].item() == expert
    assert {2, 5, 9} < set(layer._place) and len(layer._place) == 4
    assert layer.asked == 6  # only answers are counted


def test_use_is_that_of_the_trace(cached):
    prompt = asking(cached, "Where was the pump moved? The pump was moved to bay 7. ")
    cached.prefixes.clear()
    before = cached.expert_use
    answer = cached.generate(prompt, max_new_tokens=10)
    use = cached.expert_use - before
    passes = len(answer.token_ids)  # each is decided on by the token before it
    assert use.asked.tolist() == [2 * passes] * 5
    assert (use.held <= use.asked).all()
    slots = all_slots(cached.model)[0].count
    if slots == 16:
        assert use.hit_rate > 0.95  # what the prompt did not ask for is copied once
    an_expert = sum(p[0].nbytes for p in cached.model.model.layers[0].mlp.experts.parameters())
    assert use.copied_bytes % an_expert == 0
    if slots < 16:
        assert use.copied_bytes >= int((use.asked - use.held).sum()) * an_expert


def test_copies_of_a_model_share_slots_and_threads_take_turns(plain):
    generator = load_generator("pocket", device="cpu", dtype="float32", expert_cache=2)
    longer = generator.with_context(8192)
    layers = [g.model.model.layers[0].mlp.experts for g in (generator, longer)]
    assert layers[0].slots is layers[1].slots
    assert layers[0].gate_up_proj.data_ptr() == layers[1].gate_up_proj.data_ptr()
    prompts = [asking(plain, f"Which valve failed in bay {n}? ") for n in range(3)]
    expected = [plain.generate(prompt, max_new_tokens=6).token_ids for prompt in prompts]
    found: dict[int, list[tuple[int, ...]]] = {}

    def ask(number, own):
        found[number] = [own.generate(prompt, max_new_tokens=6).token_ids for prompt in prompts]

    short = generator.with_context(4096)
    threads = [threading.Thread(target=ask, args=(n, g)) for n, g in enumerate((generator, short))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: expected, 1: expected}


class _BreaksError(RuntimeError):
    pass


class _Breaking(torch.nn.Module):
    """An activation that fails at the `number`-th call."""

    def __init__(self, number):
        super().__init__()
        self.calls = iter(range(number))

    def forward(self, states):
        if next(self.calls, None) is None:
            raise _BreaksError
        return torch.nn.functional.silu(states)


def test_an_interrupt_in_the_middle_leaves_it_usable(plain):
    """An error that is kept, as notebooks keep it, holds neither the lock nor half a copy."""
    generator = load_generator("pocket", device="cpu", dtype="float32", expert_cache=3)
    prompt = asking(plain)
    expected = said(plain, prompt, 8)
    layer = generator.model.model.layers[2].mlp.experts
    kept = []
    for number in (2, 5, 11):
        layer.act_fn = _Breaking(number).eval()
        with pytest.raises(_BreaksError) as error:
            generator.generate(prompt, max_new_tokens=8)
        kept.append(error.value)
    layer.act_fn = plain.model.model.layers[2].mlp.experts.act_fn
    same(expected, said(generator, prompt, 8))


def test_weights_that_are_changed_in_host_memory_are_copied_again():
    """Written to in place, or replaced: no slot keeps what was there before."""
    one = load_generator("pocket", device="cpu", dtype="float32")
    one.model.set_experts_implementation("eager")
    two = load_generator("pocket", device="cpu", dtype="float32", expert_cache=16)
    prompt = asking(one)
    before = said(two, prompt, 8)
    for generator in (one, two):
        experts = generator.model.model.layers[1].mlp.experts
        with torch.no_grad():
            experts.down_proj[before.routing.experts[-3, 1, 0]] *= -3
        experts.gate_up_proj = torch.nn.Parameter(
            experts.gate_up_proj.detach() * 0.5, requires_grad=False
        )
    after = said(two, prompt, 8)
    same(said(one, prompt, 8), after)
    assert not np.array_equal(before.routing.router_logits[:, 2], after.routing.router_logits[:, 2])


def test_an_interrupted_copy_leaves_no_wrong_weights():
    layer = Slots({"w": torch.arange(16.0)[:, None]}, 3, torch.device("cpu"))
    for expert in range(3):
        layer.fetch(expert)
    whole = layer._host
    layer._host = {"w": whole["w"][:2]}  # expert 9 cannot be copied
    with pytest.raises(IndexError):
        layer.fetch(9)
    layer._host = whole
    for expert in (2, 9, 1, 0, 15, 9, 2):
        assert layer.fetch(expert)["w"].item() == expert
        assert len(set(layer._place.values())) == len(layer._place) <= 3
        for one, place in layer._place.items():
            assert layer._tensors["w"][place].item() == one


def test_memory_that_cannot_be_pinned_is_used_as_it_is(monkeypatch, caplog):
    def refuse(_tensor):
        raise RuntimeError("CUDA error: out of\n memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    tensor = torch.zeros(3)
    assert pinned(tensor) is tensor
    assert "experts stay in ordinary memory" in caplog.text


def test_interventions_batches_and_moving_work_as_ever(plain, cached):
    prompt = asking(plain)
    rows = cached.generate_batch([prompt, prompt], max_new_tokens=4)
    assert [row.token_ids for row in rows] == [
        plain.generate(prompt, max_new_tokens=4).token_ids
    ] * 2
    with plain.intervened([Edit("ban", 3)]), cached.intervened([Edit("ban", 3)]):
        one, two = plain.read(prompt), cached.read(prompt)
    np.testing.assert_array_equal(one.experts, two.experts)
    experts = cached.model.model.layers[0].mlp.experts
    assert isinstance(experts, CachedExperts)
    place = experts.down_proj.data_ptr()
    cached.model.to("cpu", torch.float32)
    assert experts.down_proj.data_ptr() == place
    assert copy.deepcopy(experts).slots is experts.slots


def test_the_plan_adds_up():
    moe = KNOWN_SHAPES[MOE]
    settings = {"context": 4096, "dtype": "bfloat16", "device": "cuda", "device_bytes": 24 * GB}
    whole = plan_config(moe, quantized="4bit", **settings)
    part = plan_config(moe, quantized="4bit", expert_cache=8, **settings)
    experts = expert_bytes(moe, "4bit")
    assert whole.weight_bytes - part.weight_bytes == experts - experts // 2
    assert not whole.fits and part.fits
    assert part.host_bytes == whole.weight_bytes + whole.loading_bytes and part.loading_bytes == 0
    assert plan_config(
        moe, quantized="4bit", expert_cache=8, host_usable=20 * GB, **settings
    ).host_lack
    assert "experts in host memory" in str(part) and "8 of each layer" in str(part)
    # 16 experts of 32 layers, each 3 * 4096 * 6400 numbers of 4.5 bits
    assert experts == 16 * 32 * 3 * 4096 * 6400 * 9 // 16


@pytest.mark.parametrize(("host", "fits"), [(32 * GB, True), (20 * GB, False)])
def test_host_memory_of_this_machine_counts(host, fits, monkeypatch):
    memory = {"cuda": 24 * GB, "cpu": host}
    monkeypatch.setattr(planning, "check_device", lambda device: None)
    monkeypatch.setattr(planning, "device_memory", memory.__getitem__)
    plan = plan_memory(MOE, device="cuda", quantization="4bit", expert_cache=8)
    assert plan.fits == fits and plan.host_usable == int(host * (1 - RESERVE))
    assert fits or "in host memory" in plan.refusal.rpartition("usable, ")[2]
    if not fits:
        assert plan.host_lack == plan.host_bytes - plan.host_usable


def test_what_would_do_instead_has_no_expert_cache_where_it_makes_none():
    plan = plan_memory(
        MOE, device="cuda", device_bytes=12 * GB, quantization="4bit", expert_cache=8
    )
    (mini,) = [one for one in plan.alternatives if one.startswith("microsoft/Phi-3.5-mini")]
    assert "weights of 2.3 GiB" in mini and "it fits" not in mini and "fits: " in mini
    on_cpu = plan_memory(
        MOE, device="cpu", device_bytes=50 * GB, quantization="8bit", expert_cache=16
    )
    assert on_cpu.alternatives[0].startswith("expert_cache saves memory on a GPU alone; without it")


def test_the_generator_says_how_it_is_held(cached):
    assert f"MoE, {all_slots(cached.model)[0].count} of each layer's experts cached" in repr(cached)
    assert cached.origin()["experts"] == "eager"


def test_the_plan_is_what_is_held_on_a_cpu():
    generator = load_generator("pocket", device="cpu", dtype="float32", expert_cache=4)
    held = sum(p.nbytes for p in generator.model.parameters())
    held += sum(one.bytes for one in all_slots(generator.model))
    plan = plan_memory("pocket", dtype="float32", expert_cache=4, device="cpu")
    assert plan.weight_bytes == held and plan.host_bytes == 0


def test_another_context_is_planned_as_the_model_is_held():
    generator = load_generator("pocket", device="cpu", quantization="8bit", expert_cache=4)
    plan = generator._plan(8192)
    assert (plan.quantization, plan.expert_cache) == ("8bit", 4)
    held = sum(p.nbytes for p in generator.model.parameters())
    held += sum(one.bytes for one in all_slots(generator.model))
    assert plan.weight_bytes == pytest.approx(held, rel=0.05)


def test_a_refusal_names_the_experts_that_would_fit():
    plan = plan_memory(MOE, device="cuda", device_bytes=24 * GB)
    found = [one for one in plan.alternatives if "expert_cache" in one]
    assert found and all("it fits" in one for one in found)
    again = plan_memory(
        MOE, device="cuda", device_bytes=24 * GB, quantization="4bit", expert_cache=8
    )
    assert again.fits
    assert not any(
        "expert_cache" in one
        for one in plan_memory(MOE, device="cpu", device_bytes=24 * GB).alternatives
    )


@pytest.mark.parametrize(
    ("spec", "slots", "words"),
    [
        ("pocket", 0, "expert_cache=0 must be a number of experts from 1 to 16"),
        ("pocket", 17, "from 1 to 16"),
        ("pocket", "4", "from 1 to 16"),
        ("pocket", True, "from 1 to 16"),
        ("dense", 4, "expert_cache=4 is for a Phi-MoE, and this model is dense"),
    ],
)
def test_what_cannot_be_cached_is_one_sentence(spec, slots, words, dense_folder):
    with pytest.raises(ValueError, match=words):
        load_generator(dense_folder if spec == "dense" else spec, device="cpu", expert_cache=slots)


def test_the_command_line_takes_it(capsys):
    assert main(["doctor", "--expert-cache", "4", "--json"]) == 0
    assert '"expert_cache": 4' in capsys.readouterr().out


def test_an_answer_on_the_command_line_tells_what_the_cache_held(tmp_path, capsys):
    index = str(tmp_path / "index")
    assert main(["index", "corpora/manual/pump.md", "--index", index]) == 0
    asking = ["ask", "How often are the bearings checked?", "--index", index, "--style", "free"]
    options = ["--expert-cache", "4", "--quantization", "8bit", "--max-new-tokens", "6"]
    capsys.readouterr()
    assert main([*asking, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["origin"]["quantization"] == "8bit" and found["origin"]["experts"] == "eager"
    use = found["expert_cache"]
    # two of each of five layers for six tokens and for those that prompt lookup guessed
    assert use["asked"] % 10 == 0 and use["asked"] >= 60
    assert use["hit_rate"] == use["held"] / use["asked"]
    assert main([*asking, *options]) == 0
    said = capsys.readouterr().out
    assert f"experts found on the device: {use['hit_rate']:.0%} of {use['asked']} choices" in said
    assert main(asking) == 0
    assert "experts found" not in capsys.readouterr().out
