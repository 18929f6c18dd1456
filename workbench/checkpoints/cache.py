"""A folder of compressed weights → a folder of plain ones in a cache, decompressed once, named by what it was made of.

A file is compared with its manifest before and after, decompressed in a process of its own and renamed into place when
it is whole; what a killed process leaves is never taken for a file. Loading reads the cache as any other folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.cache_entries import is_there, read_entry, read_facts, write_entry
from workbench.checkpoints.cache_places import made_cache_folder
from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.decoding import DecodedFile, decode_file
from workbench.checkpoints.machine import check_room
from workbench.checkpoints.manifests import ManifestEntry, check_plain, read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.weight_files import (
    INDEX,
    check_weight_files,
    compressed_files,
    plain_name,
    read_index,
)
from workbench.errors import CheckpointError
from workbench.store import sha256_bytes, sha256_file, write_atomic

_SEEN = "seen.json"
_KEPT_FREE = 0.05  # of the disk


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
    root = made_cache_folder()
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
        entry = read_entry(home)
        entry |= {"name": name, "source": str(folder), "wanted": sorted(sums)}
        sizes = {plain: plain_size(path) for plain, path in sources.items()}
        missing = [p for p in sizes if not is_there(home / p, entry["files"].get(p))]
        check_room({home: sum(sizes[plain] for plain in missing)}, reserve=_KEPT_FREE)
        meter = Meter("decompressing", sum(sizes.values()), on_progress, cancel)
        for plain, path in sorted(sources.items()):
            meter.check()
            if not is_there(home / plain, entry["files"].get(plain)):
                found = _decompress(path, home / plain, meter, cancel)
                entry["files"][plain] = _told(home / plain, sums[plain], found)
                write_entry(home, entry)
            known = entry["files"][plain]
            check_plain(path, DecodedFile(known["bytes"], known["sha256"]), manifest.get(path.name))
            meter.finish(sizes[plain])
        if (folder / INDEX).is_file():
            _write_plain_index(folder / INDEX, home / INDEX)
        write_entry(home, entry)  # also the time of its last use
        check_weight_files(home)
    return home


def _checked_sum(path: Path, manifest: dict[str, ManifestEntry], root: Path) -> str:
    """sha256 of a compressed file, compared with the manifest; remembered while its size and time stay the same."""
    told = manifest.get(path.name)
    facts = path.stat()
    if told is not None and told.bytes != facts.st_size:
        raise CheckpointError(
            f"{path} has {facts.st_size:,} bytes, its manifest says {told.bytes:,}; copy both from their source"
        )
    with FileLock(root / f".{_SEEN}.lock"):
        seen = read_facts(root / _SEEN)
    place, now = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
    known = seen.get(place)
    if isinstance(known, list) and len(known) == 3 and known[:2] == now:
        found = str(known[2])
    else:
        found = sha256_file(path)
        with FileLock(root / f".{_SEEN}.lock"):
            write_atomic(
                root / _SEEN, json.dumps(read_facts(root / _SEEN) | {place: [*now, found]}).encode()
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
        os.replace(part, target)
        return found
    finally:
        part.unlink(missing_ok=True)


def _told(path: Path, compressed_sha256: str, found: DecodedFile) -> dict[str, Any]:
    facts = path.stat()
    return {
        "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": found.sha256, "from": compressed_sha256,
    }  # fmt: skip


def _write_plain_index(source: Path, target: Path) -> None:
    places = {tensor: plain_name(name) or name for tensor, name in read_index(source).items()}
    write_atomic(target, json.dumps({"metadata": {}, "weight_map": places}).encode())
