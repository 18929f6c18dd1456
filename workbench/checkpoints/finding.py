"""A name → a model folder or hub id that can be loaded safely. Knows configs and files, loads no weights.

Only safetensors, never pickle; ``trust_remote_code`` is off and stays off.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.checkpoints.compressed_files import plain_size
from workbench.checkpoints.configs import check_config, settle_longrope
from workbench.checkpoints.json_files import read_json
from workbench.checkpoints.machine import machine_fault
from workbench.checkpoints.paths import user_path
from workbench.checkpoints.weight_files import (
    BYTES_SUFFIX,
    INDEX,
    TENSORS_SUFFIX,
    check_links,
    check_weight_files,
    compressed_files,
    has_weights,
    plain_name,
    read_index,
    tensor_names,
    wanted_files,
)
from workbench.errors import CheckpointError, DoesNotFit
from workbench.store import MANIFEST, damaged_files

PHI_IDS = ("microsoft/Phi-3.5-MoE-instruct", "microsoft/Phi-3.5-mini-instruct")
POCKET = "pocket"
# what is fetched of a repository with compressed weights
_COMPRESSED_REPO = [
    "*.json",
    "*.jinja",
    "tokenizer.model",
    f"*{BYTES_SUFFIX}",
    f"*{TENSORS_SUFFIX}",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model lies: `source` is what ``from_pretrained`` takes, `name` what results call it."""

    name: str
    source: str
    is_local: bool


def find_checkpoint(spec: str | Path) -> Checkpoint:
    """Resolve "pocket", a folder or a hub id; a local folder is checked before anything is loaded.

    >>> find_checkpoint("pocket").name
    'pocket'
    """
    text = str(spec)
    if text == POCKET:
        folder = pocket_folder()
        check_folder(folder)
        check_manifest(folder)
        return Checkpoint(POCKET, str(folder), True)
    if text.startswith(("http://", "https://")):
        raise CheckpointError(
            f"{text} is an endpoint; this version loads a folder, a hub id, or 'pocket'"
        )
    path = user_path(text)
    if os.path.isdir(path):  # which raises nothing for a name that no folder can have
        check_folder(path)
        return Checkpoint(path.name, str(path), True)
    if path.is_absolute() or text.startswith(".") or text.count("/") != 1:
        raise CheckpointError(
            f"no model folder at {text!r}; give a folder, a hub id 'owner/name', or 'pocket'"
        )
    return Checkpoint(text, text, False)


def pocket_folder() -> Path:
    """The weights of the embedded default model; the package is found by path, never imported."""
    return Path(__file__).resolve().parent.parent / "pocket" / "weights"


def check_folder(folder: Path) -> None:
    """Raise ``CheckpointError`` naming the first thing wrong with a model folder; no weights are read.

    Its files: config, tokenizer, whole safetensors or ZipNN files of them, and no link that leads out of the folder.

    >>> check_folder(pocket_folder())
    """
    check_links(folder)
    config = read_config(folder)
    check_config(config, str(folder / "config.json"))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(
            f"{folder} has no tokenizer.json; copy it from the checkpoint the weights come from"
        )
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json); merge it into its model first"
        )
    try:
        compressed = compressed_files(folder)
        for name in wanted_files(folder) if compressed else ():
            if name in compressed:
                plain_size(compressed[name])  # its headers, all of them
            else:
                tensor_names(folder / name)
    except OSError as error:  # a file that may not be read, a name that cannot be
        raise machine_fault(error, folder) from error
    if not compressed:
        check_weight_files(folder)


