"""Ordinary decoding: greedy tokens, log-probabilities, streaming, stopping, cancelling, the room of the context."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.cancel import CancelToken
from workbench.errors import DoesNotFit, PromptTooLong
from workbench.generation import phi
from workbench.generation.decoding import stop_ids
from workbench.generation.loading import load_generator
from workbench.generation.options import Sampling
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import plain_prompt


def prompt_for(generator, text="Which valve failed first?"):
    return plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=500)


def greedy_loop(model, ids, count, stops):
    """One uncached pass for each token."""
    ids, logs = list(ids), []
    start = len(ids)
    while len(ids) - start < count:
        with torch.inference_mode():
            law = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(law.argmax()))
        logs.append(float(law.max()))
        if ids[-1] in stops:
            break
    return ids[start:], logs


@pytest.mark.parametrize("name", ["tiny_moe", "tiny_dense"])
def test_greedy_tokens_and_log_probabilities_equal_an_uncached_loop(name, request):
    generator = request.getfixturevalue(name)
    prompt = prompt_for(generator)
    generation = generator.generate(prompt, max_new_tokens=15)
    stops = stop_ids(generator.model, generator.tokenizer)
    ids, logs = greedy_loop(generator.model, prompt.token_ids, 15, stops)
    assert list(generation.token_ids) == ids
    np.testing.assert_allclose(generation.log_probabilities, logs, atol=1e-4)
    assert generation.finish_reason == ("stop" if ids[-1] in stops else "length")
    assert (generation.routing is None) == (name == "tiny_dense")
    assert generation.regime == "long"


def test_a_dense_model_says_why_there_is_no_routing(tiny_dense):
    assert "dense" in tiny_dense.generate(prompt_for(tiny_dense), max_new_tokens=2).routing_note


def test_streamed_text_equals_the_final_text(tiny_moe):
    parts = []
    generation = tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=25, on_text=parts.append)
    assert "".join(parts) == generation.text


def test_answer_spans_reproduce_the_text(tiny_moe):
    generation = tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=25)
    trace = generation.routing
    answer = trace.rows("answer") | ~trace.routed
    spans = trace.spans[answer]
    assert "".join(generation.text[a:b] for a, b in spans) == generation.text


def test_every_stop_token_ends_the_answer(tiny_moe):
    """Make each turn token in turn the most likely one: the answer is empty and the reason is stop."""
    head = tiny_moe.model.lm_head
    for token in stop_ids(tiny_moe.model, tiny_moe.tokenizer):
        before = head.bias.detach().clone()
        try:
            with torch.no_grad():
                head.bias[token] += 1000
            generation = tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=5)
        finally:
            with torch.no_grad():
                head.bias.copy_(before)
        assert (generation.token_ids, generation.text, generation.finish_reason) == (
            (token,),
            "",
            "stop",
        )


def test_cancelling_keeps_the_text_so_far(tiny_moe):
    cancel = CancelToken()
    seen = []

    def on_text(text):
        seen.append(text)
        cancel.cancel()

    generation = tiny_moe.generate(
        prompt_for(tiny_moe), max_new_tokens=200, on_text=on_text, cancel=cancel
    )
    assert generation.finish_reason == "cancelled"
    assert 1 <= len(generation.token_ids) < 200
    assert len(generation.log_probabilities) == len(generation.token_ids)
    assert generation.routing.routed.sum() == len(generation.routing.routed) - 1
    again = tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=3)
    count = min(3, len(generation.token_ids))
    assert again.token_ids[:count] == generation.token_ids[:count]


def test_an_interrupt_leaves_a_usable_generator(tiny_moe):
    def interrupt(_text):
        raise KeyboardInterrupt

    expected = tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=4).token_ids
    with pytest.raises(KeyboardInterrupt):
        tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=50, on_text=interrupt)
    assert tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=4).token_ids == expected


def test_prompt_and_answer_must_fit_the_context(tiny_moe):
    prompt = prompt_for(tiny_moe)
    with pytest.raises(PromptTooLong, match=r"generator\.with_context\(\d+\)"):
        tiny_moe.generate(prompt, max_new_tokens=1024)


def test_the_same_seed_samples_the_same_tokens(tiny_moe):
    def draw(seed):
        sampling = Sampling(temperature=1.5, seed=seed)
        return tiny_moe.generate(
            prompt_for(tiny_moe), max_new_tokens=12, sampling=sampling
        ).token_ids

    before = torch.random.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_threads_that_sample_do_not_disturb_each_other(tiny_moe):
    import threading

    twin = tiny_moe.with_context(1000)
    prompt = prompt_for(tiny_moe)

    def draw(generator, seed):
        sampling = Sampling(temperature=1.5, seed=seed)
        return [
            generator.generate(prompt, max_new_tokens=8, sampling=sampling).token_ids
            for _ in range(5)
        ]

    alone = {seed: draw(g, seed) for seed, g in ((0, tiny_moe), (1, twin))}
    before, together = torch.random.get_rng_state(), {}
    threads = [
        threading.Thread(target=lambda g=g, seed=seed: together.update({seed: draw(g, seed)}))
        for seed, g in ((0, tiny_moe), (1, twin))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [True, True, True, True]), (0.9, [True, True, False, False])],  # 0.75 + 0.21 > 0.9
)
def test_draws_have_the_frequencies_of_the_softmax(top_p, kept):
    from workbench.generation.decoding import Draw

    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    draw = Draw(Sampling(temperature=0.8, top_p=top_p, seed=5), torch.device("cpu"))
    found = np.bincount(draw(torch.zeros(20000, 1), scores).argmax(dim=1), minlength=4) / 20000
    law = np.where(kept, np.exp(scores[0].numpy() / 0.8), 0)
    np.testing.assert_allclose(found, law / law.sum(), atol=0.012)


def test_what_a_checkpoint_wants_of_generate_stays_out_of_every_call(moe_folder, tmp_path):
    """Beams, penalties and the like in generation_config.json would change or break answers."""
    import json
    import shutil

    from workbench.generation.loading import load_generator

    folder = shutil.copytree(moe_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "num_beams": 2, "repetition_penalty": 1.7, "do_sample": True})
    )
    plain, odd = (load_generator(f, context=1024, device="cpu") for f in (moe_folder, folder))
    prompt = prompt_for(plain)
    assert odd.generate(prompt, max_new_tokens=8).token_ids == (
        plain.generate(prompt, max_new_tokens=8).token_ids
    )


def test_log_probabilities_of_sampled_tokens_are_the_models_own(tiny_moe):
    """Temperature and top-p change what is drawn, not what is reported."""
    prompt = prompt_for(tiny_moe)
    sampling = Sampling(temperature=2.0, top_p=0.9, seed=3)
    generation = tiny_moe.generate(prompt, max_new_tokens=8, sampling=sampling)
    ids = [*prompt.token_ids, *generation.token_ids]
    with torch.inference_mode():
        laws = tiny_moe.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(prompt.token_ids)
    expected = [float(laws[start + i - 1, token]) for i, token in enumerate(generation.token_ids)]
    np.testing.assert_allclose(generation.log_probabilities, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_moe", "tiny_dense"])
def test_a_sequence_across_the_original_window_is_consistent(name, request):
    """Stock generate drops its cache there; with one regime cached and uncached agree token for token."""
    generator = request.getfixturevalue(name)
    prompt = prompt_for(generator, "why " * 120)
    room = 256 - len(prompt.token_ids)
    assert 0 < room < 60
    generation = generator.generate(prompt, max_new_tokens=room + 8)
    ids, _ = greedy_loop(
        generator.model, prompt.token_ids, room + 8, stop_ids(generator.model, generator.tokenizer)
    )
    assert list(generation.token_ids) == ids


def test_reading_a_prompt_routes_every_token(tiny_moe):
    prompt = prompt_for(tiny_moe)
    trace = tiny_moe.read(prompt)
    assert trace.routed.all()
    assert trace.counts().sum(axis=1).tolist() == [2 * len(prompt.token_ids)] * trace.layers


def test_how_much_is_read_in_one_pass_follows_the_context(moe_folder):
    from workbench.generation.loading import load_generator

    short = load_generator(moe_folder, context=256, device="cpu")
    long = short.with_context(2048)
    assert (short.whole_tokens, long.whole_tokens) == (256, 2048)
    assert load_generator(moe_folder, context=2048, device="cpu").whole_tokens == 2048


def test_a_context_that_does_not_fit_is_refused_and_the_generator_stays_usable(
    tiny_moe, monkeypatch
):
    monkeypatch.setattr(phi, "device_memory", lambda _device: 0)
    with pytest.raises(DoesNotFit, match=r"the largest context|smaller|too little"):
        tiny_moe.with_context(2048)
    monkeypatch.undo()
    assert tiny_moe.generate(prompt_for(tiny_moe), max_new_tokens=2).token_ids


@pytest.mark.parametrize("fails_at", [1, 4])  # while the prompt is read, and in mid-answer
@pytest.mark.parametrize("batch", [False, True])
def test_memory_that_runs_out_is_one_sentence_and_leaves_nothing_behind(tiny_moe, fails_at, batch):
    """A real allocation fails: a hook asks for a petabyte in the middle of a pass."""
    generator = replace(tiny_moe, prefixes=PrefixCache(1 << 30))
    prompts = [prompt_for(generator), prompt_for(generator, "Why did the pump trip?")]
    expected = generator.generate(prompts[0], max_new_tokens=6).token_ids
    generator.prefixes.clear()
    passes, layers = [], []

    def allocate(module, _args):
        passes.append(1)
        if len(passes) == fails_at:
            torch.empty(1 << 50, dtype=torch.uint8)

    def watch(_module, _args, options):
        layers.extend(map(weakref.ref, options["past_key_values"].layers))

    inner = generator.model.model
    handles = [
        inner.layers[1].register_forward_pre_hook(allocate),
        inner.register_forward_pre_hook(watch, with_kwargs=True),
    ]
    try:
        with pytest.raises(DoesNotFit, match=r"^memory ran out .*cache='int8'") as caught:
            if batch:
                generator.generate_batch(prompts, max_new_tokens=6)
            else:
                generator.generate(prompts[0], max_new_tokens=6)
    finally:
        for handle in handles:
            handle.remove()
    gc.collect()
    assert caught.value is not None
    assert layers
    assert not any(layer() for layer in layers), "the error keeps keys and values alive"
    assert len(generator.prefixes) == 0
    assert generator.generate(prompts[0], max_new_tokens=6).token_ids == expected


def test_prompt_beyond_the_trained_length_warns_once_and_says_so_in_every_result(
    tmp_path, moe_folder, caplog
):
    folder = tmp_path / "short"
    shutil.copytree(moe_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trained_tokens": 12}))
    generator = load_generator(str(folder))
    assert generator.trained_tokens == 12
    short, long = (
        plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=200)
        for text in ("Hi", "word " * 30)
    )
    with caplog.at_level("WARNING", logger="workbench"):
        assert generator.generate(short, max_new_tokens=1).warning == ""
        assert caplog.messages == []
        found = generator.generate(long, max_new_tokens=1)
        again = generator.with_context(300).generate_batch([long], max_new_tokens=1)[0]
    assert f"have {len(long.token_ids) + len(found.token_ids)} tokens" in found.warning
    assert "trained on at most 12" in again.warning
    assert caplog.messages == [found.warning]


def test_checkpoint_that_names_no_trained_length_warns_of_none(tiny_moe):
    assert tiny_moe.trained_tokens is None
    assert tiny_moe.generate(prompt_for(tiny_moe, "word " * 60), max_new_tokens=1).warning == ""
