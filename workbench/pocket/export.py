"""Write a trained pocket model as a folder that transformers loads: bfloat16 weights, tokenizer, manifest."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from workbench.store import replacing_folder, write_manifest


def export_weights(checkpoint: Path, tokenizer_folder: Path, folder: Path) -> None:
    """Put the model of a training checkpoint into `folder`, replacing what was there in one rename."""
    import torch
    from safetensors import safe_open
    from transformers import AutoTokenizer, GenerationConfig, PhimoeForCausalLM

    from workbench.pocket.batches import TRAINED_TOKENS
    from workbench.pocket.structured import Shape, pocket_config
    from workbench.pocket.tokenizer import END, ENDOFTEXT, PAD

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with safe_open(checkpoint, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        masters = {
            name.removeprefix("master."): file.get_tensor(name)
            for name in file.keys()
            if name.startswith("master.")
        }
    model: Any = PhimoeForCausalLM(pocket_config(Shape(vocabulary=len(tokenizer))))
    model.to(torch.bfloat16)
    lacking = model.load_state_dict(masters, strict=False)
    unknown = [
        name for name in lacking.missing_keys if name != "lm_head.weight"
    ] + lacking.unexpected_keys
    if unknown:
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the pocket configuration: {unknown[:3]}"
        )
    model.tie_weights()
    model.config.trained_tokens = TRAINED_TOKENS
    generation: Any = GenerationConfig  # untyped in transformers
    model.generation_config = generation(
        bos_token_id=1,
        eos_token_id=[END, ENDOFTEXT],
        pad_token_id=PAD,
        do_sample=False,
        max_new_tokens=128,
    )
    with replacing_folder(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        (fresh / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
        write_manifest(
            fresh,
            {
                "format": 1,
                "recipes": state["recipes"],
                "progress": state["progress"],
                "python": platform.python_version(),
            },
        )
