"""The failures a caller may catch. Each message says what is wrong, where, and what would do.

Bad arguments are ``ValueError``; the classes here are for what lies outside the program: files, checkpoints, indexes,
memory. ``exit_code`` is what the command line returns for each.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""`text` with every character that does not print, such as a line break in a file's name, as Python escapes it.

    >>> print(one_line("a\nb\x1b[2J.txt"))
    a\nb\x1b[2J.txt
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class WorkbenchError(Exception):
    """Something outside the program is not as it must be; its message is one line whatever it names."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(WorkbenchError):
    """A file or folder could not be read."""

    exit_code = 3


class CheckpointError(WorkbenchError):
    """A model folder cannot be used as it is."""

    exit_code = 4


class MachineFault(CheckpointError):
    """A full disk, a missing permission or too little memory stands in the way of a checkpoint, not its files."""

    exit_code = 3


class IndexUnusable(WorkbenchError):
    """An index folder is missing, damaged, newer than this program, or made with another encoder."""

    exit_code = 4


class DoesNotFit(WorkbenchError):
    """The memory plan exceeds the device; the message holds the numbers and what would fit."""

    exit_code = 4


class PromptTooLong(WorkbenchError):
    """Prompt and answer exceed the context that the generator was loaded with."""

    exit_code = 2


class Cancelled(WorkbenchError):
    """The caller asked to stop before there was anything to return."""

    exit_code = 130
