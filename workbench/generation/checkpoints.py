"""A name → a model folder or hub id that can be loaded safely. Knows configs and files, loads no weights.

Only safetensors, never pickle; ``trust_remote_code`` is off and stays off.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError
from workbench.store import MANIFEST, damaged_files

MODEL_TYPES = ("phi3", "phimoe")
PHI_IDS = ("microsoft/Phi-3.5-MoE-instruct", "microsoft/Phi-3.5-mini-instruct")
POCKET = "pocket"


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
    path = Path(text).expanduser()
    if path.is_dir():
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
    """Raise ``CheckpointError`` naming the first thing a model folder lacks: config, tokenizer, safetensors."""
    config = read_config(folder)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder / 'config.json'} is of type {model_type!r}; this needs one of {MODEL_TYPES}"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(
            f"{folder} has no tokenizer.json; copy it from the checkpoint the weights come from"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error}") from error
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{index} names a file outside the folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}"
            )
    elif not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} has no model.safetensors; pickled weights (.bin) are not loaded: convert them to safetensors"
        )


def check_manifest(folder: Path) -> None:
    """Compare a folder with its manifest of sha256 sums."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}; restore the folder from the repository")
    try:
        damaged = damaged_files(folder, json.loads(path.read_text("utf-8")))
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
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return config


def read_pretrained(read: Callable[..., Any], checkpoint: Checkpoint, **options: Any) -> Any:
    """Call a ``from_pretrained`` and turn what goes wrong with files into one sentence."""
    from safetensors import SafetensorError

    try:
        with _quiet_transformers():
            return read(checkpoint.source, trust_remote_code=False, **options)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        text = " ".join(str(error).split())
        where = "its folder" if checkpoint.is_local else "the Hugging Face hub or its local cache"
        raise CheckpointError(
            f"{checkpoint.name} cannot be loaded from {where}: {text[:300]}"
        ) from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep a progress bar of a second, and warnings that are known to be harmless for Phi, off stderr.

    Phimoe's own config keys short_mscale and long_mscale are called unrecognized at every load.
    """
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, bar = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
