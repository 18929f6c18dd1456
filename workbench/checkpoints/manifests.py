"""What the compressed files of a folder are, and what they give: sizes and sha256 sums, in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench.checkpoints.decoding import DecodedFile
from workbench.checkpoints.json_files import read_json
from workbench.checkpoints.weight_files import plain_name
from workbench.errors import CheckpointError
from workbench.store import write_atomic

NAME = "zipnn-manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One compressed file: its bytes and sha256, and those of the safetensors file that it gives."""

    bytes: int
    sha256: str
    plain_bytes: int
    plain_sha256: str


def read_manifest(folder: Path) -> dict[str, ManifestEntry]:
    """Entries by the name of the compressed file; none where there is no manifest.

    Raises ``CheckpointError`` for a manifest that cannot be read, or says what no manifest can.
    """
    path = folder / NAME
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _unreadable(path, str(error)) from error
    try:
        if raw["format"] != _FORMAT:
            raise _unreadable(path, f"it has format {raw['format']}, this program reads {_FORMAT}")
        found = {name: ManifestEntry(**facts) for name, facts in raw["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, str(error)) from error
    for name, entry in found.items():
        sizes, sums = (entry.bytes, entry.plain_bytes), (entry.sha256, entry.plain_sha256)
        if plain_name(name) is None or "/" in name or "\\" in name:
            raise _unreadable(path, f"it names {name!r}")
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise _unreadable(path, f"{name} has the sizes {sizes}")
        if not all(isinstance(one, str) and len(one) == 64 for one in sums):
            raise _unreadable(path, f"{name} has no sha256 of 64 digits")
    return found


def write_manifest(folder: Path, entries: Mapping[str, ManifestEntry]) -> None:
    """Write the manifest of a folder."""
    files = {name: asdict(entry) for name, entry in sorted(entries.items())}
    text = json.dumps({"format": _FORMAT, "files": files}, indent=2)
    write_atomic(folder / NAME, text.encode() + b"\n")


def check_plain(source: Path, found: DecodedFile, told: ManifestEntry | None) -> None:
    """Compare what a compressed file gave with what its manifest says."""
    if told is not None and (found.bytes, found.sha256) != (told.plain_bytes, told.plain_sha256):
        raise CheckpointError(
            f"{source} gives other bytes than its manifest says; copy both from their source"
        )


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no manifest that can be used ({why}); copy it from its source"
    )
