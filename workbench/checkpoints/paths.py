"""A path as somebody typed it → the place that is meant."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import InputError


def user_path(text: str | Path) -> Path:
    """`text` with ``~`` as the home folder; ``InputError`` where nobody has that name.

    >>> user_path("models/phi").as_posix()
    'models/phi'
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{text} names a home folder that is not known; give the whole path"
        ) from error


def named_place(path: Path) -> Path:
    """The whole path of `path` under the name that was given, which may be a link's: only its folder is resolved.

    >>> named_place(Path("models")) == Path.cwd().resolve() / "models"
    True
    """
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
