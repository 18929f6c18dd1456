"""A JSON file of a checkpoint → what it says; none is read that is larger than any checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.checkpoints.machine import machine_fault
from workbench.errors import CheckpointError

MOST_JSON_BYTES = 16 << 20  # the index of a model of 100,000 tensors has 10 MB


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no JSON, or is nested too deep.
    CheckpointError
        It has more than 16 MiB, or (``MachineFault``) cannot be read.
    """
    try:
        if not path.is_file():  # a pipe would have the program wait for ever
            raise FileNotFoundError(path)
        with path.open("rb") as file:
            raw = file.read(MOST_JSON_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise machine_fault(error, path) from error
    if len(raw) > MOST_JSON_BYTES:
        raise CheckpointError(
            f"{path} has more than the {MOST_JSON_BYTES:,} bytes that are read of a JSON file; copy it from its source"
        )
    try:
        return json.loads(raw.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
