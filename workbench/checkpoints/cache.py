"""A folder of compressed weights → a folder of plain ones in a cache, decompressed once, named by what it was made of.

A file is compared with its manifest before and after, decompressed in a process of its own and renamed into place when
it is whole; what a killed process leaves is never taken for a file. Loading reads the cache as any other folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.decoding import DecodedFile, decode_file
from workbench.checkpoints.manifests import ManifestEntry, read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.weight_files import (
    INDEX,
    check_weight_files,
    compressed_files,
    plain_name,
    read_index,
    tensor_names,
)
from workbench.errors import CheckpointError, InputError
from workbench.store import sha256_bytes, sha256_file, write_atomic

_ENTRY = "entry.json"
_KEY = re.compile("[0-9a-f]{32}")
_SEEN = "seen.json"
_TEMPORARY = ".temporary-"
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """One folder of the cache: its key, whose weights it holds, where they came from, and its bytes on disk.

    ``used`` is when it was last loaded, in seconds since 1970; ``is_whole`` says that every file is there.
    """

    key: str
    name: str
    source: str
    bytes: int
    used: float
    is_whole: bool


def cache_folder() -> Path:
    """Where decompressed weights lie: below WORKBENCH_CACHE, else the user's cache folder."""
    own = os.environ.get("WORKBENCH_CACHE")
    if own:
        return Path(own).expanduser() / "checkpoints"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "workbench" / "checkpoints"


