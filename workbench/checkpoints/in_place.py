"""The weights of a folder, or of the local Hugging Face cache, → compressed where they lie; the plain ones go last."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from workbench.cancel import CancelToken, OnProgress
from workbench.checkpoints.folders import (
    CompressionReport,
    FileReport,
    compress_file,
    compressed_name,
    is_done,
    plain_sources,
)
from workbench.checkpoints.manifests import read_manifest, write_manifest
from workbench.checkpoints.meter import Meter
from workbench.checkpoints.weight_files import (
    INDEX,
    compressed_files,
    plain_name,
    read_index,
    wanted_files,
)
from workbench.errors import CheckpointError
from workbench.store import write_atomic


def compress_in_place(
    folder: Path, *, on_progress: OnProgress | None = None, cancel: CancelToken | None = None
) -> CompressionReport:
    """Put compressed files in the place of plain ones; a plain file goes when all are written, read back and compared.

    A run that was interrupted goes on. In a folder of the Hugging Face cache (``snapshots/<revision>``) the blob of a
    plain file goes too, unless another revision links to it.

    Raises as :func:`workbench.checkpoints.folders.compress_checkpoint`.
    """
    if not compressed_files(folder):
        plain_sources(folder)  # whole, and of safetensors
    names, entries, report = wanted_files(folder), read_manifest(folder), []
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    meter = Meter("compressing", sum(sizes.values()), on_progress, cancel)
    for name in names:
        meter.check()
        source, target = folder / name, folder / compressed_name(name)
        entry = entries.get(target.name)
        if source.is_file() and (entry is None or not is_done(target, entry, source)):
            entry = compress_file(source, target, on_bytes=meter.at, cancel=cancel)
            entries[target.name] = entry
            write_manifest(folder, entries)
        if entry is None:
            raise CheckpointError(
                f"{folder} is compressed already, and not by this program; see: workbench checkpoint verify {folder}"
            )
        report.append(FileReport(target.name, **asdict(entry), is_verified=True))
        meter.finish(sizes.get(name, 0))
    for name in names:
        if (folder / name).is_file():
            _remove(folder / name)
    index = folder / INDEX
    if index.is_file():
        raw = json.loads(index.read_text("utf-8"))
        places = read_index(index)
        raw["weight_map"] = {
            tensor: compressed_name(plain_name(name) or name) for tensor, name in places.items()
        }
        write_atomic(index, json.dumps(raw, indent=2).encode() + b"\n")
    return CompressionReport(str(folder), tuple(report))


def _remove(path: Path) -> None:
    """Remove a file; of a link in the Hugging Face cache also the blob, unless another revision needs it."""
    blob = path.resolve() if path.is_symlink() else None
    path.unlink()
    if blob is None or blob.parent.name != "blobs":
        return
    snapshots = blob.parent.parent / "snapshots"
    if not any(link.resolve() == blob for link in snapshots.rglob("*") if link.is_symlink()):
        blob.unlink()
