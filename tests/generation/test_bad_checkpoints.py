"""A checkpoint that is wrong is one sentence with the remedy, before its weights are read where that is possible."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest

from workbench.checkpoints.configs import SIZES
from workbench.checkpoints.finding import check_folder, release_frames
from workbench.errors import CheckpointError, DoesNotFit
from workbench.generation import loading
from workbench.generation.loading import load_generator
from workbench.generation.weights import check_finite

REMEDIES = (
    "restore",
    "copy",
    "put the file",
    "convert",
    "take ",
    "remove",
    "needs one of",
    "merge",
)


@pytest.fixture(params=["phimoe", "phi3"])
def folder(request, moe_folder, dense_folder, tmp_path):
    return copy_of(moe_folder if request.param == "phimoe" else dense_folder, tmp_path)


@pytest.fixture
def moe(moe_folder, tmp_path):
    return copy_of(moe_folder, tmp_path)


@pytest.fixture
def no_weights(monkeypatch):
    """Reading a weight fails the test."""
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("weights were touched"))


def copy_of(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def refusal(folder, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        load_generator(folder, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    if error is CheckpointError:
        assert any(word in message for word in REMEDIES), message
    return message


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for name, value in changes.items():
        place = config["rope_parameters"] if name in ROPE else config
        if value is ABSENT:
            place.pop(name, None)
        else:
            place[name] = value
    path.write_text(json.dumps(config), "utf-8")


ABSENT = object()
ROPE = {
    "short_factor", "long_factor", "short_mscale", "long_mscale", "rope_theta", "rope_type", "factor",
    "attention_factor", "partial_rotary_factor",
}  # fmt: skip


def change_weights(folder, **changes):
    """Rewrite model.safetensors with one tensor replaced, or left out where the value is None."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        name = next(n for n in tensors if n.endswith(name.replace("__", ".")))
        value = change(tensors.pop(name))
        if value is not None:
            tensors[name] = np.ascontiguousarray(value)
    save_file(tensors, path, metadata={"format": "pt"})


# ---- code that comes with a checkpoint


def plant_code(folder, marker):
    """Files of a hub checkpoint with its own code, as Phi-3.5 has them; running any of it leaves a file."""
    code = f"open({str(marker)!r}, 'w').close()\nraise SystemExit('ran')\n"
    for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py", "__init__.py"):
        (folder / name).write_text(code, "utf-8")
    own = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    change_config(folder, auto_map=own)
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "tokenization_x.X"]}
    path.write_text(json.dumps(tokenizer), "utf-8")


def test_code_in_a_checkpoint_of_a_known_type_is_ignored(folder, tmp_path):
    plant_code(folder, tmp_path / "ran")
    generator = load_generator(folder, device="cpu")
    assert type(generator.model).__module__.startswith("transformers.models.")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_of_an_unknown_type_is_refused_and_never_run(moe, tmp_path):
    plant_code(moe, tmp_path / "ran")
    change_config(moe, model_type="x")
    assert "auto_map) is never run" in refusal(moe)
    assert not (tmp_path / "ran").exists()


def test_a_weight_file_named_by_the_config_is_refused(moe, no_weights):
    change_config(moe, transformers_weights="../elsewhere.bin")
    assert "transformers_weights" in refusal(moe)


@pytest.mark.parametrize(
    ("held", "method"), [({"quant_method": "gptq", "bits": 4}, "gptq"), ({}, "None"), ([4], "[4]")]
)
def test_weights_that_are_quantized_already_are_refused(moe, no_weights, held, method):
    change_config(moe, quantization_config=held)
    message = refusal(moe)
    assert f"quantized ({method})" in message and "quantization='8bit' or '4bit'" in message


