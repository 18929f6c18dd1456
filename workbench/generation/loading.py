"""A name → a loaded generator: the right class, dtype, device and rotary regime, refused before it cannot fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from workbench.errors import CheckpointError, DoesNotFit
from workbench.generation.checkpoints import (
    PHI_IDS,
    POCKET,
    Checkpoint,
    find_checkpoint,
    read_pretrained,
)
from workbench.generation.longrope import check_regime, original_window, pin_regime, regime_for
from workbench.generation.memory import MemoryPlan, size
from workbench.generation.phi import Generator
from workbench.generation.planning import pick_device, plan_for
from workbench.routing.capture import find_routers

log = logging.getLogger("workbench")


def load_generator(
    spec: str | Path | None = None,
    *,
    context: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str = "auto",
) -> Generator:
    """Load "pocket", a Phi3 or Phimoe checkpoint folder, or a hub id; without a name the best Phi already on this disk.

    ``context=None`` is the original window (4,096 tokens for Phi-3.5); more selects the long regime. ``dtype=None``
    means float32 on a CPU that has room for it, else the checkpoint's own. `device` "auto" takes all GPUs, else MPS,
    else the CPU. Raises ``CheckpointError`` for a folder that cannot be loaded and ``DoesNotFit`` before allocating.

    >>> load_generator("pocket").regime
    'short'
    """
    from transformers import AutoConfig

    checkpoint, reason = (find_checkpoint(spec), "") if spec is not None else _default_checkpoint()
    config = read_pretrained(AutoConfig.from_pretrained, checkpoint)
    if config.model_type not in ("phi3", "phimoe"):
        raise CheckpointError(
            f"{checkpoint.name} is of type {config.model_type!r}; this needs phi3 or phimoe"
        )
    if config.model_type == "phimoe" and config.num_experts_per_tok != 2:
        raise CheckpointError(
            f"{checkpoint.name} asks for {config.num_experts_per_tok} experts; sparsemixer takes 2"
        )
    context = original_window(config) if context is None else context
    regime = regime_for(config, context)
    device = pick_device(device)
    plan = plan_for(config, context=context, dtype=dtype, device=device, name=checkpoint.name)
    if not plan.fits:
        raise DoesNotFit(_refusal(plan))
    model, tokenizer = _load(checkpoint, config, plan.dtype, device)
    pin_regime(model, regime)
    check_regime(model, regime)
    return Generator(checkpoint.name, model, tokenizer, context, regime, reason)


def _load(checkpoint: Checkpoint, config: Any, dtype: str, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = read_pretrained(AutoTokenizer.from_pretrained, checkpoint)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{checkpoint.name} has no fast tokenizer (tokenizer.json), which spans need"
        )
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{checkpoint.name} has no chat template; copy tokenizer_config.json from its source"
        )
    spread = device == "cuda" and torch.cuda.device_count() > 1
    config.sliding_window = (
        None  # as wide as the whole window in Phi-3.5; None keeps the ordinary cache
    )
    model, info = read_pretrained(
        AutoModelForCausalLM.from_pretrained,
        checkpoint,
        config=config,
        dtype=getattr(torch, dtype),
        device_map="auto" if spread else {"": device},
        use_safetensors=True,
        output_loading_info=True,
    )
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{checkpoint.name}: {len(wrong)} weights missing or of a wrong shape, first {wrong[0]}"
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.name}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}: not a pair"
        )
    if config.model_type == "phimoe" and not find_routers(model):
        raise CheckpointError(f"{checkpoint.name} is a Phimoe without routers")
    return model.eval(), tokenizer


def _default_checkpoint() -> tuple[Checkpoint, str]:
    """The best Phi in the local Hugging Face cache that fits, else the pocket model, and why in one line."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    passed = []
    for hub_id in PHI_IDS:
        if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            continue
        checkpoint = Checkpoint(hub_id, hub_id, False)
        config = read_pretrained(AutoConfig.from_pretrained, checkpoint, local_files_only=True)
        plan = plan_for(config, context=original_window(config), name=hub_id)
        if plan.fits:
            reason = f"{hub_id} is in the local cache and fits: {plan}"
            log.warning(reason)
            return checkpoint, reason
        passed.append(f"{hub_id} does not fit ({plan})")
    reason = "; ".join(passed) or "no Phi-3.5 in the local Hugging Face cache"
    reason += ": using the pocket model, which shows how things work and is no match for Phi"
    log.warning(reason)
    return find_checkpoint(POCKET), reason


def _refusal(plan: MemoryPlan) -> str:
    if plan.largest_context > 0:
        remedy = f"the largest context that fits is {plan.largest_context:,} tokens"
    else:
        short = plan.weight_bytes + plan.workspace_bytes - plan.usable_bytes
        remedy = f"the weights alone are {size(short)} too large: take a smaller model or more GPUs"
    return f"{plan}; {remedy}"
