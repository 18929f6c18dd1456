"""An index folder: segments that never change, and a manifest that says which of them count. Knows no encoder.

A writer holds a lock, writes new files beside the old ones, and last replaces the manifest: a reader sees the old index
or the new one, never half of one, and a process that dies loses its lock and what it had not committed, nothing else.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.errors import IndexUnusable
from workbench.retrieval.index_structures import Kind
from workbench.retrieval.lexical import LexicalIndex
from workbench.retrieval.segments import FILES, Segment, SegmentWriter, copied, open_segment
from workbench.retrieval.snapshot import Part, Snapshot
from workbench.store import MANIFEST, sha256_bytes, sha256_file, sync_folder, write_atomic

FORMAT = "workbench-index"
FORMAT_VERSION = 3  # raise it when an older program could no longer read the folder
IGNORE, LOCK, SEGMENTS, CACHE = ".workbenchignore", ".lock", "segments", "embeddings.cache"
REMEDY = "build it again with `workbench index`"
_OURS = re.compile(  # what a writer that died may leave behind
    rf"\.{{0,2}}({MANIFEST}|{IGNORE[1:]})(\..*)?|{LOCK}|{CACHE}|deleted-\d+\.npy"
    rf"|words-\d+/[\w.]+\.(json|npy)|{SEGMENTS}/(\.new-)?[-0-9a-f]+/({'|'.join(map(re.escape, FILES))})"
)
# what operating systems and network drives leave anywhere
_SYSTEM = re.compile(r"(.*/)?(\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+)")


class IndexWriter:
    """Writes into an index folder that is locked. Made by :func:`writing_index`.

    `facts` is the manifest of the folder as far as it can be read, empty for a new index. Nothing that is written
    counts before :meth:`commit`.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts

    def new_segment(self, *, dim: int | None) -> SegmentWriter:
        """A writer of a new segment in the folder."""
        return SegmentWriter(self.folder / SEGMENTS / f".new-{secrets.token_hex(8)}", dim=dim)

    def filled(
        self, parts: Sequence[Part], *, dim: int | None, kind: Kind | Literal["auto"], reason: str
    ) -> Segment:
        """A new segment of these documents of others."""
        writer = self.new_segment(dim=dim)
        try:
            for segment, ordinals in parts:
                for made in copied(segment, ordinals):
                    writer.add(made)
        finally:
            writer.close()
        return self.finished(writer, kind=kind, reason=reason)

    def finished(
        self, writer: SegmentWriter, *, kind: Kind | Literal["auto"], reason: str
    ) -> Segment:
        """Finish a segment, give it the name that follows from its files, and open it."""
        facts = writer.finish(kind=kind, reason=reason)
        sums = {path.name: sha256_file(path) for path in sorted(writer.folder.iterdir())}
        name = sha256_bytes(json.dumps(sums, sort_keys=True).encode())[:16]
        home = self.folder / SEGMENTS / name
        if home.exists() and not _damaged(home, sums):
            _remove(writer.folder)  # the very same files are there
        else:
            if home.exists():
                # damaged, but perhaps in the manifest: it stays until another manifest counts
                name = f"{name}-{secrets.token_hex(4)}"
                home = self.folder / SEGMENTS / name
            writer.folder.rename(home)
        return open_segment(home, {**facts, "name": name, "files": sums})

    def holds(self, segment: Segment) -> bool:
        """Whether the segment lies in the folder, written before or by this writer."""
        home = (self.folder / SEGMENTS).resolve()
        return segment.stored is not None and segment.stored.folder.resolve().parent == home

    def commit(
        self,
        segments: Sequence[Segment],
        *,
        deleted: Sequence[int],
        words: LexicalIndex | None,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make these segments, less the documents `deleted`, the index; remove what belongs to none any more."""
        generation = int(self.facts.get("generation", 0)) + 1
        told = [dict(segment.stored.facts) for segment in segments if segment.stored is not None]
        manifest: dict[str, Any] = {**facts, "segments": told, "generation": generation}
        files: dict[str, str] = {}
        number = f"{generation:06d}"
        if deleted:
            manifest["deleted"] = f"deleted-{number}.npy"
            path = self.folder / manifest["deleted"]
            np.save(path, np.array(deleted, dtype=np.int64), allow_pickle=False)
            files[path.name] = sha256_file(path)
        if words is not None:
            manifest["words"] = f"words-{number}"
            home = self.folder / manifest["words"]
            _remove(home)
            words.save(home)
            files |= {f"{home.name}/{p.name}": sha256_file(p) for p in sorted(home.iterdir())}
        for one in told:
            files |= {f"{SEGMENTS}/{one['name']}/{n}": digest for n, digest in one["files"].items()}
        manifest |= {"files": files, "format": FORMAT, "format_version": FORMAT_VERSION}
        beside = {name.split("/")[0] for name in files} - {SEGMENTS}  # those are synced already
        for name in beside:
            sync_folder(self.folder / name)
        data = _render(manifest)
        write_atomic(self.folder / MANIFEST, data)
        older, self.facts = self.facts, json.loads(data)
        self._sweep(older)
        return self.facts

    def _sweep(self, older: Mapping[str, Any]) -> None:
        """Remove what only the `older` manifest names, and what a writer that died left behind; nothing else."""
        kept = {*self.facts["files"], MANIFEST, IGNORE, LOCK}
        gone = set(older.get("files", {}))
        for path in [*self.folder.rglob("*")]:
            name = path.relative_to(self.folder).as_posix()
            if not path.is_dir() and name not in kept and (name in gone or _OURS.fullmatch(name)):
                _remove(path)
        for path in (*(self.folder / SEGMENTS).iterdir(), *self.folder.glob("words-*")):
            with suppress(OSError):  # not empty
                path.rmdir()
        for name in sorted({n.split("/")[0] for n in gone if "/" in n} - {SEGMENTS}):
            with suppress(OSError):
                (self.folder / name).rmdir()


@contextmanager
def writing_index(folder: Path) -> Iterator[IndexWriter]:
    """Lock `folder` and yield a writer of it; what it does not commit is removed by the next one.

    Raises
    ------
    ValueError
        `folder` holds something that is no part of an index: nothing of it is touched.
    IndexUnusable
        Another process writes into it, or it holds an index that is newer than this program.
    """
    from filelock import FileLock, Timeout

    refuse_foreign(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise IndexUnusable(
            f"another process is writing the index {folder}; try again when it has ended"
        ) from error
    try:
        facts = _parse(_bytes_or_none(folder / MANIFEST) or b"") or {}
        refuse_newer(folder, facts)
        if not (folder / IGNORE).exists():
            # an index that lies in the folder it was made from is no document of the next one
            write_atomic(folder / IGNORE, b"*\n")
        (folder / SEGMENTS).mkdir(exist_ok=True)
        yield IndexWriter(folder, facts)
    finally:
        for unfinished in (folder / SEGMENTS).glob(".new-*"):
            _remove(unfinished)
        if is_new and not any((folder / name).exists() for name in (MANIFEST, CACHE)):
            # nothing came of it: not even the folder is left
            with suppress(OSError):
                (folder / SEGMENTS).rmdir()
                (folder / IGNORE).unlink()
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


def refuse_newer(folder: Path, manifest: Mapping[str, Any]) -> None:
    """``IndexUnusable`` if the manifest was written by a newer program."""
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IndexUnusable(
            f"the index {folder} has format {version}, newer than this program's {FORMAT_VERSION}; update workbench"
        )


def read_index(folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    """Check every file of the index against its manifest, and open it: what it holds, and the manifest.

    When a writer commits meanwhile, everything is read again.

    Raises
    ------
    IndexUnusable
        The folder is missing, newer than this program, or one byte of it is not as it was written.
    """
    error: Exception | None = None
    for _ in range(100):
        before = _bytes_or_none(folder / MANIFEST)
        try:
            manifest = _checked_manifest(folder, before)
            return _opened(folder, manifest), manifest
        except (IndexUnusable, OSError, LookupError, TypeError, ValueError) as found:
            error = found
        except SystemError as found:
            # NumPy parses headers with ast, which in CPython 3.11 fails now and then while another thread does so
            error = found
            continue
        if _bytes_or_none(folder / MANIFEST) == before:
            break
        time.sleep(0.01)
    if isinstance(error, IndexUnusable):
        raise error
    raise IndexUnusable(f"the index {folder} is damaged ({error!r}); {REMEDY}") from error


def refuse_foreign(folder: Path) -> None:
    """Only an empty folder or an index, even a damaged or unfinished one, may be written to."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose a folder for the index")
    data = _bytes_or_none(folder / MANIFEST)
    manifest = None if data is None else _parse(data)
    named = (manifest or {}).get("files", {}).keys()
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    strangers = {
        name
        for name in present
        if name not in named and not _OURS.fullmatch(name) and not _SYSTEM.fullmatch(name)
    }
    if data is not None and manifest is None and _bytes_or_none(folder / IGNORE) != b"*\n":
        strangers.add(MANIFEST)
    if strangers:
        raise ValueError(
            f"{folder} holds {min(strangers)!r}, which is no part of an index; "
            "choose a new or empty folder"
        )