# ---- sizes


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [-1, 0, True, 64.0, "64", [64], None, 10**18, float("nan")])
def test_a_size_that_is_no_size_is_refused(moe, no_weights, name, value):
    change_config(moe, **{name: value})
    message = refusal(moe)
    assert f"config.json: {name} is " in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5}, "hidden_size 64 does not divide by num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "4 does not divide by num_key_value_heads 3"),
        ({"num_attention_heads": 64, "num_key_value_heads": 64}, "1 of 1 values of a head"),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000"),
        ({"eos_token_id": [3, -1]}, "eos_token_id is -1"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(folder, no_weights, changes, words):
    change_config(folder, **changes)
    assert words in refusal(folder)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_other_than_two_experts_a_token_is_refused(moe, no_weights, count):
    change_config(moe, num_experts_per_tok=count)
    assert f"asks for {count} experts a token; sparsemixer takes 2" in refusal(moe)


@pytest.mark.parametrize("count", [1, 257])
def test_experts_that_a_trace_cannot_number_are_refused(moe, no_weights, count):
    change_config(moe, num_local_experts=count)
    assert f"num_local_experts is {count}" in refusal(moe)


@pytest.mark.parametrize("name", ["num_hidden_layers", "intermediate_size", "vocab_size"])
def test_absurd_sizes_are_refused_by_the_plan(folder, no_weights, name):
    change_config(folder, **{name: 10**12})
    assert "usable" in refusal(folder, DoesNotFit)


# ---- LongRoPE


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ABSENT, "LongRoPE without"),
        ([1.0] * 7, "has 7 values, the heads need 8"),
        ([1.0] * 9, "has 9 values, the heads need 8"),
        ([], "has 0 values"),
        ("1.0", "has '1.0', the heads need 8"),
        ({"0": 1.0}, "the heads need 8"),
        ([1.0] * 7 + ["2"], "[7] is '2'"),
        ([True] + [1.0] * 7, "[0] is True"),
        ([1.0, 0.0] + [1.0] * 6, "[1] is 0.0"),
        ([1.0, -2.0] + [1.0] * 6, "[1] is -2.0"),
        ([float("nan")] * 8, "[0] is nan"),
        ([1.0] * 7 + [float("inf")], "[7] is inf"),
        ([1.0] * 7 + [10**400], "[7] is 1000"),
        ([1.0] * 7 + [None], "[7] is missing"),
    ],
)  # fmt: skip
def test_factors_that_are_no_factors_are_refused(folder, no_weights, name, value, words):
    change_config(folder, **{name: value})
    message = refusal(folder, context=512)
    assert words in message
    assert name in message


