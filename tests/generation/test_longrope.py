"""The pinned rotary embedding against an independent forward pass, with stock transformers beside it."""

from __future__ import annotations

import numpy as np
import pytest


def logits_of(model, ids):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def random_ids(length, vocabulary, seed=0):
    return np.random.default_rng(seed).integers(10, vocabulary, length).tolist()


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("folder_name", ["moe_folder", "dense_folder"])
@pytest.mark.parametrize(("length", "context"), [(200, 256), (200, 512), (300, 512)])
def test_logits_agree_with_the_reference_on_both_sides_of_the_window(
    folder_name, length, context, request, reference
):
    from workbench.generation.loading import load_generator

    generator = load_generator(request.getfixturevalue(folder_name), context=context, device="cpu")
    ids = random_ids(length, generator.model.config.vocab_size)
    expected, _ = reference.Reference(generator.model).forward(ids, long=context > 256)
    assert relative_error(logits_of(generator.model, ids), expected) < 1e-3
    assert generator.regime == ("long" if context > 256 else "short")


def test_stock_phimoe_is_wrong_beyond_the_window_and_right_within(moe_folder, reference):
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(moe_folder, dtype="float32").eval()
    oracle = reference.Reference(stock)
    within, beyond = random_ids(200, 300), random_ids(300, 300)
    assert relative_error(logits_of(stock, within), oracle.forward(within, long=False)[0]) < 1e-3
    error = relative_error(logits_of(stock, beyond), oracle.forward(beyond, long=True)[0])
    assert error > 0.1, (
        "transformers applies long_factor in Phimoe again: pin_regime may be reconsidered"
    )


def test_stock_phi3_cache_goes_stale_across_the_window_and_ours_does_not(dense_folder, reference):
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    from workbench.generation.loading import load_generator

    ids = random_ids(300, 300)
    errors = {}
    stock = AutoModelForCausalLM.from_pretrained(dense_folder, dtype="float32").eval()
    for name, model in {
        "stock": stock,
        "pinned": load_generator(dense_folder, context=512, device="cpu").model,
    }.items():
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(torch.tensor([ids[:200]]), past_key_values=cache)
            tail = (
                model(torch.tensor([ids[200:]]), past_key_values=cache).logits[0].double().numpy()
            )
        expected = reference.Reference(model).forward(ids, long=True)[0][200:]
        errors[name] = relative_error(tail, expected)
    assert errors["pinned"] < 1e-3
    assert errors["stock"] > 0.1


def test_self_test_refuses_a_rotary_embedding_of_the_other_regime(moe_folder):
    from workbench.errors import CheckpointError
    from workbench.generation.loading import load_generator
    from workbench.generation.longrope import check_regime

    generator = load_generator(moe_folder, context=256, device="cpu")
    check_regime(generator.model, "short")
    with pytest.raises(CheckpointError, match="long factors"):
        check_regime(generator.model, "long")


def test_with_context_shares_weights_and_leaves_the_first_generator_as_it_was(moe_folder):
    from workbench.generation.loading import load_generator

    short = load_generator(moe_folder, context=256, device="cpu")
    ids = random_ids(100, 300)
    before = logits_of(short.model, ids)
    long = short.with_context(512)
    assert (long.regime, short.regime) == ("long", "short")
    pairs = zip(long.model.parameters(), short.model.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert relative_error(logits_of(long.model, ids), before) > 1e-3
    np.testing.assert_array_equal(logits_of(short.model, ids), before)


@pytest.mark.parametrize("context", [0, -1, 2049])
def test_a_context_outside_the_window_is_refused(moe_folder, context):
    from workbench.generation.loading import load_generator

    with pytest.raises(ValueError, match="outside 1…2048"):
        load_generator(moe_folder, context=context, device="cpu")


def test_frequencies_survive_a_cast_of_the_model(moe_folder):
    import torch

    from workbench.generation.loading import load_generator
    from workbench.generation.longrope import check_regime

    generator = load_generator(moe_folder, context=512, device="cpu")
    generator.model.to(torch.bfloat16)
    check_regime(generator.model, "long")
