"""Reserved room against transformers' DynamicCache, and the error of keys and values in 8 bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import Fp8QuantizedLayer

from workbench.generation import kv_cache
from workbench.generation.kv_cache import Fp8Layer, Int8Layer, ReservedLayer
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import plain_prompt


def states(tokens, rows=1, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


@given(st.lists(st.integers(-6, 9), min_size=1, max_size=12), st.integers(1, 30))
def test_appending_and_cutting_give_what_a_dynamic_cache_gives(steps, capacity):
    """A positive step appends so many tokens, a negative one takes so many back."""
    ours, theirs = ReservedLayer(capacity), DynamicCache()
    for n, step in enumerate(steps):
        held = theirs.get_seq_length()
        if step > 0:
            keys, values = states(step, seed=n)
            found = ours.update(keys, values)
            expected = theirs.update(keys, values, 0)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)
        elif held > -step:
            theirs.crop(step)
            ours.crop(step)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_appending_does_not_move_what_is_there():
    layer = ReservedLayer(10)
    layer.update(*states(4))
    place = layer.keys.data_ptr()
    layer.update(*states(6))
    assert layer.keys.data_ptr() == place
    layer.update(*states(1))  # beyond the capacity
    assert layer.keys.data_ptr() != place
    assert layer.capacity >= 11


def test_a_forked_row_leaves_its_source_as_it_was():
    cache = kv_cache.make_cache(type("Config", (), {"num_hidden_layers": 1}), "reserved", 9)
    keys, values = states(5)
    cache.update(keys, values, 0)
    copy = kv_cache.empty_like(cache, rows=3, capacity=8)
    kv_cache.take_prefix(copy, cache, 2)
    new = states(1, rows=3, seed=7)
    found, _ = copy.update(*new, 0)
    for row in range(3):
        torch.testing.assert_close(found[row, :, :2], keys[0, :, :2])
        torch.testing.assert_close(found[row, :, 2:], new[0][row])
    torch.testing.assert_close(cache.layers[0].keys, keys)


def test_layers_of_unequal_length_are_cut_to_the_shortest():
    cache = kv_cache.make_cache(type("Config", (), {"num_hidden_layers": 2}), "reserved", 9)
    cache.update(*states(5), 0)
    cache.update(*states(3), 1)
    assert kv_cache.cached_tokens(cache) == 3
    kv_cache.truncate(cache, 3)
    assert [layer.get_seq_length() for layer in cache.layers] == [3, 3]


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_integers_are_off_by_at_most_half_a_step(seed, scale):
    keys, values = (x * scale for x in states(6, seed=seed))
    found = Int8Layer(8).update(keys, values)
    for exact, rounded in zip((keys, values), found, strict=True):
        largest = exact.abs().amax(-1, keepdim=True)
        assert ((rounded - exact).abs() <= largest / 254 * 1.001).all()


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_eight_bit_floats_are_off_by_at_most_a_sixteenth_of_a_value_or_the_smallest_step(
    seed, scale
):
    """3 mantissa bits: half a step is 1/16 of a value; below the smallest normal 2⁻⁶ half a step is 2⁻¹⁰."""
    keys, values = (x * scale for x in states(6, seed=seed))
    found = Fp8Layer(8).update(keys, values)
    for exact, rounded in zip((keys, values), found, strict=True):
        largest = exact.abs().amax(-1, keepdim=True)
        room = torch.maximum(exact.abs() / 16, largest / 448 * 2**-10) * 1.001
        assert ((rounded - exact).abs() <= room).all()


def test_eight_bits_survive_a_later_outlier_and_transformers_fp8_does_not():
    """Its scale for the whole tensor is frozen at the first tokens, so a later larger value is cut off."""
    first, later = states(4), tuple(20 * x for x in states(4, seed=1))
    errors = {}
    layers = {"integers": Int8Layer(8), "ours": Fp8Layer(8), "theirs": Fp8QuantizedLayer()}
    for name, layer in layers.items():
        layer.update(*first)
        found, _ = layer.update(*later)
        errors[name] = float((found[:, :, 4:] - later[0]).abs().max() / later[0].abs().max())
    assert errors["integers"] < errors["ours"] < 0.07
    assert errors["theirs"] > 0.5


def test_eight_bits_need_about_half_the_memory_of_sixteen(tiny_moe):
    prompt = plain_prompt("why " * 60, tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    held = {}
    for kind in ("reserved", "int8", "fp8"):
        generator = replace(tiny_moe, prefixes=PrefixCache(1 << 30))
        generator.generate(prompt, max_new_tokens=2, decoding=Decoding(cache=kind))
        held[kind] = generator.prefixes.held_bytes
    # head size 16: float32 64 bytes against 16 + 4 for the scale
    assert held["fp8"] / held["reserved"] == held["int8"] / held["reserved"] == 20 / 64


@pytest.mark.parametrize("name", ["tiny_moe", "tiny_dense"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_eight_bit_answers_are_near_and_the_same_in_chunks_batches_and_from_the_prefix_cache(
    name, kind, request
):
    generator = replace(request.getfixturevalue(name), prefixes=PrefixCache(1 << 30))
    prompt = plain_prompt(
        "valve pump first " * 20, tokenizer=generator.tokenizer, budget_tokens=500
    )
    exact = generator.generate(prompt, max_new_tokens=1)
    runs = [
        generator.generate(prompt, max_new_tokens=6, decoding=Decoding(cache=kind)),
        generator.generate(prompt, max_new_tokens=6, decoding=Decoding(cache=kind)),
        generator.generate(
            prompt,
            max_new_tokens=6,
            decoding=Decoding(cache=kind, prefill_tokens=13, reuse_prefix=False),
        ),
        *generator.generate_batch([prompt] * 2, max_new_tokens=6, decoding=Decoding(cache=kind)),
    ]
    assert runs[1].cache.reused_tokens == len(prompt.token_ids) - 1
    assert len({run.token_ids for run in runs}) == 1
    if runs[0].token_ids[0] == exact.token_ids[0]:
        np.testing.assert_allclose(
            runs[0].log_probabilities[0], exact.log_probabilities[0], atol=0.5
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to offload from")
def test_offloading_without_a_gpu_is_one_sentence(tiny_moe):
    prompt = plain_prompt("why", tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    with pytest.raises(ValueError, match="there is no GPU: use 'reserved'"):
        tiny_moe.generate(prompt, decoding=Decoding(cache="offloaded"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "paged"}, "none of reserved, static"),
        ({"prefill_tokens": 0}, "at least 1"),
        ({"prompt_lookup_tokens": -1}, "at least 0"),
        ({"prompt_lookup_tokens": 3, "cache": "static"}, "use 'reserved'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
