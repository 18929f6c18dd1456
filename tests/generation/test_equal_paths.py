"""Every way of computing an answer gives the tokens of an independent, uncached pass: through ``generate`` itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.generation.decoding import stop_ids
from workbench.generation.loading import load_generator
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import plain_prompt

WINDOW = 256  # of the tiny checkpoints
# prompt tokens (about) and new tokens: below the window, across it, beyond it
PLACES = {"below": (90, 8), "across": (251, 10), "beyond": (285, 8)}


def open_generator(folder, place):
    tokens, new = PLACES[place]
    context = WINDOW if tokens + new <= WINDOW else 1024
    generator = load_generator(folder, context=context, device="cpu")
    object.__setattr__(generator, "prefixes", PrefixCache(1 << 30))
    return generator


def prompt_of(generator, tokens, seed=0):
    """A prompt of exactly `tokens` tokens."""
    words = np.random.default_rng(seed).choice(
        ["valve ", "pump ", "first ", "pin ", "why "], tokens
    )
    text = ""
    for word in words:
        longer = plain_prompt(text + word, tokenizer=generator.tokenizer, budget_tokens=9999)
        if len(longer.token_ids) > tokens:
            break
        text += word
    prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=9999)
    while len(prompt.token_ids) < tokens:
        text += "x"
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=9999)
    return prompt


def oracle(reference, generator, prompt, new):
    """Greedy tokens and their log-probabilities by the NumPy forward pass.

    The tokens of an uncached run are checked, all in one pass: if each is the likeliest after those before it, then
    they are what decoding with the reference would give.
    """
    ids = list(prompt.token_ids)
    uncached = generator.generate(prompt, max_new_tokens=new, decoding=Decoding(cache="none"))
    tokens = list(uncached.token_ids)
    logits, _ = reference.Reference(generator.model).forward(
        [*ids, *tokens[:-1]], long=generator.regime == "long"
    )
    laws = logits[len(ids) - 1 :]
    laws = laws - np.logaddexp.reduce(laws, axis=1)[:, None]
    assert laws.argmax(axis=1).tolist() == tokens
    assert len(tokens) == new or tokens[-1] in stop_ids(generator.model, generator.tokenizer)
    return tokens, laws.max(axis=1)


WAYS = {
    "reserved": Decoding(),
    "no cache": Decoding(cache="none"),
    "static": Decoding(cache="static"),
    "chunks of 7": Decoding(prefill_tokens=7),
    "chunks of 100": Decoding(prefill_tokens=100),
    "lookup": Decoding(prompt_lookup_tokens=3),
    "lookup and chunks": Decoding(prompt_lookup_tokens=10, prefill_tokens=64),
    "static and chunks": Decoding(cache="static", prefill_tokens=50),
}


@pytest.fixture(scope="module")
def expected(reference, moe_folder, dense_folder):
    """Per model and place: generator, prompt, greedy tokens, log-probabilities; the slow oracle runs once."""
    found = {}
    for name, folder in {"moe": moe_folder, "dense": dense_folder}.items():
        for place, (tokens, new) in PLACES.items():
            generator = open_generator(folder, place)
            prompt = prompt_of(generator, tokens)
            found[name, place] = (generator, prompt, *oracle(reference, generator, prompt, new))
    return found


@pytest.mark.parametrize("model", ["moe", "dense"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_log_probabilities_are_those_of_the_oracle(expected, model, place, way):
    generator, prompt, tokens, logs = expected[model, place]
    generator.prefixes.clear()
    for _ in range(2):  # the second time from the prefix cache, where it is kept
        found = generator.generate(prompt, max_new_tokens=PLACES[place][1], decoding=WAYS[way])
        assert list(found.token_ids) == tokens
        np.testing.assert_allclose(found.log_probabilities, logs, atol=2e-3)
        assert found.regime == ("short" if place == "below" else "long")
    assert (found.cache.reused_tokens > 0) == WAYS[way].keeps_prefixes


@pytest.mark.parametrize("model", ["moe", "dense"])
@pytest.mark.parametrize("place", PLACES)
def test_rows_of_a_batch_give_the_tokens_they_give_alone(expected, model, place):
    generator, prompt, tokens, _ = expected[model, place]
    new = PLACES[place][1]
    others = [prompt_of(generator, n, seed=n) for n in (len(prompt.token_ids) - 7, 40, 40, 90)]
    batch = [others[0], prompt, *others[1:]]
    alone = [
        generator.generate(p, max_new_tokens=new, decoding=Decoding(reuse_prefix=False))
        for p in batch
    ]
    generator.prefixes.clear()
    together = generator.generate_batch(batch, max_new_tokens=new)
    assert list(together[1].token_ids) == tokens
    for one, row in zip(alone, together, strict=True):
        assert row.token_ids == one.token_ids
        assert row.text == one.text
        assert row.finish_reason == one.finish_reason
        np.testing.assert_allclose(row.log_probabilities, one.log_probabilities, atol=2e-3)
        if model == "moe":
            np.testing.assert_array_equal(row.routing.experts, one.routing.experts)
            np.testing.assert_array_equal(row.routing.routed, one.routing.routed)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(expected, attention):
    generator, prompt, tokens, _ = expected["moe", "across"]
    before = generator.model.config._attn_implementation
    try:
        generator.model.set_attn_implementation(attention)
        found = generator.generate(
            prompt, max_new_tokens=PLACES["across"][1], decoding=Decoding(prefill_tokens=64)
        )
    finally:
        generator.model.set_attn_implementation(before)
    assert list(found.token_ids) == tokens


def test_every_experts_implementation_gives_the_same_tokens_and_experts(expected):
    generator, prompt, tokens, _ = expected["moe", "beyond"]
    before = generator.model.config._experts_implementation
    traces = []
    generator.prefixes.clear()
    try:
        for name in ("eager", "batched_mm", "grouped_mm"):
            generator.model.set_experts_implementation(name)
            found = generator.generate(prompt, max_new_tokens=8)
            assert found.cache.reused_tokens == 0  # another implementation is another key
            assert list(found.token_ids) == tokens
            traces.append(found.routing.experts)
    finally:
        generator.model.set_experts_implementation(before)
    np.testing.assert_array_equal(traces[0], traces[1])
    np.testing.assert_array_equal(traces[0], traces[2])


def test_no_pass_over_a_prompt_makes_a_mask_of_prompt_by_prompt(expected, monkeypatch):
    """The largest attention mask is chunk × sequence, also in a batch of unequal lengths."""
    import torch.nn.functional as functional

    generator, prompt, _, _ = expected["moe", "beyond"]
    sizes = []
    attend = functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **options):
        sizes.append(0 if attn_mask is None else attn_mask.shape[-2])
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    generator.prefixes.clear()
    rows = [prompt, prompt_of(generator, 170), prompt_of(generator, 300, seed=5)]
    generator.generate_batch(rows, max_new_tokens=2, decoding=Decoding(prefill_tokens=32))
    assert 0 < max(sizes) <= 32


@torch.inference_mode()
def test_stock_generate_beside_ours(expected):
    """Noticed when it changes: stock Phi3 is right in one pass and wrong in chunks; stock Phimoe is wrong beyond."""
    from transformers import AutoModelForCausalLM

    right = {}
    for model in ("moe", "dense"):
        generator, prompt, tokens, _ = expected[model, "beyond"]
        stock = AutoModelForCausalLM.from_pretrained(
            generator.name_or_path
            if hasattr(generator, "name_or_path")
            else generator.model.name_or_path,
            dtype="float32",
        ).eval()
        ids = torch.tensor([prompt.token_ids])
        for way, options in {"whole": {}, "chunked": {"prefill_chunk_size": 100}}.items():
            output = stock.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=stop_ids(generator.model, generator.tokenizer),
                pad_token_id=8,
                **options,
            )
            right[model, way] = output[0, ids.shape[1] :].tolist() == tokens
    assert right == {
        ("dense", "whole"): True,
        ("dense", "chunked"): False,
        ("moe", "whole"): False,
        ("moe", "chunked"): False,
    }, "transformers changed: see whether longrope.pin_regime is still needed"
