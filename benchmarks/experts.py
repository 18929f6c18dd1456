"""transformers' implementations of the experts' matrix products, by how many tokens a pass holds.

Run: python benchmarks/experts.py [--generator G] [--hidden 1024 --intermediate 1600]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from tables import heading, table
from transformers import PhimoeConfig, PhimoeForCausalLM

import workbench as wb

NAMES, TOKENS, REPEATS = ("eager", "grouped_mm", "batched_mm"), (1, 4, 16, 512), 9
LIMIT_BYTES = 4 << 30  # batched_mm gathers the weights of every token's experts


def shaped(hidden: int, intermediate: int, dtype: torch.dtype, device: str) -> Any:
    """Two layers with random weights of another shape."""
    torch.manual_seed(0)
    config = PhimoeConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, num_local_experts=16, attention_bias=True, lm_head_bias=True,
    )  # fmt: skip
    return PhimoeForCausalLM(config).to(device=device, dtype=dtype).eval()


def measure(model: Any, vocabulary: int) -> list[list[object]]:
    """Milliseconds a layer of one pass over tokens without history, for each implementation."""
    rows: list[list[object]] = []
    experts = model.model.layers[0].mlp.experts
    token_bytes = 2 * sum(p[0].numel() * p.element_size() for p in experts.parameters())
    for tokens in TOKENS:
        ids = torch.randint(
            10, vocabulary, (tokens, 1), device=model.device
        )  # a batch of decode steps
        if tokens == 512:
            ids = ids.T.contiguous()  # a chunk of a prompt
        seconds: dict[str, list[float]] = {}
        for repeat in range(REPEATS + 1):
            for name in NAMES:
                if name == "batched_mm" and tokens * token_bytes > LIMIT_BYTES:
                    continue
                model.set_experts_implementation(name)
                started = time.perf_counter()
                with torch.inference_mode():
                    model(ids, use_cache=False)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
        layers = model.config.num_hidden_layers
        best = min(seconds, key=lambda name: statistics.median(seconds[name]))
        rows.append(
            [
                tokens,
                *(
                    f"{1000 * statistics.median(seconds[name]) / layers:.2f}"
                    if name in seconds
                    else "too much memory"
                    for name in NAMES
                ),
                best,
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="pocket")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=1600)
    arguments = parser.parse_args()
    generator = wb.load_generator(arguments.generator)
    models = {
        f"{generator.name}, hidden {generator.model.config.hidden_size}, {generator.model.dtype}": generator.model,
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = f"random weights, hidden {arguments.hidden}, {dtype}"
        models[name] = shaped(arguments.hidden, arguments.intermediate, dtype, generator.device)
    rows = []
    for name, model in models.items():
        rows += [[name, *row] for row in measure(model, min(500, model.config.vocab_size))]
    print(
        heading(
            "Implementations of the experts",
            packages=("torch", "transformers"),
            seed=0,
            note=f"Milliseconds a layer (attention included) of one pass on {generator.device}; 1, 4 and 16 tokens are "
            f"decode steps of so many rows, 512 a chunk of a prompt; median of {REPEATS}, interleaved.",
        )
    )
    print()
    print(table(["model", "tokens", *NAMES, "fastest"], rows))


if __name__ == "__main__":
    main()
