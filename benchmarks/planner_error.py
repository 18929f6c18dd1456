"""How far the memory plan is from the memory that is really used: prompts that fill a context, each in a new process.

Run: OMP_NUM_THREADS=1 python benchmarks/planner_error.py [--device cuda] [--repeats N] [--contexts 2048 8192]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tables import heading, table

SEED, NEW_TOKENS, WINDOW, LONGEST = 7, 8, 4096, 16384
WORDS = [f"word{i}" for i in range(500)]
CONTROL = ["<unk>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>", "<|system|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NOTE = (
    "Random weights; a prompt of the context less {new} tokens, read and answered by `Generator.generate` in a child "
    "process. CPU: largest RssAnon, sampled every 2 ms, less that of the process after its imports and an answer of "
    "the pocket model, plus the parameters that stay mapped from the weight file. GPU: "
    "`torch.cuda.max_memory_allocated`. Median of {n} processes. Error = planned / measured − 1; positive: the plan is "
    'the larger. "No heap" is the same with MALLOC_MMAP_THRESHOLD_=65536, which gives every large block back at once: '
    "it checks what the plan derives from shapes, without the share of freed heap blocks, which was set from such "
    "measurements."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument(
        "--child", nargs=6, metavar=("FOLDER", "CONTEXT", "DTYPE", "KV", "READ", "BITS")
    )
    arguments = parser.parse_args()
    if arguments.child:
        folder, context, *case = arguments.child
        print(json.dumps(measure(folder, int(context), *case, device=arguments.device)))
        return
    is_cpu = arguments.device == "cpu"
    own = "float32" if is_cpu else "bfloat16"
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for kind in ("phi3", "phimoe"):
            cases = [
                (context, own, "model", read, "all")
                for context in arguments.contexts
                for read in ("one pass", "chunks")
            ]
            cases += [(4096, own, "model", "chunks", bits) for bits in ("8bit", "4bit")]
            cases.append((4096, own, "int8", "chunks", "all"))
            if is_cpu:
                cases.append((4096, "bfloat16", "model", "chunks", "all"))
            for context, dtype, kv, read, bits in cases:
                folder = Path(place) / f"{kind}-{dtype}"
                if not folder.is_dir():
                    make_checkpoint(folder, kind, dtype)
                rows.append(compare(folder, kind, context, (dtype, kv, read, bits), arguments))
                print(rows[-1], file=sys.stderr)
    title = f"The memory plan against the memory used ({arguments.device})"
    note = NOTE.format(n=arguments.repeats, new=NEW_TOKENS)
    print(heading(title, packages=("torch", "transformers"), seed=SEED, note=note))
    print()
    header = [
        "model, dtype, cache",
        "context",
        "read in",
        "weights",
        "cache",
        "workspace planned / measured",
    ]
    header += ["total planned / measured (MiB)", "error of the total", "no heap"]
    print(table(header, rows))


def compare(
    folder: Path,
    kind: str,
    context: int,
    case: tuple[str, str, str, str],
    arguments: argparse.Namespace,
) -> list[str]:
    """One row: the plan, and the median of the measured peaks."""
    import workbench as wb

    dtype, kv, read, bits = case
    plan = wb.plan_memory(
        folder,
        context=context,
        dtype=dtype,
        cache="int8" if kv == "int8" else "reserved",
        quantization=None if bits == "all" else bits,
        device=arguments.device,
        device_bytes=1 << 40,
    )
    command = [sys.executable, __file__, "--device", arguments.device]
    command += ["--child", str(folder), str(context), *case]

    def peak(**environment: str) -> int:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return int(json.loads(done.stdout)["peak"])

    measured = statistics.median(peak() for _ in range(arguments.repeats))
    planned = plan.total_bytes if read == "chunks" else plan.peak_bytes
    exact = "–"
    if arguments.device == "cpu" and read == "chunks":
        heap = sum(part.bytes for part in plan.workspace if "heap" in part.name)
        exact = f"{(planned - heap) / peak(MALLOC_MMAP_THRESHOLD_='65536') - 1:+.1%}"
    mib = 1 << 20
    workspace = measured - plan.weight_bytes - plan.cache_bytes
    return [
        f"{kind}, {dtype}, {kv}" + (f", {bits} weights" if bits != "all" else ""),
        f"{context:,}",
        read,
        f"{plan.weight_bytes / mib:.0f}",
        f"{plan.cache_bytes / mib:.0f}",
        f"{(planned - plan.weight_bytes - plan.cache_bytes) / mib:.0f} / {workspace / mib:.0f}",
        f"{planned / mib:.0f} / {measured / mib:.0f}",
        f"{planned / measured - 1:+.1%}",
        exact,
    ]


def measure(
    folder: str, context: int, dtype: str, kv: str, read: str, bits: str, *, device: str
) -> dict[str, int]:
    """The peak of one prompt that fills the context, in this process."""
    import torch
    from transformers import Phi3ForCausalLM, PhimoeForCausalLM  # noqa: F401  imported before the baseline

    import workbench as wb
    from workbench.generation.memory import prefill_tokens
    from workbench.generation.prompts import plain_prompt

    decoding = wb.Decoding(
        cache="int8" if kv == "int8" else "reserved",
        prefill_tokens=prefill_tokens(device) if read == "chunks" else None,
    )
    pocket = wb.load_generator("pocket", device=device)
    warm = plain_prompt("One two.", tokenizer=pocket.tokenizer, budget_tokens=100)
    pocket.generate(warm, max_new_tokens=2, decoding=decoding)
    del pocket, warm
    gc.collect()
    if device == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with Peak(device) as peak:
        held = None if bits == "all" else bits
        generator = wb.load_generator(
            folder, context=context, dtype=dtype, device=device, quantization=held
        )
        text = " ".join(WORDS[i % len(WORDS)] for i in range(context))
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=2 * context)
        over = len(prompt.token_ids) - (context - NEW_TOKENS)
        text = " ".join(text.split(" ")[:-over])
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=context)
        generator.generate(prompt, max_new_tokens=NEW_TOKENS, decoding=decoding)
    mapped = mapped_bytes(generator.model) if device == "cpu" else 0
    return {"peak": peak.bytes + mapped}


class Peak:
    """The largest memory while the block runs, in bytes above that at its start."""

    def __init__(self, device: str) -> None:
        self._is_cpu = device == "cpu"
        self._end = threading.Event()
        self.bytes = 0

    def __enter__(self) -> Peak:
        self._start = anonymous_bytes()
        self._thread = threading.Thread(target=self._watch)
        if self._is_cpu:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        if self._is_cpu:
            self._thread.join()
        else:
            import torch

            self.bytes = torch.cuda.max_memory_allocated()

    def _watch(self) -> None:
        while not self._end.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes() - self._start)


def anonymous_bytes() -> int:
    """RssAnon of this process: what is its own and cannot be read again from a file."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel tells no RssAnon")


