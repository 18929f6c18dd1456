"""Loading: what is missing, wrong or too large is one sentence; what is right gives the weights of the file."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from workbench.checkpoints.finding import check_folder, find_checkpoint
from workbench.errors import CheckpointError, DoesNotFit
from workbench.generation import loading, planning
from workbench.generation.loading import load_generator
from workbench.generation.memory import GIB, cache_bytes_per_token, count_parameters, plan_config
from workbench.generation.planning import plan_for


@pytest.fixture
def folder(moe_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(moe_folder, copy)
    return copy


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_generator(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer.json" in refusal(folder)


def test_a_folder_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "of type 'llama'"),
        ({"intermediate_size": 32}, "wrong shape|cannot be loaded"),
        ({"num_local_experts": 8}, "wrong shape|cannot be loaded"),
        ({"num_hidden_layers": 4}, "missing or of a wrong shape"),
        ({"num_experts_per_tok": 1}, "sparsemixer takes 2"),
        ({"vocab_size": 100}, "wrong shape|cannot be loaded|not a pair"),
    ],
)
def test_a_config_that_does_not_match_is_refused(folder, change, words):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    import re

    assert re.search(words, refusal(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_broken_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights (.bin) are not loaded" in refusal(folder)


def test_a_sharded_checkpoint_with_a_missing_shard_is_refused(folder):
    (folder / "model.safetensors").unlink()
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    index["metadata"] = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 2 of 2 weight files" in refusal(folder)
    index["weight_map"]["a"] = "../outside.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside the folder" in refusal(folder)


def test_a_sharded_checkpoint_loads_equal(folder, moe_folder):
    from transformers import AutoModelForCausalLM

    whole = load_generator(moe_folder, device="cpu").model
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(moe_folder).save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    sharded = load_generator(folder, device="cpu").model
    for name, tensor in whole.state_dict().items():
        np.testing.assert_array_equal(sharded.state_dict()[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("spec", ["/nowhere", "./nowhere", "nowhere", "a/b/c", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_refused(spec):
    with pytest.raises(CheckpointError, match="no model folder"):
        find_checkpoint(spec)


def test_a_hub_id_that_is_not_in_the_cache_is_one_sentence_offline():
    with pytest.raises(CheckpointError, match="hub or its local cache"):
        load_generator("nobody/nothing-at-all", device="cpu")


def test_pocket_is_checked_against_its_manifest(tmp_path, monkeypatch):
    from workbench.checkpoints import finding

    copy = tmp_path / "weights"
    shutil.copytree(finding.pocket_folder(), copy)
    monkeypatch.setattr(finding, "pocket_folder", lambda: copy)
    find_checkpoint("pocket")
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json differs from its recorded sha256"):
        find_checkpoint("pocket")


def test_a_good_folder_passes(moe_folder, dense_folder):
    check_folder(moe_folder)
    check_folder(dense_folder)


def test_parameters_are_counted_from_shapes(tiny_moe, tiny_dense):
    for generator in (tiny_moe, tiny_dense):
        assert count_parameters(generator.model.config) == generator.model.num_parameters()


def test_cache_bytes_equal_the_tensors_of_a_real_cache(tiny_moe, tiny_dense):
    import torch
    from transformers import DynamicCache

    for generator in (tiny_moe, tiny_dense):
        cache = DynamicCache(config=generator.model.config)
        with torch.inference_mode():
            generator.model(torch.tensor([[10, 11, 12]]), past_key_values=cache)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert cache_bytes_per_token(generator.model.config, "float32") == held / 3


def test_the_plan_of_the_real_models_has_the_published_numbers():
    from transformers import Phi3Config, PhimoeConfig

    moe = PhimoeConfig(attention_bias=True, lm_head_bias=True)
    mini = Phi3Config(hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
                      num_key_value_heads=32, vocab_size=32064, max_position_embeddings=131072)  # fmt: skip
    plans = [
        plan_config(config, context=131072, dtype="bfloat16", device="cuda", device_bytes=80 * GIB)
        for config in (moe, mini)
    ]
    assert [round(p.weight_bytes / GIB, 1) for p in plans] == [78.0, 7.1]
    assert [p.cache_bytes // GIB for p in plans] == [16, 48]
    assert [p.fits for p in plans] == [False, True]
    assert plans[1].largest_context == 131072


def test_what_does_not_fit_is_refused_before_loading_with_the_numbers(moe_folder, monkeypatch):
    monkeypatch.setattr(planning, "device_memory", lambda device: 1 << 20)
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("weights were touched"))
    with pytest.raises(DoesNotFit, match="usable"):
        load_generator(moe_folder, context=2048, device="cpu")


def test_a_small_model_on_a_cpu_computes_in_float32(tiny_moe):
    assert str(tiny_moe.model.dtype) == "torch.float32"
    config = tiny_moe.model.config
    assert plan_for(config, context=256, device="cpu", dtype="bfloat16").dtype == "bfloat16"


def test_without_a_name_the_pocket_model_is_taken_and_the_reason_told(monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    generator = load_generator(device="cpu")
    assert generator.name == "pocket"
    assert "no Phi-3.5 in the local Hugging Face cache" in generator.reason
    assert generator.reason in caplog.text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_chosen_at_load_and_the_logits_agree(moe_folder, tiny_moe, attention):
    import torch

    generator = load_generator(moe_folder, context=1024, device="cpu", attention=attention)
    assert generator.model.config._attn_implementation == attention
    ids = torch.tensor([list(range(10, 40))])
    with torch.inference_mode():
        found, expected = (g.model(ids).logits.numpy() for g in (generator, tiny_moe))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_sdpa_is_the_default(tiny_moe):
    assert tiny_moe.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "error", "words"),
    [
        ("flash_attention_2", "cpu", "bfloat16", ValueError, "needs an NVIDIA GPU, this is cpu"),
        ("flash_attention_2", "mps", "bfloat16", ValueError, "needs an NVIDIA GPU, this is mps"),
        ("flash_attention_2", "cuda", "bfloat16", ImportError, "pip install flash-attn"),
    ],
)
def test_flash_attention_that_cannot_run_is_refused(attention, device, dtype, error, words):
    with pytest.raises(error, match=words) as caught:
        loading._check_flash(attention, device, dtype)
    assert "leave it at 'sdpa'" in str(caught.value)


def test_flash_attention_in_float32_is_refused(monkeypatch):
    monkeypatch.setattr(
        "transformers.utils.import_utils.is_flash_attn_2_available", lambda *_, **__: True
    )
    loading._check_flash("flash_attention_2", "cuda", "bfloat16")
    with pytest.raises(ValueError, match=r"has no float32: add dtype='bfloat16'"):
        loading._check_flash("flash_attention_2", "cuda", "float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "flash_attention_2"}, "flash_attention_2' needs an NVIDIA GPU"),
        ({"attention": "flash"}, "attention='flash' is none of sdpa, eager, flash_attention_2"),
        ({"attention": "owner/kernel"}, "is none of sdpa"),
        ({"device": "gpu"}, "device='gpu' is none of auto, cpu"),
        ({"device": "cuda:x"}, "device='cuda:x' is none of auto, cpu"),
        ({"device": "cpu:7"}, "is not here"),
        ({"device": "cuda:99"}, "leave it at 'auto'"),
        ({"dtype": "int4"}, "dtype='int4' is none of"),
        ({"context": 1 << 20}, "context=1048576 is outside 1…2048, the window of this checkpoint"),
        ({"context": 512.5}, "outside 1…2048"),
        ({"context": "512"}, "outside 1…2048"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_loading(
    moe_folder, monkeypatch, options, words
):
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("weights were touched"))
    with pytest.raises(ValueError) as caught:
        load_generator(moe_folder, **{"device": "cpu", **options})
    assert words in str(caught.value)


def test_loading_is_quiet_and_keeps_the_ordinary_cache(moe_folder, capfd):
    generator = load_generator(moe_folder, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert generator.model.config.sliding_window is None


def test_a_phi_of_the_cache_without_its_weights_is_passed_over(tmp_path, monkeypatch, moe_folder):
    """Its config alone is there: to load it would fetch 80 GB unasked."""
    snapshot = tmp_path / "models--microsoft--Phi-3.5-mini-instruct" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    shutil.copy(moe_folder / "config.json", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    generator = load_generator(device="cpu")
    assert generator.name == "pocket"
    assert "mini-instruct lies in the local cache without all of its weights" in generator.reason
