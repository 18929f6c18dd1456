"""What real versions of ZipNN wrote of numbers made here: kept in zipnn_written.npz, so that no test needs ZipNN.

ZipNN 0.5.4 has no wheel and its decoder may crash, so it is no dependency. To make the file again, install a version
beside this project and run, for each: ``python tests/checkpoints/zipnn_written.py VERSION``; its streams are added.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
DTYPES = ("bfloat16", "float32", "float16")
FORMS = ("whole", "streaming", "tensor")
SIZES = (3, 700, 140_001)


def numbers(dtype: str, size: int) -> bytes:
    """Bytes of `size` numbers of few values, so that little is kept; every plane has a Huffman code."""
    values, shares = [0.011, -0.02, 0.5, -3.25, 17.0], [0.96, 0.02, 0.01, 0.007, 0.003]
    drawn = np.random.default_rng(size).choice(values, size, p=shares)
    if dtype == "bfloat16":
        return (drawn.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return drawn.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()


def cases() -> list[tuple[str, str, int, bytes]]:
    """Dtype, form, size and plain bytes of every stream; three odd bytes follow the numbers of a file."""
    found = []
    for dtype, form, size in itertools.product(DTYPES, FORMS, SIZES):
        tail = b"" if form == "tensor" else b"end"
        found.append((dtype, form, size, numbers(dtype, size) + tail))
    return found


def main(version: str) -> None:
    """Add what the installed ZipNN writes."""
    import torch
    from zipnn import ZipNN

    held = dict(np.load(FILE)) if FILE.exists() else {}
    for dtype, form, size, plain in cases():
        if form == "tensor":
            given = torch.frombuffer(bytearray(plain), dtype=getattr(torch, dtype)).reshape(1, size)
            compressor = ZipNN(input_format="torch", bytearray_dtype=getattr(torch, dtype))
        else:
            given = bytearray(plain)
            compressor = ZipNN(bytearray_dtype=dtype, is_streaming=form == "streaming")
        written = np.frombuffer(bytes(compressor.compress(given)), np.uint8)
        held[f"{version} {dtype} {form} {size}"] = written
    np.savez_compressed(FILE, **held)


if __name__ == "__main__":
    main(sys.argv[1])
