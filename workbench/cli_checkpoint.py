"""``workbench checkpoint``: weights compressed by ZipNN, decompressed and verified, and the cache of plain ones."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, one_line

if TYPE_CHECKING:
    from workbench.cancel import OnProgress, Progress
    from workbench.checkpoints.reports import CompressionReport

Result = dict[str, Any]


def add_checkpoint_verbs(checkpoint: argparse.ArgumentParser) -> None:
    """The verbs below ``workbench checkpoint``, each with its options."""
    verbs = checkpoint.add_subparsers(dest="checkpoint_verb", required=True, metavar="VERB")

    def verb(name: str, what: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=what, description=what)
        made.add_argument("--json", action="store_true", help="one JSON object on stdout")
        return made

    compress = verb(
        "compress",
        "a model folder or .safetensors file, without loss, to about two thirds in bfloat16",
    )
    compress.add_argument(
        "path",
        metavar="PATH",
        help="a folder, a file, or a hub id in the local cache",
    )
    decompress = verb("decompress", "compressed weights, to the files they were")
    decompress.add_argument(
        "path", metavar="PATH", help="a folder, a file, or a hub id in the local cache"
    )
    verify = verb(
        "verify", "that compressed weights are what their manifest says, and give what it says"
    )
    verify.add_argument(
        "path", metavar="PATH", help="a folder, a file, or a hub id in the local cache"
    )
    for made in (compress, decompress):
        made.add_argument("--out", metavar="DIR", help="where to write (default: beside PATH)")
    compress.add_argument(
        "--in-place",
        action="store_true",
        help="remove the plain files when all are compressed and compared",
    )
    cache = verb("cache", "plain weights of compressed checkpoints that were loaded")
    cache.add_argument("--clean", nargs="*", metavar="KEY", help="remove these, or all")
    cache.add_argument(
        "--unused-days",
        type=float,
        metavar="N",
        help="with --clean: only what was not loaded for so long",
    )


def run_checkpoint(arguments: argparse.Namespace) -> tuple[Result, str]:
    """The JSON object and the text of one verb; a bar on stderr tells how far it is."""
    from tqdm import tqdm

    from workbench.checkpoints.cache_places import cache_folder
    from workbench.checkpoints.folders import verify_checkpoint
    from workbench.checkpoints.machine import machine_fault
    from workbench.checkpoints.paths import user_path

    if arguments.checkpoint_verb == "cache":
        try:
            return _cache(arguments)
        except OSError as error:
            raise machine_fault(error, cache_folder()) from error
    path = _named(arguments.path)
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, leave=False, disable=None) as bar:

        def show(step: Progress) -> None:
            bar.total = step.total
            bar.set_description(step.stage, refresh=False)
            bar.update(step.done - bar.n)

        try:
            if arguments.checkpoint_verb == "verify":
                report = verify_checkpoint(path, on_progress=show)
            else:
                out = user_path(arguments.out) if arguments.out else None
                report = _written(arguments, path, out, show)
        except OSError as error:  # a folder that cannot be written to, a disk that is full
            raise machine_fault(error, path) from error
    return report.to_dict(), str(report)


def _named(text: str) -> Path:
    """The file, the folder, or the folder of a hub id in the local cache that `text` names."""
    from workbench.checkpoints.finding import cached_snapshot
    from workbench.checkpoints.paths import user_path

    if not text:
        raise ValueError("PATH is empty; give a folder, a file, or a hub id in the local cache")
    path = user_path(text)
    if os.path.exists(path):  # which raises nothing for a name that no file can have
        return path
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"no file or folder at {path}")
    found = cached_snapshot(text)
    if found is None:
        raise InputError(
            f"no file or folder at {path}, and no such hub id in the local Hugging Face cache"
        )
    return found


def _written(
    arguments: argparse.Namespace, path: Path, out: Path | None, on_progress: OnProgress
) -> CompressionReport:
    from workbench.checkpoints.folders import compress_checkpoint, decompress_checkpoint
    from workbench.checkpoints.in_place import compress_in_place

    if arguments.checkpoint_verb == "decompress":
        return decompress_checkpoint(path, out, on_progress=on_progress)
    if not arguments.in_place:
        return compress_checkpoint(path, out, on_progress=on_progress)
    if out is not None:
        raise ValueError("--in-place writes where the weights lie: leave out --out")
    if not path.is_dir():
        raise ValueError(
            "--in-place is for a folder: leave it out to compress a file beside itself"
        )
    return compress_in_place(path, on_progress=on_progress)


def _cache(arguments: argparse.Namespace) -> tuple[Result, str]:
    from workbench.checkpoints.cache_listing import clean_cache, list_cache
    from workbench.checkpoints.cache_places import cache_folder, temporary_bytes

    if arguments.unused_days is not None and not arguments.unused_days >= 0:
        raise ValueError(f"--unused-days {arguments.unused_days:g} is no number of days")
    if arguments.clean is None:
        if arguments.unused_days is not None:
            raise ValueError("--unused-days says what to clean: give --clean too")
        found, verb = list_cache(), "holds"
    else:
        found, verb = clean_cache(tuple(arguments.clean), unused_days=arguments.unused_days), "held"
    temporary = temporary_bytes()
    result = {
        "folder": str(cache_folder()),
        "entries": [asdict(one) for one in found],
        "temporary_bytes": temporary,
    }
    lines = [
        f"{one.key[:12]}  {one.bytes / 1e9:8.2f} GB  {one_line(one.name)}{'' if one.is_whole else ' (not whole)'}"
        f"{' (in use)' if one.is_in_use and arguments.clean is None else ''}, "
        f"from {one_line(one.source)}"
        for one in found
    ]
    if temporary:
        lines.append(
            f"{temporary / 1e9:.2f} GB in temporary files of running and of killed programs; --clean removes the latter"
        )
    total = sum(one.bytes for one in found) / 1e9
    removed = ", removed" if arguments.clean is not None else ""
    if arguments.clean is not None and (used := [one for one in list_cache() if one.is_in_use]):
        removed += f"; {len(used)} in use stay, first {one_line(used[0].name)}"
    return result, "\n".join(
        [f"{cache_folder()} {verb} {len(found)} ({total:.2f} GB){removed}", *lines]
    )
