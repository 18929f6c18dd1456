"""ZipNN's compressed bytes ↔ plain bytes, a chunk at a time, with bounded memory and every length checked.

Layout as ZipNN 0.3 to 0.5.4 writes it (github.com/zipnn/zipnn, ``zipnn.py`` and ``zipnn_core.c``). A stream is a header
of 32 bytes, for a tensor its shape, the kind of every block, where each ends, and the blocks. Numbers are cut into
chunks of 256 KiB; within a chunk the sign goes to the end of each number, and bytes of one place within the numbers
form a plane: that of the exponents is compressed by a Huffman code, the others stand as they are. A streaming file is
many such streams, each of 1 MiB. There is no checksum in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints.huffman import decode_block, encode_block
from workbench.errors import CheckpointError

HEADER_BYTES = 32
CHUNK_LOG = 18  # 256 KiB of numbers
STREAM_LOG = 20  # 1 MiB of a streaming file
VERSION = (0, 5, 4)
_RAW, _HUFFMAN = 0, 1
_LARGEST_BLOCK = 1 << 17
_SMALLEST_CHUNK = 1 << 12  # less would make a large file millions of steps
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class NumberKind:
    """How numbers of one dtype are taken apart: bytes a number, ZipNN's code, and whether the sign is moved."""

    name: str
    code: int
    planes: int
    moves_sign: bool
    grouping: int  # header byte 5, which says the same as `planes`


