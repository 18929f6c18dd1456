"""A compressed weight file ↔ the safetensors file it was made of, a chunk at a time. Loads no weights.

ZipNN has two forms on disk. ``model.safetensors.znn`` is the file itself as one stream of bytes; decompressed it is the
same file, byte for byte. ``model.znn.safetensors`` is a safetensors file whose compressed tensors are bytes and whose
metadata say what they were; decompressed, every tensor is the same bit for bit, under a header written anew.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from workbench.checkpoints.machine import machine_fault
from workbench.checkpoints.weight_files import BYTES_SUFFIX, tensor_names
from workbench.checkpoints.zipnn import (
    STREAM_LOG,
    StreamHeader,
    damaged,
    decode_stream,
    encode_stream,
    read_header,
)
from workbench.errors import CheckpointError

MOST_BYTES = 1 << 40  # a weight file of a terabyte is no checkpoint's
_VECTORS = "znn_compressed_vectors"  # ZipNN's key in the metadata
_HEADER_READ = 256
_MEAN_BYTES = 1 << 14  # of the streams of a file, which ZipNN writes of 1 MiB each
_FREE_STREAMS = 1_000  # headers of which are read at once, however short they are
_DTYPES = {
    "bfloat16": "BF16",
    "float32": "F32",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_BYTES = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True)
class _Stream:
    at: int
    header: StreamHeader


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    size: int
    header: StreamHeader | None  # None: it was left as it is

    @property
    def plain_bytes(self) -> int:
        return self.size if self.header is None else self.header.plain_bytes


def plain_size(path: Path) -> int:
    """Bytes of the decompressed file, by the headers alone, which are checked.

    Raises ``CheckpointError`` for a file whose headers cannot be, such as one that claims a terabyte, and
    ``MachineFault`` for one that cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.name.endswith(BYTES_SUFFIX):
                return sum(stream.header.plain_bytes for stream in _streams(file, path))
            header, tensors = _tensors(file, path)
    except OSError as error:
        raise machine_fault(error, path) from error
    return 8 + len(header) + sum(tensor.plain_bytes for tensor in tensors)


def plain_bytes(path: Path) -> Iterator[bytes]:
    """The decompressed file, in parts of 1 MiB at most (a tensor that was not compressed too)."""
    with path.open("rb") as file:
        if path.name.endswith(BYTES_SUFFIX):
            for stream in _streams(file, path):
                yield from decode_stream(file, stream.at, stream.header, str(path))
            return
        header, tensors = _tensors(file, path)
        yield struct.pack("<Q", len(header)) + header
        for tensor in tensors:
            if tensor.header is not None:
                yield from decode_stream(file, tensor.at, tensor.header, f"{path}: {tensor.name}")
                continue
            file.seek(tensor.at)
            for start in range(0, tensor.size, 1 << 20):
                yield file.read(min(1 << 20, tensor.size - start))


def compressed_bytes(path: Path, kind: str) -> Iterator[tuple[int, bytes]]:
    """A safetensors file as ZipNN's streams of 1 MiB each: for each how many plain bytes it holds, and itself.

    `kind` is the dtype of most of its numbers; any other is kept as well, only less short.
    """
    with path.open("rb") as file:
        while part := file.read(1 << STREAM_LOG):
            yield len(part), encode_stream(part, kind, is_streaming=True)


def main_dtype(path: Path) -> str:
    """The dtype, in ZipNN's words, that most bytes of a safetensors file are of; bfloat16 if ZipNN knows none of them.

    Raises ``CheckpointError`` for a file that is no whole safetensors file.
    """
    tensor_names(path)
    with path.open("rb") as file:
        header = _safetensors_header(file)
    sizes: dict[str, int] = {}
    for name, facts in header.items():
        if name != "__metadata__":
            start, stop = facts["data_offsets"]
            sizes[facts["dtype"]] = sizes.get(facts["dtype"], 0) + stop - start
    known = {word: sizes.get(dtype, 0) for word, dtype in _DTYPES.items()}
    return max(known, key=lambda word: known[word])


