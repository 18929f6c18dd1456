"""Compressing, verifying and decompressing a checkpoint, and loading it plain and compressed: time, size and memory.

Run: python benchmarks/zipnn_files.py [--mib 512]. ZipNN's own coder is a row where it is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tables import heading, table

from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.finding import pocket_folder
from workbench.checkpoints.folders import (
    compress_checkpoint,
    decompress_checkpoint,
    verify_checkpoint,
)
from workbench.store import sha256_file

SEED, ROUNDS = 0, 3
LOAD = (
    "import time, sys; from workbench.generation.loading import load_generator; import torch, transformers\n"
    "from transformers import AutoModelForCausalLM\n"
    "begun = time.perf_counter(); load_generator(sys.argv[1], device='cpu'); print(time.perf_counter() - begun)"
)


def make_file(path: Path, mib: int) -> None:
    """One safetensors file of bfloat16 numbers drawn from N(0, 0.02)."""
    import torch
    from safetensors.torch import save_file

    draws = torch.Generator().manual_seed(SEED)
    rows = 64 << 20 >> 14  # 64 MiB of rows of 8,192 numbers
    held = {
        f"layer.{n}": (torch.randn(rows, 8192, generator=draws) * 0.02).bfloat16()
        for n in range(mib // 64)
    }
    save_file(held, path)


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def load_seconds(folder: Path, cache: Path) -> float:
    """Of ``load_generator`` in a fresh process, imports left out."""
    environment = {**os.environ, "WORKBENCH_CACHE": str(cache)}
    said = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(said.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        plain = home / "model.safetensors"
        make_file(plain, given.mib)
        print(
            heading(
                "ZipNN files",
                packages=("numpy", "zstandard", "safetensors"),
                seed=SEED,
                note=files_note(given.mib),
            )
        )
        print(
            "\n" + table(("what", "MB/s", "times a copy", "size"), file_rows(plain, home / "out"))
        )
        print("\n" + load_table(home))


def files_note(mib: int) -> str:
    return (
        f"{mib} MiB of bfloat16 drawn from N(0, 0.02), for which the entropy of the exponents gives 0.659. Compressing "
        "reads everything back and compares it; a copy is compared by sha256 too. Decompressing runs in a process of "
        "its own; limit is two chunks and the file. One run each."
    )


def file_rows(plain: Path, out: Path) -> list[tuple[str, ...]]:
    size = plain.stat().st_size

    def copy() -> None:
        shutil.copyfile(plain, plain.with_name("copy"))
        assert sha256_file(plain) == sha256_file(plain.with_name("copy"))

    base = timed(copy)
    rows: list[tuple[str, ...]] = [row("copy and two sha256", base, base, size, "1.000")]
    spent = timed(lambda: compress_checkpoint(plain, out))
    ratio = (out / "model.safetensors.znn").stat().st_size / size
    rows.append(row("compress (and read back)", spent, base, size, f"{ratio:.4f}"))
    packed = out / "model.safetensors.znn"
    rows.append(row("verify", timed(lambda: verify_checkpoint(packed)), base, size))
    spent = timed(lambda: decompress_checkpoint(packed, out.with_name("again")))
    rows.append(row("decompress", spent, base, size))
    peak = peak_mib(packed, out.with_name("once more"))
    limit = f"limit {2 * 0.25 + size / 2**20:.1f}"
    rows.append(("memory of the process that decompresses, MiB", f"{peak:.0f}", "", limit))
    return rows + peer_rows(plain, base)


def peak_mib(source: Path, target: Path) -> float:
    """Most memory of the process that decompresses a file, libraries included; started by one that holds nothing."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = [
        sys.executable,
        "-m",
        "workbench.checkpoints.decoding",
        str(source),
        str(target),
        "900",
    ]
    command.append(str(plain_size(source)))
    said = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    return float(said.stdout)


def row(name: str, spent: float, base: float, size: int, ratio: str = "") -> tuple[str, ...]:
    return (name, f"{size / 1e6 / spent:.0f}", f"{spent / base:.1f}", ratio)


def peer_rows(plain: Path, base: float) -> list[tuple[str, ...]]:
    """Coders in memory: Zstandard's level 3, and ZipNN itself; nothing is read, written or compared."""
    import zstandard

    data = plain.read_bytes()
    rows = []
    begun = time.perf_counter()
    packed = zstandard.ZstdCompressor(level=3).compress(data)
    spent = time.perf_counter() - begun
    rows.append(
        row(
            "Zstandard 3, compress in memory",
            spent,
            base,
            len(data),
            f"{len(packed) / len(data):.4f}",
        )
    )
    try:
        from zipnn import ZipNN
    except ImportError:
        return rows
    begun = time.perf_counter()
    packed = bytes(
        ZipNN(method="huffman", bytearray_dtype="bfloat16", is_streaming=True).compress(
            bytearray(data)
        )
    )
    spent = time.perf_counter() - begun
    rows.append(
        row(
            "ZipNN 0.5.4, compress in memory",
            spent,
            base,
            len(data),
            f"{len(packed) / len(data):.4f}",
        )
    )
    begun = time.perf_counter()
    assert bytes(ZipNN(is_streaming=True).decompress(packed)) == data
    rows.append(
        row("ZipNN 0.5.4, decompress in memory", time.perf_counter() - begun, base, len(data))
    )
    return rows


def load_table(home: Path) -> str:
    """The embedded model from its folder, from the compressed one for the first time, and again."""
    source, packed = home / "pocket", home / "pocket-ZipNN"
    shutil.copytree(pocket_folder(), source)
    report = compress_checkpoint(source)
    seconds: dict[str, list[float]] = {
        "plain": [],
        "compressed, first time": [],
        "compressed, again": [],
    }
    for _ in range(ROUNDS):
        cache = home / f"cache-{time.perf_counter_ns()}"
        for name, folder in (
            ("plain", source),
            ("compressed, first time", packed),
            ("compressed, again", packed),
        ):
            seconds[name].append(load_seconds(folder, cache))
    base = float(np.median(seconds["plain"]))
    rows = [
        (name, f"{np.median(s):.2f}", f"{np.median(s) / base:.2f}") for name, s in seconds.items()
    ]
    size = sum(file.plain_bytes for file in report.files) / 1e6
    title = f"Loading the embedded model ({size:.0f} MB, compressed to {report.ratio:.4f}), median of {ROUNDS}:\n\n"
    return title + table(("checkpoint", "seconds", "times plain"), rows)


if __name__ == "__main__":
    main()