def mapped_bytes(model: Any) -> int:
    """Parameters that lie in the mapping of a weight file, by their addresses."""
    spans = []
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        if line.endswith(".safetensors"):
            spans.append(tuple(int(end, 16) for end in line.split()[0].split("-")))
    return sum(p.nbytes for p in model.parameters() if any(a <= p.data_ptr() < b for a, b in spans))


def make_checkpoint(folder: Path, kind: str, dtype: str = "float32") -> Path:
    """A Phi of medium size with random weights: about 450 MiB (phi3) or 580 MiB (phimoe) in float32."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Phi3Config,
        Phi3ForCausalLM,
        PhimoeConfig,
        PhimoeForCausalLM,
        PreTrainedTokenizerFast,
    )

    vocabulary = {token: i for i, token in enumerate([*CONTROL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|endoftext|>",
        additional_special_tokens=CONTROL[2:],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 32,
        "long_factor": [1.0 + 0.1 * i for i in range(32)],
        "original_max_position_embeddings": WINDOW,
    }
    common: dict[str, Any] = {
        "vocab_size": 32064,
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "max_position_embeddings": LONGEST,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    torch.manual_seed(SEED)
    if kind == "phi3":
        config: Any = Phi3Config(
            **common,
            intermediate_size=2816,
            num_key_value_heads=16,
            original_max_position_embeddings=WINDOW,
            rope_parameters=rope,
        )
        model: Any = Phi3ForCausalLM(config)
    else:
        config = PhimoeConfig(
            **common,
            intermediate_size=384,
            num_key_value_heads=4,
            num_local_experts=16,
            attention_bias=True,
            lm_head_bias=True,
            rope_parameters={**rope, "short_mscale": 1.0, "long_mscale": 1.0},
        )
        model = PhimoeForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
