"""One safetensors file → its ZipNN-compressed form, read back and compared before it takes its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from workbench.cancel import CancelToken
from workbench.checkpoints.cache_places import cache_folder, temporary_folder
from workbench.checkpoints.compressed_files import compressed_bytes, main_dtype
from workbench.checkpoints.decoding import DecodedFile, decode_file
from workbench.checkpoints.machine import check_room
from workbench.checkpoints.manifests import (
    ManifestEntry,
    check_plain,
    read_manifest,
    write_manifest,
)
from workbench.checkpoints.reports import FileReport
from workbench.checkpoints.weight_files import BYTES_SUFFIX, plain_name, tensor_names
from workbench.errors import CheckpointError, InputError, MachineFault
from workbench.store import sha256_file


def compressed_name(name: str) -> str:
    """What a safetensors file is called when it is compressed as a whole."""
    return name.removesuffix(".safetensors") + BYTES_SUFFIX


def check_room_to_compress(sources: list[Path], home: Path) -> None:
    """Raise ``MachineFault`` where `home` has no room for two thirds of what is not compressed yet.

    It needs room for the largest file at least, and so does the cache's folder, where each is read back.
    """
    left = [path for path in sources if not (home / compressed_name(path.name)).exists()]
    sizes = [path.stat().st_size for path in left]
    largest = max(sizes, default=0)
    room = {home: max(largest, 2 * sum(sizes) // 3), cache_folder(): largest}
    check_room(room, what="what is compressed, with a file that is read back,")


def compressed_entry(
    source: Path,
    target: Path,
    *,
    on_bytes: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> ManifestEntry:
    """The manifest's entry of `target`, which is made of `source` now unless an earlier run has made it.

    Raises ``InputError`` for a `target` that is there and is something else.
    """
    entries = read_manifest(target.parent)
    entry = entries.get(target.name)
    if entry is not None and _is_done(target, entry, source):
        return entry
    if entry is None and target.exists():  # of a run that could not say so, or somebody else's
        entry = _adopted(source, target, cancel)
    else:
        entry = compress_file(source, target, on_bytes=on_bytes, cancel=cancel)
    write_manifest(target.parent, read_manifest(target.parent) | {target.name: entry})
    return entry


def _adopted(source: Path, target: Path, cancel: CancelToken | None) -> ManifestEntry:
    entry = ManifestEntry(
        target.stat().st_size, sha256_file(target), source.stat().st_size, sha256_file(source)
    )
    try:
        verified_sum(target, entry, None, cancel)
    except MachineFault:
        raise
    except CheckpointError as error:
        raise InputError(
            f"{target} is there and is not {source.name} compressed; give another place with --out, or remove it"
        ) from error
    return entry


def compress_file(
    source: Path,
    target: Path,
    *,
    on_bytes: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> ManifestEntry:
    """Compress one safetensors file into the new file `target`, and compare what it gives with `source`.

    `on_bytes` is told how many bytes of `source` are compressed.
    """
    part = target.with_name(f".part-{target.name}")
    plain, compressed, plain_count, count = hashlib.sha256(), hashlib.sha256(), 0, 0
    try:
        kind = main_dtype(source)
        with source.open("rb") as reader, part.open("wb") as writer:
            for size, stream in compressed_bytes(source, kind):
                if cancel is not None:
                    cancel.raise_if_cancelled("compressing")
                plain.update(reader.read(size))
                compressed.update(stream)
                writer.write(stream)
                plain_count, count = plain_count + size, count + len(stream)
                if on_bytes:
                    on_bytes(plain_count)
            writer.flush()
            os.fsync(writer.fileno())
        entry = ManifestEntry(count, compressed.hexdigest(), plain_count, plain.hexdigest())
        _read_back(source, part, entry, cancel)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return entry


def _read_back(source: Path, part: Path, entry: ManifestEntry, cancel: CancelToken | None) -> None:
    try:
        verified_sum(part, entry, None, cancel)
    except MachineFault as error:
        raise MachineFault(str(error).replace(str(part), str(source))) from error
    except CheckpointError as error:
        raise CheckpointError(
            f"{source} and what was compressed of it differ: it was written to meanwhile, or memory or disk of this "
            "machine are faulty; compress it again"
        ) from error


def verified_sum(
    source: Path,
    told: ManifestEntry,
    on_bytes: Callable[[int], None] | None,
    cancel: CancelToken | None,
) -> str:
    """Decompress a file into a temporary one in the cache; sha256 of what it gives, which is compared if told."""
    with temporary_folder() as beside:
        plain = beside / "plain.safetensors"
        found = decode_file(source, plain, on_bytes=on_bytes, cancel=cancel)
    if told.plain_sha256:
        check_plain(source, found, told)
    return found.sha256


def plain_report(path: Path, manifest: dict[str, ManifestEntry]) -> FileReport:
    """A file that lies plain among compressed ones: found whole, and compared where the manifest tells what it is."""
    tensor_names(path)
    found = DecodedFile(path.stat().st_size, sha256_file(path))
    told = [entry for name, entry in manifest.items() if plain_name(name) == path.name]
    for entry in told:
        check_plain(path, found, entry)
    return FileReport(
        path.name, found.bytes, found.sha256, found.bytes, found.sha256, is_verified=bool(told)
    )


def checked_source(source: Path, told: ManifestEntry | None) -> str:
    """sha256 of a compressed file, compared with its manifest."""
    found = sha256_file(source)
    if told is not None and (told.bytes, told.sha256) != (source.stat().st_size, found):
        raise CheckpointError(
            f"{source} differs from the sha256 of its manifest; copy both from their source"
        )
    return found


def _is_done(target: Path, entry: ManifestEntry, source: Path) -> bool:
    """Whether an earlier run has made `target` of this very source."""
    if not target.is_file() or target.stat().st_size != entry.bytes:
        return False
    if source.stat().st_size != entry.plain_bytes or sha256_file(source) != entry.plain_sha256:
        raise InputError(
            f"{target} was made of another {source.name}; remove it, or give another place with --out"
        )
    return sha256_file(target) == entry.sha256
