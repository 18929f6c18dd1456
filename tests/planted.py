"""A tiny Phimoe whose experts are set by hand, so that what each does is known: a planted truth to be recovered.

In layer 0 expert 3 takes the tokens with a digit and nothing else, expert 7 the tokens after ``<|user|>`` and before
the word "Question", which is where evidence stands, expert 5 nothing at all; the others go by the token. Experts 3 and
7 are the only ones that put anything out. After a token that expert 3 took, ``AFTER_DIGIT`` is likely.
``FROM_EVIDENCE`` is the likelier at the end the more tokens expert 7 took. In layer 1 no expert does anything.

Attention is uniform: every query and key is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS, EVIDENCE, DEAD = 3, 7, 5
AFTER_DIGIT, FROM_EVIDENCE = "valve", "pump"  # each said by the first token of the word
# Hidden dimensions; every feature has a partner of the opposite sign, so that LayerNorm finds a mean of 0.
DIGIT, TURN, INSIDE, SAID_DIGIT, SAID_EVIDENCE, MEAN_EVIDENCE, CONSTANT, WORDS = (
    0, 2, 4, 6, 8, 10, 12, 16,
)  # fmt: skip


def make_planted(folder: Path, make_tokenizer: Callable[[Path], None]) -> Path:
    """The checkpoint, with the tokenizer of the other small ones."""
    import torch
    from transformers import AutoTokenizer, PhimoeConfig, PhimoeForCausalLM

    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = PhimoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_local_experts=16,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=8,
        sliding_window=2048,
        attention_bias=True,
        lm_head_bias=True,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "short_mscale": 1.0,
            "long_mscale": 1.0,
            "original_max_position_embeddings": 256,
        },
    )
    model = PhimoeForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set(model, tokenizer)
    model.save_pretrained(folder)
    return folder


def has_digit(text: str) -> bool:
    """Whether expert 3 takes the token."""
    return any(character in "0123456789" for character in text)


def _set(model: Any, tokenizer: Any) -> None:
    import torch

    random = torch.Generator().manual_seed(0)
    texts = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    embeddings = model.model.embed_tokens.weight
    words = torch.randn(len(texts), 32, generator=random)
    embeddings[:, WORDS : WORDS + 32] = words - words.mean(dim=1, keepdim=True)
    for token, text in enumerate(texts):
        pair(embeddings[token], DIGIT, float(has_digit(text) and not text.startswith("<0x")))
    pair(embeddings[tokenizer.convert_tokens_to_ids("<|user|>")], TURN, 1.0)
    pair(embeddings[tokenizer.convert_tokens_to_ids("Qu")], TURN, -10.0)
    inner = model.model
    for layer, (read, write, gain) in zip(
        inner.layers,
        ((TURN, INSIDE, 40.0), (SAID_EVIDENCE, MEAN_EVIDENCE, 0.5)),
        strict=True,
    ):
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            _set_norm(norm)
        layer.self_attn.v_proj.weight[0, read] = 1.0
        pair(layer.self_attn.o_proj.weight[:, 0], write, gain)
        layer.mlp.router.weight[:, WORDS : WORDS + 32] = torch.randn(16, 32, generator=random)
        layer.mlp.router.weight[DEAD, :] = 0.0
        layer.mlp.router.weight[DEAD, CONSTANT] = -1000.0
    _set_norm(inner.norm)
    router = inner.layers[0].mlp.router.weight
    for expert, feature in ((DIGITS, DIGIT), (EVIDENCE, INSIDE)):
        router[expert] = 0.0
        router[expert, feature] = 5000.0
        router[expert, CONSTANT] = -60.0
    experts = inner.layers[0].mlp.experts
    for expert, write in ((DIGITS, SAID_DIGIT), (EVIDENCE, SAID_EVIDENCE)):
        experts.gate_up_proj[expert, 0, CONSTANT] = 5.0
        experts.gate_up_proj[expert, 48, CONSTANT] = 1.0
        pair(experts.down_proj[expert, :, 0], write, 2.0)
    for word, feature, gain in (
        (AFTER_DIGIT, SAID_DIGIT, 4.0),
        (FROM_EVIDENCE, MEAN_EVIDENCE, 4.0),
    ):
        first = tokenizer(word, add_special_tokens=False)["input_ids"][0]
        model.lm_head.weight[first, feature] = gain
        if word == FROM_EVIDENCE:
            # not after a digit, whatever the experts do
            model.lm_head.weight[first, DIGIT] = -50.0


def pair(vector: Any, place: int, value: float) -> None:
    """Set a feature and its partner."""
    vector[place], vector[place + 1] = value, -value


def _set_norm(norm: Any) -> None:
    norm.weight.fill_(1.0)
    norm.weight[CONSTANT] = 0.0
    norm.bias[CONSTANT] = 1.0
