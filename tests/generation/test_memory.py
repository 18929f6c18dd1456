"""The memory plan: its arithmetic against tensors and hand-worked tables, its verdict, and what it offers instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import CheckpointError, DoesNotFit
from workbench.generation import loading, planning
from workbench.generation.known_shapes import KNOWN_SHAPES, MINI, MOE
from workbench.generation.memory import (
    GIB,
    RESERVE,
    _left_by_container,
    cache_bytes_per_token,
    count_parameters,
    plan_config,
    prefill_tokens,
    weight_bytes,
)
from workbench.generation.workspace import Reading, workspace_parts

GB = 10**9
SHAPES = {"MoE": KNOWN_SHAPES[MOE], "mini": KNOWN_SHAPES[MINI]}


def on_gpu(name, gb, *, context=131072, **settings):
    return plan_config(
        SHAPES[name],
        context=context,
        dtype="bfloat16",
        device="cuda",
        device_bytes=int(gb * GB),
        **settings,
    )


# Hand-worked: 32 layers; mini 2·32064·3072 + 32·(4·3072² + 3·3072·8192 + 2·3072) + 3072, MoE with 16 experts of
# 3·4096·6400, 8 of 32 heads for keys and values, biases, and LayerNorms of two vectors.
@pytest.mark.parametrize(
    ("name", "parameters", "per_token", "gib"),
    [
        ("mini", 3_821_079_552, 384 * 1024, {"bfloat16": 7.1, "8bit": 3.7, "4bit": 2.3}),
        ("MoE", 41_873_153_344, 128 * 1024, {"bfloat16": 78.0, "8bit": 39.2, "4bit": 22.3}),
    ],
)
def test_the_real_models_have_their_published_sizes(name, parameters, per_token, gib):
    shape = SHAPES[name]
    assert count_parameters(shape) == parameters
    assert cache_bytes_per_token(shape, "bfloat16") == per_token
    assert {d: round(weight_bytes(shape, d) / GIB, 1) for d in gib} == gib
    assert [round(on_gpu(name, 141, context=c).cache_bytes / GIB, 1) for c in (4096, 32768, 65536)] == [
        per_token * c / GIB for c in (4096, 32768, 65536)
    ]  # fmt: skip


def test_the_real_models_are_counted_as_transformers_builds_them():
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

    for shape, config, model in (
        (SHAPES["mini"], Phi3Config, Phi3ForCausalLM),
        (SHAPES["MoE"], PhimoeConfig, PhimoeForCausalLM),
    ):
        names = ("hidden_size", "intermediate_size", "num_key_value_heads", "num_hidden_layers", "num_attention_heads",
                 "vocab_size", "num_local_experts", "attention_bias", "lm_head_bias")  # fmt: skip
        sizes = {n: getattr(shape, n) for n in names if hasattr(config(), n)}
        with torch.device("meta"):
            built = model(config(**sizes, pad_token_id=0))
        assert built.num_parameters() == count_parameters(shape)


# Tokens that fit by hand: usable = 0.92 · GB; less weights; over bytes a token. The earlier table took a flat 1.5 GiB
# of workspace; here it is 0.2 GiB plus 8 KiB (mini) or 24 KiB (MoE) a token, which is why the figures are not the same.
@pytest.mark.parametrize(
    ("name", "gb", "flat", "largest"),
    [
        ("mini", 24, 32_600, 35_630),
        ("mini", 48, 88_800, 90_637),
        ("mini", 80, 163_000, 131_072),
        ("mini", 141, 306_000, 131_072),
        ("MoE", 24, 0, 0),
        ("MoE", 48, 0, 0),
        ("MoE", 80, 0, 0),
        ("MoE", 141, 338_000, 131_072),
    ],
)
def test_the_largest_context_of_the_real_models(name, gb, flat, largest):
    plan = on_gpu(name, gb)
    by_hand = (gb * GB * 0.92 - 1.5 * GIB - plan.weight_bytes) / plan.cache_bytes_per_token
    assert max(0, by_hand) == pytest.approx(flat, rel=0.01)
    assert plan.largest_context == pytest.approx(largest, rel=0.001)
    assert plan.largest_context == pytest.approx(min(flat, 131_072), rel=0.1)


def test_the_workspace_of_a_full_context_is_what_the_tensors_take():
    tokens, held = 2048, 131072
    moe = {p.name: p.bytes for p in on_gpu("MoE", 141).workspace}
    assert moe["keys and values repeated for every head"] == 2 * held * 32 * 128 * 2 == 2 * GIB
    assert moe["attention mask"] == tokens * held
    assert moe["attention mask in the compute dtype"] == tokens * held * 2
    mini = {p.name for p in on_gpu("mini", 141).workspace}
    assert "keys and values repeated for every head" not in mini  # as many key heads as query heads


def test_one_chunk_needs_no_mask_and_eager_attention_needs_scores():
    shape = SHAPES["mini"]
    short = {p.name for p in workspace_parts(shape, Reading(context=2048, chunk=2048))}
    assert not any("mask" in name for name in short)
    eager = workspace_parts(shape, Reading(context=8192, chunk=2048, attention="eager"))
    assert eager[0].name == "attention scores"
    assert eager[0].bytes == 32 * 2048 * 8192 * 8
    flash = Reading(context=8192, chunk=2048, attention="flash_attention_2")
    assert not any("mask" in p.name for p in workspace_parts(shape, flash))


def test_an_8_bit_cache_has_the_bytes_of_its_tensors(tiny_moe, tiny_dense):
    import torch

    from workbench.generation.kv_cache import held_bytes, make_cache

    for generator in (tiny_moe, tiny_dense):
        config = generator.model.config
        for kind, kv in (("int8", "int8"), ("fp8", "fp8"), ("reserved", "model")):
            cache = make_cache(config, kind, capacity=7)
            with torch.inference_mode():
                generator.model(torch.tensor([[10, 11, 12]]), past_key_values=cache)
            assert held_bytes(cache) == 7 * cache_bytes_per_token(config, "float32", kv)


gigabytes = st.integers(1, 300)
contexts = st.integers(1, 131_072)


@given(
    name=st.sampled_from(["MoE", "mini"]),
    gb=gigabytes,
    context=contexts,
    kv=st.sampled_from(["model", "int8", "fp8"]),
    attention=st.sampled_from(["sdpa", "eager", "flash_attention_2"]),
    device=st.sampled_from(["cpu", "cuda"]),
    batch=st.integers(1, 5),
)
def test_a_plan_fits_exactly_when_its_parts_do(name, gb, context, kv, attention, device, batch):
    settings = dict(dtype="bfloat16", device=device, device_bytes=gb * GB, kv=kv)
    settings |= dict(batch=batch, attention=attention)
    plan = plan_config(SHAPES[name], context=context, **settings)
    running = plan.cache_bytes + plan.workspace_bytes
    assert plan.total_bytes == plan.weight_bytes + max(running, plan.loading_bytes)
    assert plan.workspace_bytes == sum(part.bytes for part in plan.workspace)
    assert plan.fits == (plan.total_bytes <= int(gb * GB * (1 - RESERVE)))
    assert plan.fits == (context <= plan.largest_context)
    largest = plan.largest_context
    if largest:
        assert plan_config(SHAPES[name], context=largest, **settings).fits
    if largest < 131_072:
        assert not plan_config(SHAPES[name], context=largest + 1, **settings).fits


@given(
    name=st.sampled_from(["MoE", "mini"]),
    context=st.integers(1, 131_071),
    more=st.integers(1, 131_071),
    batch=st.integers(1, 4),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_more_tokens_or_rows_never_need_less(name, context, more, batch, device):
    def total(context, batch):
        settings = dict(dtype="float32", device=device, device_bytes=GB)
        plan = plan_config(SHAPES[name], context=context, batch=batch, **settings)
        return plan.cache_bytes + plan.workspace_bytes

    assert total(context, batch) <= total(min(context + more, 131_072), batch)
    assert total(context, batch) <= total(context, batch + 1)


def test_8_bits_halve_the_cache_but_for_the_scales():
    whole, half = on_gpu("mini", 48), on_gpu("mini", 48, kv="int8")
    assert half.cache_bytes / whole.cache_bytes == pytest.approx(
        100 / 192
    )  # head size 96 and 4 bytes of scale
    assert (whole.fits, half.fits) == (False, True)


@pytest.mark.parametrize(
    "wrong",
    [{"dtype": "int8"}, {"cache": "int4"}, {"batch": 0}, {"context": 0}, {"context": 131_073}],
)
def test_a_setting_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        wb.plan_memory(MINI, device="cuda", device_bytes=GB, **wrong)


def test_the_real_models_are_planned_without_cache_and_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network was asked"))
    for name in (MOE, MINI):
        plan = wb.plan_memory(name, device="cuda", device_bytes=80 * GB)
        assert (plan.context, plan.dtype) == (4096, "bfloat16")
        assert "published shape" in plan.source


def test_a_config_in_the_local_cache_comes_before_the_published_shape(moe_folder, monkeypatch):
    def look(_, name):
        return str(moe_folder / name)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    monkeypatch.setattr(
        planning, "load_config", lambda *_, **options: options or pytest.fail("not local")
    )
    checkpoint = planning.find_checkpoint(MOE)
    config, source = planning.find_config(checkpoint)
    assert config == {"local_files_only": True}
    assert "local Hugging Face cache" in source
    assert planning.is_on_disk(checkpoint)


def test_weights_are_on_disk_only_when_every_shard_is(tmp_path, monkeypatch):
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    (tmp_path / "config.json").touch()

    def look(_, name):
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    checkpoint = planning.find_checkpoint(MINI)
    assert not planning.is_on_disk(checkpoint)
    (tmp_path / "model-2.safetensors").touch()
    assert planning.is_on_disk(checkpoint)


def test_a_model_that_nobody_knows_is_one_sentence_offline():
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        wb.plan_memory("nobody/nothing-at-all")


def test_what_does_not_fit_is_refused_before_anything_is_loaded(moe_folder, monkeypatch):
    few, many = (
        wb.plan_memory(moe_folder, context=c, device="cpu", device_bytes=GB).total_bytes
        for c in (1024, 2048)
    )
    between = int((few + many) / 2 / (1 - RESERVE))
    monkeypatch.setattr(planning, "device_memory", lambda _: between)
    monkeypatch.setattr(planning, "pick_device", lambda _: "cpu")
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("weights were touched"))
    with pytest.raises(
        DoesNotFit, match=r"weights .* \+ cache .* usable, .* too little: the largest context"
    ) as e:
        wb.load_generator(moe_folder, context=2048, device="cpu", dtype="float32")
    assert "\n" not in str(e.value)


def test_a_plan_that_fits_offers_nothing_else():
    plan = wb.plan_memory(MINI, device="cuda", device_bytes=80 * GB, context=131_072)
    assert (plan.fits, plan.alternatives, plan.refusal) == (True, (), "")


def alternatives(name, gb, **settings):
    plan = wb.plan_memory(name, device="cuda", device_bytes=gb * GB, **settings)
    starts = {"the largest context": "context", "with expert_cache": "experts",
              "with quantization='8bit', expert_cache": "8-bit-experts",
              "with quantization='4bit', expert_cache": "4-bit-experts", "with quantization='8bit'": "8-bit",
              "with quantization='4bit'": "4-bit",
              "with decoding=Decoding(cache='int8')": "int8",
              "with decoding=Decoding(cache='offloaded')": "offloaded",
              MOE: "MoE", MINI: "mini", "wb.summarize": "map-reduce",
              "a served": "endpoint", "with dtype": "dtype"}  # fmt: skip
    return [next(v for k, v in starts.items() if s.startswith(k)) for s in plan.alternatives]


@pytest.mark.parametrize(
    ("name", "gb", "settings", "expected"),
    [
        # 24 GB: nothing holds 128K, each makes it less wrong; the MoE is larger still
        (MINI, 24, {"context": 131_072}, "context 8-bit 4-bit int8 offloaded map-reduce endpoint"),
        # 40 GB: the 8-bit cache of 25 GiB is enough
        (MINI, 48, {"context": 131_072}, "context 8-bit 4-bit int8 map-reduce endpoint"),
        (MINI, 48, {"context": 131_072, "cache": "int8", "dtype": "float32"},
         "context dtype offloaded map-reduce endpoint"),
        (MINI, 8, {}, "8-bit endpoint"),
        # 80 GB: 78 GiB of weights leave nothing for bf16; 8-bit and mini hold all 128K
        (MOE, 80, {"context": 131_072}, "8-bit experts mini endpoint"),
        (MOE, 80, {}, "8-bit experts mini endpoint"),
        # 24 GB: some experts of each layer, in bf16 or, more of them, in 8 and in 4 bits
        (MOE, 24, {}, "experts 8-bit-experts 4-bit-experts mini endpoint"),
        (MOE, 1, {}, "endpoint"),
    ],
)  # fmt: skip
def test_only_what_helps_is_offered_in_order(name, gb, settings, expected):
    assert alternatives(name, gb, **settings) == expected.split()


def test_alternatives_hold_numbers_that_planning_confirms():
    plan = wb.plan_memory(MINI, device="cuda", device_bytes=24 * GB, context=131_072)
    assert f"{plan.largest_context:,} tokens" in plan.alternatives[0]
    smaller = wb.plan_memory(
        MINI, device="cuda", device_bytes=24 * GB, context=plan.largest_context
    )
    assert smaller.fits
    int8 = wb.plan_memory(MINI, device="cuda", device_bytes=24 * GB, context=131_072, cache="int8")
    assert f"{int8.largest_context:,} tokens" in plan.alternatives[3]
    assert json.loads(json.dumps(plan.to_dict()))["alternatives"] == list(plan.alternatives)


@pytest.mark.parametrize("given", ["24GB", -1, 24, 24e9])
def test_a_size_that_is_no_number_of_bytes_is_refused(given):
    with pytest.raises(ValueError, match=r"must be a whole number of bytes, such as 24 \* 10\*\*9"):
        wb.plan_memory(MOE, device="cuda", device_bytes=given)


def test_fewer_rows_are_offered_to_a_batch():
    plan = wb.plan_memory(MINI, device="cuda", device_bytes=24 * GB, context=4096, batch=8)
    assert plan.cache_bytes == 9 * 4096 * plan.cache_bytes_per_token  # the first row is kept beside
    rows = int(plan.alternatives[0].split()[0])
    for n, fits in ((rows, True), (rows + 1, False)):
        assert wb.plan_memory(MINI, device="cuda", device_bytes=24 * GB, batch=n).fits == fits


def test_the_limit_of_a_container_counts(tmp_path):
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 1\ninactive_file 200")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _left_by_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_by_container(tmp_path) == _left_by_container(tmp_path / "none") == 1 << 62


def test_the_chunk_is_the_one_that_a_generator_feeds(tiny_moe):
    assert tiny_moe.pace(wb.Decoding()).chunk == prefill_tokens("cpu") == 512


@pytest.mark.slow
def test_the_plan_is_within_15_percent_of_a_measured_peak(tmp_path):
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import planner_error as p; from pathlib import Path; "
        "print(p.make_checkpoint(Path(sys.argv[2]) / 'phi3', 'phi3'))"
    )
    benchmarks = root / "benchmarks"
    folder = subprocess.run(
        [sys.executable, "-c", code, benchmarks, tmp_path], capture_output=True, text=True, check=True
    ).stdout.split()[-1]  # fmt: skip
    plan = wb.plan_memory(folder, context=4096, dtype="float32", device="cpu", device_bytes=1 << 40)
    command = [sys.executable, benchmarks / "planner_error.py", "--child", folder]
    command += ["4096", "float32", "model", "one pass", "all"]
    measured = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    assert plan.peak_bytes == pytest.approx(measured["peak"], rel=0.15)


def cards_table() -> str:
    """The table of docs/memory.md: the longest context, weights in three ways, cache as computed and int8."""

    def longest(name, gb, quantization, cache):
        options = {"quantization": quantization, "cache": cache, "dtype": "bfloat16"}
        plan = wb.plan_memory(name, device="cuda", device_bytes=gb * GB, **options)
        return f"{plan.largest_context // 1024}K" if plan.largest_context >= 1024 else "–"

    lines = ["| | 12 GB | 24 GB | 48 GB | 80 GB | 141 GB |", "|---|---|---|---|---|---|"]
    for title, name in (("mini", MINI), ("MoE", MOE)):
        for words, quantization in (("bf16", None), ("8bit", "8bit"), ("4bit", "4bit")):
            cells = []
            for gb in (12, 24, 48, 80, 141):
                pair = [longest(name, gb, quantization, cache) for cache in ("reserved", "int8")]
                cells.append(pair[0] if pair[0] == pair[1] else " / ".join(pair))
            lines.append(f"| {title}, {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def slots_table() -> str:
    """The other table of docs/memory.md: how many experts of each layer fit, and the host memory of loading."""

    def most(gb, quantization):
        options = {"device": "cuda", "device_bytes": gb * GB, "quantization": quantization}
        if wb.plan_memory(MOE, **options).fits:
            return "all"
        fitting = [n for n in range(2, 16) if wb.plan_memory(MOE, expert_cache=n, **options).fits]
        return str(max(fitting, default="–"))

    lines = ["| | 12 GB | 24 GB | 48 GB | 80 GB | host memory |", "|---|---|---|---|---|---|"]
    for words, quantization in (("bf16", None), ("8bit", "8bit"), ("4bit", "4bit")):
        host = plan_config(
            SHAPES["MoE"], context=4096, dtype="bfloat16", device="cuda", device_bytes=0,
            quantized=quantization, expert_cache=2,
        ).host_bytes  # fmt: skip
        cells = [*(most(gb, quantization) for gb in (12, 24, 48, 80)), f"{host / GIB:.0f} GiB"]
        lines.append(f"| MoE, {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("made", [cards_table, slots_table])
def test_the_tables_of_cards_are_what_the_planner_says(made):
    docs = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
    assert made() in docs.read_text("utf-8")
