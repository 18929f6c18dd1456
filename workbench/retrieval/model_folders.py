"""A hub id or a folder becomes a model of sentence-transformers, or a sentence that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from workbench.errors import CheckpointError
from workbench.store import sha256_bytes, sha256_file

Model = TypeVar("Model")


def named_folder(spec: str | Path, *, what: str) -> tuple[str, Path]:
    """Name to record and folder to load, downloaded if `spec` is a hub id."""
    folder = Path(spec)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            raise CheckpointError(
                f"no {what} in {str(spec)!r}: it holds neither modules.json nor config.json; give the folder of a model"
            )
        return folder.resolve().name, folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(spec)):
        raise CheckpointError(
            f"no {what} at {str(spec)!r}; give a folder or a hub id such as 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model"]
    try:
        found = snapshot_download(
            str(spec), allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]
        )
    except (OSError, HFValidationError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"no folder {str(spec)!r}, and the hub gave no {what} of that name ({first_line}); "
            "check the name and the network, or give a folder"
        ) from error
    return str(spec), Path(found)


def refuse_pickles(name: str, folder: Path, *, what: str) -> None:
    """Every part of the model that has weights must have them as safetensors."""
    if not any(folder.rglob("*.safetensors")):
        raise CheckpointError(
            f"the {what} {name!r} holds no safetensors weights; choose a model that does"
        )
    for suffix in ("bin", "pt", "pth", "pkl", "ckpt"):
        for path in sorted(folder.rglob(f"*.{suffix}")):
            if not any(path.parent.glob("*.safetensors")):
                place = path.relative_to(folder).as_posix()
                raise CheckpointError(
                    f"the {what} {name!r} keeps {place} as a pickle, "
                    "which is never opened; choose a model with safetensors weights"
                )


def weights_sha256(folder: Path) -> str:
    """Digest of the one weight file, or of the digests of several."""
    sums = {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*.safetensors"))
    }
    if len(sums) == 1:
        return next(iter(sums.values()))
    return sha256_bytes("".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())


def tokenizer_sha256(folder: Path) -> str:
    """Digest of the file that says how texts become tokens; empty if there is none."""
    for name in ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model"):
        for path in sorted(folder.rglob(name)):
            return sha256_file(path)
    return ""


def opened_model(
    name: str, folder: Path, device: str, load: Callable[[Path, str], Model], *, what: str
) -> Model:
    """``load(folder, device)``, its failures as one sentence."""
    try:
        import sentence_transformers  # noqa: F401  # only asked whether it is there
        from safetensors import SafetensorError
    except ImportError as error:
        raise ImportError(
            f"the {what} needs {error.name}, a dependency of this project; run `make setup`"
        ) from error
    device = _choose_device(device)
    try:
        with _no_progress_bar():
            return load(folder, device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"the {what} {name!r} could not be loaded ({first_line}); "
            f"give a sentence-transformers model"
        ) from error


def _choose_device(device: str) -> str:
    import torch

    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(kind for kind, is_present in present.items() if is_present)
    if not present.get(device.partition(":")[0], False):
        raise ValueError(f"device={device!r} does not answer here; use 'auto' or 'cpu'")
    return device


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep the bar of a 0.3 second load off stderr."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
