"""Weights in 8 and 4 bits on the embedded model: bytes, speed, perplexity, answers and experts against float32.

Run: python benchmarks/quantization.py [--questions 60]. A layer of the real Phi-3.5-MoE's shapes is measured too, with
random numbers: --no-real-shapes leaves it out.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from tables import heading, table

import workbench as wb
from workbench.demo import CORPORA
from workbench.generation.loading import load_generator
from workbench.generation.phi import Generator
from workbench.generation.quantized import QuantizedExperts
from workbench.routing.agreement import agreement

SEED, TOKENS = 0, 512
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

    loss, count, spent, experts = 0.0, 0, 0.0, []
    for text in texts:
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=4096)
        ids = torch.tensor([prompt.token_ids[:TOKENS]])
        begun = time.perf_counter()
        with torch.inference_mode():
            logits = generator.model(ids, use_cache=False).logits[0, :-1].float()
        spent += time.perf_counter() - begun
        loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
        trace = generator.read(prompt)
        experts.append(trace.experts[trace.rows()])
    return float(np.exp(loss / count)), count / spent, experts


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

    from workbench.generation.quantized import quantize

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
    rows, base, exact = [], 0.0, None
    for name in ("bfloat16", "8bit", "4bit"):
        module: Any = plain
        if name != "bfloat16":
            with torch.device("meta"):
                module = QuantizedExperts(plain, name)
            for part in ("gate_up_proj", "down_proj"):
                held, scale = quantize(getattr(plain, part).data, name)
                setattr(module, part, torch.nn.Parameter(held, requires_grad=False))
                setattr(module, f"{part}_scale", torch.nn.Parameter(scale, requires_grad=False))
        with torch.inference_mode():
            module(states, chosen, gates)
            begun = time.perf_counter()
            out = module(states, chosen, gates).float()
        spent = time.perf_counter() - begun
        size = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**30
        if exact is None:
            exact, base = out, spent
        error = float((out - exact).norm() / exact.norm())
        rows.append(
            (
                name,
                f"{size:.2f}",
                f"{size / rows_first(rows, size):.3f}",
                f"{spent / base:.2f}",
                f"{error:.4f}",
            )
        )
    note = "One layer of experts in the shapes of Phi-3.5-MoE, random numbers N(0, 0.02), 64 tokens, CPU, one run:\n\n"
    return note + table(("held in", "GiB", "of bfloat16", "times its time", "relative error"), rows)


def rows_first(rows: list[tuple[str, ...]], size: float) -> float:
    return float(rows[0][1]) if rows else size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--no-real-shapes", action="store_true")
    given = parser.parse_args()
    corpus = wb.read_corpus(CORPORA)
    retriever = wb.build_retriever(corpus)
    lines = (CORPORA / "questions.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line)["question"] for line in lines][: given.questions]
    texts = [document.text[:3000] for document in corpus][:20]
    rows, layers, exact = [], [], None
    for name, options in CONDITIONS.items():
        generator = load_generator("pocket", device="cpu", **options)
        perplexity, speed, experts = reading(generator, texts)
        said = answers(generator, retriever, asked)
        if exact is None:
            exact = (said, experts, weight_mb(generator), speed)
        changed = sum(one != other for one, other in zip(said, exact[0], strict=True))
        kept = np.concatenate([agreement(a, b) for a, b in zip(exact[1], experts, strict=True)])
        rows.append(
            (
                name, f"{weight_mb(generator):.1f}", f"{weight_mb(generator) / exact[2]:.3f}", f"{perplexity:.2f}",
                f"{changed} of {len(said)}", f"{kept.mean():.1%}", f"{speed / exact[3]:.2f}",
            )
        )  # fmt: skip
        layers.append((name, *(f"{share:.1%}" for share in kept.mean(axis=0))))
    note = (
        "The embedded model; weights held in 8 or 4 bits are computed in float32. "
        f"{len(texts)} texts of corpora/ of up to {TOKENS} tokens for perplexity, experts and speed (tokens read a "
        f"second over float32's, one run); {len(asked)} questions of corpora/ with 5 passages: answers whose text or "
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
    if not given.no_real_shapes:
        print("\n" + real_shapes())


if __name__ == "__main__":
    main()