KINDS = (
    NumberKind("bfloat16", 6, 2, True, 10),
    NumberKind("float32", 1, 4, True, 220),
    NumberKind("float32", 2, 4, True, 220),
    NumberKind("float16", 4, 2, False, 10),
    NumberKind("float16", 5, 2, False, 10),
    NumberKind("float8_e4m3fn", 29, 1, True, 10),
    NumberKind("float8_e5m2", 30, 1, True, 10),
)
_BY_CODE = {kind.code: kind for kind in KINDS}
_BY_NAME = {kind.name: kind for kind in reversed(KINDS)}


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What stands in front of a stream: how to take it apart, and how long it is plain and compressed, in bytes.

    ``shape`` is that of a tensor, None for bytes of a file; ``body_at`` is where the kinds of the blocks begin.
    """

    kind: NumberKind
    chunk_bytes: int
    plain_bytes: int
    whole_bytes: int
    is_streaming: bool
    shape: tuple[int, ...] | None
    body_at: int

    @property
    def chunks(self) -> int:
        """How many chunks the numbers are cut into."""
        return -(-self.plain_bytes // self.chunk_bytes)

    @property
    def blocks_at(self) -> int:
        """Where the first block begins: behind a byte and a length of eight for each block."""
        return self.body_at + 9 * self.chunks * self.kind.planes


def read_header(raw: bytes, where: str) -> StreamHeader:
    """The header of a stream, from its first bytes (32, and 73 more where it is of a tensor); `where` is for errors.

    Raises ``CheckpointError`` for anything that ZipNN does not write for the dtypes it compresses without loss.
    """
    if len(raw) < HEADER_BYTES or raw[:2] != b"ZN":
        raise damaged(where, "it does not begin as ZipNN's files do")
    version = tuple(raw[2:5])
    if version[0] != 0 or not 3 <= version[1] <= 5:
        raise CheckpointError(
            f"{where} is of ZipNN {'.'.join(map(str, version))}, this program reads 0.3 to 0.5; compress it again with "
            "one of these"
        )
    grouping, moves_sign, method, form, delta, lossy = (
        raw[5],
        raw[6],
        raw[7],
        raw[8],
        raw[9],
        raw[10],
    )
    if delta or lossy or raw[12]:
        raise CheckpointError(
            f"{where} holds differences to another file, or was compressed with loss; compress the checkpoint itself"
        )
    kind = _BY_CODE.get(raw[15])
    if (
        kind is None
        or (grouping, bool(moves_sign)) != (kind.grouping, kind.moves_sign)
        or moves_sign > 1
    ):
        raise damaged(where, f"it says dtype {raw[15]}, grouping {grouping}, order {moves_sign}")
    if method not in (0, 1):
        raise CheckpointError(f"{where} is compressed by method {method}; only Huffman's is read")
    if form not in (1, 2):
        raise damaged(where, f"it says input format {form}")
    streaming, chunk_log = raw[13], raw[14]
    if streaming and not 128 <= streaming < 128 + 40:
        raise damaged(where, f"it says streaming {streaming}")
    chunk = 1 << min(chunk_log, 40)
    if kind.planes == 1:
        chunk = min(chunk, _LARGEST_BLOCK)
    if not _SMALLEST_CHUNK <= chunk <= kind.planes * _LARGEST_BLOCK:
        raise damaged(where, f"it says chunks of {chunk} bytes")
    plain, whole = struct.unpack("<QQ", raw[16:32])
    shape, body_at = None, HEADER_BYTES
    if form == 2:
        shape, body_at = _read_shape(raw, where)
    header = StreamHeader(kind, chunk, plain, whole, streaming > 127, shape, body_at)
    if not plain or not header.blocks_at < whole <= header.blocks_at + plain:
        raise damaged(where, f"it says {plain} bytes in {whole}")
    return header


def decode_stream(file: BinaryIO, at: int, header: StreamHeader, where: str) -> Iterator[bytes]:
    """The plain bytes of the stream that begins at `at` of a file that can be sought in, a chunk after another."""
    chunks, planes = header.chunks, header.kind.planes
    file.seek(at + header.body_at)
    kinds = np.frombuffer(_read(file, chunks * planes, where), np.uint8).reshape(planes, chunks)
    raw_ends = np.frombuffer(_read(file, 8 * chunks * planes, where), "<u8").reshape(planes, chunks)
    if int(raw_ends.max()) > header.whole_bytes:
        raise damaged(where, "a block ends behind the file")
    ends = raw_ends.astype(np.int64)
    sizes = np.diff(ends, axis=1, prepend=0)
    if kinds.max() > _HUFFMAN or sizes.min() < 0:
        raise damaged(where, "its table of blocks says what cannot be")
    firsts = at + header.blocks_at + np.concatenate([[0], np.cumsum(ends[:-1, -1])])
    if firsts[-1] + ends[-1, -1] != at + header.whole_bytes:
        raise damaged(where, "its blocks do not fill it")
    starts = firsts[:, None] + ends - sizes
    for chunk in range(chunks):
        size = min(header.chunk_bytes, header.plain_bytes - chunk * header.chunk_bytes)
        parts = []
        for plane, length in enumerate(_plane_sizes(size, planes)):
            stored = int(sizes[plane, chunk])
            if stored > length or (length and not stored):
                raise damaged(where, "a block is longer than what it holds, or empty")
            file.seek(int(starts[plane, chunk]))
            block = _read(file, stored, where)
            if kinds[plane, chunk] == _HUFFMAN:
                try:
                    parts.append(decode_block(block, length))
                except ValueError as error:
                    raise damaged(where, str(error)) from error
            elif stored == length:
                parts.append(np.frombuffer(block, np.uint8))
            else:
                raise damaged(where, "a plain block is of another length")
        yield _joined(parts, size, header.kind).tobytes()


def encode_stream(plain: bytes, kind_name: str, *, is_streaming: bool) -> bytes:
    """One stream of `plain`, which is not empty, as ZipNN 0.5.4 reads it.

    >>> import io
    >>> plain = np.linspace(0, 1, 50_000, dtype=np.float32).tobytes()
    >>> whole = encode_stream(plain, "float32", is_streaming=False)
    >>> header = read_header(whole, "whole")
    >>> b"".join(decode_stream(io.BytesIO(whole), 0, header, "whole")) == plain
    True
    """
    kind = _BY_NAME[kind_name]
    chunk_bytes = min(1 << CHUNK_LOG, kind.planes * _LARGEST_BLOCK)
    planes: list[list[tuple[int, bytes]]] = [[] for _ in range(kind.planes)]
    for at in range(0, len(plain), chunk_bytes):
        for own, part in zip(planes, _taken_apart(plain[at : at + chunk_bytes], kind), strict=True):
            block = encode_block(part) if len(part) else None
            own.append((_RAW, part.tobytes()) if block is None else (_HUFFMAN, block))
    kinds = bytes(kind_ for own in planes for kind_, _ in own)
    ends = np.array([np.cumsum([len(block) for _, block in own]) for own in planes], dtype="<u8")
    blocks = b"".join(block for own in planes for _, block in own)
    streaming = 128 + STREAM_LOG if is_streaming else 0
    head = bytes(
        [
            *b"ZN", *VERSION, kind.grouping, kind.moves_sign, 1, 1, 0, 0, 0, 0, streaming, CHUNK_LOG, kind.code,
        ]
    )  # fmt: skip
    whole = HEADER_BYTES + len(kinds) + ends.nbytes + len(blocks)
    return b"".join((head, struct.pack("<QQ", len(plain), whole), kinds, ends.tobytes(), blocks))


def damaged(where: str, what: str) -> CheckpointError:
    """The error of a file whose bytes are not what they should be."""
    return CheckpointError(f"{where} is damaged or no ZipNN file: {what}; copy it from its source")


def _read(file: BinaryIO, size: int, where: str) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise damaged(where, "it ends too early")
    return found


def _read_shape(raw: bytes, where: str) -> tuple[tuple[int, ...], int]:
    """Dimensions, each behind its own size of 1, 2, 4 or 8 bytes, and where they end."""
    try:
        count, at = raw[HEADER_BYTES], HEADER_BYTES + 1
        if count > _MOST_DIMENSIONS:
            raise damaged(where, f"it says {count} dimensions")
        shape = []
        for _ in range(count):
            size = raw[at]
            if size not in (1, 2, 4, 8) or at + 1 + size > len(raw):
                raise damaged(where, f"it says a dimension of {size} bytes")
            shape.append(int.from_bytes(raw[at + 1 : at + 1 + size], "little"))
            at += 1 + size
    except IndexError:
        raise damaged(where, "its shape ends too early") from None
    return tuple(shape), at


def _plane_sizes(size: int, planes: int) -> list[int]:
    """Bytes of each plane of a chunk; what is left over goes to the first ones."""
    return [size // planes + (plane < size % planes) for plane in range(planes)]


def _joined(parts: list[NDArray[np.uint8]], size: int, kind: NumberKind) -> NDArray[np.uint8]:
    out = np.empty(size, dtype=np.uint8)
    for plane, part in enumerate(parts):
        out[plane :: kind.planes] = part
    if kind.moves_sign and kind.planes > 1:
        words = out[: size // 4 * 4].view("<u4")
        if kind.planes == 2:
            words[:] = words << 8 & 0x80008000 | words >> 1 & 0x7F807F80 | words & 0x007F007F
        else:
            words[:] = words << 8 & 0x80000000 | words >> 1 & 0x7F800000 | words & 0x007FFFFF
    return out


def _taken_apart(plain: bytes, kind: NumberKind) -> list[NDArray[np.uint8]]:
    moved = np.frombuffer(plain, np.uint8).copy()
    if kind.moves_sign and kind.planes > 1:
        words = moved[: len(moved) // 4 * 4].view("<u4")
        if kind.planes == 2:
            words[:] = words << 1 & 0xFF00FF00 | words >> 8 & 0x00800080 | words & 0x007F007F
        else:
            words[:] = words << 1 & 0xFF000000 | words >> 8 & 0x00800000 | words & 0x007FFFFF
    return [np.ascontiguousarray(moved[plane :: kind.planes]) for plane in range(kind.planes)]
