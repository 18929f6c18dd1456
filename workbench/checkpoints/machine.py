"""A fault of this machine → a sentence that says where, what, and what to do; the files are not blamed for it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from workbench.checkpoints.cache_places import cache_folder
from workbench.errors import MachineFault

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "use a file system that takes files of this size",
    errno.EACCES: "allow it, or use another place",
    errno.EPERM: "allow it, or use another place",
    errno.EROFS: "use a place that can be written to",
    errno.ENOMEM: "close other programs",
    errno.EAGAIN: "close other programs",
    errno.EMFILE: "close other programs",
    errno.EIO: "look at the disk",
    errno.ENAMETOOLONG: "give a shorter name",
}
_TEMPORARY = (".temporary-", ".part")


def machine_fault(error: OSError, place: Path) -> MachineFault:
    """`error` in words: the file it names, else `place`, but no temporary one; what happened; what to do.

    >>> import errno
    >>> print(machine_fault(OSError(errno.ENOSPC, "No space left on device"), Path("models") / ".part-phi"))
    models: No space left on device; make room there
    """
    named = error.filename
    where = _lasting(Path(os.fsdecode(named)) if isinstance(named, str | bytes) else place)
    remedy = _REMEDIES.get(error.errno or 0, "try again, or use another place")
    elsewhere = _elsewhere(where, "a folder that can be written to")
    return MachineFault(f"{where}: {error.strerror or error}; {remedy}{elsewhere}")


def check_room(wanted: Mapping[Path, int], *, what: str, reserve: float = 0.0) -> None:
    """Raise ``MachineFault`` where `what` needs more bytes in the folders `wanted` than their disk has left.

    A share of the disk may be kept in `reserve`.

    Folders on one disk are counted together; a folder may be one that is still to be made.
    """
    needs: dict[int, int] = {}
    for folder, size in wanted.items():
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        disk = there.stat().st_dev
        needs[disk] = needs.get(disk, 0) + size
        usage = shutil.disk_usage(there)
        if needs[disk] and needs[disk] > usage.free - usage.total * reserve:
            shown = _lasting(folder)
            raise MachineFault(
                f"{what} takes {needs[disk]:,} bytes, and the disk of {shown} has {usage.free:,} left: make room there"
                f"{_elsewhere(shown, 'a folder on another disk')}"
            )


def _lasting(path: Path) -> Path:
    """The folder of a temporary file or folder, which is gone when somebody reads its name; any other as it is."""
    if path.parent.name.startswith(_TEMPORARY):
        path = path.parent
    return path.parent if path.name.startswith(".") else path


def _elsewhere(place: Path, what: str) -> str:
    in_cache = place.is_relative_to(cache_folder())
    return f", or set WORKBENCH_CACHE to {what}" if in_cache else ""