def _streams(file: BinaryIO, path: Path) -> Iterator[_Stream]:
    """Every stream of a byte-stream file, found by the headers; together they fill it."""
    size, at, where = os.fstat(file.fileno()).st_size, 0, str(path)
    total = count = 0
    while at < size:
        file.seek(at)
        header = read_header(file.read(_HEADER_READ), where)
        if header.shape is not None:
            raise damaged(where, "it holds a tensor instead of a file")
        if at + header.whole_bytes > size:
            raise damaged(where, "it ends too early")
        total, count = total + header.plain_bytes, count + 1
        if total > MOST_BYTES:
            raise damaged(where, f"it claims more than {MOST_BYTES >> 40} TiB")
        _check_mean(count, at, where)
        yield _Stream(at, header)
        at += header.whole_bytes
        if not header.is_streaming and (count > 1 or at != size):
            raise damaged(where, "something follows its end")
    if not count:
        raise damaged(where, "it is empty")


def _check_mean(count: int, size: int, where: str) -> None:
    """Refuse very many very short streams, which would make a small file the work of minutes."""
    if count > _FREE_STREAMS + size // _MEAN_BYTES:
        raise CheckpointError(
            f"{where} has more than {_FREE_STREAMS:,} streams, of fewer than {_MEAN_BYTES:,} bytes on average; "
            "compress it again in streams of 1 MiB"
        )


def _tensors(file: BinaryIO, path: Path) -> tuple[bytes, list[_Tensor]]:
    """The header of the decompressed file, and its tensors in the order in which they stand there."""
    tensor_names(path)  # the library has checked the offsets, so that they can be read here
    where = str(path)
    header = _safetensors_header(file)
    first = file.tell()
    metadata = dict(header.pop("__metadata__", {}))
    vectors = _vectors(metadata.pop(_VECTORS, None), header, where)
    _check_mean(len(vectors), os.fstat(file.fileno()).st_size, where)
    found = []
    for name, facts in header.items():
        start, stop = facts["data_offsets"]
        at, size = first + start, stop - start
        if name not in vectors:
            shape = tuple(facts["shape"])
            found.append(_Tensor(name, facts["dtype"], shape, at, size, None))
            continue
        file.seek(at)
        stream = read_header(file.read(min(_HEADER_READ, size)), f"{where}: {name}")
        dtype, shape = vectors[name]
        if (
            stream.whole_bytes != size
            or _DTYPES[stream.kind.name] != dtype
            or stream.shape != shape
        ):
            raise damaged(where, f"{name} is compressed as another tensor than its metadata say")
        if stream.plain_bytes != prod(shape) * _BYTES[dtype]:
            raise damaged(where, f"{name} is of another size than its shape")
        found.append(_Tensor(name, dtype, shape, at, size, stream))
    found.sort(key=lambda tensor: (-tensor.plain_bytes // max(prod(tensor.shape), 1), tensor.name))
    if sum(tensor.plain_bytes for tensor in found) > MOST_BYTES:
        raise damaged(where, f"it claims more than {MOST_BYTES >> 40} TiB")
    return _new_header(metadata, found), found


def _vectors(
    raw: str | None, header: dict[str, Any], where: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """ZipNN's note on each compressed tensor: its dtype as safetensors calls it, and its shape."""
    if raw is None:
        raise CheckpointError(
            f"{where} does not say which of its tensors are compressed ({_VECTORS}); compress the checkpoint again"
        )
    try:
        found = {}
        for name, facts in json.loads(raw).items():
            shape = json.loads(facts["shape"])
            if not all(isinstance(size, int) and size >= 0 for size in shape):
                raise ValueError(f"{name} has the shape {shape}")
            if header[name]["dtype"] != "U8" or len(header[name]["shape"]) != 1:
                raise ValueError(f"{name} is no row of bytes")
            found[name] = (_DTYPES[facts["dtype"]], tuple(shape))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(where, f"its note on compressed tensors cannot be read ({error})") from error
    return found


def _new_header(metadata: dict[str, Any], tensors: list[_Tensor]) -> bytes:
    at, entries = 0, {}
    for tensor in tensors:
        stop = at + tensor.plain_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, stop],
        }  # fmt: skip
        at = stop
    held = {"__metadata__": metadata} if metadata else {}
    raw = json.dumps({**held, **entries}, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)


def _safetensors_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file that the library has found whole; the file stands behind it then."""
    file.seek(0)
    (size,) = struct.unpack("<Q", file.read(8))
    header: dict[str, Any] = json.loads(file.read(size))
    return header
