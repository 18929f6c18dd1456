"""Phi3 and Phimoe once more in float64 NumPy from papers and model cards: an oracle for generation and routing.

Whole sequences only, no cache, loops over tokens and experts: slow and plain on purpose. LongRoPE follows Microsoft's
rule: the long factors for every position as soon as the sequence may exceed the original window.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def rotary_angles(config: Any, positions: np.ndarray, *, long: bool) -> np.ndarray:
    """[tokens, head / 2]"""
    rope = config.rope_parameters
    head = config.hidden_size // config.num_attention_heads
    factors = rope["long_factor"] if long else rope["short_factor"]
    frequencies = [1 / (f * rope["rope_theta"] ** (2 * i / head)) for i, f in enumerate(factors)]
    return positions[:, None] * np.array(frequencies)[None, :]


def rotary_scale(config: Any, *, long: bool) -> float:
    rope = config.rope_parameters
    if config.model_type == "phimoe":
        return rope["long_mscale"] if long else rope["short_mscale"]
    ratio = config.max_position_embeddings / rope["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(ratio) / math.log(rope["original_max_position_embeddings"]))


def rotate(x: np.ndarray, angles: np.ndarray, scale: float) -> np.ndarray:
    """x: [tokens, heads, head]"""
    half = x.shape[-1] // 2
    cos, sin = np.cos(angles)[:, None, :] * scale, np.sin(angles)[:, None, :] * scale
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def sparsemixer(logits: np.ndarray, jitter: float) -> tuple[list[int], list[float]]:
    """Two experts and their gates for one token, from Algorithm 1 of arXiv 2409.12136 in evaluation."""
    chosen: list[int] = []
    gates: list[float] = []
    left = logits.copy()
    for _ in range(2):
        expert = int(np.argmax(left))
        best = left[expert]
        near = [
            j
            for j in range(len(left))
            if np.isfinite(left[j]) and (best - left[j]) / max(abs(logits[j]), best) <= 2 * jitter
        ]
        weights = np.exp(left[near] - best)
        chosen.append(expert)
        gates.append(float(1.0 / weights.sum()))
        left[expert] = -np.inf
    return chosen, gates


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


class Reference:
    """Weights of a transformers model, computed with here."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self.w = {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
        self.is_moe = model.config.model_type == "phimoe"
        # of the last forward pass, by layer and token; of what an expert adds, the gate weight included, the norm
        self.router_logits: dict[tuple[int, int], np.ndarray] = {}
        self.contributions: dict[tuple[int, int], list[float]] = {}
        self.output_norms: dict[tuple[int, int], float] = {}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        eps = self.config.rms_norm_eps
        if self.is_moe:  # LayerNorm
            centred = x - x.mean(-1, keepdims=True)
            scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
            return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]

    def attention(self, name: str, x: np.ndarray, *, long: bool) -> np.ndarray:
        c = self.config
        tokens, head = len(x), c.hidden_size // c.num_attention_heads
        if self.is_moe:
            q, k, v = (self.linear(f"{name}.{p}_proj", x) for p in "qkv")
        else:
            q, k, v = np.split(
                self.linear(f"{name}.qkv_proj", x),
                [
                    c.num_attention_heads * head,
                    (c.num_attention_heads + c.num_key_value_heads) * head,
                ],
                axis=-1,
            )
        angles = rotary_angles(c, np.arange(tokens), long=long)
        scale = rotary_scale(c, long=long)
        q = rotate(q.reshape(tokens, -1, head), angles, scale)
        k = rotate(k.reshape(tokens, -1, head), angles, scale)
        v = v.reshape(tokens, -1, head)
        groups = c.num_attention_heads // c.num_key_value_heads
        out = np.zeros((tokens, c.num_attention_heads, head))
        for h in range(c.num_attention_heads):
            scores = q[:, h] @ k[:, h // groups].T / math.sqrt(head)
            scores[np.triu_indices(tokens, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h // groups]
        return self.linear(f"{name}.o_proj", out.reshape(tokens, -1))

    def feed_forward(self, layer: int, x: np.ndarray, routes: list) -> np.ndarray:
        name = f"model.layers.{layer}.mlp"
        if not self.is_moe:
            gate, up = np.split(self.linear(f"{name}.gate_up_proj", x), 2, axis=-1)
            return self.linear(f"{name}.down_proj", silu(gate) * up)
        logits = x @ self.w[f"{name}.router.weight"].T
        out = np.zeros_like(x)
        for t, row in enumerate(logits):
            experts, gates = self.route(layer, t, row)
            routes.append((layer, t, experts, gates))
            self.router_logits[layer, t] = row
            self.contributions[layer, t] = []
            for expert, gate in zip(experts, gates, strict=True):
                a, b = np.split(self.w[f"{name}.experts.gate_up_proj"][expert] @ x[t], 2)
                added = gate * (self.w[f"{name}.experts.down_proj"][expert] @ (silu(a) * b))
                self.contributions[layer, t].append(float(np.sqrt((added**2).sum())))
                out[t] += added
            self.output_norms[layer, t] = float(np.sqrt((out[t] ** 2).sum()))
        return out

    def route(self, layer: int, token: int, row: np.ndarray) -> tuple[list[int], list[float]]:
        """The experts and gates of one token; tests put others in its place."""
        return sparsemixer(row, self.config.router_jitter_noise)

    def forward(self, ids: list[int], *, long: bool) -> tuple[np.ndarray, list]:
        """Logits [tokens, vocabulary] and the routes (layer, token, experts, gates)."""
        x = self.w["model.embed_tokens.weight"][ids]
        routes: list = []
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}"
            x = x + self.attention(
                f"{name}.self_attn", self.norm(f"{name}.input_layernorm", x), long=long
            )
            x = x + self.feed_forward(
                layer, self.norm(f"{name}.post_attention_layernorm", x), routes
            )
        return self.linear("lm_head", self.norm("model.norm", x)), routes
