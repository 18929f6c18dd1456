"""Bytes ↔ Huff0 blocks, the entropy code inside ZipNN and Zstandard (RFC 8878, section 4.2).

A block is a description of the code, a table of three lengths and four bit streams. It is read by a Zstandard decoder
that is given the block as the literals of a frame of its own: that decoder checks every length it reads, which ZipNN's
own does not. No library writes bare blocks, so they are written here, with NumPy.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints.huffman_description import describe_weights

LARGEST = 1 << 17  # bytes that one block may hold
_LONGEST_CODE = 11  # bits
_WORD = 64
_own = threading.local()


def decode_block(block: bytes | memoryview, size: int) -> NDArray[np.uint8]:
    """The `size` bytes that a block holds: [size].

    Raises ``ValueError`` for what cannot be decoded to that size. Much that is damaged can: only a checksum tells.

    >>> decode_block(encode_block(np.repeat(np.arange(4, dtype=np.uint8), 100)), 400).tolist()[::100]
    [0, 1, 2, 3]
    """
    import zstandard

    if len(block) == 1:  # one byte repeated
        return np.full(size, block[0], dtype=np.uint8)
    if not 0 < size <= LARGEST or not 1 < len(block) <= LARGEST:
        raise ValueError(f"a block of {len(block)} bytes for {size} bytes")
    try:
        found = _decompressor().decompress(_as_frame(bytes(block), size), max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(f"a block that is no Huffman code ({error})") from error
    if len(found) != size:
        raise ValueError(f"a block of {len(found)} bytes instead of {size}")
    return np.frombuffer(found, dtype=np.uint8)


def encode_block(plain: NDArray[np.uint8]) -> bytes | None:
    """The block of `plain` [n up to 131,072], or None where it would not be a twentieth shorter.

    One byte repeated is a block of that byte. Codes are the shortest of at most 11 bits (Larmore and Hirschberg,
    "A fast algorithm for optimal length-limited Huffman codes", 1990).

    >>> len(encode_block(np.zeros(1000, dtype=np.uint8)))
    1
    >>> encode_block(np.arange(256, dtype=np.uint8)) is None
    True
    """
    size = len(plain)
    if not 0 < size <= LARGEST:
        raise ValueError(f"a block holds 1 to {LARGEST} bytes, got {size}")
    counts = np.bincount(plain, minlength=256)
    symbols = np.flatnonzero(counts)
    if len(symbols) == 1:
        return bytes([int(symbols[0])])
    share = counts[symbols] / size
    entropy_bytes = size * float(-(share * np.log2(share)).sum()) / 8
    if size < 32 or entropy_bytes > 0.95 * size:
        return None
    lengths = np.zeros(256, dtype=np.uint8)
    lengths[symbols] = _code_lengths(counts[symbols])
    longest = int(lengths.max())
    weights = np.where(lengths > 0, longest + 1 - lengths, 0)
    description = describe_weights(weights[: int(symbols[-1])].tolist())
    if description is None:
        return None
    codes = _canonical_codes(weights)
    pairs = _pairs(codes, lengths)
    quarter = (size + 3) // 4
    streams = []
    for part in (plain[at : at + quarter] for at in range(0, 4 * quarter, quarter)):
        first = (int(codes[part[0]]), int(lengths[part[0]])) if len(part) else (0, 0)
        streams.append(_write_bits(part, pairs, first))
    table = struct.pack("<3H", *(len(stream) for stream in streams[:3]))
    block = b"".join((description, table, *streams))
    return block if len(block) < 0.95 * size else None


def _decompressor() -> Any:
    """One for each thread: two threads in one decompressor write over each other's memory."""
    import zstandard

    found = getattr(_own, "decompressor", None)
    if found is None:
        found = _own.decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST)
    return found


def _as_frame(block: bytes, size: int) -> bytes:
    """A Zstandard frame with one block, whose literals are `block` and whose sequences are none."""
    longer = max(len(block), size)
    format_, bits, header = (
        (1, 10, 3) if longer < 1 << 10 else (2, 14, 4) if longer < 1 << 14 else (3, 18, 5)
    )
    literals = 2 | format_ << 2 | size << 4 | len(block) << 4 + bits
    body = literals.to_bytes(header, "little") + block + b"\0"
    last_compressed = 1 | 2 << 1 | len(body) << 3
    # magic number; the size stands in four bytes; a window of 128 KiB
    return (
        struct.pack("<IBBI", 0xFD2FB528, 0x80, 0x38, size)
        + last_compressed.to_bytes(3, "little")
        + body
    )


