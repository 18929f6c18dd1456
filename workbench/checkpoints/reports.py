"""What was done to weight files: sizes and sha256 sums of each, and what the manifest could tell of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import one_line


@dataclass(frozen=True, slots=True)
class FileReport:
    """One weight file: its compressed and plain bytes and sha256, and whether both were compared with a manifest."""

    name: str
    bytes: int
    sha256: str
    plain_bytes: int
    plain_sha256: str
    is_verified: bool


@dataclass(frozen=True, slots=True)
class CompressionReport:
    """What was done to the weight files of a folder; ``folder`` is where the result lies.

    ``kept_plain`` are plain files that could not go, for another revision of the Hugging Face cache has them too.
    """

    folder: str
    files: tuple[FileReport, ...]
    kept_plain: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Compressed bytes over plain ones."""
        return sum(file.bytes for file in self.files) / sum(file.plain_bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        plain, held = (
            sum(file.plain_bytes for file in self.files),
            sum(file.bytes for file in self.files),
        )
        unsure = [file.name for file in self.files if not file.is_verified]
        told = (
            f"{len(unsure)} of {len(self.files)} files are in no manifest, which alone could tell if they are whole"
            if unsure
            else "every sha256 is that of the manifest"
        )
        if self.kept_plain:
            told += (
                f"; kept plain too, for another revision needs them: {', '.join(self.kept_plain)}"
            )
        return one_line(
            f"{self.folder}: {held:,} bytes compressed, {plain:,} plain ({self.ratio:.1%}); {told}"
        )
