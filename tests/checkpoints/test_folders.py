"""Whole model folders: compressed, decompressed, verified, cached and loaded; interrupted, damaged and lied about."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file

from workbench.cancel import CancelToken
from workbench.checkpoints import cache, file_compression, machine
from workbench.checkpoints.cache_listing import clean_cache, list_cache
from workbench.checkpoints.cache_places import cache_folder
from workbench.checkpoints.finding import Checkpoint, check_folder, fetched, find_checkpoint
from workbench.checkpoints.folders import (
    compress_checkpoint,
    decompress_checkpoint,
    verify_checkpoint,
)
from workbench.checkpoints.in_place import compress_in_place
from workbench.checkpoints.manifests import NAME, read_manifest, write_manifest
from workbench.checkpoints.new_folders import one_writer
from workbench.checkpoints.weight_files import INDEX, WHOLE
from workbench.cli import main
from workbench.errors import Cancelled, CheckpointError, InputError, MachineFault
from workbench.generation.loading import load_generator
from workbench.generation.prompts import plain_prompt
from workbench.routing.agreement import agreement
from workbench.store import sha256_file


@pytest.fixture(scope="session")
def sharded(make_tiny, tmp_path_factory):
    """The tiny MoE in bfloat16 in several files, as large checkpoints are."""
    from transformers import AutoModelForCausalLM

    source = make_tiny(seed=5)
    folder = tmp_path_factory.mktemp("sharded") / "phi"
    shutil.copytree(source, folder)
    (folder / WHOLE).unlink()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [3, 6]
    model.save_pretrained(folder, max_shard_size="450KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decompressed(folder, name):
    with cache.decompressed(folder, name=name) as home:
        return home


@pytest.fixture
def compressed(sharded, tmp_path):
    home = tmp_path / "phi-ZipNN"
    compress_checkpoint(sharded, home)
    return home


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def test_a_folder_is_compressed_into_a_whole_checkpoint(sharded, tmp_path):
    source = tmp_path / "phi"
    shutil.copytree(sharded, source)
    (source / "training.bin").write_bytes(b"pickled")
    steps = []
    report = compress_checkpoint(source, on_progress=steps.append)
    home = tmp_path / "phi-ZipNN"
    assert report.folder == str(home) and 0.5 < report.ratio < 0.75
    names = {path.name for path in home.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", INDEX, NAME} <= names
    assert "training.bin" not in names and not any(name.endswith(".safetensors") for name in names)
    places = json.loads((home / INDEX).read_text())["weight_map"]
    assert set(places.values()) == {file.name for file in report.files}
    assert steps[-1].done == steps[-1].total == sum(file.plain_bytes for file in report.files)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    for file in report.files:
        assert file.sha256 == sha256_file(home / file.name)
        assert file.plain_sha256 == sha256_file(source / file.name.removesuffix(".znn"))
    assert str(report).endswith("every sha256 is that of the manifest")


def test_decompressing_gives_the_same_files_and_index(sharded, compressed, tmp_path):
    report = decompress_checkpoint(compressed)
    home = tmp_path / "phi"
    assert report.folder == str(home)
    assert json.loads((home / INDEX).read_text()) == json.loads((sharded / INDEX).read_text())
    for path in sharded.iterdir():
        if path.name != INDEX:
            assert (home / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (home / NAME).exists()


def test_what_is_loaded_is_equal_in_every_bit_number_and_expert(sharded, compressed, own_cache):
    """Lossless: tensors, logits, routing (agreement 1.0), text and where it ends."""
    plain = load_generator(sharded, device="cpu", dtype="bfloat16")
    other = load_generator(compressed, device="cpu", dtype="bfloat16")
    for (name, one), (again, two) in zip(
        plain.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):
        assert name == again and torch.equal(one, two), name
    prompt = plain_prompt("Which valve failed first?", tokenizer=plain.tokenizer, budget_tokens=99)
    one, two = (g.generate(prompt, max_new_tokens=12, capture="logits") for g in (plain, other))
    assert one.token_ids == two.token_ids
    np.testing.assert_array_equal(one.log_probabilities, two.log_probabilities)
    np.testing.assert_array_equal(one.routing.router_logits, two.routing.router_logits)
    rows = one.routing.rows()
    assert (agreement(one.routing.experts[rows], two.routing.experts[rows]) == 1.0).all()
    assert (
        plain.model.generation_config.eos_token_id
        == other.model.generation_config.eos_token_id
        == [3, 6]
    )
    assert other.name == "phi-ZipNN"


def test_the_cache_is_made_once_and_mended_where_it_is_not_whole(
    compressed, own_cache, monkeypatch
):
    home = decompressed(compressed, name="phi")
    made = {path.name: path.stat().st_mtime_ns for path in shards(home)}
    calls = []
    decode = cache.decode_file
    monkeypatch.setattr(
        cache, "decode_file", lambda *a, **o: calls.append(a[0].name) or decode(*a, **o)
    )
    assert decompressed(compressed, name="phi") == home and calls == []
    first, second = shards(home)[:2]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    (entry,) = list_cache()
    assert not entry.is_whole and entry.name == "phi" and entry.source == str(compressed)
    decompressed(compressed, name="phi")
    assert calls == [first.name + ".znn", second.name + ".znn"]
    (entry,) = list_cache()
    assert entry.is_whole and entry.bytes >= sum(path.stat().st_size for path in shards(home))
    assert {path.name for path in shards(home)} == made.keys()
    (home / "entry.json").write_text("not json")
    decompressed(compressed, name="phi")
    assert len(calls) == 2 + len(made)


def test_a_cache_that_was_written_half_is_gone_on_with(compressed, own_cache, monkeypatch):
    decode, done = cache.decode_file, []

    def killed(source, target, **options):
        if len(done) == 2:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(source.name)
        return decode(source, target, **options)

    monkeypatch.setattr(cache, "decode_file", killed)
    with pytest.raises(KeyboardInterrupt):
        decompressed(compressed, name="phi")
    monkeypatch.setattr(
        cache, "decode_file", lambda *a, **o: done.append(a[0].name) or decode(*a, **o)
    )
    home = decompressed(compressed, name="phi")
    assert len(done) == len(set(done)) == len(shards(home))
    assert not list(home.glob(".*.part"))


def test_two_copies_share_one_place_and_cleaning_removes_what_is_asked(
    compressed, make_tiny, own_cache, tmp_path
):
    shutil.copytree(compressed, tmp_path / "copy")
    assert decompressed(compressed, name="one") == decompressed(tmp_path / "copy", name="two")
    compress_checkpoint(make_tiny(seed=6), tmp_path / "other")
    decompressed(tmp_path / "other", name="other")
    assert [one.name for one in list_cache()] == ["other", "two"]
    with pytest.raises(InputError, match="the cache holds nothing called 'zz'"):
        clean_cache(("zz",))
    assert clean_cache(unused_days=1) == ()
    assert [one.name for one in clean_cache((list_cache()[0].key[:8],))] == ["other"]
    assert [one.name for one in clean_cache()] == ["two"]
    assert list_cache() == () and cache_folder().is_dir()


@pytest.mark.parametrize("where", ["compressed", "plain"])
def test_a_manifest_that_lies_is_refused_and_nothing_is_cached(compressed, own_cache, where):
    entries = read_manifest(compressed)
    name = sorted(entries)[1]
    field = "sha256" if where == "compressed" else "plain_sha256"
    lie = {**{f: getattr(entries[name], f) for f in entries[name].__slots__}, field: "0" * 64}
    write_manifest(compressed, entries | {name: type(entries[name])(**lie)})
    words = (
        "differs from the sha256 of its manifest"
        if where == "compressed"
        else "gives other bytes than its manifest"
    )
    for action in (
        lambda: decompressed(compressed, name="x"),
        lambda: load_generator(compressed, device="cpu"),
        lambda: verify_checkpoint(compressed),
        lambda: decompress_checkpoint(compressed, compressed.with_name("out")),
    ):
        with pytest.raises(CheckpointError, match=words):
            action()
        shutil.rmtree(compressed.with_name("out"), ignore_errors=True)
    assert not any(one.is_whole for one in list_cache())


def test_one_flipped_byte_is_refused_by_the_manifest_or_said_to_be_unknown(compressed, own_cache):
    path = sorted(compressed.glob("*.znn"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="differs from the sha256 of its manifest"):
        load_generator(compressed, device="cpu")
    (compressed / NAME).unlink()
    try:
        report = verify_checkpoint(compressed)
    except CheckpointError:
        return
    assert not any(file.is_verified for file in report.files)
    assert "are in no manifest, which alone could tell" in str(report)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: sorted(f.glob("*.znn"))[0].unlink(), "lacks 1 of . weight files, plain or"),
        (lambda f: (f / INDEX).write_text("{}"), "is not a safetensors index"),
        (lambda f: sorted(f.glob("*.znn"))[0].write_bytes(b"ZN"), "is damaged or no ZipNN file"),
        (lambda f: sorted(f.glob("*.znn"))[0].write_bytes(b""), "it is empty"),
        (lambda f: (f / NAME).write_text("{"), "is no manifest that can be used"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
    ],
)
def test_a_damaged_folder_is_one_sentence(spoil, words, compressed, own_cache):
    spoil(compressed)
    with pytest.raises(CheckpointError, match=words):
        load_generator(compressed, device="cpu")


def test_a_link_out_of_the_folder_and_a_pickle_are_refused(compressed, own_cache, tmp_path):
    path = sorted(compressed.glob("*.znn"))[0]
    shutil.move(path, tmp_path / "outside.znn")
    path.symlink_to(tmp_path / "outside.znn")
    for action in (load_generator, verify_checkpoint, decompress_checkpoint):
        with pytest.raises(CheckpointError, match="outside the model folder"):
            action(compressed)
    for path in compressed.glob("*.znn"):
        path.unlink()
    (compressed / INDEX).unlink()
    (compressed / "pytorch_model.bin.znn").write_bytes(b"ZN")
    with pytest.raises(CheckpointError, match=r"compressed pickles \(\.bin\.znn\)"):
        load_generator(compressed, device="cpu")


def test_nothing_is_written_over_and_an_interrupted_run_goes_on(sharded, tmp_path, monkeypatch):
    home = tmp_path / "out"
    cancel, made = CancelToken(), []
    compress = file_compression.compress_file

    def then_stop(source, target, *, on_bytes, **_):
        made.append(source.name)
        if len(made) == 2:
            cancel.cancel()
        return compress(source, target, on_bytes=on_bytes)

    monkeypatch.setattr(file_compression, "compress_file", then_stop)
    with pytest.raises(Cancelled):
        compress_checkpoint(sharded, home, cancel=cancel)
    assert len(read_manifest(home)) == 2
    compress_checkpoint(sharded, home)
    assert len(made) == len(set(made)) == len(shards(sharded))
    compress_checkpoint(sharded, home)  # all is there: nothing to do
    assert len(made) == len(shards(sharded))
    verify_checkpoint(home)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.md already"):
        compress_checkpoint(sharded, tmp_path / "full")
    with pytest.raises(InputError, match=r"holds .* already"):
        decompress_checkpoint(home, sharded)
    assert (tmp_path / "full" / "notes.md").read_text() == "mine"


def test_a_decompression_that_fails_leaves_nothing_and_can_be_done_again(compressed, tmp_path):
    path = sorted(compressed.glob("*.znn"))[-1]
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    with pytest.raises(CheckpointError):
        decompress_checkpoint(compressed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phi-ZipNN"]
    path.write_bytes(good)
    (tmp_path / "phi").mkdir()  # empty: nothing is lost
    decompress_checkpoint(compressed)
    assert len(shards(tmp_path / "phi")) == len(list(compressed.glob("*.znn")))


def test_a_folder_may_be_named_from_within(compressed, tmp_path, monkeypatch):
    monkeypatch.chdir(compressed)
    assert decompress_checkpoint(Path(".")).folder == str(tmp_path / "phi")
    monkeypatch.chdir(tmp_path / "phi")
    with pytest.raises(InputError, match="is what is to be compressed"):
        compress_checkpoint(Path("."), compressed.with_name("phi"))


def test_going_on_with_another_checkpoint_is_refused(sharded, compressed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sharded, other)
    path = shards(other)[0]
    held = load_file(path)
    first = next(iter(held))
    held[first] = held[first] + 1
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="was made of another model-00001"):
        compress_checkpoint(other, compressed)


def test_a_single_file_is_compressed_beside_itself(sharded, tmp_path):
    path = tmp_path / "adapter.safetensors"
    shutil.copyfile(shards(sharded)[0], path)
    compress_checkpoint(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".znn", NAME]
    verify_checkpoint(tmp_path / (path.name + ".znn"))
    with pytest.raises(InputError, match=r"holds adapter\.safetensors already"):
        decompress_checkpoint(tmp_path / (path.name + ".znn"))
    original = path.read_bytes()
    path.unlink()
    decompress_checkpoint(tmp_path / (path.name + ".znn"))
    assert path.read_bytes() == original


def hub_cache(source, root):
    """A folder in the layout of the Hugging Face cache: snapshots that link to blobs."""
    repository = root / "models--somebody--phi"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for path in source.iterdir():
        blob = repository / "blobs" / sha256_file(path)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.fixture
def hub(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub_cache(sharded, tmp_path / "hub")


def test_the_hugging_face_cache_is_compressed_in_place_and_loaded_by_its_id(
    hub, sharded, own_cache
):
    before = load_generator(sharded, device="cpu", dtype="bfloat16")
    size = sum(path.stat().st_size for path in (hub.parents[1] / "blobs").iterdir())
    report = compress_in_place(hub)
    assert not shards(hub) and len(list(hub.glob("*.znn"))) == len(report.files)
    left = [path for path in (hub.parents[1] / "blobs").iterdir()]
    assert not any(path.stat().st_size > 200_000 for path in left)
    assert sum(p.stat().st_size for p in [*left, *hub.glob("*.znn")]) < size
    assert fetched(Checkpoint("somebody/phi", "somebody/phi", False)) == Checkpoint(
        "somebody/phi", str(hub), True
    )
    after = load_generator("somebody/phi", device="cpu", dtype="bfloat16")
    assert after.name == "somebody/phi"
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor)
    assert compress_in_place(hub) == report  # once more: nothing to do


def test_a_blob_that_another_revision_needs_is_kept(hub):
    other = hub.with_name("def")
    shutil.copytree(hub, other, symlinks=True)
    plain = {path.name for path in shards(hub)}
    report = compress_in_place(hub)
    assert set(report.kept_plain) == plain and "another revision needs them" in str(report)
    assert shards(other) and all(path.exists() for path in shards(other))
    assert compress_in_place(other).kept_plain == ()
    assert not shards(other)


def test_hub_ids_are_compressed_verified_and_decompressed_by_name(hub, sharded, tmp_path, capsys):
    assert main(["checkpoint", "compress", "somebody/phi"]) == 3
    assert "--in-place" in capsys.readouterr().err
    assert main(["checkpoint", "compress", "somebody/phi", "--in-place"]) == 0
    assert main(["checkpoint", "verify", "somebody/phi"]) == 0
    assert main(["checkpoint", "decompress", "somebody/phi", "--out", str(tmp_path / "out")]) == 0
    for path in shards(sharded):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_what_was_interrupted_is_said_to_be_so(sharded, tmp_path):
    home = tmp_path / "half"
    shutil.copytree(sharded, home)
    one, *_ = shards(home)
    compress_checkpoint(one)
    with pytest.raises(CheckpointError, match=r"1 compressed files, first .* run it again"):
        verify_checkpoint(home)


def test_compressing_in_place_goes_on_wherever_it_was_interrupted(sharded, tmp_path, monkeypatch):
    from workbench.checkpoints import in_place

    folder = tmp_path / "phi"
    shutil.copytree(sharded, folder)
    sums = {path.name: sha256_file(path) for path in shards(folder)}
    for point in ("compressed_entry", "_remove", "write_atomic"):
        real, calls = getattr(in_place, point), []

        def stop(*arguments, real=real, calls=calls, point=point, **options):
            calls.append(arguments)
            if len(calls) == 2 or point == "write_atomic":
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(in_place, point, stop)
        with pytest.raises(KeyboardInterrupt):
            compress_in_place(folder)
        monkeypatch.setattr(in_place, point, real)
        held = {name for name in sums if (folder / name).exists()}
        assert all(sha256_file(folder / name) == sums[name] for name in held)
        assert all((folder / f"{name}.znn").exists() for name in sums.keys() - held)
    report = compress_in_place(folder)
    assert {file.name.removesuffix(".znn"): file.plain_sha256 for file in report.files} == sums
    assert not shards(folder)
    verify_checkpoint(folder)


def test_a_hub_with_compressed_weights_is_fetched_whole_and_one_with_plain_ones_is_not(
    compressed, sharded, own_cache, monkeypatch, tmp_path
):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(compressed)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    there = Checkpoint("a/b", "a/b", False)
    names = {"list_repo_files": lambda self, name: [p.name for p in compressed.iterdir()]}
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (), names))
    assert fetched(there) == Checkpoint("a/b", str(compressed), True) and len(asked) == 1
    names = {"list_repo_files": lambda self, name: [p.name for p in sharded.iterdir()]}
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (), names))
    assert fetched(there) == there and len(asked) == 1

    for error in (ConnectionError("offline"), HTTPError("offline")):

        def offline(self, name, error=error):
            raise error

        api = type("Api", (), {"list_repo_files": offline})
        monkeypatch.setattr(huggingface_hub, "HfApi", api)
        assert fetched(there) == there


def test_compressed_weights_that_came_in_part_are_told_without_a_hub(hub, own_cache, monkeypatch):
    import huggingface_hub

    def offline(self, name):
        raise HTTPError("offline")

    compress_in_place(hub)
    sorted(hub.glob("*.znn"))[0].unlink()
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (), {"list_repo_files": offline}))
    with pytest.raises(CheckpointError, match=r"abc lacks 1 of . weight files, plain or"):
        fetched(Checkpoint("somebody/phi", "somebody/phi", False))


def test_a_name_that_no_folder_can_have_is_one_sentence():
    with pytest.raises(CheckpointError, match="no model folder at"):
        find_checkpoint("x" * 5000)


def test_compressed_weights_that_do_not_come_from_the_hub_are_told(
    compressed, monkeypatch, tmp_path
):
    import huggingface_hub

    def torn(name, allow_patterns):
        raise HTTPError("the connection\nwas closed")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", torn)
    names = {"list_repo_files": lambda self, name: [p.name for p in compressed.iterdir()]}
    monkeypatch.setattr(huggingface_hub, "HfApi", type("Api", (), names))
    with pytest.raises(
        CheckpointError, match=r"a/b: its compressed .*\(the connection was closed\)"
    ):
        fetched(Checkpoint("a/b", "a/b", False))


def test_no_plain_file_goes_before_what_stands_for_it_is_compared_once_more(
    sharded, tmp_path, monkeypatch
):
    from workbench.checkpoints import in_place

    folder = tmp_path / "phi"
    shutil.copytree(sharded, folder)
    real, done = in_place.compressed_entry, []

    def emptied(source, target, **options):
        entry = real(source, target, **options)
        done.append(target)
        done[0].write_bytes(b"")  # by another program, after it was compared
        return entry

    monkeypatch.setattr(in_place, "compressed_entry", emptied)
    with pytest.raises(CheckpointError, match="no plain file was removed"):
        compress_in_place(folder)
    assert len(shards(folder)) == len(shards(sharded))


def test_one_whole_file_beside_an_index_of_others_stays_loadable(
    make_tiny, sharded, own_cache, tmp_path
):
    folder = tmp_path / "both"
    shutil.copytree(make_tiny(seed=5), folder)
    shutil.copyfile(sharded / INDEX, folder / INDEX)
    before = load_generator(folder, device="cpu", dtype="float32")
    compress_in_place(folder)
    assert not (folder / INDEX).exists() and not (folder / WHOLE).exists()
    after = load_generator(folder, device="cpu", dtype="float32")
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor)


def test_two_checkpoints_never_mix_in_one_place(make_tiny, sharded, tmp_path):
    whole = make_tiny(seed=9)
    compress_checkpoint(sharded, tmp_path / "out")
    with pytest.raises(InputError, match="already, not of"):
        compress_checkpoint(whole, tmp_path / "out")
    compress_checkpoint(whole, tmp_path / "other")
    with pytest.raises(InputError, match="already, not of"):
        compress_checkpoint(sharded, tmp_path / "other")
    with pytest.raises(InputError, match="is what is to be compressed"):
        compress_checkpoint(sharded, sharded)


def test_a_file_of_somebody_else_stays(make_tiny, tmp_path):
    folder = tmp_path / "phi"
    shutil.copytree(make_tiny(seed=9), folder)
    (folder / "model.safetensors.znn").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"is there and is not model\.safetensors compressed"):
        compress_in_place(folder)
    assert (folder / "model.safetensors.znn").read_bytes() == b"precious"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text("{")  # cut off, or another
    with pytest.raises(InputError, match=r"holds tokenizer\.json already"):
        compress_checkpoint(make_tiny(seed=9), tmp_path / "out")


def test_a_fault_of_the_machine_is_not_blamed_on_a_file(make_tiny, tmp_path, monkeypatch):
    """Neither on the one that was made before, nor on the source; and no temporary file is named."""
    folder = tmp_path / "phi"
    shutil.copytree(make_tiny(seed=9), folder)
    real = file_compression.decode_file

    def killed(source, *_, **__):
        raise MachineFault(f"decompressing {source} was ended from outside")

    monkeypatch.setattr(file_compression, "decode_file", killed)
    with pytest.raises(MachineFault, match=r"phi/model\.safetensors was ended from outside"):
        compress_checkpoint(folder, tmp_path / "out")
    monkeypatch.setattr(file_compression, "decode_file", real)
    compress_checkpoint(folder, tmp_path / "out")
    (tmp_path / "out" / NAME).unlink()
    monkeypatch.setattr(file_compression, "decode_file", killed)
    with pytest.raises(MachineFault, match=r"model\.safetensors\.znn was ended from outside"):
        compress_checkpoint(folder, tmp_path / "out")


def test_a_source_that_changes_while_it_is_compressed_is_told(make_tiny, tmp_path, monkeypatch):
    folder = tmp_path / "phi"
    shutil.copytree(make_tiny(seed=9), folder)
    found = file_compression.decode_file

    def other(*arguments, **options):
        return replace(found(*arguments, **options), sha256="0" * 64)

    monkeypatch.setattr(file_compression, "decode_file", other)
    with pytest.raises(CheckpointError, match=r"phi/model\.safetensors and what was compressed of"):
        compress_checkpoint(folder, tmp_path / "out")
    assert not any(path.name.endswith(".znn") for path in (tmp_path / "out").iterdir())


def test_a_name_with_a_line_break_stays_within_one_line(tmp_path):
    folder = tmp_path / "a\nworkbench: all is well\x1b[2J"
    folder.mkdir()
    with pytest.raises(CheckpointError) as told:
        verify_checkpoint(folder)
    assert r"/a\nworkbench: all is well\x1b[2J" in str(told.value) and str(told.value).isprintable()


def test_a_file_that_was_finished_before_its_run_could_say_so_is_taken(sharded, tmp_path):
    home = tmp_path / "out"
    compress_checkpoint(sharded, home)
    entries = read_manifest(home)
    name = sorted(entries)[1]
    write_manifest(home, {other: entry for other, entry in entries.items() if other != name})
    (home / INDEX).unlink()
    stamp = (home / name).stat().st_mtime_ns
    compress_checkpoint(sharded, home)
    assert read_manifest(home) == entries and (home / name).stat().st_mtime_ns == stamp


def test_cleaning_touches_only_what_the_cache_made(compressed, own_cache):
    decompressed(compressed, name="phi")
    mine = cache_folder() / "my-finetune"
    mine.mkdir()
    (mine / "x").write_text("precious")
    with pytest.raises(InputError):
        clean_cache(("",))
    assert len(clean_cache()) == 1 and (mine / "x").exists()


def test_a_second_writer_is_told_to_wait(sharded, tmp_path):
    with one_writer((tmp_path / "out").resolve()):
        with pytest.raises(InputError, match="another run writes to"):
            compress_checkpoint(sharded, tmp_path / "out")


def test_a_manifest_of_other_files_and_one_that_comes_later_are_compared(
    compressed, own_cache, tmp_path
):
    entries = read_manifest(compressed)
    shutil.copytree(compressed, tmp_path / "without")
    (tmp_path / "without" / NAME).unlink()
    decompressed(tmp_path / "without", name="x")
    name = sorted(entries)[0]
    lie = type(entries[name])(entries[name].bytes, entries[name].sha256, 5, "0" * 64)
    write_manifest(tmp_path / "without", entries | {name: lie})
    with pytest.raises(CheckpointError, match="gives other bytes than its manifest says"):
        decompressed(tmp_path / "without", name="x")
    write_manifest(compressed, {"other.safetensors.znn": lie})
    with pytest.raises(CheckpointError, match="a manifest that does not list"):
        decompressed(compressed, name="x")


def test_a_cache_that_cannot_be_written_to_is_one_sentence(compressed, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="set WORKBENCH_CACHE to a folder"):
        load_generator(compressed, device="cpu")


def test_what_would_fill_the_disk_is_refused(compressed, own_cache, monkeypatch):
    usage = type("Usage", (), {"free": 900_000, "total": 10_000_000})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room there, or set WORKBENCH_CACHE"):
        decompressed(compressed, name="x")
    assert not any(path.is_dir() for path in cache_folder().iterdir())


@pytest.fixture
def mixture(sharded, compressed):
    """Some files compressed and one plain, which the manifest knows."""
    shutil.copyfile(shards(sharded)[1], compressed / shards(sharded)[1].name)
    (compressed / f"{shards(sharded)[1].name}.znn").unlink()
    return compressed


def test_a_folder_of_plain_and_compressed_files_is_taken_as_it_is(
    mixture, sharded, own_cache, tmp_path
):
    plain = load_generator(sharded, device="cpu", dtype="bfloat16")
    other = load_generator(mixture, device="cpu", dtype="bfloat16")
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    (entry,) = list_cache()
    own = shards(sharded)[1]
    link = cache_folder() / entry.key / own.name
    assert entry.is_whole and link.is_symlink() and link.resolve() == (mixture / own.name).resolve()
    assert entry.bytes < sum(path.stat().st_size for path in shards(sharded))
    report = verify_checkpoint(mixture)
    assert str(report).endswith("every sha256 is that of the manifest")
    decompress_checkpoint(mixture, tmp_path / "again")
    for path in shards(sharded):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(
        CheckpointError, match=f"is compressed but for 1 of . files, first {own.name}"
    ):
        compress_checkpoint(mixture, tmp_path / "out")
    clean_cache()
    assert (mixture / own.name).is_file()
    compress_in_place(mixture)
    assert not shards(mixture) and len(list(mixture.glob("*.znn"))) == len(shards(sharded))


def test_two_mixtures_with_other_plain_files_do_not_share_a_place(
    mixture, sharded, own_cache, tmp_path
):
    shutil.copytree(mixture, tmp_path / "other")
    assert decompressed(mixture, name="a") != decompressed(tmp_path / "other", name="b")


def test_a_plain_file_among_compressed_ones_is_looked_at(mixture, sharded, own_cache):
    path = mixture / shards(sharded)[1].name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="gives other bytes than its manifest says"):
        verify_checkpoint(mixture)
    path.write_bytes(data[:-1])
    for action in (check_folder, load_generator, verify_checkpoint):
        with pytest.raises(CheckpointError, match="is truncated, damaged or not safetensors"):
            action(mixture)


def test_what_was_compressed_by_another_program_in_part_is_refused_before_anything_is_written(
    mixture,
):
    (mixture / NAME).unlink()
    before = sorted(path.name for path in mixture.iterdir())
    with pytest.raises(CheckpointError, match="compressed already, and not by this program"):
        compress_in_place(mixture)
    assert sorted(path.name for path in mixture.iterdir()) == before


def test_a_file_that_is_a_link_is_compressed_beside_the_link(hub, own_cache, tmp_path):
    link = shards(hub)[0]
    blobs = sorted(path.name for path in (hub.parents[1] / "blobs").iterdir())
    report = compress_checkpoint(link)
    assert report.folder == str(hub.resolve()) and (hub / f"{link.name}.znn").is_file()
    assert sorted(path.name for path in (hub.parents[1] / "blobs").iterdir()) == blobs
    link.unlink()
    (tmp_path / "elsewhere.safetensors.znn").symlink_to(hub / f"{link.name}.znn")
    decompress_checkpoint(tmp_path / "elsewhere.safetensors.znn")
    assert (tmp_path / "elsewhere.safetensors").is_file()


def test_a_folder_that_is_a_link_is_compressed_beside_the_link(sharded, own_cache, tmp_path):
    (tmp_path / "mine").symlink_to(sharded)
    compress_checkpoint(tmp_path / "mine")
    assert (tmp_path / "mine-ZipNN").is_dir()


def test_nothing_is_written_among_the_revisions_of_the_hugging_face_cache(hub, own_cache, tmp_path):
    with pytest.raises(InputError, match=r"take abc-ZipNN for a revision.*--out.*--in-place"):
        compress_checkpoint(hub)
    compress_checkpoint(hub, tmp_path / "out")
    compress_in_place(hub)
    with pytest.raises(InputError, match=r"take abc-plain for a revision.*--out"):
        decompress_checkpoint(hub)
    assert [path.name for path in hub.parent.iterdir()] == ["abc"]


def test_compressing_looks_for_room_before_it_begins(sharded, own_cache, tmp_path, monkeypatch):
    sizes = [path.stat().st_size for path in shards(sharded)]
    wanted = 2 * sum(sizes) // 3 + max(sizes)  # one disk for the result and for what is read back
    free = {"free": wanted - 1, "total": 1 << 40}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), free))
    with pytest.raises(MachineFault, match=f"takes {wanted:,} bytes, and the disk of .*make room"):
        compress_checkpoint(sharded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    free["free"] = wanted
    compress_checkpoint(sharded, tmp_path / "out")
    copy = tmp_path / "phi"
    shutil.copytree(sharded, copy)
    free["free"] = wanted - 1
    with pytest.raises(MachineFault, match="make room there"):
        compress_in_place(copy)
    assert not list(copy.glob("*.znn"))


def test_a_disk_that_is_full_is_named_not_the_source(sharded, own_cache, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_compression.os, "fsync", full)
    with pytest.raises(MachineFault) as told:
        compress_checkpoint(sharded, tmp_path / "out")
    assert str(told.value) == f"{tmp_path / 'out'}: No space left on device; make room there"
