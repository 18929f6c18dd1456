"""Model folders and weight files ↔ their ZipNN-compressed form, without loss: written, read back and compared.

Nothing is overwritten. A run that was interrupted goes on where it stopped: what the manifest lists is done.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.decoding import decode_file
from workbench.checkpoints.file_compression import (
    check_room_to_compress,
    checked_source,
    compressed_entry,
    compressed_name,
    plain_report,
    verified_sum,
)
from workbench.checkpoints.machine import check_room
from workbench.checkpoints.manifests import ManifestEntry, check_plain, read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.new_folders import (
    check_home,
    check_new_home,
    copy_others,
    home_beside,
    move_all,
    one_writer,
    renamed_index,
)
from workbench.checkpoints.paths import named_place
from workbench.checkpoints.reports import CompressionReport, FileReport
from workbench.checkpoints.weight_files import (
    INDEX,
    WHOLE,
    check_links,
    check_weight_files,
    compressed_files,
    plain_name,
    read_index,
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
    place = named_place(path)
    if out is None:
        otherwise = "give another place with --out, or compress it there with --in-place"
        name = f"{place.name}-ZipNN"
        out = place.parent if path.is_file() else home_beside(place, name, otherwise=otherwise)
    home = out.resolve()
    names = {one.name: compressed_name(one.name) for one in sources}
    with one_writer(home):
        if path.is_dir():
            check_new_home(path, home, names)
        check_room_to_compress(sources, home)
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
    manifest, place = read_manifest(folder), named_place(path)
    if out is None:
        bare = place.name.removesuffix("-ZipNN")
        name = bare if bare != place.name else f"{bare}-plain"
        otherwise = "give another place with --out"
        out = place.parent if path.is_file() else home_beside(place, name, otherwise=otherwise)
    home = out.resolve()
    total = _plain_bytes(sources)
    meter = Meter("decompressing", total, on_progress, cancel)
    with one_writer(home):
        check_home(home, set(sources), is_file=path.is_file())
        check_room({home: total}, what=f"{path} decompressed")
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
            if source.name == plain:
                shutil.copyfile(source, fresh / plain)
                report.append(plain_report(fresh / plain, manifest))
                meter.finish(report[-1].bytes)
                continue
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
                places = read_index(path / INDEX).values()
                names = {place: plain_name(place) or place for place in places}
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
    meter = Meter("verifying", _plain_bytes(sources), on_progress, cancel)
    for plain, source in sorted(sources.items()):
        meter.check()
        if source.name == plain:
            report.append(plain_report(source, manifest))
            meter.finish(report[-1].bytes)
            continue
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
    compressed, names = compressed_files(path), wanted_files(path)
    plain = [name for name in names if name not in compressed]
    if not plain:
        raise CheckpointError(
            f"{path} is compressed already; see: workbench checkpoint verify {path}"
        )
    if compressed:
        raise CheckpointError(
            f"{path} is compressed but for {len(plain)} of {len(names)} files, first {plain[0]}; compress them with "
            "--in-place, or decompress it first"
        )
    check_weight_files(path)
    return [path / name for name in names]


def _compressed_sources(path: Path) -> tuple[dict[str, Path], Path]:
    """Weight files by the names of the plain ones, some of them compressed, and the folder where their manifest is."""
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
    alone = sorted(one.name for one in path.iterdir() if plain_name(one.name))
    if not found and alone:
        raise CheckpointError(
            f"{path} holds {len(alone)} compressed files, first {alone[0]}, and is no whole compressed checkpoint: "
            "where compressing was interrupted, run it again; else name the file"
        )
    if not found:
        raise CheckpointError(
            f"{path} holds no compressed weights (.safetensors.znn, .znn.safetensors); make some with: "
            "workbench checkpoint compress"
        )
    return {name: found.get(name, path / name) for name in wanted_files(path)}, path


def _plain_bytes(sources: dict[str, Path]) -> int:
    """Bytes of all files when they are plain; the headers of the compressed ones are all checked by that."""
    return sum(
        path.stat().st_size if path.name == plain else plain_size(path)
        for plain, path in sources.items()
    )