def load_config(checkpoint: Checkpoint, **options: Any) -> Any:
    """The transformers config of a checkpoint, its values checked before that library computes with them.

    `options` say how a hub id is looked up: ``local_files_only=True`` asks the local cache alone.

    >>> load_config(find_checkpoint("pocket")).model_type
    'phimoe'
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    if checkpoint.is_local:
        raw = read_config(Path(checkpoint.source))
    else:
        raw, _ = read_pretrained(PretrainedConfig.get_config_dict, checkpoint, **options)
    check_config(raw, f"config.json of {checkpoint.name}")
    kind = CONFIG_MAPPING[raw["model_type"]]
    return read_pretrained(lambda *_, **__: kind.from_dict(settle_longrope(raw)), checkpoint)


def cached_snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id in the local Hugging Face cache; None if not even its config is there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(hub_id, "config.json")
    return Path(path).parent if isinstance(path, str) else None


def fetched(checkpoint: Checkpoint) -> Checkpoint:
    """A hub id whose weights are compressed as its folder in the local Hugging Face cache, fetched if need be.

    Any other is returned as it is: transformers fetches plain weights, and tells of a hub that cannot be reached.
    Raises ``CheckpointError`` where compressed weights are there and do not come.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if checkpoint.is_local:
        return checkpoint
    folder = cached_snapshot(checkpoint.source)
    if folder is None or not has_weights(folder):
        try:
            names = HfApi().list_repo_files(checkpoint.source)
        except (HTTPError, OSError, ValueError):
            if folder is not None and any(plain_name(path.name) for path in folder.iterdir()):
                check_folder(folder)  # which says what of it is missing
            return checkpoint
        top = [name for name in names if "/" not in name]
        plain = any(name.endswith(".safetensors") and plain_name(name) is None for name in top)
        if plain or not any(plain_name(name) for name in top):
            return checkpoint
        try:
            folder = Path(snapshot_download(checkpoint.source, allow_patterns=_COMPRESSED_REPO))
        except (HTTPError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{checkpoint.name}: its compressed weights did not come ({text}); try again: what came is kept"
            ) from error
    elif not compressed_files(folder):
        return checkpoint
    check_folder(folder)
    return Checkpoint(checkpoint.name, str(folder), True)


def check_hub_index(checkpoint: Checkpoint) -> None:
    """Check the names in the index of a hub id before its weights are fetched; one whole file has no index."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        path = hf_hub_download(checkpoint.source, INDEX)
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return  # what is missing, from_pretrained will tell
    read_index(Path(path))


def check_manifest(folder: Path) -> None:
    """Compare a folder with its manifest of sha256 sums."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}; restore the folder from the repository")
    try:
        damaged = damaged_files(folder, read_json(path))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if damaged:
        raise CheckpointError(
            f"{folder / damaged[0]} differs from its recorded sha256; restore it from the repository"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder") from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; restore it from the source of the checkpoint"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} holds no JSON object; restore it from the source of the checkpoint"
        )
    return config


def read_pretrained(read: Callable[..., Any], checkpoint: Checkpoint, **options: Any) -> Any:
    """Call a ``from_pretrained`` and turn what goes wrong with files into one sentence.

    The error keeps its cause, but no frame of the traceback keeps a model half loaded (``release_frames``).
    """
    try:
        with _quiet_transformers():
            return read(checkpoint.source, trust_remote_code=False, **options)
    except _failures() as error:
        text = " ".join(str(error).split()) or type(error).__name__
        release_frames(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise DoesNotFit(
                f"{checkpoint.name} ran out of memory while it was loaded ({text[:120]}); close other programs, or "
                "load it with a smaller context or dtype"
            ) from error
        where = "its folder" if checkpoint.is_local else "the Hugging Face hub or its local cache"
        raise CheckpointError(
            f"{checkpoint.name} cannot be loaded from {where}: {text[:300]}"
        ) from error


def release_frames(error: BaseException | None) -> None:
    """Empty the finished frames behind an error and its causes: their local variables hold what was half loaded.

    An error that somebody keeps (a notebook does, in ``sys.last_exc``) would else keep the memory too.
    """
    left, seen = [error], set[int]()
    while left:
        error = left.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            left += [error.__cause__, error.__context__]
    gc.collect()  # modules refer to each other in circles


def _failures() -> tuple[type[BaseException], ...]:
    from safetensors import SafetensorError

    return (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        ImportError,
        RuntimeError,
        MemoryError,
        SafetensorError,
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep a progress bar of a second, and warnings that are known to be harmless for Phi, off stderr.

    Phimoe's own config keys short_mscale and long_mscale are called unrecognized at every load, and accelerate tells of
    a map what the user wrote in it.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    bar = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
