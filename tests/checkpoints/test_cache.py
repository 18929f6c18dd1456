"""The cache among others: read-only places, loads while it is cleaned, killed runs, what vanishes meanwhile."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from workbench.checkpoints import cache, cache_entries, cache_listing, cache_places
from workbench.checkpoints.cache import decompressed
from workbench.checkpoints.cache_listing import clean_cache, list_cache
from workbench.checkpoints.cache_places import (
    cache_folder,
    remove_leftovers,
    temporary_bytes,
    temporary_folder,
)
from workbench.checkpoints.folders import compress_checkpoint
from workbench.checkpoints.weight_files import WHOLE
from workbench.errors import CheckpointError, MachineFault
from workbench.generation.loading import load_generator


@pytest.fixture
def compressed(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    compress_checkpoint(make_tiny(seed=9), tmp_path / "phi-ZipNN")
    return tmp_path / "phi-ZipNN"


@pytest.fixture
def read_only(monkeypatch):
    """Every way by which the cache writes fails as it does on such a place; root may write everywhere else."""

    def refuse(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    def locks(lock, *_, **__):
        lock.release = lambda *_, **__: None
        refuse(lock.lock_file)

    def start():
        monkeypatch.setattr(FileLock, "acquire", locks)
        for module in (cache, cache_entries):
            monkeypatch.setattr(module, "write_atomic", refuse)
        for name in ("mkdir", "unlink", "symlink_to"):
            real = getattr(Path, name)
            monkeypatch.setattr(
                Path, name, lambda p, *a, _r=real, **o: _r(p, *a, **o) if p.exists() else refuse(p)
            )

    return start


def test_a_whole_cache_loads_where_nothing_can_be_written(compressed, read_only):
    with decompressed(compressed, name="phi") as home:
        data = (home / WHOLE).read_bytes()
    (cache_folder() / "seen.json").unlink()  # the sums are reckoned again
    read_only()
    with decompressed(compressed, name="phi") as again:
        assert again == home and (again / WHOLE).read_bytes() == data


def test_a_cache_that_is_not_whole_and_cannot_be_written_to_is_one_sentence(compressed, read_only):
    with decompressed(compressed, name="phi") as home:
        pass
    (home / WHOLE).unlink()
    read_only()
    with pytest.raises(MachineFault) as told, decompressed(compressed, name="phi"):
        pass
    assert str(told.value) == (
        f"{cache_folder()}: Read-only file system; use a place that can be written to, or set WORKBENCH_CACHE to a "
        "folder that can be written to"
    )


def test_what_is_loaded_is_not_cleaned_and_its_lock_file_stays(compressed):
    with decompressed(compressed, name="phi") as home:
        (entry,) = list_cache()
        assert entry.is_in_use and clean_cache() == () and (home / WHOLE).is_file()
        with decompressed(compressed, name="phi"):  # many may load at a time
            pass
        assert clean_cache((home.name,)) == ()
    assert [one.key for one in clean_cache()] == [home.name]
    assert not home.exists() and (cache_folder() / f".{home.name}.lock").exists()
    assert temporary_bytes() == 0


def test_what_is_being_decompressed_is_not_cleaned(compressed):
    with decompressed(compressed, name="phi") as home:
        pass
    with FileLock(cache_folder() / f".{home.name}.lock"):
        assert clean_cache() == ()
    assert home.exists()


def test_what_was_loaded_since_it_was_listed_is_not_cleaned(compressed, monkeypatch):
    with decompressed(compressed, name="phi") as home:
        pass
    old = time.time() - 1e6
    os.utime(home / "entry.json", (old, old))
    os.utime(home, (old, old))
    real = cache_listing.list_cache

    def loaded_then():
        held = real()
        with decompressed(compressed, name="phi"):
            return held

    monkeypatch.setattr(cache_listing, "list_cache", loaded_then)
    assert clean_cache(unused_days=1) == () and home.exists()


def test_the_load_of_a_generator_holds_its_claim(compressed, monkeypatch):
    from workbench.generation import loading

    seen = []
    real = loading.read_pretrained

    def read(call, checkpoint, **options):
        seen.extend((checkpoint.source, clean_cache()) for _ in list_cache())
        return real(call, checkpoint, **options)

    monkeypatch.setattr(loading, "read_pretrained", read)
    load_generator(compressed, device="cpu")
    ((source, cleaned),) = seen
    assert Path(source).parent == cache_folder() and cleaned == ()


def test_what_a_model_reads_from_the_disk_later_stays_as_long_as_the_model(compressed):
    places = {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "cpu",
        "lm_head": "cpu",
    }
    generator = load_generator(compressed, device={**places, "model.rotary_emb": "cpu"})
    (resaved,) = cache_folder().glob(".temporary-*")
    with temporary_folder():  # which removes what nobody needs
        assert clean_cache() == () and list_cache()[0].is_in_use and resaved.is_dir()
    del generator
    gc.collect()
    assert not resaved.exists() and len(clean_cache()) == 1


def test_what_a_killed_process_left_goes_at_the_next_run_and_what_a_living_one_needs_stays(
    compressed,
):
    code = (
        "import os, signal\n"
        "from workbench.checkpoints.cache_places import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'plain.safetensors').write_bytes(bytes(1000))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with temporary_folder() as mine:
        (mine / "x").write_bytes(bytes(10))
        subprocess.run([sys.executable, "-c", code], check=False)
        assert temporary_bytes() == 1010
        with temporary_folder():
            assert temporary_bytes() == 10 and (mine / "x").is_file()
        subprocess.run([sys.executable, "-c", code], check=False)
        clean_cache()
        assert temporary_bytes() == 10
    assert temporary_bytes() == 0 and not list(cache_folder().glob(".claim-*"))


def test_the_claim_of_a_killed_load_is_void(compressed):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from workbench.checkpoints.cache import decompressed\n"
        "with decompressed(Path(sys.argv[1]), name='phi'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, compressed], check=False)
    assert len(list(cache_folder().glob(".claim-*"))) == 1
    (entry,) = list_cache()
    assert entry.is_whole and not entry.is_in_use
    assert len(clean_cache()) == 1 and not list(cache_folder().glob(".claim-*"))


def test_the_file_that_a_killed_first_run_left_is_listed(compressed, monkeypatch):
    def killed(source, target, **_):
        target.write_bytes(bytes(1000))
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "decode_file", killed)
    with pytest.raises(KeyboardInterrupt), decompressed(compressed, name="phi"):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_CACHE", str(compressed.with_name("cache")))
    (entry,) = list_cache()
    assert entry.bytes > 1000 and not entry.is_whole
    assert len(clean_cache()) == 1 and list_cache() == ()


def test_what_vanishes_while_it_is_listed_is_passed_over(compressed, monkeypatch):
    with decompressed(compressed, name="phi") as home:
        pass
    real = cache_listing.read_entry

    def removed(folder):
        entry = real(folder)
        shutil.rmtree(folder)
        return entry

    monkeypatch.setattr(cache_listing, "read_entry", removed)
    assert list_cache() == () and not home.exists()
    (cache_folder() / ".temporary-x").mkdir()
    for name in "fg":
        (cache_folder() / ".temporary-x" / name).write_bytes(bytes(10))
    real_iterdir = Path.iterdir

    def vanishing(folder):
        found = list(real_iterdir(folder))
        found[0].unlink()
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", vanishing)
    assert temporary_bytes() == 10
    monkeypatch.setattr(
        cache_places, "_temporary_folders", lambda: [cache_folder() / ".temporary-gone"]
    )
    remove_leftovers()


def test_the_source_is_kept_with_its_whole_path(compressed, monkeypatch):
    monkeypatch.chdir(compressed.parent)
    with decompressed(Path("phi-ZipNN"), name="phi"):
        pass
    assert list_cache()[0].source == str(compressed)


def test_weights_that_are_larger_than_the_config_says_are_refused_before_they_are_written(
    compressed,
):
    config = json.loads((compressed / "config.json").read_text())
    small = {"num_hidden_layers": 1, "intermediate_size": 1, "vocab_size": config["vocab_size"]}
    (compressed / "config.json").write_text(json.dumps(config | small))
    with pytest.raises(CheckpointError, match=r"claims .* a model of its config\.json has"):
        load_generator(compressed, device="cpu")
    assert list_cache() == ()


def test_a_generation_config_that_is_no_json_is_one_sentence_for_plain_and_compressed(
    compressed, make_tiny, tmp_path
):
    shutil.copytree(make_tiny(seed=9), tmp_path / "plain")
    for folder in (compressed, tmp_path / "plain"):
        (folder / "generation_config.json").write_text("{")
        with pytest.raises(
            CheckpointError, match=r"generation_config\.json is no JSON \(.*restore"
        ):
            load_generator(folder, device="cpu")
