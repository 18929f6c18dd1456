"""What the cache of plain weights holds, listed and removed; nothing is removed that a process loads from."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.checkpoints.cache_entries import ENTRY, is_there, read_entry
from workbench.checkpoints.cache_places import (
    cache_folder,
    folder_bytes,
    is_claimed,
    put_away,
    remove_leftovers,
)
from workbench.errors import InputError
from workbench.store import DAY_SECONDS

_KEY = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """One folder of the cache: its key, whose weights it holds, where they came from, and its bytes on disk.

    ``used`` is when it was last loaded, in seconds since 1970; ``is_whole`` says that every file is there,
    ``is_in_use`` that a process writes it or loads from it now.
    """

    key: str
    name: str
    source: str
    bytes: int
    used: float
    is_whole: bool
    is_in_use: bool


def list_cache() -> tuple[CachedCheckpoint, ...]:
    """What the cache holds, the last used first."""
    root = cache_folder()
    homes = root.iterdir() if root.is_dir() else ()
    found = [_listed(home) for home in homes if _KEY.fullmatch(home.name)]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: -one.used))


def clean_cache(
    keys: tuple[str, ...] = (), *, unused_days: float | None = None
) -> tuple[CachedCheckpoint, ...]:
    """Remove the folders named by `keys` (their beginnings will do), those unused for some days, or all; what was.

    What is in use stays, as later lists tell; the temporary files of killed processes go, whatever is asked for.

    Raises ``InputError`` for a key that the cache does not hold.
    """
    held = list_cache()
    for key in keys:
        if not key or not any(one.key.startswith(key) for one in held):
            raise InputError(
                f"the cache holds nothing called {key!r}; see: workbench checkpoint cache"
            )
    oldest = float("inf") if unused_days is None else time.time() - unused_days * DAY_SECONDS
    asked = [one.key for one in held if not keys or one.key.startswith(keys)]
    gone = [removed for key in asked if (removed := _removed(key, oldest)) is not None]
    remove_leftovers()
    return tuple(gone)


def _removed(key: str, oldest: float) -> CachedCheckpoint | None:
    """What was removed: nothing that is in use, or was since it was listed. The lock file stays: others may wait."""
    home = cache_folder() / key
    try:
        with FileLock(home.with_name(f".{key}.lock"), timeout=0):
            found = _listed(home)
            if found is None or found.is_in_use or found.used >= oldest:
                return None
            put_away(home)
            return found
    except Timeout:
        return None


def _listed(home: Path) -> CachedCheckpoint | None:
    """A folder of the cache; None for one that is not the cache's own, or vanishes."""
    entry = read_entry(home)
    try:
        used = max((home / ENTRY).stat().st_mtime, home.stat().st_mtime)
    except OSError:
        return None
    wanted = entry.get("wanted", [])
    is_whole = bool(wanted) and all(
        is_there(home / name, entry["files"].get(name)) for name in wanted
    )
    return CachedCheckpoint(
        home.name,
        str(entry.get("name", "")),
        str(entry.get("source", "")),
        folder_bytes(home),
        used,
        is_whole,
        is_claimed(home.name),
    )
