"""The folder that a result is written to: nothing is overwritten, and what is no weight file comes along."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.checkpoints.cache_places import made_cache_folder
from workbench.checkpoints.json_files import read_json
from workbench.checkpoints.machine import machine_fault
from workbench.checkpoints.manifests import NAME, read_manifest
from workbench.checkpoints.weight_files import BYTES_SUFFIX, INDEX, read_index
from workbench.errors import InputError
from workbench.store import sha256_bytes

_WEIGHTS = (
    ".safetensors",
    BYTES_SUFFIX,
    ".bin",
    ".bin.znn",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".ckpt",
)


@contextmanager
def one_writer(home: Path) -> Iterator[None]:
    """Raise ``InputError`` while another run writes to the folder `home`; what fails there is a ``MachineFault``."""
    root = made_cache_folder()
    lock = FileLock(root / f".writer-{sha256_bytes(os.fsencode(home))[:32]}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another run writes to {home}: wait for it") from error
    except OSError as error:
        raise machine_fault(error, root) from error
    try:
        yield
    except OSError as error:
        raise machine_fault(error, home) from error
    finally:
        lock.release()


def home_beside(place: Path, name: str, *, otherwise: str) -> Path:
    """The folder `name` beside the folder `place`.

    Raises ``InputError`` among the revisions of the Hugging Face cache, saying what to do `otherwise`.
    """
    beside = place.parent
    if beside.name == "snapshots" and any((beside.parent / n).is_dir() for n in ("blobs", "refs")):
        raise InputError(
            f"{beside} is a folder of the Hugging Face cache, which would take {name} for a revision; {otherwise}"
        )
    return place.with_name(name)


def check_new_home(source: Path, home: Path, names: dict[str, str]) -> None:
    """Refuse a folder with anything in it that this very source would not put there."""
    if home == source.resolve():
        raise InputError(
            f"{home} is what is to be compressed; give another place with --out, or --in-place"
        )
    if home.is_file():
        raise InputError(f"{home} is a file; give a folder with --out")
    if not home.is_dir():
        return
    others = {path.name: path for path in _others(source)}
    foreign = read_manifest(home).keys() - set(names.values())
    for path in sorted(home.iterdir()):
        if path.name.startswith(".") or path.name == NAME or path.name in names.values():
            continue  # compressed files are compared later
        if path.name == INDEX and (source / INDEX).is_file():
            is_own = path.read_bytes() == renamed_index(source / INDEX, names)
        else:
            own = others.get(path.name)
            is_own = own is not None and filecmp.cmp(own, path, shallow=False)
        if not is_own:
            foreign.add(path.name)
    if foreign:
        raise InputError(
            f"{home} holds {min(foreign)} already, not of {source}; give another place with --out, or remove it"
        )


def check_home(home: Path, names: set[str], *, is_file: bool) -> None:
    """Refuse to write over anything."""
    if home.is_file():
        raise InputError(f"{home} is a file; give a folder with --out")
    if not home.is_dir():
        return
    there = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    in_the_way = there & names if is_file else there
    if in_the_way:
        raise InputError(
            f"{home} holds {min(in_the_way)} already; give another place with --out, or remove it"
        )


def _others(source: Path) -> list[Path]:
    """What is no weight file: config, tokenizer, licence. Links of a model folder were checked before."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and not path.name.endswith(_WEIGHTS)
        and path.name not in (INDEX, NAME)
    ]


def copy_others(source: Path, home: Path) -> None:
    """Copy what is no weight file."""
    for path in _others(source):
        part = home / f".part-{path.name}"
        with path.open("rb") as reader, part.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(part, home / path.name)


def renamed_index(path: Path, names: dict[str, str]) -> bytes:
    """An index with other names of its files."""
    raw = read_json(path)
    raw["weight_map"] = {tensor: names.get(name, name) for tensor, name in read_index(path).items()}
    return json.dumps(raw, indent=2).encode() + b"\n"


def move_all(fresh: Path, home: Path) -> None:
    """Everything of a folder into another: at once where that is not there yet, else file by file."""
    if not home.exists():
        os.replace(fresh, home)
        return
    for path in sorted(fresh.iterdir()):
        os.replace(path, home / path.name)
