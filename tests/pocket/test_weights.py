from __future__ import annotations

import json

import pytest

from workbench.pocket import WEIGHTS
from workbench.store import MANIFEST, damaged_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def test_manifest_verifies_every_file() -> None:
    manifest = json.loads((WEIGHTS / MANIFEST).read_text(encoding="utf-8"))
    assert damaged_files(WEIGHTS, manifest) == []
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= set(
        manifest["files"]
    )


def test_weights_fit_in_a_repository() -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 20_000_000
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 40_000_000


def test_configuration_has_the_form_of_phi() -> None:
    config = transformers.AutoConfig.from_pretrained(WEIGHTS)
    assert (config.num_local_experts, config.num_experts_per_tok) == (16, 2)
    assert config.attention_bias
    assert config.lm_head_bias
    rope = config.rope_parameters
    assert rope["rope_type"] == "longrope"
    assert rope["original_max_position_embeddings"] == 4096
    assert set(rope["short_factor"]) == {1.0}
    assert rope["long_factor"] == sorted(rope["long_factor"])


def test_every_expert_of_every_layer_is_used() -> None:
    from workbench.pocket.evaluate import expert_usage

    model = transformers.PhimoeForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    usage = expert_usage(model, transformers.AutoTokenizer.from_pretrained(WEIGHTS))
    assert usage.shape == (model.config.num_hidden_layers, 16)
    assert usage.min() > 0.001
