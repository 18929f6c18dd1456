"""Model folders and weight files ↔ their ZipNN-compressed form, without loss: written, read back and compared.

Nothing is overwritten. A run that was interrupted goes on where it stopped: what the manifest lists is done.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.cache_places import one_writer
from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.decoding import decode_file
from workbench.checkpoints.file_compression import (
    checked_source,
    compressed_entry,
    compressed_name,
    verified_sum,
)
from workbench.checkpoints.manifests import ManifestEntry, check_plain, read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.new_folders import (
    check_home,
    check_new_home,
    copy_others,
    move_all,
    renamed_index,
)
from workbench.checkpoints.reports import CompressionReport, FileReport
from workbench.checkpoints.weight_files import (
    INDEX,
    WHOLE,
    check_links,
    check_weight_files,
    compressed_files,
    plain_name,
    wanted_files,
)
from workbench.errors import CheckpointError, InputError
from workbench.store import write_atomic


def compress_checkpoint(
    path: Path,
    out: Path | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> CompressionReport:
    """Compress a model folder into a new one beside it (NAME-ZipNN, or `out`), or a .safetensors file beside itself.

    The new folder is a whole checkpoint: the index names the compressed files, and every other file is copied but for
    weights in other formats. Each file is decompressed again and compared before it is listed in the manifest.

    Raises
    ------
    CheckpointError
        The folder or file is no whole checkpoint in safetensors.
    InputError
        The place to write to holds something else.
    Cancelled
        `cancel` was set; a later call goes on.
    """
    sources = plain_sources(path)
    place = path.resolve()
    beside = place.parent if path.is_file() else place.with_name(place.name + "-ZipNN")
    home = (beside if out is None else out).resolve()
    names = {one.name: compressed_name(one.name) for one in sources}
    with one_writer(home):
        if path.is_dir():
            check_new_home(path, home, names)
        home.mkdir(parents=True, exist_ok=True)
        report = []
        total = sum(one.stat().st_size for one in sources)
        meter = Meter("compressing", total, on_progress, cancel)
        for source in sources:
            meter.check()
            target = home / names[source.name]
            entry = compressed_entry(source, target, on_bytes=meter.at, cancel=cancel)
            report.append(FileReport(target.name, **asdict(entry), is_verified=True))
            meter.finish(entry.plain_bytes)
        if path.is_dir():
            copy_others(path, home)
            if (path / INDEX).is_file() and not (path / WHOLE).is_file():
                write_atomic(home / INDEX, renamed_index(path / INDEX, names))
    return CompressionReport(str(home), tuple(report))


def decompress_checkpoint(
    path: Path,
    out: Path | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> CompressionReport:
    """Decompress a folder into a new one beside it (its name without -ZipNN, else NAME-plain, or `out`), or one file.

    Raises as :func:`compress_checkpoint`, and ``CheckpointError`` for a file that is not what its manifest says.
    """
    sources, folder = _compressed_sources(path)
    manifest, place = read_manifest(folder), path.resolve()
    bare = place.name.removesuffix("-ZipNN")
    beside = place.with_name(bare if bare != place.name else place.name + "-plain")
    home = (out or (place.parent if path.is_file() else beside)).resolve()
    meter = _plain_meter("decompressing", sources, on_progress, cancel)
    with one_writer(home):
        check_home(home, set(sources), is_file=path.is_file())
        return _decompressed_into(path, home, sources, manifest, meter, cancel)


def _decompressed_into(
    path: Path,
    home: Path,
    sources: dict[str, Path],
    manifest: dict[str, ManifestEntry],
    meter: Meter,
    cancel: CancelToken | None,
) -> CompressionReport:
    # on the disk where it is to be
    fresh = home / ".part" if home.is_dir() else home.with_name(f".part-{home.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    report = []
    try:
        for plain, source in sorted(sources.items()):
            meter.check()
            told = manifest.get(source.name)
            sha256 = checked_source(source, told)
            found = decode_file(source, fresh / plain, on_bytes=meter.at, cancel=cancel)
            check_plain(source, found, told)
            size = source.stat().st_size
            is_known = told is not None
            report.append(
                FileReport(source.name, size, sha256, found.bytes, found.sha256, is_known)
            )
            meter.finish(found.bytes)
        if path.is_dir():
            copy_others(path, fresh)
            if (path / INDEX).is_file():
                names = {one.name: plain for plain, one in sources.items()}
                (fresh / INDEX).write_bytes(renamed_index(path / INDEX, names))
            check_weight_files(fresh)
        move_all(fresh, home)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return CompressionReport(str(home), tuple(report))


def verify_checkpoint(
    path: Path, *, on_progress: OnProgress | None = None, cancel: CancelToken | None = None
) -> CompressionReport:
    """Decompress every compressed file of a folder, or one file, and compare all with the manifest; nothing is kept.

    One plain file at a time lies in the cache's folder meanwhile.

    Without a manifest only what ZipNN's headers and safetensors' own say is compared: the report tells which files.
    """
    sources, folder = _compressed_sources(path)
    manifest = read_manifest(folder)
    report = []
    meter = _plain_meter("verifying", sources, on_progress, cancel)
    for _, source in sorted(sources.items()):
        meter.check()
        told = manifest.get(source.name)
        sha256 = checked_source(source, told)
        size = source.stat().st_size
        entry = told or ManifestEntry(size, sha256, plain_size(source), "")
        found = verified_sum(source, entry, meter.at, cancel)
        meter.finish(entry.plain_bytes)
        report.append(
            FileReport(source.name, size, sha256, entry.plain_bytes, found, told is not None)
        )
    return CompressionReport(str(folder), tuple(report))


def plain_sources(path: Path) -> list[Path]:
    """The plain weight files of a whole checkpoint in safetensors, or the one file that is named; else an error."""
    if path.is_file():
        if not path.name.endswith(".safetensors") or plain_name(path.name):
            raise CheckpointError(
                f"{path} is no plain .safetensors file; only those are compressed"
            )
        return [path]
    if not path.is_dir():
        raise InputError(f"no file or folder at {path}")
    check_links(path)
    if compressed_files(path):
        raise CheckpointError(
            f"{path} is compressed already; see: workbench checkpoint verify {path}"
        )
    check_weight_files(path)
    return [path / name for name in wanted_files(path)]


def _compressed_sources(path: Path) -> tuple[dict[str, Path], Path]:
    """Compressed files by the names of the plain ones, and the folder where their manifest is."""
    if path.is_file():
        plain = plain_name(path.name)
        if plain is None:
            raise CheckpointError(
                f"{path} is no compressed weight file; their names end with .safetensors.znn or .znn.safetensors"
            )
        return {plain: path}, path.parent
    if not path.is_dir():
        raise InputError(f"no file or folder at {path}")
    check_links(path)
    found = compressed_files(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no compressed weights (.safetensors.znn, .znn.safetensors); nothing to decompress"
        )
    return found, path


def _plain_meter(
    stage: str, sources: dict[str, Path], on_progress: OnProgress | None, cancel: CancelToken | None
) -> Meter:
    """Counts the plain bytes of compressed files, whose headers are all checked by that."""
    return Meter(stage, sum(plain_size(path) for path in sources.values()), on_progress, cancel)
