"""An index folder is whole, unchanged and ours, or it is refused. Knows not what its files hold."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import IndexUnusable
from workbench.store import (
    MANIFEST,
    damaged_files,
    recover_folder,
    replacing_folder,
    sha256_bytes,
    write_atomic,
    write_manifest,
)

FORMAT = "workbench-index"
FORMAT_VERSION = 1  # raise it when an older program could no longer read the folder
IGNORE = ".workbenchignore"
FILES = {
    "manifest.json",
    IGNORE,
    "documents.jsonl",
    "chunks.jsonl",
    "vectors.faiss",
    "lexical/settings.json",
    "lexical/data.csc.index.npy",
    "lexical/indices.csc.index.npy",
    "lexical/indptr.csc.index.npy",
    "lexical/params.index.json",
    "lexical/vocab.index.json",
}
REMEDY = "build it again with `workbench index`"

Result = TypeVar("Result")


@contextmanager
def replacing_index(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill; sealed with `facts`, it then takes the place of `folder`.

    Raises
    ------
    ValueError
        `folder` holds something that is no part of an index: nothing of it is touched.
    """
    refuse_foreign(folder)
    with replacing_folder(folder) as fresh:
        # an index that lies in the folder it was made from is no document of the next one
        (fresh / IGNORE).write_text("*\n", "utf-8")
        yield fresh
        write_manifest(fresh, {**facts, "format": FORMAT, "format_version": FORMAT_VERSION})
        manifest = json.loads((fresh / MANIFEST).read_bytes())
        write_atomic(fresh / MANIFEST, _render(manifest))


def read_index(folder: Path, read: Callable[[Path, dict[str, Any]], Result]) -> Result:
    """Check `folder` against its manifest and return ``read(folder, manifest)``.

    When another process replaces the folder meanwhile, everything is read again from the new one.

    Raises
    ------
    IndexUnusable
        The folder is missing, newer than this program, or one byte of it is not as it was written.
    """
    for _ in range(100):
        before = _stamp(folder)
        try:
            manifest = _checked_manifest(folder)
            result, error = read(folder, manifest), None
        except (IndexUnusable, OSError, LookupError, TypeError, ValueError) as found:
            error = found
        if _stamp(folder) == before and before is not None:
            break
        if not folder.exists():  # between two renames of a writer, or after a crash there
            time.sleep(0.1)
            recover_folder(folder.resolve())
            if not folder.exists():
                break
    if error is None:
        return result
    if isinstance(error, IndexUnusable):
        raise error
    raise IndexUnusable(f"the index {folder} is damaged ({error!r}); {REMEDY}") from error


def _checked_manifest(folder: Path) -> dict[str, Any]:
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise IndexUnusable(
            f"no index at {folder}; make one with `workbench index PATH… --index DIR`"
        ) from error
    manifest = _parse(data)
    if manifest is None:
        raise IndexUnusable(
            f"{folder / MANIFEST} is damaged or belongs to something else; {REMEDY}"
        )
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IndexUnusable(
            f"the index {folder} has format {version}, this program reads up to {FORMAT_VERSION}; "
            f"update workbench or {REMEDY}"
        )
    if data != _render(manifest):
        raise IndexUnusable(f"{folder / MANIFEST} was changed after it was written; {REMEDY}")
    if damaged := damaged_files(folder, manifest):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise IndexUnusable(
            f"the index {folder} is damaged: {damaged[0]}{more} is not as it was written; {REMEDY}"
        )
    return manifest


def _parse(data: bytes) -> dict[str, Any] | None:
    """Parse the manifest in `data`; None when it is none of ours."""
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    is_ours = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return manifest if is_ours and isinstance(manifest.get("files"), dict) else None


def _render(manifest: dict[str, Any]) -> bytes:
    """Exact bytes of a manifest, with the checksum of all that is in it: any change shows."""
    facts = {name: value for name, value in manifest.items() if name != "checksum"}
    facts["checksum"] = sha256_bytes(json.dumps(facts, sort_keys=True).encode())
    return json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True).encode()


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tell whether another folder has taken this name since."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def refuse_foreign(folder: Path) -> None:
    """Only an empty folder or an index, even a damaged one, may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder for the index")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    manifest = _parse((folder / MANIFEST).read_bytes()) if MANIFEST in present else None
    if manifest is not None:
        strangers = present - manifest["files"].keys() - {MANIFEST}
    elif {MANIFEST, "documents.jsonl", "chunks.jsonl"} <= present:  # ours, its manifest damaged
        strangers = present - FILES
    else:
        strangers = present
    if strangers:
        raise ValueError(
            f"{folder} holds {min(strangers)!r}, which is no part of an index; "
            "choose a new or empty folder"
        )
