"""Both forms of compressed files on disk: what they give, in a process of its own, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench.cancel import CancelToken
from workbench.checkpoints import compressed_files, decoding, json_files, machine, weight_files
from workbench.checkpoints.compressed_files import (
    compressed_bytes,
    main_dtype,
    plain_bytes,
    plain_size,
)
from workbench.checkpoints.decoding import DecodedFile, decode_file
from workbench.checkpoints.finding import read_config
from workbench.checkpoints.manifests import (
    NAME,
    ManifestEntry,
    check_plain,
    read_manifest,
    write_manifest,
)
from workbench.checkpoints.zipnn import encode_stream
from workbench.errors import Cancelled, CheckpointError, MachineFault


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return {
        "model.embed": (torch.randn(300, 64, generator=draws) * 0.02).to(dtype),
        "model.norm": torch.ones(64, dtype=dtype),
        "big": (torch.randn(400, 1000, generator=draws) * 0.02).to(dtype),
        "scalar": torch.tensor(1.5, dtype=dtype),
        "ids": torch.arange(7),
    }


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path, metadata={"format": "pt"})
    return path


def compress(source, target):
    target.write_bytes(b"".join(part for _, part in compressed_bytes(source, main_dtype(source))))
    return target


@pytest.fixture
def streamed(plain):
    return compress(plain, plain.with_name("model.safetensors.znn"))


def tensor_stream(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """A stream as ZipNN writes it of a tensor: a shape behind the header, which says form 2."""
    whole = encode_stream(
        tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), dtype, is_streaming=False
    )
    shape = bytes([tensor.dim()])
    for size in tensor.shape:
        width, code = (1, "B") if size < 256 else (2, "<H")
        shape += bytes([width]) + struct.pack(code, size)
    head = bytearray(whole[:32])
    head[8] = 2
    head[24:32] = struct.pack("<Q", len(whole) + len(shape))
    return np.frombuffer(bytes(head) + shape + whole[32:], np.uint8)


def write_tensor_file(
    path, held: dict[str, torch.Tensor], *, skip=("ids", "scalar"), dtype="bfloat16"
):
    """``model.znn.safetensors`` as ZipNN's script writes it: numbers compressed, others as they are."""
    notes, out = {}, {}
    for name, tensor in held.items():
        if name in skip:
            out[name] = tensor
            continue
        out[name] = torch.from_numpy(tensor_stream(tensor, dtype).copy())
        notes[name] = {"dtype": dtype, "shape": str(list(tensor.shape))}
    save_file(out, path, metadata={"format": "pt", "znn_compressed_vectors": json.dumps(notes)})
    return path


def test_a_file_comes_back_byte_for_byte(plain, streamed, tmp_path):
    assert b"".join(plain_bytes(streamed)) == plain.read_bytes()
    assert plain_size(streamed) == plain.stat().st_size
    assert streamed.stat().st_size < 0.7 * plain.stat().st_size
    told = []
    found = decode_file(streamed, tmp_path / "again", on_bytes=told.append)
    data = plain.read_bytes()
    assert (tmp_path / "again").read_bytes() == data
    assert (found.bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_come_back_too(dtype, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(getattr(torch, dtype)), path)
    assert main_dtype(path) == dtype
    streamed = compress(path, tmp_path / "model.safetensors.znn")
    assert b"".join(plain_bytes(streamed)) == path.read_bytes()


def test_a_file_of_compressed_tensors_gives_the_same_tensors(tmp_path):
    held = tensors()
    path = write_tensor_file(tmp_path / "model.znn.safetensors", held)
    decode_file(path, tmp_path / "plain.safetensors")
    found = load_file(tmp_path / "plain.safetensors")
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "plain.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert plain_size(path) == (tmp_path / "plain.safetensors").stat().st_size


def test_streams_that_zipnn_wrote_of_tensors_are_read_in_their_file(zipnn_written, tmp_path):
    streams = np.load(zipnn_written.FILE)
    out, notes, expected = {}, {}, {}
    for dtype, form, size, raw in zipnn_written.cases():
        if form == "tensor":
            name = f"{dtype} {size}"
            out[name] = torch.from_numpy(streams[f"0.5.4 {dtype} tensor {size}"])
            notes[name] = {"dtype": dtype, "shape": f"[1, {size}]"}
            expected[name] = torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).reshape(
                1, size
            )
    path = tmp_path / "model.znn.safetensors"
    save_file(out, path, metadata={"format": "pt", "znn_compressed_vectors": json.dumps(notes)})
    decode_file(path, tmp_path / "plain.safetensors")
    found = load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (None, "does not say which of its tensors are compressed"),
        ("{", "note on compressed tensors cannot be read"),
        ('{"big": {"dtype": "int4", "shape": "[1]"}}', "cannot be read"),
        ('{"nothing": {"dtype": "bfloat16", "shape": "[1]"}}', "cannot be read"),
        ('{"ids": {"dtype": "bfloat16", "shape": "[7]"}}', "ids is no row of bytes"),
        (
            '{"big": {"dtype": "float32", "shape": "[400, 1000]"}}',
            "as another tensor than its metadata say",
        ),
        (
            '{"big": {"dtype": "bfloat16", "shape": "[400, 999]"}}',
            "as another tensor than its metadata say",
        ),
        ('{"big": {"dtype": "bfloat16", "shape": "[-1]"}}', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_notes_that_lie_are_refused(note, words, tmp_path):
    path = write_tensor_file(tmp_path / "model.znn.safetensors", tensors())
    held = load_file(path)
    save_file(held, path, metadata={} if note is None else {"znn_compressed_vectors": note})
    with pytest.raises(CheckpointError, match=words):
        plain_size(path)


@pytest.mark.parametrize("keep", np.linspace(0, 0.999, 20).tolist())
def test_a_truncated_file_is_refused_and_leaves_nothing(streamed, tmp_path, keep):
    data = streamed.read_bytes()
    streamed.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match="is damaged or no ZipNN file"):
        decode_file(streamed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_file_that_claims_a_terabyte_is_refused(streamed):
    data = bytearray(streamed.read_bytes())
    data[13] = 0
    data[16:24] = struct.pack("<Q", 1 << 40)
    streamed.write_bytes(data)
    with pytest.raises(CheckpointError, match="it says 1099511627776 bytes in"):
        plain_size(streamed)


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    streamed, tmp_path, monkeypatch
):
    usage = type("Usage", (), {"free": 1000, "total": 1000})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineFault, match="make room there"):
        decode_file(streamed, tmp_path / "again")


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def change_child(line, tmp_path, monkeypatch):
    """Have the decoding process run `line` before it begins."""
    (tmp_path / "run.py").write_text(
        f"import sys\nfrom workbench.checkpoints import decoding\n{line}\n"
        "sys.exit(decoding.main(sys.argv[4:]))\n"
    )
    fake = f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "run.py"}" "$@"\n'
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", fake))


