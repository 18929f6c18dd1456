"""The model before its first step: a Phi-MoE whose attention already looks back, copies and matches.

From random weights nothing learned to copy within our budget. All of this is a starting point that training is free to
change; the residual stream is split into slices: four say which token this is, two which token came before, one which
mark ``[n]`` is nearest, one holds votes.

- layer 0: two heads look one token back (from the q/k biases and RoPE), one looks to the nearest mark;
- layer 1: two heads look at what followed this token earlier (induction); one does the same and brings the mark of
  that place as a vote, or looks at the opening token, which has no vote, when nothing matches;
- last layer: two induction heads say what follows, one averages the votes of the last dozens of tokens and says them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.pocket.thesaurus import lines_of
from workbench.pocket.tokenizer import CONTROL, END, ENDOFTEXT, FIRST_MARK, MARKS, PAD

if TYPE_CHECKING:
    import torch
    from transformers import PhimoeConfig, PhimoeForCausalLM

_EMBEDDING_STD = 0.1
_WEIGHT_STD = 0.03
_MSCALE = 1.243163121016122  # of Phi-3.5-MoE
_OPENING = [CONTROL.index("<|system|>"), CONTROL.index("<|user|>")]
# Gains, found by trial: of matching keys; of copying in the last layer and in layer 1; of what layer 0 carries; of
# votes when cast and when gathered; the pull of the opening token, and of nearness when votes are gathered.
_MATCH, _COPY, _HINT, _PREVIOUS = 2.0, 0.8, 0.1, 0.12
_VOTE, _GATHER, _SINK, _WINDOW = 0.6, 1.2, 1.0, 10.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a pocket model; the default is the one that ships."""

    vocabulary: int = 4096
    dim: int = 256
    layers: int = 5
    heads: int = 8
    key_value_heads: int = 4
    feed_forward: int = 96
    experts: int = 16


def pocket_config(shape: Shape) -> PhimoeConfig:
    """The configuration in the form of Phi-3.5-MoE: LongRoPE from 4,096 to 131,072 tokens, biases, top 2 of 16."""
    from transformers import PhimoeConfig

    half = shape.dim // shape.heads // 2
    return PhimoeConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.dim,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        num_local_experts=shape.experts,
        num_experts_per_tok=2,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        attention_bias=True,
        lm_head_bias=True,
        router_jitter_noise=0.1,
        input_jitter_noise=0.0,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=[END, ENDOFTEXT],
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e6,
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * half,
            "long_factor": [round(32.0 ** (i / max(1, half - 1)), 4) for i in range(half)],
            "short_mscale": _MSCALE,
            "long_mscale": _MSCALE,
        },
    )


def structured_model(shape: Shape, texts: list[str], *, seed: int = 0) -> PhimoeForCausalLM:
    """A float32 model with the heads described above; `texts` [vocabulary] are the tokens' own texts."""
    import torch
    from transformers import PhimoeForCausalLM

    torch.manual_seed(seed)
    model = PhimoeForCausalLM(pocket_config(shape))
    with torch.no_grad():
        _rescale(model, shape)
        _tie_words(model.model.embed_tokens.weight, texts)
        if shape.layers >= 3:
            _place_heads(model, shape, texts)
        for layer in model.model.layers:  # undo what mscale does to queries and keys
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.div_(_MSCALE)
                projection.bias.div_(_MSCALE)
        if shape.layers >= 3:
            _silence_sink(model, shape)
    return model


