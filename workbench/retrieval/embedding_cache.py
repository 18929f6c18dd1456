"""Vectors kept by what was embedded, in one file that only grows: what a run that was killed had embedded is not lost.

Each record is a key, the vector, and a checksum of both; a record that a dying process wrote half is dropped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.retrieval.encoders import Encoder, same_encoder
from workbench.retrieval.index import checked_vectors

KEY_BYTES = 32
_MAGIC = b"workbench embeddings 1\n"


class EmbeddingCache:
    """Vectors by key in `path`; made with another encoder, or nothing readable, it begins anew.

    One process at a time may have it open; an index folder's lock sees to that.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with EmbeddingCache(Path(folder, "cache"), {"name": "e", "dim": 2}) as cache:
    ...         cache.put(["k" * 32], np.ones((1, 2), dtype=np.float32))
    ...     with EmbeddingCache(Path(folder, "cache"), {"name": "e", "dim": 2}) as cache:
    ...         cache.get("k" * 32).tolist()
    [1.0, 1.0]
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._dim = path, int(identity["dim"])
        self._record = KEY_BYTES + 4 * self._dim + 4
        self._places: dict[str, int] = {}
        header = _MAGIC + json.dumps(dict(identity), sort_keys=True).encode() + b"\n"
        good = self._read(identity)
        self._file: IO[bytes] = path.open("r+b" if good else "w+b")
        if good:
            self._file.truncate(good)
            self._file.seek(good)
        else:
            self._file.write(header)
            self._file.flush()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._places:
            self.path.unlink()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> NDArray[np.float32] | None:
        """The vector under this key, or None: [dim]."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place + KEY_BYTES)
        return np.frombuffer(self._file.read(4 * self._dim), dtype="<f4")

    def put(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Append vectors [keys, dim]; they survive the end of this process from here on."""
        self._file.seek(0, 2)
        place = self._file.tell()
        data = bytearray()
        for key, vector in zip(keys, np.ascontiguousarray(vectors, dtype="<f4"), strict=True):
            record = key.encode() + vector.tobytes()
            self._places[key] = place + len(data)
            data += record + zlib.crc32(record).to_bytes(4, "little")
        self._file.write(data)
        self._file.flush()

    def _read(self, identity: Mapping[str, Any]) -> int:
        """Find the records; how many bytes of the file are good, 0 if it must begin anew."""
        try:
            with self.path.open("rb") as file:
                if file.readline() != _MAGIC or not same_encoder(
                    json.loads(file.readline()), identity
                ):
                    return 0
                good = file.tell()
                while len(record := file.read(self._record)) == self._record:
                    if zlib.crc32(record[:-4]).to_bytes(4, "little") != record[-4:]:
                        break
                    self._places[record[:KEY_BYTES].decode("ascii")] = good
                    good = file.tell()
                return good
        except (OSError, ValueError, TypeError, AttributeError):
            self._places.clear()
            return 0


class Embedded(NamedTuple):
    """Vectors [texts, dim], and how many texts had to be embedded for them."""

    vectors: NDArray[np.float32]
    new: int


def embedded(
    encoder: Encoder,
    texts: Sequence[str],
    keys: Sequence[str],
    *,
    known: Mapping[str, NDArray[np.float32]],
    cache: EmbeddingCache | None = None,
    batch_size: int = 256,
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Embedded:
    """Vectors of `texts` under their `keys`, each text embedded once and only if it is not known.

    `known` and the `cache` are asked first; what is new goes into the cache after each `batch_size` texts.

    Raises
    ------
    ValueError
        The encoder gave a vector that is zero, not finite, or of another length.
    """
    vectors = dict(known)
    if cache is not None:
        vectors |= {
            key: v for key in set(keys) - vectors.keys() if (v := cache.get(key)) is not None
        }
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
    new, wanted = list(missing), list(missing.values())
    for start in range(0, len(new), batch_size):
        if cancel is not None:
            cancel.raise_if_cancelled("embedding")
        part = slice(start, start + batch_size)
        made = checked_vectors(
            encoder.encode(wanted[part], kind="passage", cancel=cancel), dim=encoder.dim
        )
        if cache is not None:
            cache.put(new[part], made)
        vectors |= zip(new[part], made, strict=True)
        if progress is not None:
            progress(Progress("embed", min(start + batch_size, len(new)), len(new)))
    if not keys:
        return Embedded(np.empty((0, encoder.dim), dtype=np.float32), 0)
    return Embedded(np.stack([vectors[key] for key in keys]), len(new))
