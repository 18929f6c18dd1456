"""What is recorded of a folder of the cache: its files, what they were made of, and whether they are as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.checkpoints.json_files import read_json
from workbench.errors import CheckpointError
from workbench.store import write_atomic

ENTRY = "entry.json"


def is_there(path: Path, told: Any) -> bool:
    """Whether a file is still the one that was told of: of that size, and not written since."""
    if not isinstance(told, dict) or "sha256" not in told:
        return False
    try:
        facts = path.stat()
    except OSError:
        return False
    return (facts.st_size, facts.st_mtime_ns) == (told.get("bytes"), told.get("mtime_ns"))


def read_entry(home: Path) -> dict[str, Any]:
    """The entry of a folder of the cache; one without files where it is missing or was damaged."""
    entry = read_facts(home / ENTRY)
    return entry if isinstance(entry.get("files"), dict) else {"files": {}}


def write_entry(home: Path, entry: dict[str, Any]) -> None:
    """Write the entry of a folder, whose time is also that of its last use."""
    write_atomic(home / ENTRY, json.dumps(entry, indent=2).encode())


def read_facts(path: Path) -> dict[str, Any]:
    """What a file of the cache says; nothing where it is missing or was damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError, CheckpointError):
        return {}
    return found if isinstance(found, dict) else {}
