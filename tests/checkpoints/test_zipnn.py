"""ZipNN's streams: those that ZipNN itself wrote are read bit for bit, those written here have the same layout."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.checkpoints.zipnn import decode_stream, encode_stream, read_header
from workbench.errors import CheckpointError


def decoded(whole: bytes) -> bytes:
    """All streams of a file one after another."""
    file, at, plain = io.BytesIO(whole), 0, b""
    while at < len(whole):
        header = read_header(whole[at : at + 105], "x")
        plain += b"".join(decode_stream(file, at, header, "x"))
        at += header.whole_bytes
    assert at == len(whole)
    return plain


@pytest.fixture(scope="module")
def streams(zipnn_written):
    return np.load(zipnn_written.FILE)


@pytest.mark.parametrize("version", ["0.3.6", "0.5.0", "0.5.4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_what_zipnn_wrote_is_read_bit_for_bit(version, dtype, zipnn_written, streams):
    for its_dtype, form, size, plain in zipnn_written.cases():
        if its_dtype == dtype:
            whole = streams[f"{version} {dtype} {form} {size}"].tobytes()
            assert decoded(whole) == plain, (form, size)
            header = read_header(whole[:105], "x")
            assert header.kind.name == dtype
            assert header.shape == ((1, size) if form == "tensor" else None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_what_is_written_here_has_zipnns_layout(dtype, zipnn_written, streams):
    """Headers are equal byte for byte but for the length; the tables say the same kinds of blocks."""
    for its_dtype, form, size, plain in zipnn_written.cases():
        if its_dtype != dtype or form == "tensor":
            continue
        theirs = streams[f"0.5.4 {dtype} {form} {size}"].tobytes()
        ours = encode_stream(plain[: 1 << 20], dtype, is_streaming=form == "streaming")
        assert ours[5:7] + ours[8:24] == theirs[5:7] + theirs[8:24]
        header, other = read_header(ours[:105], "x"), read_header(theirs[:105], "x")
        assert (header.kind, header.chunks) == (other.kind, other.chunks)
        if size > 100_000:
            kinds = slice(header.body_at, header.body_at + header.chunks * header.kind.planes)
            assert ours[kinds] == theirs[kinds]
            assert len(ours) <= 1.01 * header_of_first(theirs).whole_bytes + 100


def header_of_first(whole: bytes):
    return read_header(whole[:105], "x")


@given(
    st.binary(min_size=1, max_size=3000),
    st.sampled_from(["bfloat16", "float32", "float16", "float8_e4m3fn", "float8_e5m2"]),
    st.integers(1, 200),
    st.booleans(),
)
def test_any_bytes_come_back(data, dtype, times, is_streaming):
    plain = data * times
    assert decoded(encode_stream(plain, dtype, is_streaming=is_streaming)) == plain


def test_numbers_of_a_model_take_two_thirds():
    """The published ratio for bfloat16; the entropy of N(0, 0.02)'s exponents gives 0.659."""
    drawn = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype("<f4")
    plain = (drawn.view("<u4") >> 16).astype("<u2").tobytes()
    assert 0.655 < len(encode_stream(plain, "bfloat16", is_streaming=False)) / len(plain) < 0.665


def header_with(**changes: int) -> bytes:
    """A good header and body of 1,000 bfloat16 numbers, single bytes of the header changed by place."""
    plain = np.tile(np.array([16000, 16001], "<u2"), 500).tobytes()
    whole = bytearray(encode_stream(plain, "bfloat16", is_streaming=False))
    for place, value in changes.items():
        whole[int(place.removeprefix("at_"))] = value
    return bytes(whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at_0": 0}, "does not begin as ZipNN's files do"),
        ({"at_3": 2}, r"is of ZipNN 0\.2\.4, this program reads 0\.3 to 0\.5"),
        ({"at_2": 1}, r"is of ZipNN 1\.5\.4"),
        ({"at_5": 220}, "dtype 6, grouping 220"),
        ({"at_6": 0}, "dtype 6, grouping 10, order 0"),
        ({"at_7": 2}, "compressed by method 2; only Huffman's"),
        ({"at_8": 3}, "input format 3"),
        ({"at_9": 1}, "differences to another file"),
        ({"at_10": 1}, "compressed with loss"),
        ({"at_13": 5}, "streaming 5"),
        ({"at_14": 63}, "chunks of"),
        ({"at_14": 3}, "chunks of 8 bytes"),
        ({"at_15": 3}, "dtype 3"),
        ({"at_22": 200}, "it says"),
        ({"at_24": 0}, "it says|do not fill"),
        ({"at_31": 255}, "it says"),
        ({"at_32": 9}, "its table of blocks"),
        ({"at_34": 255}, "another length|longer than|do not fill|no Huffman|instead of|ends behind"),
        ({"at_41": 255}, "ends behind the file"),
    ],
)  # fmt: skip
def test_every_field_of_the_header_and_the_table_is_checked(changes, words):
    with pytest.raises(CheckpointError, match=words):
        decoded(header_with(**changes))


@pytest.mark.parametrize("lost", [1, 2, 10, 40, 60, 90, 99, 100])
def test_a_truncated_stream_is_one_sentence(lost):
    whole = header_with()
    whole = whole[: len(whole) - -(-len(whole) * lost // 100)]
    with pytest.raises(CheckpointError, match="x is damaged or no ZipNN file"):
        header = read_header(whole[:105], "x")
        list(decode_stream(io.BytesIO(whole), 0, header, "x"))


def test_what_follows_the_last_block_within_a_stream_is_refused():
    whole = bytearray(header_with() + b"x")
    whole[24:32] = struct.pack("<Q", len(whole))
    with pytest.raises(CheckpointError, match="its blocks do not fill it"):
        decoded(bytes(whole))


def test_a_shape_is_checked():
    plain = np.zeros(700, "<u2").tobytes()
    whole = bytearray(encode_stream(plain, "bfloat16", is_streaming=False))
    whole[8] = 2  # says a tensor
    for shape in (b"\xff", b"\x01\x03\x01\x01", b"\x02\x01\x05", b"\x01\x08\x01"):
        with pytest.raises(CheckpointError, match=r"it says|shape ends"):
            read_header(bytes(whole[:32]) + shape, "x")


def test_a_tensor_of_a_huge_claim_is_refused_without_memory():
    whole = bytearray(header_with())
    whole[16:24] = struct.pack("<Q", 1 << 40)
    with pytest.raises(CheckpointError, match="it says 1099511627776 bytes in"):
        read_header(bytes(whole[:105]), "x")
