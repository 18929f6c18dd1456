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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.errors import IndexUnusable
from workbench.retrieval.index_structures import Kind
from workbench.retrieval.lexical import LexicalIndex
from workbench.retrieval.segments import FILES, SegmentWriter, copied, open_segment
from workbench.retrieval.snapshot import Part, Snapshot
from workbench.store import MANIFEST, sha256_bytes, sha256_file, sync_folder, write_atomic

FORMAT = "workbench-index"
FORMAT_VERSION = 2  # raise it when an older program could no longer read the folder
IGNORE, LOCK, SEGMENTS, CACHE = ".workbenchignore", ".lock", "segments", "embeddings.cache"
REMEDY = "build it again with `workbench index`"
_OURS = re.compile(  # what a writer that died may leave behind
    rf"\.?({MANIFEST}|{IGNORE[1:]})(\..*)?|{LOCK}|{CACHE}|deleted-\d+\.npy"
    rf"|words-\d+/[\w.]+\.(json|npy)|{SEGMENTS}/(\.new-)?[0-9a-f]+/({'|'.join(map(re.escape, FILES))})"
)


class IndexWriter:
    """Writes into an index folder that is locked. Made by :func:`writing_index`.

    `snapshot` is what the folder held, `facts` its manifest, empty for a new index. Nothing that is written counts
    before :meth:`commit`.
    """

    def __init__(self, folder: Path, snapshot: Snapshot | None, facts: dict[str, Any]) -> None:
        self.folder, self.snapshot, self.facts = folder, snapshot, facts

    def new_segment(self, *, dim: int | None) -> SegmentWriter:
        """A writer of a new segment in the folder."""
        return SegmentWriter(self.folder / SEGMENTS / f".new-{secrets.token_hex(8)}", dim=dim)

    def filled(
        self, parts: Sequence[Part], *, dim: int | None, kind: Kind | Literal["auto"]
    ) -> dict[str, Any]:
        """A new segment of these documents of others; its facts for the manifest."""
        writer = self.new_segment(dim=dim)
        try:
            for segment, ordinals in parts:
                for document, chunks, vectors in copied(segment, ordinals):
                    writer.add(document, chunks, vectors)
        finally:
            writer.close()
        return self.finished(writer, kind=kind)

    def finished(self, writer: SegmentWriter, *, kind: Kind | Literal["auto"]) -> dict[str, Any]:
        """Finish a segment and give it the name that follows from its files; its facts for the manifest."""
        facts = writer.finish(kind=kind)
        sums = {path.name: sha256_file(path) for path in sorted(writer.folder.iterdir())}
        name = sha256_bytes(json.dumps(sums, sort_keys=True).encode())[:16]
        home = self.folder / SEGMENTS / name
        if any(segment["name"] == name for segment in self.facts.get("segments", [])):
            _remove(writer.folder)  # the index holds the very same files
        else:
            _remove(home)
            writer.folder.rename(home)
        return {**facts, "name": name, "files": sums}

    def commit(
        self,
        segments: Sequence[Mapping[str, Any]],
        *,
        deleted: Sequence[int],
        words: LexicalIndex | None,
        facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make these segments, less the documents `deleted`, the index; remove what belongs to none any more."""
        generation = int(self.facts.get("generation", 0)) + 1
        manifest: dict[str, Any] = {**facts, "segments": list(segments), "generation": generation}
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
        for segment in segments:
            for name, digest in segment["files"].items():
                files[f"{SEGMENTS}/{segment['name']}/{name}"] = digest
        manifest |= {"files": files, "format": FORMAT, "format_version": FORMAT_VERSION}
        for name in {file.split("/")[0] for file in files} - {
            SEGMENTS
        }:  # segments synced themselves
            sync_folder(self.folder / name)
        data = _render(manifest)
        write_atomic(self.folder / MANIFEST, data)
        self.facts = json.loads(data)
        self._sweep()
        return self.facts

    def _sweep(self) -> None:
        """Remove what the manifest does not name: older files, and what a writer that died left behind."""
        kept = {name.split("/")[0] for name in self.facts.get("files", {})}
        names = {segment["name"] for segment in self.facts.get("segments", [])}
        for path in self.folder.iterdir():
            if path.name in kept or path.name in (MANIFEST, IGNORE, LOCK, SEGMENTS):
                continue
            _remove(path)
        for path in (self.folder / SEGMENTS).iterdir():
            if path.name not in names:
                _remove(path)


@contextmanager
def writing_index(folder: Path, *, anew: bool = False) -> Iterator[IndexWriter]:
    """Lock `folder` and yield a writer of it; what it does not commit is removed by the next one.

    With `anew` what the folder holds is not even opened: the next commit replaces it, damaged or not.

    Raises
    ------
    ValueError
        `folder` holds something that is no part of an index: nothing of it is touched.
    IndexUnusable
        Another process writes into it, or, without `anew`, what it holds is damaged or newer than this program.
    """
    from filelock import FileLock, Timeout

    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / IGNORE).exists():
        # an index that lies in the folder it was made from is no document of the next one
        write_atomic(folder / IGNORE, b"*\n")
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise IndexUnusable(
            f"another process is writing the index {folder}; try again when it has ended"
        ) from error
    try:
        (folder / SEGMENTS).mkdir(exist_ok=True)
        if anew or not (folder / MANIFEST).exists():
            facts = _parse(_bytes_or_none(folder / MANIFEST) or b"") or {}
            yield IndexWriter(folder, None, {"generation": facts.get("generation", 0)})
        else:
            snapshot, facts = read_index(folder)
            yield IndexWriter(folder, snapshot, facts)
    finally:
        for unfinished in (folder / SEGMENTS).glob(".new-*"):
            _remove(unfinished)
        lock.release()


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
        except (
            SystemError
        ) as found:  # NumPy parses headers with ast, which in CPython 3.11 fails now and then
            error = found  #            while another thread does so
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
    manifest = _parse(_bytes_or_none(folder / MANIFEST) or b"")
    named = (manifest or {}).get("files", {}).keys()
    is_ours = manifest is not None or _bytes_or_none(folder / IGNORE) == b"*\n"
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    strangers = {n for n in present if not (is_ours and (n in named or _OURS.fullmatch(n)))}
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
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        relation = "newer" if isinstance(version, int) and version > FORMAT_VERSION else "older"
        remedy = f"update workbench or {REMEDY}" if relation == "newer" else REMEDY
        raise IndexUnusable(
            f"the index {folder} has format {version}, {relation} than this program's "
            f"{FORMAT_VERSION}; {remedy}"
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


def _remove(path: Path) -> None:
    """Remove a file or folder; where a reader still holds it open and the system objects, it stays for the next."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            pass
