"""A folder of compressed weights → a folder of plain ones in a cache, decompressed once, named by what it was made of.

A file is compared with its manifest before and after, decompressed in a process of its own and renamed into place when
it is whole; what a killed process leaves is never taken for a file. Loading reads the cache as any other folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.cache_entries import is_there, read_entry, read_facts, write_entry
from workbench.checkpoints.cache_places import claimed, locked, made_cache_folder
from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.decoding import DecodedFile, decode_file
from workbench.checkpoints.machine import check_room, machine_fault
from workbench.checkpoints.manifests import ManifestEntry, check_plain, read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.weight_files import (
    INDEX,
    check_weight_files,
    compressed_files,
    plain_name,
    read_index,
    wanted_files,
)
from workbench.errors import CheckpointError
from workbench.store import sha256_bytes, sha256_file, write_atomic

_SEEN = "seen.json"
_KEPT_FREE = 0.05  # of the disk


@contextmanager
def decompressed(
    folder: Path,
    *,
    name: str,
    most_bytes: int | None = None,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[Path]:
    """The cache's folder with the plain weights of `folder`; what is missing there is decompressed now.

    `name` is what the list of the cache calls it, `most_bytes` how large the weights may be. Beside the weights the
    folder has their index, and no config; a file that is plain in `folder` is linked to. While the folder is read, a
    claim that ``clean_cache`` looks for keeps it: many may hold one at a time, and that of a killed process is void.

    Raises
    ------
    CheckpointError
        A file is damaged, is not what the manifest says, or gives other than the manifest says; or all give too much.
    MachineFault
        The cache cannot be written to, and not all is there.
    Cancelled
        `cancel` was set; what was finished stays.
    """
    sources = compressed_files(folder)
    sizes = {plain: plain_size(path) for plain, path in sources.items()}
    if most_bytes is not None and sum(sizes.values()) > most_bytes:
        raise CheckpointError(
            f"{folder} claims {sum(sizes.values()):,} bytes of weights, a model of its config.json has {most_bytes:,} "
            "at most; take both from the same source"
        )
    manifest = read_manifest(folder)
    unlisted = [path.name for path in sources.values() if manifest and path.name not in manifest]
    if unlisted:
        raise CheckpointError(
            f"{folder} has a manifest that does not list {unlisted[0]}: it is of other files; copy all from one source"
        )
    root = made_cache_folder()
    with ExitStack() as reading:
        try:
            sums = {plain: _checked_sum(path, manifest, root) for plain, path in sources.items()}
            plain_ones = [name for name in wanted_files(folder) if name not in sources]
            links = {plain: str((folder / plain).resolve()) for plain in plain_ones}
            home = root / sha256_bytes(json.dumps(sorted((sums | links).items())).encode())[:32]
            wanted = _Wanted(folder, sources, sizes, sums, links, manifest)
            with locked(root / f".{home.name}.lock") as refused:
                with suppress(OSError):  # where nothing can be written, nobody cleans
                    reading.enter_context(claimed(home.name))
                _fill(home, wanted, name, refused, on_progress, cancel)
        except OSError as error:
            raise machine_fault(error, root) from error
        yield home


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A compressed checkpoint: files and their facts by the names of the plain ones; links lead to what is plain."""

    folder: Path
    sources: dict[str, Path]
    sizes: dict[str, int]
    sums: dict[str, str]
    links: dict[str, str]
    manifest: dict[str, ManifestEntry]


def _fill(
    home: Path,
    wanted: _Wanted,
    name: str,
    refused: OSError | None,
    on_progress: OnProgress | None,
    cancel: CancelToken | None,
) -> None:
    """Make what is not in `home` yet, unless that is `refused`; where all is there, nothing need be written."""
    sources, sizes = wanted.sources, wanted.sizes
    entry = read_entry(home)
    missing = [plain for plain in sources if not is_there(home / plain, entry["files"].get(plain))]
    entry |= {
        "name": name, "source": os.path.abspath(wanted.folder), "wanted": sorted(sources),
    }  # fmt: skip
    if missing:
        if refused is not None:
            raise refused
        room = {home.parent: sum(sizes[plain] for plain in missing)}
        check_room(room, what=f"{wanted.folder} decompressed", reserve=_KEPT_FREE)
        home.mkdir(exist_ok=True)
        write_entry(home, entry)  # now, so that what a killed process leaves is in the list
    meter = Meter("decompressing", sum(sizes.values()), on_progress, cancel)
    for plain, path in sorted(sources.items()):
        meter.check()
        if plain in missing:
            found = _decompress(path, home / plain, meter, cancel)
            entry["files"][plain] = _told(home / plain, wanted.sums[plain], found)
            write_entry(home, entry)
        known = entry["files"][plain]
        told = wanted.manifest.get(path.name)
        check_plain(path, DecodedFile(known["bytes"], known["sha256"]), told)
        meter.finish(sizes[plain])
    for plain, target in wanted.links.items():
        _link(home / plain, target)
    if (wanted.folder / INDEX).is_file():
        _write_plain_index(wanted.folder / INDEX, home / INDEX)
    with suppress(OSError):
        write_entry(home, entry)  # the time of its last use
    check_weight_files(home)


def _checked_sum(path: Path, manifest: dict[str, ManifestEntry], root: Path) -> str:
    """sha256 of a compressed file, compared with the manifest; remembered while its size and time stay the same."""
    told = manifest.get(path.name)
    facts = path.stat()
    if told is not None and told.bytes != facts.st_size:
        raise CheckpointError(
            f"{path} has {facts.st_size:,} bytes, its manifest says {told.bytes:,}; copy both from their source"
        )
    place, now = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
    known = read_facts(root / _SEEN).get(place)
    if isinstance(known, list) and len(known) == 3 and known[:2] == now:
        found = str(known[2])
    else:
        found = sha256_file(path)
        with locked(root / f".{_SEEN}.lock"), suppress(OSError):  # else it is reckoned again
            seen = read_facts(root / _SEEN) | {place: [*now, found]}
            write_atomic(root / _SEEN, json.dumps(seen).encode())
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
    raw = json.dumps({"metadata": {}, "weight_map": places}).encode()
    if not target.is_file() or target.read_bytes() != raw:
        write_atomic(target, raw)


def _link(place: Path, target: str) -> None:
    if place.is_symlink() and os.readlink(place) == target:
        return
    fresh = place.with_name(f".{place.name}.part")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, place)