def test_a_file_of_very_many_tiny_streams_is_refused_before_all_are_read(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors.znn"
    path.write_bytes(encode_stream(b"\1\0", "bfloat16", is_streaming=True) * 40_000)
    read = []
    real = compressed_files.read_header
    monkeypatch.setattr(compressed_files, "read_header", lambda *a: read.append(a) or real(*a))
    with pytest.raises(CheckpointError, match="bytes on average; compress it again in streams of"):
        plain_size(path)
    assert len(read) < 1_100


def test_a_file_of_very_many_tiny_tensors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed_files, "_FREE_STREAMS", 2)
    path = write_tensor_file(tmp_path / "model.znn.safetensors", tensors())
    assert plain_size(path)
    held = {f"w{n}": torch.ones(4, dtype=torch.bfloat16) for n in range(100)}
    with pytest.raises(CheckpointError, match="has more than 2 streams"):
        plain_size(write_tensor_file(tmp_path / "many.znn.safetensors", held))


def test_no_json_is_read_that_is_larger_than_any_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MOST_JSON_BYTES", 1000)
    monkeypatch.setattr(weight_files, "MOST_JSON_BYTES", 1000)
    for name, read in {
        NAME: lambda: read_manifest(tmp_path),
        "config.json": lambda: read_config(tmp_path),
        weight_files.INDEX: lambda: weight_files.read_index(tmp_path / weight_files.INDEX),
    }.items():
        (tmp_path / name).write_text("{" + " " * 1000 + "}")
        with pytest.raises(CheckpointError, match=f"{name} has more than the 1,000 bytes"):
            read()
    path = write_tensor_file(tmp_path / "model.znn.safetensors", tensors())
    assert plain_size(path)
    save_file(load_file(path), path, metadata={"znn_compressed_vectors": " " * 2000})
    with pytest.raises(CheckpointError, match=r"has a header of .* bytes, and 1,000 are read"):
        plain_size(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_in_the_place_of_a_config_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(plain, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(plain), "open", refuse)
    for read in (weight_files.tensor_names, json_files.read_json, plain_size):
        with pytest.raises(MachineFault, match=r"safetensors: Permission denied; allow it"):
            read(plain)


def test_what_gives_no_safetensors_is_called_by_its_own_name(tmp_path):
    path = tmp_path / "model.safetensors.znn"
    path.write_bytes(encode_stream(b"no header" * 9, "bfloat16", is_streaming=True))
    with pytest.raises(CheckpointError, match=r"what .*model\.safetensors\.znn gives is truncated"):
        decode_file(path, tmp_path / ".temporary-x")
    assert not (tmp_path / ".temporary-x").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell script in the place of Python")
def test_a_full_disk_is_told_as_such_and_no_temporary_file_is_named(
    streamed, tmp_path, monkeypatch
):
    change_child(
        "decoding.os.fsync = lambda _: (_ for _ in ()).throw(OSError(28, 'No space left on device'))",
        tmp_path,
        monkeypatch,
    )
    (tmp_path / ".part-x").mkdir()
    with pytest.raises(MachineFault) as told:
        decode_file(streamed, tmp_path / ".part-x" / "model.safetensors")
    assert str(told.value) == f"{tmp_path}: No space left on device; make room there"


@pytest.mark.skipif(os.name == "nt", reason="a shell script in the place of Python")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kill -SEGV $$", r"the process ended with -11 \(no word\); copy it from its source"),
        (
            "kill -KILL $$",
            r"ended from outside \(signal 9\).*: close other programs, and try again",
        ),
        ("echo torn >&2; exit 3", r"the process ended with 3 \(torn\)"),
        ("exit 0", r"the process ended with 0 \(no word\)"),
    ],
)
def test_a_process_that_crashes_is_one_sentence(text, words, streamed, tmp_path, monkeypatch):
    fake = script(tmp_path / "python", f"#!/bin/sh\n{text}\n")
    monkeypatch.setattr(sys, "executable", fake)
    with pytest.raises(CheckpointError, match=words):
        decode_file(streamed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.skipif(os.name == "nt", reason="a shell script in the place of Python")
def test_a_process_that_hangs_is_ended(streamed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "executable", script(tmp_path / "python", "#!/bin/sh\nexec sleep 100\n")
    )
    monkeypatch.setattr(decoding, "START_SECONDS", 0)
    with pytest.raises(CheckpointError, match="was not decompressed within 0 seconds"):
        decode_file(streamed, tmp_path / "again")
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        decode_file(streamed, tmp_path / "again", cancel=cancel)


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_memory_is_limited_in_the_process(streamed, tmp_path, monkeypatch):
    """Left with the addresses that it has already, the decoder says so and writes nothing."""
    change_child("decoding.MEMORY_BYTES = 1 << 20", tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match=r"could not be decompressed"):
        decode_file(streamed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_the_process_ends_when_the_one_that_started_it_is_killed(tmp_path):
    """It reads a pipe that nothing is written to, so that it would wait for ever."""
    source, target = tmp_path / "model.safetensors.znn", tmp_path / "plain.safetensors"
    os.mkfifo(source)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from workbench.checkpoints import decoding\n"
        "decoding.plain_size = lambda _: 100\n"
        "decoding.decode_file(*map(Path, sys.argv[1:]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, source, target]) as parent:
        started = psutil.Process(parent.pid)
        while not (children := started.children()) or not target.exists():
            time.sleep(0.05)
        parent.kill()
    gone, left = psutil.wait_procs(children, timeout=20)
    for process in left:
        process.kill()
    assert gone and not left and not target.exists()


@pytest.mark.hostile
@pytest.mark.smoke
def test_ten_thousand_mutated_files_give_a_sentence_or_other_bytes_that_the_manifest_refuses(
    tmp_path,
):
    """In this process, so that a crash of the decoder would be seen."""
    draws = np.random.default_rng(0)
    source = tmp_path / "model.safetensors"
    save_file(
        {"w": (torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()},
        source,
    )
    path = compress(source, tmp_path / "model.safetensors.znn")
    good, original = path.read_bytes(), source.read_bytes()
    entry = ManifestEntry(len(good), "", len(original), hashlib.sha256(original).hexdigest())
    refused = wrong = 0
    for number in range(10_000):
        spoilt = bytearray(good)
        place = int(
            draws.integers(100 if number % 2 else len(good))
        )  # header and table as often as all the rest
        match number % 5:
            case 0 | 1:
                spoilt[place] ^= 1 << int(draws.integers(8))
            case 2:
                spoilt[place : place + 8] = draws.bytes(len(spoilt[place : place + 8]))
            case 3:
                del spoilt[place:]
            case 4:
                spoilt[place:place] = draws.bytes(int(draws.integers(1, 20)))
        if spoilt == good:
            continue
        path.write_bytes(spoilt)
        try:
            plain_size(path)
            found = b"".join(plain_bytes(path))
        except CheckpointError:
            refused += 1
            continue
        if found == original:
            continue  # a field that says nothing, such as the version's last digit
        wrong += 1
        with pytest.raises(CheckpointError, match="gives other bytes than its manifest says"):
            check_plain(path, DecodedFile(len(found), hashlib.sha256(found).hexdigest()), entry)
    assert refused > 5000 and wrong > 500  # much that is damaged decodes: the checksum is needed


def test_a_manifest_is_what_was_written(tmp_path):
    entry = ManifestEntry(5, "a" * 64, 9, "b" * 64)
    write_manifest(tmp_path, {"model.safetensors.znn": entry})
    assert read_manifest(tmp_path) == {"model.safetensors.znn": entry}
    assert read_manifest(tmp_path / "nowhere") == {}


def one_file(name="m.safetensors.znn", **changes):
    facts = {"bytes": 1, "sha256": "a" * 64, "plain_bytes": 1, "plain_sha256": "a" * 64, **changes}
    return json.dumps({"format": 1, "files": {name: facts}})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": []}', "[" * 100_000,
        one_file("../x.safetensors.znn"), one_file("model.bin.znn"), one_file(bytes=0), one_file(plain_sha256=""),
        one_file(plain_bytes=None), one_file(more=1), '{"format": 1, "files": {"m.safetensors.znn": 7}}',
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_one_sentence(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="is no manifest that can be used"):
        read_manifest(tmp_path)
