"""Weights in 8 and 4 bits on the embedded model: bytes, speed, perplexity, answers and experts against float32.

Run: python benchmarks/quantization.py [--questions 40] [--data PATH]. PATH is nq-open-oracle.jsonl.gz, whose gold
passages are read too: text that nobody made for this. Layers of the real Phi-3.5's shapes are measured as well, with
random numbers: --no-real-shapes leaves them out. torchao is a row of theirs where it is installed.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import heading, table

import workbench as wb
from workbench.demo import CORPORA
from workbench.generation.known_shapes import KNOWN_SHAPES, MINI
from workbench.generation.loading import load_generator
from workbench.generation.phi import Generator
from workbench.generation.quantized import QuantizedExperts, QuantizedLinear, quantize
from workbench.routing.agreement import agreement

SEED, TOKENS = 0, 512
SHAPES_HEADER = ("held in", "GiB", "of bfloat16", "times its time", "relative error")
CONDITIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"dtype": "float32", "quantization": "8bit"},
    "4bit": {"dtype": "float32", "quantization": "4bit"},
}


def weight_mb(generator: Generator) -> float:
    return sum(p.numel() * p.element_size() for p in generator.model.parameters()) / 1e6


def reading(generator: Generator, texts: list[str]) -> tuple[float, float, list[np.ndarray]]:
    """Perplexity, tokens a second, and the experts of every text: [tokens, layers, k] each."""
    from workbench.generation.prompts import plain_prompt

    loss, count, speeds, experts = 0.0, 0, [], []
    for text in texts:
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=4096)
        ids = torch.tensor([prompt.token_ids[:TOKENS]])
        begun = time.perf_counter()
        with torch.inference_mode():
            logits = generator.model(ids, use_cache=False).logits[0, :-1].float()
        speeds.append(ids.shape[1] / (time.perf_counter() - begun))
        loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
        trace = generator.read(prompt)
        experts.append(trace.experts[trace.rows()])
    return float(np.exp(loss / count)), statistics.median(speeds), experts


def answers(
    generator: Generator, retriever: Any, questions: list[str]
) -> list[tuple[str, tuple[Any, ...]]]:
    found = []
    for question in questions:
        answer = wb.ask(question, retriever=retriever, generator=generator, k=5)
        found.append(
            (answer.text, tuple((c.document_id, c.start, c.stop) for c in answer.citations))
        )
    return found


def real_shapes() -> str:
    """One layer's experts of Phi-3.5-MoE (16 × 3 × 6,400 × 4,096) in bfloat16 and held in fewer bits."""
    from transformers import PhimoeConfig
    from transformers.models.phimoe.modeling_phimoe import PhimoeExperts

    config = PhimoeConfig(attention_bias=True, lm_head_bias=True)
    config._experts_implementation = "eager"
    with torch.device("meta"):
        plain = PhimoeExperts(config)
    plain = plain.to_empty(device="cpu").to(torch.bfloat16)
    draws = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in plain.parameters():
            for part in parameter:
                part.copy_(torch.randn(part.shape, generator=draws) * 0.02)
    states = torch.randn(64, config.hidden_size, generator=draws).bfloat16()
    chosen = torch.rand(64, 16, generator=draws).topk(2).indices
    gates = torch.full((64, 2), 0.7).bfloat16()

    def held_in(name: str) -> Any:
        if name == "bfloat16":
            return plain
        with torch.device("meta"):
            module = QuantizedExperts(plain, name)
        for part in ("gate_up_proj", "down_proj"):
            fill(module, part, getattr(plain, part).data, name)
        return module

    rows = compared(
        {name: held_in for name in ("bfloat16", "8bit", "4bit")}, (states, chosen, gates)
    )
    note = "One layer of experts in the shapes of Phi-3.5-MoE, random numbers N(0, 0.02), 64 tokens, CPU, medians "
    note += "of 5:\n\n"
    return note + table(SHAPES_HEADER, rows)


