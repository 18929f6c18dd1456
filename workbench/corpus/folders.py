"""Paths → the files to read, in the order of their ids, and what is left out. Opens nothing but ``.workbenchignore``.

Left out without a word are files and folders whose name begins with a dot. Left out with a reason: what a
``.workbenchignore`` matches, links to folders, links that lead out of the folder read, what is no regular file.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.corpus.documents import Skipped, in_one_line
from workbench.errors import InputError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".workbenchignore"
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to read: where it is, and the id its document will have."""

    path: Path
    id: str


@dataclass(frozen=True, slots=True)
class Found:
    """The files below the paths asked for, and what was left out; `root` is the folder that ids are relative to."""

    root: Path
    files: tuple[FoundFile, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Ignore:
    """The patterns of the ``.workbenchignore`` in `folder`; `label` names it in reasons."""

    folder: str
    label: str
    spec: GitIgnoreSpec


def find_files(paths: Sequence[Path]) -> Found:
    """Every file below `paths`, each once; a file asked for by name is taken whatever a ``.workbenchignore`` says.

    Ids are relative to the one folder asked for, or to the deepest folder that holds all that was asked for.

    Raises
    ------
    InputError
        A path does not exist, or a ``.workbenchignore`` cannot be read.
    """
    if not paths:
        raise ValueError("no path to read; name a folder or a file")
    absolute = [Path(os.path.abspath(path.expanduser())) for path in paths]
    folders = [_folder_of(path) for path in absolute]
    try:
        root = Path(os.path.commonpath(folders))
    except ValueError as error:
        raise InputError(
            f"{', '.join(map(str, absolute))} lie on different drives; read them one by one"
        ) from error
    files: dict[str, FoundFile] = {}
    skipped: dict[str, Skipped] = {}
    for path, folder in zip(absolute, folders, strict=True):
        found = _walk(folder, root) if path == folder else [_named(path, root)]
        for item in found:
            if isinstance(item, Skipped):
                skipped[item.path] = item
            else:
                files[item.id] = item
    ordered = tuple(files[id] for id in sorted(files))
    return Found(
        root, ordered, tuple(skipped[path] for path in sorted(skipped) if path not in files)
    )


def reason_of(error: OSError) -> str:
    """What the system says, as a part of a sentence.

    >>> reason_of(PermissionError(13, "Permission denied"))
    'permission denied'
    """
    return (error.strerror or type(error).__name__).lower()


def kind_of_special(mode: int) -> str | None:
    """What a path with this `st_mode` is, if it is neither a file nor a folder."""
    return (
        None
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        else _KINDS.get(stat.S_IFMT(mode), "no regular file")
    )


def _folder_of(path: Path) -> Path:
    try:
        return path if stat.S_ISDIR(path.stat().st_mode) else path.parent
    except OSError as error:
        reason = (
            "no such file or folder; check the path"
            if isinstance(error, FileNotFoundError)
            else reason_of(error)
        )
        raise InputError(f"{in_one_line(str(path))}: {reason}") from error


def _named(path: Path, root: Path) -> FoundFile | Skipped:
    id = _id(path, root)
    bad_name = _bad_name(path.name)
    return Skipped(_sayable(id), bad_name) if bad_name else FoundFile(path, id)


def _walk(top: Path, root: Path) -> Iterator[FoundFile | Skipped]:
    inside = top.resolve()
    folders: list[tuple[Path, tuple[_Ignore, ...]]] = [(top, ())]
    while folders:
        folder, ignores = folders.pop()
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(_id(folder, root), f"the folder cannot be listed: {reason_of(error)}")
            continue
        if any(entry.name == IGNORE_FILE for entry in entries):
            ignores = (_read_ignore(folder, root, inside), *ignores)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if reason := _bad_name(entry.name) or _ignored(entry, ignores) or _unfit(entry, inside):
                yield Skipped(_sayable(_id(path, root)), reason)
            elif entry.is_dir(follow_symlinks=False):
                folders.append((path, ignores))
            else:
                yield FoundFile(path, _id(path, root))


def _ignored(entry: os.DirEntry[str], ignores: Sequence[_Ignore]) -> str | None:
    """The file and pattern that leave `entry` out; the deepest file with a word on it decides, as with git."""
    slash = "/" if entry.is_dir(follow_symlinks=False) else ""
    for ignore in ignores:
        result = ignore.spec.check_file(
            Path(os.path.relpath(entry.path, ignore.folder)).as_posix() + slash
        )
        if result.include is not None and result.index is not None:
            pattern = ignore.spec.patterns[result.index].pattern
            return f"{ignore.label}: pattern {pattern!r}" if result.include else None
    return None


def _unfit(entry: os.DirEntry[str], inside: Path) -> str | None:
    """Why `entry` is not to be opened: a link that leads elsewhere, or something that is no file."""
    try:
        if entry.is_symlink():
            target = Path(entry.path).resolve(strict=True)
            if not target.is_relative_to(inside):
                return "a link out of the folder read; not followed"
            if target.is_dir():
                return "a link to a folder; its files are read where they lie"
        kind = kind_of_special(entry.stat().st_mode)
    except FileNotFoundError:
        return "a link to nothing"
    except RuntimeError:  # how Python before 3.13 calls a circle of links
        return "a link that leads in a circle"
    except OSError as error:
        return "a link that leads in a circle" if error.errno == errno.ELOOP else reason_of(error)
    return f"{kind}, not a file; not opened" if kind else None


def _bad_name(name: str) -> str | None:
    """Ids stand in prompts, tables and terminals, in one line, and are stored as UTF-8."""
    categories = {unicodedata.category(character) for character in name}
    if "Cs" in categories:
        return f"its name {name!r} is not UTF-8; rename it"
    if categories & {"Cc", "Zl", "Zp"}:
        return f"its name {name!r} holds a control character; rename it"
    return None


def _read_ignore(folder: Path, root: Path, inside: Path) -> _Ignore:
    from pathspec import GitIgnoreSpec

    path = folder / IGNORE_FILE
    if not path.resolve().is_relative_to(inside) or not path.is_file():
        raise InputError(
            f"{path}: not a file of this folder; put the patterns into a file of that name"
        )
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: {line!r} is no pattern; see the patterns of gitignore"
            ) from error
    return _Ignore(str(folder), _id(path, root), GitIgnoreSpec.from_lines(lines))


def _id(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _sayable(id: str) -> str:
    """`id` as UTF-8 can hold it."""
    return os.fsencode(id).decode("utf-8", errors="backslashreplace")
