"""Files that are either whole or absent: atomic writes, and a manifest of sha256 sums that is checked on reading.

Knows nothing of what the files hold. Standard library alone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
DAY_SECONDS = 86_400


def sha256_bytes(data: bytes) -> str:
    """Hex digest of `data`.

    >>> sha256_bytes(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success it takes the place of `folder`, on failure it is removed.

    The old folder stays readable until the last moment. A crash between the two renames leaves it whole under
    ``.NAME.old-…``, and the next call puts it back; what a crash leaves of other names is cleared by the next call.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.new-"))
    os.chmod(fresh, 0o777 & ~_umask())
    try:
        yield fresh
        sync_folder(fresh)
        if folder.exists():
            old = fresh.with_name(fresh.name.replace(".new-", ".old-"))
            os.rename(folder, old)
            os.rename(fresh, folder)
            gone = old.with_name(old.name.replace(".old-", ".gone-"))
            os.rename(old, gone)  # so that ".old-" is never a folder half removed
            shutil.rmtree(gone)
        else:
            os.rename(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        recover_folder(folder)
        raise


def recover_folder(folder: Path) -> None:
    """Finish what a crash interrupted: bring the old folder back, or remove it if the new one took its place.

    A folder still being written (``.new-``) is removed when it is a day old: a younger one may have a living writer.
    """
    beside = glob.escape(f".{folder.name}.")
    for old in sorted(folder.parent.glob(f"{beside}old-*")):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, folder)
    for gone in folder.parent.glob(f"{beside}gone-*"):
        shutil.rmtree(gone, ignore_errors=True)
    for fresh in folder.parent.glob(f"{beside}new-*"):
        if time.time() - fresh.stat().st_mtime > DAY_SECONDS:
            shutil.rmtree(fresh, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have everything below `folder` on the disk before this returns."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``manifest.json``: `facts` and the sha256 of every other file below `folder`."""
    files = {name: sha256_file(folder / name) for name in _file_names(folder)}
    data = json.dumps({**facts, "files": files}, ensure_ascii=False, indent=2, sort_keys=True)
    write_atomic(folder / MANIFEST, data.encode())


def damaged_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of files that are missing, changed, or not in `manifest`; empty when all is well."""
    promised: dict[str, str] = manifest["files"]
    present = set(_file_names(folder))
    changed = [
        n for n in sorted(promised) if n not in present or sha256_file(folder / n) != promised[n]
    ]
    return changed + sorted(present - promised.keys())


def _file_names(folder: Path) -> list[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _sync(path: Path) -> None:
    try:
        # Windows syncs only what is open for writing, and opens no folder
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems refuse to sync a folder
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