@pytest.mark.parametrize("name", ["short_mscale", "long_mscale"])
@pytest.mark.parametrize("value", [ABSENT, None, "1.2", True, 0, -1.2, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_refused(moe, no_weights, name, value):
    change_config(moe, **{name: value})
    assert f"{name} is " in refusal(moe)


@pytest.mark.parametrize("name", ["rope_theta", "factor", "attention_factor", "partial_rotary_factor"])  # fmt: skip
@pytest.mark.parametrize("value", ["10000", 0, -1.0, float("nan"), float("inf")])
def test_other_rotary_values_are_checked(folder, no_weights, name, value):
    change_config(folder, **{name: value})
    assert f"{name} is " in refusal(folder)


def set_windows(folder, outer, inner):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for place, value in ((config, outer), (config["rope_parameters"], inner)):
        place.pop("original_max_position_embeddings", None)
        if value is not None:
            place["original_max_position_embeddings"] = value
    path.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    ("outer", "inner", "words"),
    [
        (None, None, "has LongRoPE but no original_max_position_embeddings"),
        (256, 128, "gives original_max_position_embeddings twice, 256 and 128"),
        (4096, None, "4096 exceeds max_position_embeddings 2048"),
        ("256", None, "is '256'"),
        (None, 1, "is 1, it must be a whole number of at least 2"),
        (None, -256, "is -256"),
        (256.0, None, "is 256.0"),
    ],
)
def test_a_missing_or_wrong_original_window_is_refused(folder, no_weights, outer, inner, words):
    set_windows(folder, outer, inner)
    assert words in refusal(folder)


@pytest.mark.parametrize(("outer", "inner"), [(256, None), (None, 256), (256, 256)])
def test_the_original_window_may_stand_in_either_place(folder, outer, inner):
    set_windows(folder, outer, inner)
    assert load_generator(folder, device="cpu").context == 256


@pytest.mark.parametrize("kind", ["dynamic", "linear", "yarn", "x", None, 3])
def test_a_rope_type_whose_angles_nobody_checked_is_refused(moe, no_weights, kind):
    change_config(moe, rope_type=kind)
    assert "the rope type is " in refusal(moe)


def test_a_config_of_2024_loads(folder):
    """rope_scaling beside rope_theta, as the published Phi-3.5 configs have it; Phi3 called LongRoPE "su" once."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope.pop("partial_rotary_factor", None)
    config["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
    rope.pop("rope_type")
    config["rope_scaling"] = {**rope, "type": "su" if config["model_type"] == "phi3" else "longrope"}  # fmt: skip
    path.write_text(json.dumps(config), "utf-8")
    generator = load_generator(folder, context=512, device="cpu")
    assert (generator.regime, generator.with_context(256).regime) == ("long", "short")
    assert generator.model.config.rope_parameters["rope_theta"] == 10000.0  # not Phimoe's default


def test_a_checkpoint_without_longrope_loads(dense_folder, tmp_path):
    folder = copy_of(dense_folder, tmp_path)
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    assert load_generator(folder, device="cpu").regime == "fixed"


# ---- weight files


@pytest.mark.parametrize("keep", [0, 7, 100, 10_000, -1])
def test_truncated_weights_are_refused_before_they_are_read(moe, no_weights, keep):
    path = moe / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated, damaged or not safetensors" in refusal(moe)


@pytest.mark.parametrize("header", [2**64 - 1, 10, 2**40])
def test_a_damaged_header_is_refused(moe, no_weights, header):
    path = moe / "model.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "truncated, damaged or not safetensors" in refusal(moe)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_never_opened_whatever_its_name(moe, tmp_path, name):
    (moe / "model.safetensors").unlink()
    (moe / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refusal(moe)
    assert not (tmp_path / "ran").exists()


def make_shards(folder):
    """Split the weights in two files with an index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for n, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{n:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    write_index(folder, places)
    return places


def write_index(folder, places):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def test_shards_load(moe):
    make_shards(moe)
    assert load_generator(moe, device="cpu").is_moe


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("../x.safetensors", "outside the folder"),
        ("/x.safetensors", "outside the folder"),
        ("..\\x.safetensors", "outside the folder"),
        ("sub/x.safetensors", "outside the folder"),
        ("..", "outside the folder"),
        ("pytorch_model.bin", "never pickle"),
        (None, "outside the folder"),
        (3, "outside the folder"),
        ([], "is not a safetensors index"),
        ("model-9.safetensors", "lacks 1 of 3 weight files, first model-9.safetensors"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(moe, no_weights, shard, words):
    places = make_shards(moe)
    places[next(iter(places))] = shard
    write_index(moe, places)
    assert words in refusal(moe)


def test_an_index_that_points_outside_is_refused_beside_a_whole_file_too(moe, no_weights):
    write_index(moe, {"a": "../x.safetensors"})
    assert "outside the folder" in refusal(moe)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "\x00", "[" * 100_000,
        '{"metadata": {}, "weight_map": 1}', '{"metadata": {}, "weight_map": {}}',
        '{"weight_map": {"a": "model.safetensors"}}',
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(moe, no_weights, content):
    make_shards(moe)
    (moe / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(moe)


def test_a_tensor_that_its_shard_does_not_hold_is_refused(moe, no_weights):
    places = make_shards(moe)
    first, *_, last = sorted(set(places.values()))
    name = next(n for n, shard in places.items() if shard == first)
    write_index(moe, {**places, name: last})
    assert f"places {name!r} in {last}, which does not hold it" in refusal(moe)


def test_a_truncated_shard_is_refused(moe, no_weights):
    shard = sorted(set(make_shards(moe).values()))[-1]
    (moe / shard).write_bytes((moe / shard).read_bytes()[:-8])
    assert f"{shard} is truncated" in refusal(moe)


def test_an_adapter_is_refused(moe, no_weights):
    (moe / "adapter_config.json").write_text("{}")
    assert "adapter" in refusal(moe)


def test_missing_weights_are_named(folder):
    change_weights(folder, norm__weight=lambda _: None)
    assert "1 weights missing or of a wrong shape" in refusal(folder)


def test_weights_of_a_wrong_shape_are_named(folder):
    change_weights(folder, o_proj__weight=lambda w: w[:, :-1])
    message = refusal(folder)
    assert "o_proj.weight" in message
    assert "wrong shape" in message


def test_an_expert_of_a_wrong_shape_is_refused(moe):
    change_weights(moe, w1__weight=lambda w: w[:-1])
    with pytest.raises(CheckpointError):
        load_generator(moe, device="cpu")


# ---- values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["embed_tokens__weight", "lm_head__weight", "input_layernorm__weight"])  # fmt: skip
def test_one_value_that_is_no_number_is_found(folder, name, value):
    def spoil(tensor):
        tensor = tensor.copy()
        tensor.flat[tensor.size // 2] = value
        return tensor

    change_weights(folder, **{name: spoil})
    message = refusal(folder)
    assert name.replace("__", ".") in message
    assert "NaN or infinite values in float32" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", [0, 5000, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_place_and_dtype_is_looked_at(dtype, place, value):
    import torch

    tensor = torch.zeros(10_001, dtype=getattr(torch, dtype))
    check_finite([("w", tensor)], "x")
    tensor[place] = value
    with pytest.raises(CheckpointError, match=f"weight w has NaN or infinite values in {dtype}"):
        check_finite([("w", tensor)], "x")


def test_what_has_no_values_to_look_at_is_passed_over():
    import torch

    check_finite(
        [
            ("empty", torch.zeros(0)),
            ("whole", torch.zeros(3, dtype=torch.int8)),
            ("elsewhere", torch.zeros(3, device="meta")),
            ("narrow", torch.zeros(3, dtype=torch.float8_e4m3fn)),
        ],
        "x",
    )


# ---- tokenizer


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_the_weights(moe, monkeypatch):  # fmt: skip
    from transformers import AutoModelForCausalLM

    path = moe / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 5000, "content": "<x>"})  # fmt: skip
    path.write_text(json.dumps(tokenizer), "utf-8")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read"))  # fmt: skip
    assert "the tokenizer has" in refusal(moe)


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('no') }}", "{{ x[7].y }}"])
def test_a_chat_template_that_fails_is_refused(moe, template):
    (moe / "chat_template.jinja").write_text(template)
    assert "chat template that fails" in refusal(moe)


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00"])
def test_a_broken_tokenizer_is_refused(moe, content):
    (moe / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"copy cannot be loaded|copy has"):
        load_generator(moe, device="cpu")


# ---- links


@pytest.fixture
def linked(moe, tmp_path):
    """A checkpoint in the layout of the Hugging Face cache; returns its snapshot folder."""
    repository = tmp_path / "hub" / "models--nobody--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for path in moe.iterdir():
        shutil.move(path, repository / "blobs" / f"sum-of-{path.name}")
        os.symlink(f"../../blobs/sum-of-{path.name}", snapshot / path.name)
    return snapshot


def test_a_snapshot_of_the_hub_cache_loads_by_folder(linked):
    assert load_generator(linked, device="cpu").is_moe


def use_cache(monkeypatch, snapshot):
    cache = str(snapshot.parent.parent.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", cache)


def test_a_checkpoint_in_the_hub_cache_loads_by_id(linked, monkeypatch):
    use_cache(monkeypatch, linked)
    assert load_generator("nobody/tiny", device="cpu").name == "nobody/tiny"


def test_a_bad_config_of_a_hub_id_is_refused_alike(linked, monkeypatch, no_weights):
    use_cache(monkeypatch, linked)
    change_config(linked, long_factor=[0.0] * 8)
    assert "config.json of nobody/tiny: long_factor[0] is 0.0" in refusal("nobody/tiny")


def test_a_bad_index_of_a_hub_id_is_refused_alike(linked, monkeypatch):
    use_cache(monkeypatch, linked)
    write_index(linked, {"a": "../x.safetensors"})
    assert "outside the folder" in refusal("nobody/tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(moe, tmp_path, no_weights, name):
    shutil.move(moe / name, tmp_path / "elsewhere")
    os.symlink("../elsewhere", moe / name)
    assert f"{name} is a link to " in refusal(moe)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(moe, tmp_path):
    (moe / "model.safetensors").rename(moe / "weights.bin")
    os.symlink("weights.bin", moe / "model.safetensors")
    os.symlink(moe, tmp_path / "link")
    check_folder(tmp_path / "link")


@pytest.mark.parametrize("target", ["nowhere", "model.safetensors"])
def test_a_link_that_leads_nowhere_is_refused(moe, target):
    (moe / "model.safetensors").unlink()
    os.symlink(target, moe / "model.safetensors")
    assert "leads nowhere" in refusal(moe)


# ---- nothing half loaded stays


def parameters_alive():
    import torch

    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is torch.nn.Parameter}


def fail(error):
    def raise_it(*_, **__):
        raise error

    return raise_it


REFUSALS = {
    "a value that is no number": "weights",
    "a missing layer": "config",
    "wrong angles": "workbench.generation.loading.check_regime",
    "inside transformers": "transformers.models.phimoe.modeling_phimoe.PhimoeForCausalLM.eval",
    "interrupted": "workbench.generation.loading.check_finite",
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_that_is_kept_keeps_no_model(moe, monkeypatch, reason):
    where, kind = REFUSALS[reason], CheckpointError
    if where == "weights":
        change_weights(moe, lm_head__weight=lambda w: w * np.nan)
    elif where == "config":
        change_config(moe, num_hidden_layers=4)
    else:
        inner = {"inside transformers": RuntimeError("no"), "interrupted": KeyboardInterrupt()}
        error = inner.get(reason, CheckpointError("no"))
        kind = KeyboardInterrupt if reason == "interrupted" else CheckpointError
        monkeypatch.setattr(where, fail(error))
    before = parameters_alive()
    with pytest.raises(kind) as caught:
        load_generator(moe, device="cpu")
    monkeypatch.setattr(sys, "last_exc", caught.value, raising=False)
    monkeypatch.setattr(sys, "last_traceback", caught.tb, raising=False)
    assert caught.tb is not None
    assert parameters_alive() <= before


def test_memory_is_back_after_a_refusal_that_is_kept(tmp_path, moe_folder):
    import psutil
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    folder = tmp_path / "large"
    shutil.copytree(moe_folder, folder)
    (folder / "model.safetensors").unlink()
    vocabulary, hidden = len(AutoTokenizer.from_pretrained(moe_folder)), 512
    config = {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "pad_token_id": 8, "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (vocabulary, hidden), "lm_head": (vocabulary, hidden)}
    shapes["model.norm"] = (hidden,)
    for n in range(4):
        shapes |= {
            f"model.layers.{n}.{part}": shape
            for part, shape in {
                "self_attn.qkv_proj": (3 * hidden, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_up_proj": (8192, hidden),
                "mlp.down_proj": (hidden, 4096),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items()
        }
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    held = sum(tensor.nbytes for tensor in tensors.values())
    assert held > 100e6
    tensors["lm_head.weight"][-1, -1] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    del tensors
    memory = psutil.Process().memory_info
    kept = []
    for _ in range(3):  # the first load also imports
        with pytest.raises(CheckpointError, match=r"lm_head\.weight has NaN") as caught:
            load_generator(folder, device="cpu", dtype="float32")
        kept.append((caught.value, memory().rss))
    assert kept[-1][1] - kept[0][1] < held / 4


def test_frames_of_every_cause_are_emptied():
    def inner():
        held = bytearray(10)
        raise KeyError(len(held))

    def outer():
        held = bytearray(20)
        try:
            inner()
        except KeyError as error:
            raise ValueError(len(held)) from error

    caught = None
    try:
        outer()
    except ValueError as error:
        caught = error
    release_frames(caught)
    for error in (caught, caught.__cause__):
        frame = error.__traceback__.tb_next
        while frame is not None:
            assert "held" not in frame.tb_frame.f_locals
            frame = frame.tb_next
