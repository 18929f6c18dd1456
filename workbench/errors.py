"""The failures a caller may catch. Each message says what is wrong, where, and what would do.

Bad arguments are ``ValueError``; the classes here are for what lies outside the program: files, checkpoints, indexes,
memory. ``exit_code`` is what the command line returns for each.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Something outside the program is not as it must be."""

    exit_code = 1


class InputError(WorkbenchError):
    """A file or folder could not be read."""

    exit_code = 3


class CheckpointError(WorkbenchError):
    """A model folder cannot be used as it is."""

    exit_code = 4


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