def real_mini() -> str:
    """A decoder layer in the shapes of Phi-3.5-mini, held by us and by torchao."""
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RotaryEmbedding

    shape = KNOWN_SHAPES[MINI]
    config = Phi3Config(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        pad_token_id=0,
    )
    config._attn_implementation = "sdpa"
    draws = torch.Generator().manual_seed(SEED)
    layer = Phi3DecoderLayer(config, 0).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.02)
    states = torch.randn(1, 64, config.hidden_size, generator=draws).bfloat16()
    angles = Phi3RotaryEmbedding(config)(states, torch.arange(64)[None])

    def ours(name: str) -> Any:
        made = copy.deepcopy(layer)
        for own, module in list(made.named_modules()):
            if name != "bfloat16" and type(module) is torch.nn.Linear:
                linear = QuantizedLinear(module, name)
                fill(linear, "weight", module.weight.data, name)
                made.set_submodule(own, linear)
        return made

    def torchao(name: str) -> Any:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        made = copy.deepcopy(layer)
        quantize_(made, Int8WeightOnlyConfig())
        return made

    makers: dict[str, Callable[[str], Any]] = {name: ours for name in ("bfloat16", "8bit", "4bit")}
    if importlib.util.find_spec("torchao"):
        makers["torchao, 8 bits"] = torchao

    class Bound(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.inner(given, position_embeddings=angles, attention_mask=None)

    rows = compared({name: lambda n, m=m: Bound(m(n)) for name, m in makers.items()}, (states,))
    note = "One decoder layer in the shapes of Phi-3.5-mini, the same way:\n\n"
    return note + table(SHAPES_HEADER, rows)


def fill(module: Any, part: str, weight: torch.Tensor, name: Any) -> None:
    held, scale = quantize(weight, name)
    setattr(module, part, torch.nn.Parameter(held, requires_grad=False))
    setattr(module, f"{part}_scale", torch.nn.Parameter(scale, requires_grad=False))


def compared(makers: dict[str, Callable[[str], Any]], given: tuple[Any, ...]) -> list[Any]:
    """Bytes, time and error of each, against the first."""
    rows: list[Any] = []
    size0, time0, exact = 0.0, 0.0, torch.zeros(1)
    for name, make in makers.items():
        module = make(name)
        times = []
        with torch.inference_mode():
            for _ in range(6):
                begun = time.perf_counter()
                out = module(*given)
                times.append(time.perf_counter() - begun)
        out = (out[0] if isinstance(out, tuple) else out).float()
        spent, size = statistics.median(times[1:]), held_bytes(module) / 2**30
        if not rows:
            exact, size0, time0 = out, size, spent
        error = float((out - exact).norm() / exact.norm())
        rows.append(
            (name, f"{size:.3f}", f"{size / size0:.3f}", f"{spent / time0:.2f}", f"{error:.4f}")
        )
    return rows


def held_bytes(module: Any) -> int:
    """Of all parameters; those of torchao are made of several tensors."""
    found = 0
    for parameter in module.parameters():
        inner = getattr(parameter, "__tensor_flatten__", None)
        parts = [getattr(parameter, name) for name in inner()[0]] if inner else [parameter]
        found += sum(part.numel() * part.element_size() for part in parts)
    return found


def gold_passages(path: Path, count: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [
            json.loads(line)["ctxs"][0]["text"]
            for line, _ in zip(lines, range(count), strict=False)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--data", type=Path, help="nq-open-oracle.jsonl.gz")
    parser.add_argument("--no-real-shapes", action="store_true")
    given = parser.parse_args()
    corpus = wb.read_corpus(CORPORA)
    retriever = wb.build_retriever(corpus)
    lines = (CORPORA / "questions.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line)["question"] for line in lines][: given.questions]
    texts = [document.text[:3000] for document in corpus][:20]
    real = gold_passages(given.data, 60) if given.data else []
    rows, layers, real_rows, exact = [], [], [], None
    for name, options in CONDITIONS.items():
        generator = load_generator("pocket", device="cpu", **options)
        perplexity, speed, experts = reading(generator, texts)
        real_perplexity, _, real_experts = reading(generator, real) if real else (0.0, 0.0, [])
        said = answers(generator, retriever, asked)
        if exact is None:
            exact = (said, experts, weight_mb(generator), speed, real_experts)
        changed = sum(one != other for one, other in zip(said, exact[0], strict=True))
        kept = np.concatenate([agreement(a, b) for a, b in zip(exact[1], experts, strict=True)])
        rows.append(
            (
                name, f"{weight_mb(generator):.1f}", f"{weight_mb(generator) / exact[2]:.3f}", f"{perplexity:.2f}",
                f"{changed} of {len(said)}", f"{kept.mean():.1%}", f"{speed / exact[3]:.2f}",
            )
        )  # fmt: skip
        if real:
            same = np.concatenate(
                [agreement(a, b) for a, b in zip(exact[4], real_experts, strict=True)]
            )
            real_rows.append((name, f"{real_perplexity:.1f}", f"{same.mean():.1%}"))
        layers.append((name, *(f"{share:.1%}" for share in kept.mean(axis=0))))
    note = (
        "The embedded model; weights held in 8 or 4 bits are computed in float32. "
        f"{len(texts)} texts of corpora/ of up to {TOKENS} tokens for perplexity, experts and speed (tokens read a "
        f"second over float32's, medians); {len(asked)} questions of corpora/ with 5 passages: answers whose text or "
        "citations are others. Embeddings and head stay as they are."
    )
    print(heading("Quantization", packages=("torch", "transformers"), seed=SEED, note=note))
    header = (
        "weights",
        "MB",
        "of float32",
        "perplexity",
        "other answers",
        "experts kept",
        "times the speed",
    )
    print("\n" + table(header, rows))
    print(
        "\nExperts kept by layer:\n\n"
        + table(("weights", *map(str, range(len(layers[0]) - 1))), layers)
    )
    if real:
        print(
            f"\n{len(real)} gold passages of Natural Questions, on which the embedded model is poor:\n\n"
            + table(("weights", "perplexity", "experts kept"), real_rows)
        )
    if not given.no_real_shapes:
        print("\n" + real_shapes())
        print("\n" + real_mini())


if __name__ == "__main__":
    main()