def _opened(folder: Path, manifest: Mapping[str, Any]) -> Snapshot:
    segments = [open_segment(folder / SEGMENTS / s["name"], s) for s in manifest["segments"]]
    deleted: list[int] = []
    if "deleted" in manifest:
        deleted = np.load(folder / manifest["deleted"], allow_pickle=False).tolist()
    words = LexicalIndex.open(folder / manifest["words"]) if "words" in manifest else None
    snapshot = Snapshot(segments, dim=manifest.get("dim"), deleted=deleted, words=words)
    if words is not None and len(words) != len(snapshot):
        raise IndexUnusable(f"the parts of the index {folder} do not belong together; {REMEDY}")
    return snapshot


def _checked_manifest(folder: Path, data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise IndexUnusable(
            f"no index at {folder}; make one with `workbench index PATH… --index DIR`"
        )
    manifest = _parse(data)
    if manifest is None:
        raise IndexUnusable(
            f"{folder / MANIFEST} is damaged or belongs to something else; {REMEDY}"
        )
    refuse_newer(folder, manifest)
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise IndexUnusable(
            f"the index {folder} has format {version}, older than this program's {FORMAT_VERSION}; {REMEDY}"
        )
    if data != _render(manifest):
        raise IndexUnusable(f"{folder / MANIFEST} was changed after it was written; {REMEDY}")
    if missing := {"segments", "mode", "encoder", "chunking", "index"} - manifest.keys():
        raise IndexUnusable(f"the index {folder} is damaged: no {min(missing)} is told; {REMEDY}")
    damaged = [
        name
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]
    if damaged:
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


def _render(manifest: Mapping[str, Any]) -> bytes:
    """Exact bytes of a manifest, with the checksum of all that is in it: any change shows."""
    facts = {name: value for name, value in manifest.items() if name != "checksum"}
    facts["checksum"] = sha256_bytes(json.dumps(facts, sort_keys=True).encode())
    return json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True).encode()


def _bytes_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _damaged(folder: Path, sums: Mapping[str, str]) -> bool:
    """Whether a segment's folder holds other files than these."""
    present = {path.name for path in folder.iterdir()}
    return present != sums.keys() or any(sha256_file(folder / n) != d for n, d in sums.items())


def _remove(path: Path) -> None:
    """Remove a file or folder; where the system objects, as for one that is open, it stays for the next writer."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
