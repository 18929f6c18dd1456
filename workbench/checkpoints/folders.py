"""Model folders and weight files ↔ their ZipNN-compressed form, without loss: written, read back and compared.

Nothing is overwritten. A run that was interrupted goes on where it stopped: what the manifest lists is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.cache import check_plain, one_writer, temporary_folder
from workbench.checkpoints.compressed_files import compressed_bytes, main_dtype, plain_size
from workbench.checkpoints.decoding import decode_file
from workbench.checkpoints.manifests import NAME, ManifestEntry, read_manifest, write_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.weight_files import (
    BYTES_SUFFIX,
    INDEX,
    WHOLE,
    check_links,
    check_weight_files,
    compressed_files,
    plain_name,
    read_index,
    tensor_names,
    wanted_files,
)
from workbench.errors import CheckpointError, InputError
from workbench.store import sha256_file, write_atomic

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


@dataclass(frozen=True, slots=True)
class FileReport:
    """One weight file: its compressed and plain bytes and sha256, and whether both were compared with a manifest."""

    name: str
    bytes: int
    sha256: str
    plain_bytes: int
    plain_sha256: str
    is_verified: bool


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What was done to the weight files of a folder; ``folder`` is where the result lies."""

    folder: str
    files: tuple[FileReport, ...]

    @property
    def ratio(self) -> float:
        """Compressed bytes over plain ones."""
        return sum(file.bytes for file in self.files) / sum(file.plain_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        plain, held = (
            sum(file.plain_bytes for file in self.files),
            sum(file.bytes for file in self.files),
        )
        unsure = [file.name for file in self.files if not file.is_verified]
        told = (
            f"{len(unsure)} of {len(self.files)} files are in no manifest, which alone could tell if they are whole"
            if unsure
            else "every sha256 is that of the manifest"
        )
        return (
            f"{self.folder}: {held:,} bytes compressed, {plain:,} plain ({self.ratio:.1%}); {told}"
        )


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
            _check_new_home(path, home, names)
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
            _copy_others(path, home)
            if (path / INDEX).is_file() and not (path / WHOLE).is_file():
                write_atomic(home / INDEX, renamed_index(path / INDEX, names))
    return CompressionReport(str(home), tuple(report))


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
    if entry is not None and is_done(target, entry, source):
        return entry
    if (
        entry is None and target.exists()
    ):  # by a run that ended before it could say so, or by somebody else
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
        _verify_file(target, entry, None, cancel)
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
        _verify_file(part, entry, None, cancel)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return entry


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
        _check_home(home, set(sources), is_file=path.is_file())
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
            sha256 = _check_source(source, told)
            found = decode_file(source, fresh / plain, on_bytes=meter.at, cancel=cancel)
            check_plain(source, found, told)
            tensor_names(fresh / plain)
            size = source.stat().st_size
            is_known = told is not None
            report.append(
                FileReport(source.name, size, sha256, found.bytes, found.sha256, is_known)
            )
            meter.finish(found.bytes)
        if path.is_dir():
            _copy_others(path, fresh)
            if (path / INDEX).is_file():
                names = {one.name: plain for plain, one in sources.items()}
                (fresh / INDEX).write_bytes(renamed_index(path / INDEX, names))
            check_weight_files(fresh)
        _move_all(fresh, home)
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
        sha256 = _check_source(source, told)
        size = source.stat().st_size
        entry = told or ManifestEntry(size, sha256, plain_size(source), "")
        found = _verify_file(source, entry, meter.at, cancel)
        meter.finish(entry.plain_bytes)
        report.append(
            FileReport(source.name, size, sha256, entry.plain_bytes, found, told is not None)
        )
    return CompressionReport(str(folder), tuple(report))


def _verify_file(
    source: Path,
    told: ManifestEntry,
    on_bytes: Callable[[int], None] | None,
    cancel: CancelToken | None,
) -> str:
    """Decompress a file into a temporary one in the cache; sha256 of what it gives, which is compared if told."""
    with temporary_folder() as beside:
        plain = beside / "plain.safetensors"
        found = decode_file(source, plain, on_bytes=on_bytes, cancel=cancel)
        tensor_names(plain)
    if told.plain_sha256:
        check_plain(source, found, told)
    return found.sha256


def _check_source(source: Path, told: ManifestEntry | None) -> str:
    found = sha256_file(source)
    if told is not None and (told.bytes, told.sha256) != (source.stat().st_size, found):
        raise CheckpointError(
            f"{source} differs from the sha256 of its manifest; copy both from their source"
        )
    return found


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


def compressed_name(name: str) -> str:
    """What a safetensors file is called when it is compressed as a whole."""
    return name.removesuffix(".safetensors") + BYTES_SUFFIX


def _check_new_home(source: Path, home: Path, names: dict[str, str]) -> None:
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
            is_own = own is not None and own.read_bytes() == path.read_bytes()
        if not is_own:
            foreign.add(path.name)
    if foreign:
        raise InputError(
            f"{home} holds {min(foreign)} already, not of {source}; give another place with --out, or remove it"
        )


def _check_home(home: Path, names: set[str], *, is_file: bool) -> None:
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


def is_done(target: Path, entry: ManifestEntry, source: Path) -> bool:
    """Whether an earlier run has made `target` of this very source."""
    if not target.is_file() or target.stat().st_size != entry.bytes:
        return False
    if source.stat().st_size != entry.plain_bytes or sha256_file(source) != entry.plain_sha256:
        raise InputError(
            f"{target} was made of another {source.name}; remove it, or give another place with --out"
        )
    return sha256_file(target) == entry.sha256


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


def _copy_others(source: Path, home: Path) -> None:
    for path in _others(source):
        write_atomic(home / path.name, path.read_bytes())


def renamed_index(path: Path, names: dict[str, str]) -> bytes:
    """An index with other names of its files."""
    raw = json.loads(path.read_text("utf-8"))
    raw["weight_map"] = {tensor: names.get(name, name) for tensor, name in read_index(path).items()}
    return json.dumps(raw, indent=2).encode() + b"\n"


def _move_all(fresh: Path, home: Path) -> None:
    """Everything of a folder into another: at once where that is not there yet, else file by file."""
    if not home.exists():
        os.replace(fresh, home)
        return
    for path in sorted(fresh.iterdir()):
        os.replace(path, home / path.name)


def _plain_meter(
    stage: str, sources: dict[str, Path], on_progress: OnProgress | None, cancel: CancelToken | None
) -> Meter:
    """Counts the plain bytes of compressed files, whose headers are all checked by that."""
    return Meter(stage, sum(plain_size(path) for path in sources.values()), on_progress, cancel)