def _code_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bits of each symbol's code, 1 to 11, for two symbols or more: [symbols].

    Package-merge: the lists of one level are the symbols and the pairs of the level below, by weight; the cheapest
    2 n - 2 of the last are taken, and a symbol's code is as long as it was taken often.
    """
    order = np.argsort(counts, kind="stable")
    leaves = counts[order]
    is_leaf = [np.ones(len(leaves), dtype=bool)]
    level = leaves
    for _ in range(_LONGEST_CODE - 1):
        pairs = level[: len(level) // 2 * 2].reshape(-1, 2).sum(axis=1)
        both = np.concatenate([leaves, pairs])
        merged = np.argsort(both, kind="stable")
        level = both[merged]
        is_leaf.append(merged < len(leaves))
    taken = np.zeros(len(leaves), dtype=np.uint8)
    wanted = 2 * len(leaves) - 2
    for flags in reversed(is_leaf):
        own = int(flags[:wanted].sum())
        taken[:own] += 1  # the lightest symbols come first in every list
        wanted = 2 * (wanted - own)
    lengths = np.empty_like(taken)
    lengths[order] = taken
    return lengths


def _canonical_codes(weights: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Codes by symbol: those of the lowest weight first, within a weight in the order of symbols: [256]."""
    codes = np.zeros(256, dtype=np.uint32)
    place = 0
    for weight in range(1, int(weights.max()) + 1):
        own = np.flatnonzero(weights == weight)
        slots = 1 << weight - 1
        codes[own] = (place + slots * np.arange(len(own))) >> weight - 1
        place += slots * len(own)
    return codes


def _pairs(
    codes: NDArray[np.uint32], lengths: NDArray[np.uint8]
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Code and length of every two symbols, by the number that their bytes are: [65,536] each."""
    joined = codes[:, None] | codes[None, :] << lengths[:, None].astype(np.uint32)
    both = lengths[:, None] + lengths[None, :]
    return joined.reshape(-1), both.reshape(
        -1
    )  # the second symbol, which is the higher byte, lies lower


def _write_bits(
    part: NDArray[np.uint8],
    pairs: tuple[NDArray[np.uint32], NDArray[np.uint8]],
    first: tuple[int, int],
) -> bytes:
    """The stream of `part`: the last symbol's code in the lowest bits, a 1 above the first one's, which is `first`."""
    if not len(part):
        return b"\1"
    odd = len(part) % 2
    twos = np.ascontiguousarray(part[odd:]).view("<u2")[::-1]
    values, bits = pairs[0].take(twos).astype(np.uint64), pairs[1].take(twos).astype(np.uint64)
    if odd:
        values, bits = np.append(values, np.uint64(first[0])), np.append(bits, np.uint64(first[1]))
    if len(values) % 2:
        values, bits = np.append(values, np.uint64(0)), np.append(bits, np.uint64(0))
    values = values[0::2] | values[1::2] << bits[0::2]  # four codes, 44 bits at most
    bits = bits[0::2] + bits[1::2]
    stops = np.cumsum(bits)
    total = int(stops[-1])
    starts = stops - bits
    word, shift = starts >> np.uint64(6), starts & np.uint64(63)
    words = np.zeros(total // _WORD + 1, dtype=np.uint64)
    # every word has a code that starts in it, for none is as long as a word
    begins = np.flatnonzero(np.diff(word, prepend=np.uint64(1 << 63)))
    low = np.bitwise_or.reduceat(values << shift, begins)
    words[: len(low)] = low
    over = np.flatnonzero(shift + bits > _WORD)
    words[word[over] + np.uint64(1)] |= values[over] >> (np.uint64(_WORD) - shift[over])
    words[total // _WORD] |= np.uint64(1) << np.uint64(total % _WORD)
    return words.astype("<u8", copy=False).tobytes()[: total // 8 + 1]