def decompressed(
    folder: Path,
    *,
    name: str,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Path:
    """The cache's folder with the plain weights of `folder`; what is missing there is decompressed now.

    `name` is what the list of the cache calls it. Beside the weights the folder has their index, and no config.

    Raises
    ------
    CheckpointError
        A file is damaged, is not what the manifest says, or gives other than the manifest says.
    Cancelled
        `cancel` was set; what was finished stays.
    """
    sources = compressed_files(folder)
    manifest = read_manifest(folder)
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    unlisted = [path.name for path in sources.values() if manifest and path.name not in manifest]
    if unlisted:
        raise CheckpointError(
            f"{folder} has a manifest that does not list {unlisted[0]}: it is of other files; copy all from one source"
        )
    sums = {plain: _checked_sum(path, manifest, root) for plain, path in sources.items()}
    key = sha256_bytes(json.dumps(sorted(sums.items())).encode())[:32]
    home = root / key
    with FileLock(root / f".{key}.lock"):
        home.mkdir(exist_ok=True)
        entry = _read_entry(home)
        entry |= {"name": name, "source": str(folder), "wanted": sorted(sums)}
        sizes = {plain: plain_size(path) for plain, path in sources.items()}
        _check_room(
            home, {p: n for p, n in sizes.items() if not _is_there(home / p, entry["files"].get(p))}
        )
        meter = Meter("decompressing", sum(sizes.values()), on_progress, cancel)
        for plain, path in sorted(sources.items()):
            meter.check()
            if not _is_there(home / plain, entry["files"].get(plain)):
                found = _decompress(path, home / plain, meter, cancel)
                entry["files"][plain] = _told(home / plain, sums[plain], found)
                _write_entry(home, entry)
            known = entry["files"][plain]
            check_plain(path, DecodedFile(known["bytes"], known["sha256"]), manifest.get(path.name))
            meter.finish(sizes[plain])
        if (folder / INDEX).is_file():
            _write_plain_index(folder / INDEX, home / INDEX)
        _write_entry(home, entry)  # also the time of its last use
        check_weight_files(home)
    return home


@contextmanager
def one_writer(home: Path) -> Iterator[None]:
    """Raise ``InputError`` while another run writes to the folder `home`."""
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = sha256_bytes(os.fsencode(home))[:32]
    try:
        with FileLock(root / f".writer-{name}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another run writes to {home}: wait for it") from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the cache for what is large and soon removed; what a killed process left there goes after a day."""
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in root.glob(f"{_TEMPORARY}*"):
        if time.time() - old.stat().st_mtime > _DAY_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=_TEMPORARY) as name:
        yield Path(name)


def list_cache() -> tuple[CachedCheckpoint, ...]:
    """What the cache holds, the last used first."""
    root, found = cache_folder(), []
    for home in root.iterdir() if root.is_dir() else ():
        if not _KEY.fullmatch(home.name) or not (home / _ENTRY).is_file():
            continue  # not the cache's own
        entry = _read_entry(home)
        wanted = entry.get("wanted", [])
        is_whole = bool(wanted) and all(
            _is_there(home / name, entry["files"].get(name)) for name in wanted
        )
        size = sum(path.stat().st_size for path in home.iterdir() if path.is_file())
        used = max(path.stat().st_mtime for path in (home, home / _ENTRY) if path.exists())
        found.append(
            CachedCheckpoint(
                home.name,
                str(entry.get("name", "")),
                str(entry.get("source", "")),
                size,
                used,
                is_whole,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.used))


def clean_cache(
    keys: tuple[str, ...] = (), *, unused_days: float | None = None
) -> tuple[CachedCheckpoint, ...]:
    """Remove the folders named by `keys` (their beginnings will do), those unused for some days, or all; what was.

    Raises ``InputError`` for a key that the cache does not hold.
    """
    held = list_cache()
    for key in keys:
        if not key or not any(one.key.startswith(key) for one in held):
            raise InputError(
                f"the cache holds nothing called {key!r}; see: workbench checkpoint cache"
            )
    oldest = float("inf") if unused_days is None else time.time() - unused_days * _DAY_SECONDS
    gone = tuple(
        one
        for one in held
        if (not keys or one.key.startswith(keys)) and (unused_days is None or one.used < oldest)
    )
    for one in gone:
        with FileLock(cache_folder() / f".{one.key}.lock"):
            shutil.rmtree(cache_folder() / one.key, ignore_errors=True)
        (cache_folder() / f".{one.key}.lock").unlink(missing_ok=True)
    return gone


def _checked_sum(path: Path, manifest: dict[str, ManifestEntry], root: Path) -> str:
    """sha256 of a compressed file, compared with the manifest; remembered while its size and time stay the same."""
    told = manifest.get(path.name)
    facts = path.stat()
    if told is not None and told.bytes != facts.st_size:
        raise CheckpointError(
            f"{path} has {facts.st_size:,} bytes, its manifest says {told.bytes:,}; copy both from their source"
        )
    with FileLock(root / f".{_SEEN}.lock"):
        seen = _read_json(root / _SEEN)
    place, now = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
    known = seen.get(place)
    if isinstance(known, list) and len(known) == 3 and known[:2] == now:
        found = str(known[2])
    else:
        found = sha256_file(path)
        with FileLock(root / f".{_SEEN}.lock"):
            write_atomic(
                root / _SEEN, json.dumps(_read_json(root / _SEEN) | {place: [*now, found]}).encode()
            )
    if told is not None and told.sha256 != found:
        raise CheckpointError(
            f"{path} differs from the sha256 of its manifest; copy both from their source"
        )
    return found


def _decompress(
    source: Path, target: Path, meter: Meter, cancel: CancelToken | None
) -> DecodedFile:
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        found = decode_file(source, part, on_bytes=meter.at, cancel=cancel)
        tensor_names(part)
        os.replace(part, target)
        return found
    finally:
        part.unlink(missing_ok=True)


def check_plain(source: Path, found: DecodedFile, told: ManifestEntry | None) -> None:
    """Compare what a compressed file gave with what its manifest says."""
    if told is not None and (found.bytes, found.sha256) != (told.plain_bytes, told.plain_sha256):
        raise CheckpointError(
            f"{source} gives other bytes than its manifest says; copy both from their source"
        )


def _check_room(home: Path, missing: dict[str, int]) -> None:
    """Refuse what would leave less than a twentieth of the disk."""
    disk, wanted = shutil.disk_usage(home), sum(missing.values())
    if wanted and wanted > disk.free - disk.total // 20:
        raise CheckpointError(
            f"{wanted:,} bytes are to be decompressed into {home.parent}, whose disk has {disk.free:,} left: make "
            "room, or set WORKBENCH_CACHE to a folder on another disk"
        )


def _told(path: Path, compressed_sha256: str, found: DecodedFile) -> dict[str, Any]:
    facts = path.stat()
    return {
        "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": found.sha256, "from": compressed_sha256,
    }  # fmt: skip


def _is_there(path: Path, told: Any) -> bool:
    if not isinstance(told, dict) or "sha256" not in told or not path.is_file():
        return False
    facts = path.stat()
    return (facts.st_size, facts.st_mtime_ns) == (told.get("bytes"), told.get("mtime_ns"))


def _read_entry(home: Path) -> dict[str, Any]:
    entry = _read_json(home / _ENTRY)
    return entry if isinstance(entry.get("files"), dict) else {"files": {}}


def _write_entry(home: Path, entry: dict[str, Any]) -> None:
    write_atomic(home / _ENTRY, json.dumps(entry, indent=2).encode())


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of the cache says; nothing where it is missing or was damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_plain_index(source: Path, target: Path) -> None:
    places = {tensor: plain_name(name) or name for tensor, name in read_index(source).items()}
    write_atomic(target, json.dumps({"metadata": {}, "weight_map": places}).encode())
