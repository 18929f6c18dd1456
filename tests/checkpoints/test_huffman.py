"""Huffman blocks: written here, read by Zstandard's decoder, which knows nothing of the writer."""

from __future__ import annotations

import heapq
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.checkpoints.huffman import LARGEST, _code_lengths, decode_block, encode_block


def drawn(kind: str, size: int, seed: int) -> np.ndarray:
    """Bytes of several kinds: exponents, few values, values beyond 128, nearly one value, Fibonacci's."""
    draws = np.random.default_rng(seed)
    if kind == "exponents":
        return np.clip(draws.normal(120, 1.5, size), 0, 255).astype(np.uint8)
    if kind == "few":
        return draws.choice(3, size, p=[0.7, 0.2, 0.1]).astype(np.uint8)
    if kind == "high":
        return (255 - np.minimum(draws.geometric(0.3, size) - 1, 255)).astype(np.uint8)
    if kind == "rare":
        return np.where(draws.random(size) < 0.999, 7, draws.integers(0, 256, size)).astype(
            np.uint8
        )
    shares = 1.7 ** -np.arange(40)  # codes of more than 11 bits, if they were not limited
    return draws.choice(40, size, p=shares / shares.sum()).astype(np.uint8)


KINDS = ("exponents", "few", "high", "rare", "steep")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "size", [33, 64, 255, 1000, 1023, 1024, 5001, 16_383, 16_384, 60_002, LARGEST - 1, LARGEST]
)
def test_a_block_holds_what_was_written(kind, size):
    plain = drawn(kind, size, seed=size)
    block = encode_block(plain)
    if block is None:
        assert size < 1024
        return
    np.testing.assert_array_equal(decode_block(block, size), plain)


@given(st.binary(min_size=1, max_size=600), st.integers(1, 40))
def test_any_bytes_come_back(data, times):
    plain = np.frombuffer(data * times, np.uint8)
    block = encode_block(plain)
    if block is not None:
        assert len(block) <= max(1, 0.95 * len(plain))
        np.testing.assert_array_equal(decode_block(block, len(plain)), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_as_short_as_huffman_codes_can_be(kind):
    plain = drawn(kind, LARGEST, seed=1)
    counts = np.bincount(plain, minlength=256)
    bits = int((counts * optimal_lengths(counts)).sum())
    block = encode_block(plain)
    assert bits / 8 <= len(block) <= 1.01 * bits / 8 + 150


def optimal_lengths(counts: np.ndarray) -> np.ndarray:
    """Huffman's own algorithm, with no limit."""
    heap = [(int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count]
    heapq.heapify(heap)
    lengths = np.zeros(len(counts), int)
    while len(heap) > 1:
        one, other = heapq.heappop(heap), heapq.heappop(heap)
        symbols = one[2] + other[2]
        lengths[list(symbols)] += 1
        heapq.heappush(heap, (one[0] + other[0], min(one[1], other[1]), symbols))
    return lengths


@pytest.mark.parametrize("symbols", [2, 3, 17, 100, 256])
def test_codes_are_complete_and_of_eleven_bits_at_most(symbols):
    for seed in range(20):
        counts = np.random.default_rng(seed).geometric(0.001 * 1.5 ** (seed % 12), symbols) ** (
            1 + seed % 3
        )
        lengths = _code_lengths(counts.astype(np.int64))
        assert lengths.min() >= 1 and lengths.max() <= 11
        assert (2.0 ** -lengths.astype(float)).sum() == 1.0
        free = optimal_lengths(counts)
        if free.max() <= 11:
            assert (counts * lengths).sum() == (counts * free).sum()


def test_what_cannot_be_shorter_is_left_as_it_is():
    assert encode_block(np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)) is None
    assert encode_block(np.arange(20, dtype=np.uint8)) is None


@pytest.mark.parametrize("size", [0, LARGEST + 1])
def test_a_block_has_its_largest_size(size):
    with pytest.raises(ValueError, match="a block holds 1 to 131072 bytes"):
        encode_block(np.zeros(size, np.uint8))


def test_threads_decode_beside_each_other():
    plains = [drawn("exponents", LARGEST, seed) for seed in range(6)]
    blocks = [encode_block(plain) for plain in plains]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: decode_block(blocks[n % 6], LARGEST), range(300)))
    assert all(np.array_equal(one, plains[n % 6]) for n, one in enumerate(found))


def test_damaged_blocks_give_bytes_of_the_size_or_a_sentence():
    plain = drawn("exponents", 5000, 3)
    block = encode_block(plain)
    draws = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        spoilt = bytearray(block)
        for _ in range(int(draws.integers(1, 4))):
            spoilt[int(draws.integers(len(spoilt)))] ^= 1 << int(draws.integers(8))
        if draws.random() < 0.2:
            del spoilt[int(draws.integers(len(spoilt))) :]
        try:
            assert len(decode_block(bytes(spoilt), len(plain))) == len(plain)
        except ValueError as error:
            refused += 1
            assert "block" in str(error)
    assert refused > 500


@pytest.mark.parametrize(
    ("block", "size"), [(b"", 10), (b"ab", 0), (b"ab", LARGEST + 1), (b"x" * (LARGEST + 1), 9)]
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_read(block, size):
    with pytest.raises(ValueError, match="a block of"):
        decode_block(block, size)
