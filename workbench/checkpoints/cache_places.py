"""Where the cache of plain weights lies, and the locks by which runs keep out of each other's way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from filelock import FileLock

from workbench.checkpoints.paths import user_path
from workbench.errors import MachineFault

_TEMPORARY = ".temporary-"


def cache_folder() -> Path:
    """Where decompressed weights lie: below WORKBENCH_CACHE, else the user's cache folder."""
    own = os.environ.get("WORKBENCH_CACHE")
    if own:
        return user_path(own) / "checkpoints"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(home) / "workbench" / "checkpoints"


def made_cache_folder() -> Path:
    """The cache's folder, made if it is not there.

    Raises ``MachineFault`` where it cannot be made.
    """
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MachineFault(
            f"{root} cannot be made: {error.strerror}; set WORKBENCH_CACHE to a folder that can be written to"
        ) from error
    return root


@contextmanager
def locked(lock: Path) -> Iterator[OSError | None]:
    """Hold a lock file, which stays; yields the reason where it cannot be had, which is no matter to who only reads."""
    own, refused = FileLock(lock), None
    try:
        own.acquire()
    except OSError as error:
        refused = error
    try:
        yield refused
    finally:
        own.release()


@contextmanager
def claimed(name: str) -> Iterator[None]:
    """Tell until the end, by a lock of its own, that a living process needs the folder `name` of the cache."""
    claim = cache_folder() / f".claim-{name}-{token_hex(8)}"
    try:
        with FileLock(claim):
            yield
    finally:
        with suppress(OSError):
            claim.unlink()


def is_claimed(name: str) -> bool:
    """Whether a living process needs the folder `name` of the cache."""
    for claim in cache_folder().glob(f".claim-{name}-*"):
        try:
            with FileLock(claim, timeout=0):
                pass
        except OSError:  # held, or not for this user to know
            return True
    return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the cache for what is large and soon removed; what killed processes left of theirs is removed too."""
    root = made_cache_folder()
    remove_leftovers()
    name = f"{_TEMPORARY}{token_hex(8)}"
    with claimed(name):
        (root / name).mkdir(mode=0o700)
        try:
            yield root / name
        finally:
            shutil.rmtree(root / name, ignore_errors=True)


def put_away(home: Path) -> None:
    """Rename a folder that nobody claims to a temporary one, for no folder of the cache is ever half removed."""
    os.rename(home, home.with_name(f"{_TEMPORARY}{token_hex(8)}"))
    _drop_claims(home.name)


def remove_leftovers() -> None:
    """Remove the temporary folders whose process is gone."""
    for folder in _temporary_folders():
        if not is_claimed(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
            _drop_claims(folder.name)


def temporary_bytes() -> int:
    """Bytes in temporary folders, of living processes and of killed ones."""
    return sum(folder_bytes(folder) for folder in _temporary_folders())


def folder_bytes(folder: Path) -> int:
    """Bytes of the files of a folder, links by themselves; what vanishes meanwhile is not counted."""
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                total += path.lstat().st_size
    return total


def _drop_claims(name: str) -> None:
    """Remove the claims of killed processes."""
    for claim in cache_folder().glob(f".claim-{name}-*"):
        claim.unlink(missing_ok=True)


def _temporary_folders() -> list[Path]:
    return [path for path in cache_folder().glob(f"{_TEMPORARY}*") if path.is_dir()]
