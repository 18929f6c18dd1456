"""Where the cache of plain weights lies, and the locks by which runs keep out of each other's way."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.checkpoints.paths import user_path
from workbench.errors import InputError, MachineFault
from workbench.store import DAY_SECONDS, sha256_bytes

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
def one_writer(home: Path) -> Iterator[None]:
    """Raise ``InputError`` while another run writes to the folder `home`."""
    root = made_cache_folder()
    name = sha256_bytes(os.fsencode(home))[:32]
    try:
        with FileLock(root / f".writer-{name}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another run writes to {home}: wait for it") from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the cache for what is large and soon removed; what a killed process left there goes after a day."""
    root = made_cache_folder()
    for old in root.glob(f"{_TEMPORARY}*"):
        if time.time() - old.stat().st_mtime > DAY_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=_TEMPORARY) as name:
        yield Path(name)