def _silence_sink(model: Any, shape: Shape) -> None:
    """Set the value bias of the voting heads so that what they bring from the opening token is nothing."""
    import torch

    opening = torch.tensor([[_OPENING[0]]])
    hidden = model.model(
        input_ids=opening, use_cache=False, output_hidden_states=True
    ).hidden_states[1]
    layer = model.model.layers[1]
    values = layer.self_attn.v_proj(layer.input_layernorm(hidden))[0, 0]
    vote = slice((shape.key_value_heads - 1) * shape.dim // shape.heads, None)
    layer.self_attn.v_proj.bias[vote] = -values[vote]


def _rescale(model: Any, shape: Shape) -> None:
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj")):
            weight.mul_(_WEIGHT_STD / 0.02 / math.sqrt(2 * shape.layers))
        elif weight.dim() >= 2 and "embed" not in name and "router" not in name:
            weight.mul_(_WEIGHT_STD / 0.02)
    model.model.embed_tokens.weight.mul_(_EMBEDDING_STD / 0.02)
    model.model.norm.weight.fill_(0.03 / _EMBEDDING_STD)


def _tie_words(embedding: torch.Tensor, texts: list[str]) -> None:
    """Tokens that differ in case or in a leading space start alike (cosine about 2/3), those of one idea a little."""
    import torch

    original = embedding.clone()
    ideas = torch.randn(1 + max(map(max, lines_of().values())), embedding.shape[1])
    first: dict[str, int] = {}
    for token, text in enumerate(texts):
        word = text.strip().lower()
        if token < FIRST_MARK + len(MARKS) or not word or text.startswith("<0x"):
            continue
        own = original[token]
        if first.setdefault(word, token) != token:
            own = 0.816 * original[first[word]] + 0.577 * own
        if lines := lines_of().get(word):
            meaning = ideas[list(lines)].sum(0) * _EMBEDDING_STD / len(lines) ** 0.5
            own = 0.816 * own + 0.577 * meaning
        embedding[token] = own


def _place_heads(model: Any, shape: Shape, texts: list[str]) -> None:
    import torch

    dim, heads, groups = shape.dim, shape.heads, shape.key_value_heads
    width = dim // heads
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0].T.contiguous()
    token = basis[: dim // 2].view(groups, width, dim)  # four slices that say which token this is
    before, voted, nearest = (
        basis[dim // 2 :].view(groups, width, dim).split([2, 1, 1])
    )  # and four for its context
    mark, sink = (
        before[1, 0],
        before[0, 0],
    )  # directions that say: I am a mark; look here if nothing matches
    embedding = model.model.embed_tokens.weight
    embedding.copy_(embedding @ token.flatten(0, 1).T @ token.flatten(0, 1) * 2**0.5)
    quiet = [
        i for i, text in enumerate(texts) if not any(c.isalnum() for c in text) or text in CONTROL
    ]
    embedding[quiet] -= (
        embedding[quiet] @ token[1].T @ token[1]
    )  # signs and line ends have no say in a vote
    embedding[_OPENING] -= embedding[_OPENING] @ token[3].T @ token[3]
    embedding[_OPENING] += 16 * _EMBEDDING_STD * sink
    embedding[FIRST_MARK : FIRST_MARK + len(MARKS)] += 16 * _EMBEDDING_STD * mark
    last = shape.layers - 1
    for index, layer in enumerate(model.model.layers):
        if index not in (0, 1, last):
            continue  # these layers are left to find their own use
        for head in range(heads):
            group = head // (heads // groups)
            place = _Place(
                layer.self_attn,
                slice(head * width, (head + 1) * width),
                slice(group * width, (group + 1) * width),
                head % (heads // groups) == 0,
            )
            if index == 0 and place.leads and group != 2:
                if group < 2:
                    place.look_back(token[group], before[group])
                else:
                    place.look_to_mark(token[3], nearest[0], mark)
            elif index and group < 2:
                place.match(
                    token[group],
                    before[group],
                    token[group],
                    token[group],
                    _HINT if index == 1 else _COPY,
                )
            elif index == 1 and group == 3:
                place.match(token[1], before[1], nearest[0], voted[0], _VOTE)
                place.rest_on(sink)
            elif index == last and group == 3:
                place.gather(voted[0], token[3])


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Rows of one head in the projections of its layer; of the heads that share keys, the first one `leads`."""

    attention: Any
    query: slice
    key: slice
    leads: bool

    def look_back(self, token: torch.Tensor, before: torch.Tensor) -> None:
        """Attend to the token before, and keep what it is."""
        import torch

        self._carry(token, before)
        q, k, width = self.query.start, self.key.start, self.query.stop - self.query.start
        fast = 6  # fast rotations tell one position from the next; the query is turned back by one
        angle = (1.0 / 1e6 ** (torch.arange(0, width, 2).float() / width))[:fast]
        self.attention.k_proj.bias[k : k + fast] = 6.0
        self.attention.q_proj.bias[q : q + fast] = 6.0 * torch.cos(angle)
        self.attention.q_proj.bias[q + width // 2 : q + width // 2 + fast] = 6.0 * torch.sin(-angle)

    def look_to_mark(self, token: torch.Tensor, nearest: torch.Tensor, mark: torch.Tensor) -> None:
        """Attend to the nearest mark, and keep which it is."""
        self._carry(token, nearest)
        self._prefer_recent(3, 7.0)
        self.attention.q_proj.bias[self.query.start + 10 : self.query.start + 16] = 3.0
        self.attention.k_proj.weight[self.key.start + 10 : self.key.start + 16] = 0.5 * mark

    def match(
        self,
        token: torch.Tensor,
        before: torch.Tensor,
        values: torch.Tensor,
        into: torch.Tensor,
        gain: float,
    ) -> None:
        """Attend to what followed this token before, and bring `values` from there."""
        q, k, attention = self.query, self.key, self.attention
        attention.q_proj.weight[q] = _MATCH * token + 0.3 * attention.q_proj.weight[q]
        if self.leads:
            attention.k_proj.weight[k] = _MATCH * before + 0.3 * attention.k_proj.weight[k]
            attention.v_proj.weight[k] = values
            attention.o_proj.weight[:, q] = gain * into.T

    def rest_on(self, sink: torch.Tensor) -> None:
        """Look at the sink when nothing matches well."""
        q, k, attention = self.query, self.key, self.attention
        attention.q_proj.bias[q.start + 10 : q.start + 16] = 1.5
        if self.leads:
            attention.k_proj.weight[k.start + 10 : k.start + 16] += _SINK * sink

    def gather(self, votes: torch.Tensor, out: torch.Tensor) -> None:
        """Average the votes of the last few dozen tokens, and say them."""
        q, k, attention = self.query, self.key, self.attention
        attention.q_proj.weight[q] *= 0.1
        if self.leads:
            attention.k_proj.weight[k] *= 0.1
            attention.v_proj.weight[k] = votes
            self._prefer_recent(4, _WINDOW)
            attention.o_proj.weight[:, q] = _GATHER * out.T

    def _prefer_recent(self, first: int, strength: float) -> None:
        for bias, rows in (
            (self.attention.q_proj.bias, self.query),
            (self.attention.k_proj.bias, self.key),
        ):
            bias[rows.start + first : rows.start + first + 4] = strength

    def _carry(self, token: torch.Tensor, into: torch.Tensor) -> None:
        q, k, attention = self.query, self.key, self.attention
        attention.q_proj.weight[q] *= 0.2
        attention.k_proj.weight[k] *= 0.2
        attention.v_proj.weight[k] = token
        attention.o_proj.weight[:, q] = _PREVIOUS * into.T
