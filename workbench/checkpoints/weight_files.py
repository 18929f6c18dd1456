"""Weight files of a folder → known to be whole before they are read. Reads headers and the index, never pickle."""

from __future__ import annotations

from pathlib import Path

from workbench.checkpoints.json_files import MOST_JSON_BYTES, read_json
from workbench.checkpoints.machine import machine_fault
from workbench.errors import CheckpointError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BYTES_SUFFIX = ".safetensors.znn"  # a file that ZipNN compressed as a whole
TENSORS_SUFFIX = ".znn.safetensors"  # a file whose tensors it compressed


def check_weight_files(folder: Path) -> None:
    """Raise ``CheckpointError`` unless every weight file of a folder is there, is safetensors, and is whole.

    >>> check_weight_files(Path("nowhere"))
    Traceback (most recent call last):
    workbench.errors.CheckpointError: nowhere has no model.safetensors; copy it from the source of the checkpoint
    """
    index, whole = folder / INDEX, folder / WHOLE
    places = read_index(index) if index.is_file() else {}
    if whole.is_file():  # which the library prefers to the shards
        tensor_names(whole)
        return
    if not places:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        remedy = (
            f"its pickled weights (.bin) are not loaded, first {pickled[0]}: convert them to safetensors"
            if pickled
            else "copy it from the source of the checkpoint"
        )
        raise CheckpointError(f"{folder} has no {WHOLE}; {remedy}")
    shards = sorted(set(places.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}; copy them from the "
            "source of the checkpoint"
        )
    held = {shard: tensor_names(folder / shard) for shard in shards}
    for tensor, shard in places.items():
        if tensor not in held[shard]:
            raise CheckpointError(
                f"{index} places {tensor!r} in {shard}, which does not hold it; copy both from the same source"
            )


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → shard of a ``model.safetensors.index.json``; only safetensors beside it are allowed."""
    try:
        index = read_json(path)
        places, _ = index["weight_map"], index["metadata"]  # transformers reads both
        names = set(places.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors index ({type(error).__name__}); copy it from the source of the checkpoint"
        ) from error
    if not names:
        raise CheckpointError(f"{path} names no weight file; copy it from the source")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise CheckpointError(
                f"{path} names {name!r}, a file outside the folder; take the checkpoint from a source you trust"
            )
        if not name.endswith((".safetensors", BYTES_SUFFIX)):
            raise CheckpointError(
                f"{path} names {name!r}; only safetensors are loaded, never pickle: convert the weights"
            )
    return dict(places)


def plain_name(name: str) -> str | None:
    """The safetensors file that a compressed file is of; None for a name that is no compressed file's.

    >>> plain_name("model.safetensors.znn"), plain_name("model.znn.safetensors"), plain_name("model.safetensors")
    ('model.safetensors', 'model.safetensors', None)
    """
    for suffix in (BYTES_SUFFIX, TENSORS_SUFFIX):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix) + ".safetensors"
    return None


def wanted_files(folder: Path) -> list[str]:
    """Names of the plain weight files that a folder is of: those of its index, else the one whole file."""
    index = folder / INDEX
    stem = WHOLE.removesuffix(".safetensors")
    whole = (
        WHOLE,
        stem + BYTES_SUFFIX,
        stem + TENSORS_SUFFIX,
    )  # the library prefers one file to shards
    if not index.is_file() or any((folder / name).is_file() for name in whole):
        return [WHOLE]
    return sorted({plain_name(name) or name for name in read_index(index).values()})


def compressed_files(folder: Path) -> dict[str, Path]:
    """The compressed weight files of a folder by the names of the plain ones; empty where all plain ones are there.

    An index may name the plain files or the compressed ones. Those of ``wanted_files`` that are not in the result are
    plain, all of them where no file is compressed.

    Raises ``CheckpointError`` where some are missing, or where only pickled weights are compressed.
    """
    wanted = wanted_files(folder)
    if all((folder / name).is_file() for name in wanted):
        return {}
    found: dict[str, Path] = {}
    for plain in wanted:
        stem = plain.removesuffix(".safetensors")
        for name in (stem + BYTES_SUFFIX, stem + TENSORS_SUFFIX):
            if (folder / name).is_file():
                found.setdefault(plain, folder / name)
    missing = [name for name in wanted if name not in found and not (folder / name).is_file()]
    if found and missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(wanted)} weight files, plain or compressed, first {missing[0]}; "
            "copy them from the source of the checkpoint"
        )
    pickled = sorted(path.name for path in folder.glob("*.bin.znn"))
    if missing and pickled:
        raise CheckpointError(
            f"{folder} has compressed pickles (.bin.znn), first {pickled[0]}, which are not loaded: convert the "
            "weights to safetensors"
        )
    return found


def has_weights(folder: Path) -> bool:
    """Whether every weight file of a folder is there, plain or compressed."""
    try:
        if (folder / WHOLE).is_file() or compressed_files(folder):
            return True
        places = read_index(folder / INDEX) if (folder / INDEX).is_file() else {}
    except CheckpointError:
        return False
    return bool(places) and all((folder / name).is_file() for name in set(places.values()))


def check_links(folder: Path) -> None:
    """Refuse an entry that is a symbolic link out of the folder: a checkpoint is what its folder holds.

    The folder itself may be a link. In the layout of the Hugging Face cache, ``snapshots/<revision>`` links to
    ``blobs`` beside ``snapshots``; those links are the cache's own and are followed.
    """
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be listed ({error.strerror}); allow reading it, or copy it"
        ) from error
    for path in entries:
        if path.is_symlink():
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError):  # broken, or a circle
                raise CheckpointError(
                    f"{path} is a link that leads nowhere; put the file itself there"
                ) from None
            if not any(target.is_relative_to(place) for place in allowed):
                raise CheckpointError(
                    f"{path} is a link to {target}, outside the model folder; put the file itself there"
                )


def tensor_names(path: Path, *, where: str | None = None) -> set[str]:
    """Names in the header of a safetensors file, which is compared with the file's length; `where` is for errors."""
    from safetensors import SafetensorError, safe_open

    where = where or str(path)
    try:
        with path.open("rb") as header:
            size = int.from_bytes(header.read(8), "little")
        is_whole = size < path.stat().st_size
    except OSError as error:
        raise machine_fault(error, path) from error
    if is_whole and size > MOST_JSON_BYTES:
        raise CheckpointError(
            f"{where} has a header of {size:,} bytes, and {MOST_JSON_BYTES:,} are read at most; copy it from its source"
        )
    try:
        with safe_open(str(path), framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{where} is truncated, damaged or not safetensors ({text}); copy it from its source"
        ) from error
