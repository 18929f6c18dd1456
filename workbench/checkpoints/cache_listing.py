"""What the cache of plain weights holds, listed and removed."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass

from filelock import FileLock

from workbench.checkpoints.cache_entries import ENTRY, is_there, read_entry
from workbench.checkpoints.cache_places import cache_folder
from workbench.errors import InputError
from workbench.store import DAY_SECONDS

_KEY = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """One folder of the cache: its key, whose weights it holds, where they came from, and its bytes on disk.

    ``used`` is when it was last loaded, in seconds since 1970; ``is_whole`` says that every file is there.
    """

    key: str
    name: str
    source: str
    bytes: int
    used: float
    is_whole: bool


def list_cache() -> tuple[CachedCheckpoint, ...]:
    """What the cache holds, the last used first."""
    root, found = cache_folder(), []
    for home in root.iterdir() if root.is_dir() else ():
        if not _KEY.fullmatch(home.name) or not (home / ENTRY).is_file():
            continue  # not the cache's own
        entry = read_entry(home)
        wanted = entry.get("wanted", [])
        is_whole = bool(wanted) and all(
            is_there(home / name, entry["files"].get(name)) for name in wanted
        )
        size = sum(path.stat().st_size for path in home.iterdir() if path.is_file())
        used = max(path.stat().st_mtime for path in (home, home / ENTRY) if path.exists())
        found.append(
            CachedCheckpoint(
                home.name,
                str(entry.get("name", "")),
                str(entry.get("source", "")),
                size,
                used,
                is_whole,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.used))


def clean_cache(
    keys: tuple[str, ...] = (), *, unused_days: float | None = None
) -> tuple[CachedCheckpoint, ...]:
    """Remove the folders named by `keys` (their beginnings will do), those unused for some days, or all; what was.

    Raises ``InputError`` for a key that the cache does not hold.
    """
    held = list_cache()
    for key in keys:
        if not key or not any(one.key.startswith(key) for one in held):
            raise InputError(
                f"the cache holds nothing called {key!r}; see: workbench checkpoint cache"
            )
    oldest = float("inf") if unused_days is None else time.time() - unused_days * DAY_SECONDS
    gone = tuple(
        one
        for one in held
        if (not keys or one.key.startswith(keys)) and (unused_days is None or one.used < oldest)
    )
    for one in gone:
        with FileLock(cache_folder() / f".{one.key}.lock"):
            shutil.rmtree(cache_folder() / one.key, ignore_errors=True)
        (cache_folder() / f".{one.key}.lock").unlink(missing_ok=True)
    return gone
