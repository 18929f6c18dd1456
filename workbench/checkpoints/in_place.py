"""The weights of a folder, or of the local Hugging Face cache, → compressed where they lie; the plain ones go last."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.file_compression import (
    check_room_to_compress,
    compressed_entry,
    compressed_name,
)
from workbench.checkpoints.folders import plain_sources
from workbench.checkpoints.manifests import read_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.new_folders import one_writer, renamed_index
from workbench.checkpoints.reports import CompressionReport, FileReport
from workbench.checkpoints.weight_files import (
    INDEX,
    WHOLE,
    check_links,
    compressed_files,
    wanted_files,
)
from workbench.errors import CheckpointError
from workbench.store import sha256_file, write_atomic


def compress_in_place(
    folder: Path, *, on_progress: OnProgress | None = None, cancel: CancelToken | None = None
) -> CompressionReport:
    """Put compressed files in the place of plain ones; a plain file goes when all are written, read back and compared.

    A run that was interrupted goes on. In a folder of the Hugging Face cache (``snapshots/<revision>``) the blob of a
    plain file goes too, unless another revision links to it.

    Raises as :func:`workbench.checkpoints.folders.compress_checkpoint`.
    """
    check_links(folder)
    if not compressed_files(folder):
        plain_sources(folder)  # whole, and of safetensors
    with one_writer(folder.resolve()):
        return _compressed_in_place(folder, on_progress, cancel)


def _compressed_in_place(
    folder: Path, on_progress: OnProgress | None, cancel: CancelToken | None
) -> CompressionReport:
    names = wanted_files(folder)
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    entries = read_manifest(folder)
    if any(name not in sizes and compressed_name(name) not in entries for name in names):
        raise CheckpointError(
            f"{folder} is compressed already, and not by this program; see: workbench checkpoint verify {folder}"
        )
    check_room_to_compress([folder / name for name in sizes], folder)
    meter = Meter("compressing", sum(sizes.values()), on_progress, cancel)
    for name in sizes:
        meter.check()
        target = folder / compressed_name(name)
        compressed_entry(folder / name, target, on_bytes=meter.at, cancel=cancel)
        meter.finish(sizes[name])
    entries, report = read_manifest(folder), []
    for name in names:  # once more, now that nothing is written any longer
        target = folder / compressed_name(name)
        entry = entries[target.name]
        if not target.is_file() or sha256_file(target) != entry.sha256:
            raise CheckpointError(
                f"{target} differs from the sha256 of its manifest; no plain file was removed"
            )
        report.append(FileReport(target.name, **asdict(entry), is_verified=True))
    kept = [name for name in sizes if not _remove(folder / name)]
    index = folder / INDEX
    if index.is_file():
        if names == [WHOLE]:
            index.unlink()  # of other shards, which nothing reads beside one whole file
        else:
            write_atomic(
                index, renamed_index(index, {name: compressed_name(name) for name in names})
            )
    return CompressionReport(str(folder), tuple(report), tuple(kept))


def _remove(path: Path) -> bool:
    """Remove a file; of a link in the Hugging Face cache also the blob, unless (False) another revision needs it."""
    blob = path.resolve() if path.is_symlink() else None
    path.unlink()
    if blob is None or blob.parent.name != "blobs":
        return True
    snapshots = blob.parent.parent / "snapshots"
    if any(link.resolve() == blob for link in snapshots.rglob("*") if link.is_symlink()):
        return False
    blob.unlink()
    return True
