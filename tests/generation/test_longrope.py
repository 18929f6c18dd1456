"""The pinned rotary embedding against an independent forward pass, with stock transformers beside it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from workbench.generation.loading import load_generator
from workbench.generation.longrope import (
    check_regime,
    inverse_frequencies,
    original_window,
    pin_regime,
    rope_status,
)

FOLDERS = pytest.mark.parametrize("folder_name", ["moe_folder", "dense_folder"])
WINDOW, LONGEST = 256, 2048
PASSES = {
    "a whole long sequence": list(range(WINDOW + 40)),
    "a chunk within the window": list(range(40)),
    "a step within the window": [WINDOW // 2],
    "a step beyond the window": [WINDOW + 1],
}


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
        "transformers applies long_factor in Phimoe again: pin_regime will have noticed"
    )


def test_stock_phi3_cache_goes_stale_across_the_window_and_ours_does_not(dense_folder, reference):
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

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

    generator = load_generator(moe_folder, context=256, device="cpu")
    check_regime(generator.model, "short")
    with pytest.raises(CheckpointError, match="long factors"):
        check_regime(generator.model, "long")


def test_with_context_shares_weights_and_leaves_the_first_generator_as_it_was(moe_folder):
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
    with pytest.raises(ValueError, match="outside 1…2048"):
        load_generator(moe_folder, context=context, device="cpu")


def test_frequencies_survive_a_cast_of_the_model(moe_folder):
    import torch

    generator = load_generator(moe_folder, context=512, device="cpu")
    generator.model.to(torch.bfloat16)
    check_regime(generator.model, "long")


def angles_of(rotary, positions):
    """Cosines and sines [2, positions, d] that a rotary embedding gives in one forward pass."""
    import torch

    probe = torch.zeros(1, 1, dtype=torch.float32)
    with torch.inference_mode():
        tables = rotary(probe, position_ids=torch.tensor([positions]))
    return np.stack([table[0].double().numpy() for table in tables])


def expected_angles(reference, config, positions, regime):
    """The same from tests/generation/reference.py."""
    long = regime == "long"
    half = reference.rotary_angles(config, np.array(positions), long=long)
    angles, scale = np.concatenate([half, half], axis=1), reference.rotary_scale(config, long=long)
    return np.stack([np.cos(angles), np.sin(angles)]) * scale


def wrong_passes(rotary, config, regime, reference):
    return [
        name
        for name, positions in PASSES.items()
        if not np.allclose(
            angles_of(rotary, positions),
            expected_angles(reference, config, positions, regime),
            atol=1e-3,
        )
    ]


def stock_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@FOLDERS
@pytest.mark.parametrize(("context", "regime"), [(WINDOW, "short"), (WINDOW + 1, "long")])
def test_every_angle_of_a_loaded_model_is_of_its_regime(
    folder_name, context, regime, request, reference
):
    model = load_generator(
        request.getfixturevalue(folder_name), context=context, device="cpu"
    ).model
    assert wrong_passes(model.model.rotary_emb, model.config, regime, reference) == []
    last = angles_of(model.model.rotary_emb, [LONGEST - 1])
    expected = expected_angles(reference, model.config, [LONGEST - 1], regime)
    np.testing.assert_allclose(last, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("folder_name", "regime", "wrong"),
    [
        ("moe_folder", "long", list(PASSES)),
        ("moe_folder", "short", []),
        ("dense_folder", "long", ["a chunk within the window", "a step within the window"]),
        ("dense_folder", "short", ["a whole long sequence", "a step beyond the window"]),
    ],
)
def test_what_stock_transformers_does_is_found_and_told(
    folder_name, regime, wrong, request, reference
):
    import transformers

    model = stock_model(request.getfixturevalue(folder_name))
    assert wrong_passes(model.model.rotary_emb, model.config, regime, reference) == wrong
    pin_regime(model, regime)
    status, other = rope_status(model), {"long": "short", "short": "long"}[regime]
    assert (status.regime, status.is_pinned) == (regime, bool(wrong))
    library = f"stock transformers {transformers.__version__}"
    assert status.reason == (
        f"pinned by workbench: {library} gives {other} factors for {', '.join(wrong)}"
        if wrong
        else f"{library} follows the {regime} factors everywhere"
    )


def settle(monkeypatch, forward):
    """Give the stock rotary embeddings another forward pass, as a coming release might."""
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
    from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

    for kind in (Phi3RotaryEmbedding, PhimoeRotaryEmbedding):
        monkeypatch.setattr(kind, "forward", forward)


def tables_of(config, regime, x, position_ids, reference):
    import torch

    places = position_ids[0].numpy()
    tables = expected_angles(reference, config, places, regime)
    return tuple(torch.tensor(table, dtype=x.dtype)[None] for table in tables)


@FOLDERS
def test_the_correction_switches_itself_off_when_upstream_is_right(
    folder_name, request, reference, monkeypatch
):
    folder = request.getfixturevalue(folder_name)

    def forward(self, x, position_ids):
        return tables_of(self.config, "long", x, position_ids, reference)

    settle(monkeypatch, forward)
    long = load_generator(folder, context=512, device="cpu")
    assert not rope_status(long.model).is_pinned
    assert "follows the long factors everywhere" in rope_status(long.model).reason
    assert type(long.model.model.rotary_emb).__module__.startswith("transformers.models.")
    assert "prepare_inputs_for_generation" not in vars(long.model)

    ids = random_ids(300, 300)
    expected, _ = reference.Reference(long.model).forward(ids, long=True)
    assert relative_error(logits_of(long.model, ids), expected) < 1e-3

    short = long.with_context(256)  # where this upstream is wrong
    assert rope_status(short.model).is_pinned
    assert "gives long factors for" in rope_status(short.model).reason
    expected, _ = reference.Reference(short.model).forward(ids[:200], long=False)
    assert relative_error(logits_of(short.model, ids[:200]), expected) < 1e-3
    assert not rope_status(long.model).is_pinned

    again = short.with_context(512)
    assert not rope_status(again.model).is_pinned
    assert "prepare_inputs_for_generation" not in vars(again.model)
    assert rope_status(short.model).is_pinned


@pytest.mark.parametrize("missing", ["sine", "scale", "last position"])
def test_an_upstream_that_is_almost_right_is_still_corrected(
    moe_folder, reference, monkeypatch, missing
):
    def forward(self, x, position_ids):
        cos, sin = tables_of(self.config, "long", x, position_ids, reference)
        if missing == "sine":
            sin = -sin
        if missing == "scale":
            cos, sin = cos * 1.01, sin * 1.01
        if missing == "last position" and int(position_ids.max()) == LONGEST - 1:
            cos = cos + 0.01
        return cos, sin

    settle(monkeypatch, forward)
    status = rope_status(load_generator(moe_folder, context=512, device="cpu").model)
    assert status.is_pinned
    assert "gives other angles for a whole long sequence" in status.reason


def test_an_upstream_that_only_chooses_by_length_again_is_still_corrected(
    moe_folder, reference, monkeypatch
):
    """As before transformers 5.15: right for whole sequences, and stale across the window with a cache."""

    def forward(self, x, position_ids):
        regime = "long" if int(position_ids.max()) >= original_window(self.config) else "short"
        return tables_of(self.config, regime, x, position_ids, reference)

    settle(monkeypatch, forward)
    model = load_generator(moe_folder, context=512, device="cpu").model
    reason = rope_status(model).reason
    assert "short factors for a chunk within the window, a step within the window" in reason
    assert wrong_passes(model.model.rotary_emb, model.config, "long", reference) == []


@FOLDERS
def test_a_regime_can_be_pinned_again_and_again(folder_name, request, reference):
    model = stock_model(request.getfixturevalue(folder_name))
    for regime in ("long", "long", "short", "long", "short", "short"):
        pin_regime(model, regime)
        check_regime(model, regime)
        assert wrong_passes(model.model.rotary_emb, model.config, regime, reference) == []
        assert rope_status(model).is_pinned == ("prepare_inputs_for_generation" in vars(model))


def test_generators_of_both_regimes_work_in_turns(dense_folder, reference):
    short = load_generator(dense_folder, context=256, device="cpu")
    long = short.with_context(512)
    ids = random_ids(100, 300)
    for generator in (short, long, short, long):
        expected, _ = reference.Reference(generator.model).forward(
            ids, long=generator.regime == "long"
        )
        assert relative_error(logits_of(generator.model, ids), expected) < 1e-3


@FOLDERS
def test_generate_across_the_window_equals_whole_forward_passes(folder_name, request):
    import torch

    model = load_generator(request.getfixturevalue(folder_name), context=512, device="cpu").model
    ids = random_ids(WINDOW - 3, 300)
    output = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=-1)
    for _ in range(8):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    assert output[0].tolist() == ids


def test_a_checkpoint_without_longrope_keeps_the_stock_embedding(dense_folder, tmp_path):
    import json

    folder = shutil.copytree(dense_folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_generator(folder, device="cpu").model
    assert rope_status(model).reason == "the checkpoint has no LongRoPE"
    assert not rope_status(model).is_pinned
    assert type(model.model.rotary_emb).__name__ == "Phi3RotaryEmbedding"


def test_a_model_that_was_never_probed_has_no_status(dense_folder):
    with pytest.raises(ValueError, match="call pin_regime"):
        rope_status(stock_model(dense_folder))


def test_factors_of_a_wrong_length_are_refused(tiny_moe):
    import copy

    from workbench.errors import CheckpointError

    config = copy.deepcopy(tiny_moe.model.config)
    config.rope_parameters["long_factor"] = [1.0, 2.0]
    with pytest.raises(CheckpointError, match="2 long_factor values, the heads need 8"):
        inverse_frequencies(config, "long")


@pytest.mark.parametrize("given", [{}, {"factor": 4.0}, {"attention_factor": 1.5}])
def test_the_scale_of_phi3_is_the_one_that_stock_computes(dense_folder, given):
    import copy

    from workbench.generation.longrope import attention_scale

    stock = stock_model(dense_folder)
    config = copy.deepcopy(stock.config)
    config.rope_parameters.update(given)
    expected = type(stock.model.rotary_emb)(config).attention_scaling
    assert attention_scale(config, "long") == pytest.approx(expected)
