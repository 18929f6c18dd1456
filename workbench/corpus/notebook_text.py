"""Jupyter notebook → Markdown text: its cells in order, code and what it printed in fences, headings as sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.corpus.encodings import decode_text
from workbench.corpus.extracted import Extracted, TextWriter, fenced, without_surrogates
from workbench.corpus.sections import Heading, markdown_headings, sections_from
from workbench.errors import InputError

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def extract_notebook(data: bytes) -> Extracted:
    r"""Text of a notebook of format 3 or 4: Markdown as it is; code, printed text and error messages in fences.

    >>> import json
    >>> cell = {"cell_type": "markdown", "metadata": {}, "source": ["# Pump\n", "It failed."]}
    >>> notebook = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}
    >>> extract_notebook(json.dumps(notebook).encode()).text
    '# Pump\nIt failed.'

    Raises
    ------
    InputError
        The file is no notebook.
    """
    decoded = decode_text(data)
    writer = TextWriter()
    headings: list[Heading] = []
    for text, is_markdown in _blocks(decoded.text):
        text = without_surrogates(text).strip("\r\n").rstrip()
        start = writer.block(text)
        if is_markdown:
            headings += markdown_headings(text, offset=start)
    return Extracted(
        writer.text,
        sections=sections_from(headings, len(writer)),
        encoding=decoded.encoding,
        notices=(decoded.notice,) if decoded.notice else (),
    )


def _blocks(source: str) -> list[tuple[str, bool]]:
    """The text of cells and outputs in order, and whether it is a Markdown cell."""
    from nbformat import NBFormatError, ValidationError, convert
    from nbformat.reader import NotJSONError
    from nbformat.reader import (
        reads as read_notebook,
    )  # nbformat.reads would also warn, and invent ids of cells

    try:
        notebook = read_notebook(source)  # type: ignore[no-untyped-call]
        if notebook["nbformat"] < 4:
            notebook = convert(notebook, 4)  # type: ignore[no-untyped-call]
        language = notebook["metadata"].get("kernelspec", {}).get("language", "")
        return [block for cell in notebook["cells"] for block in _cell_blocks(cell, language)]
    except NotJSONError as error:
        raise InputError("broken notebook: it is not JSON") from error
    except RecursionError as error:
        raise InputError("broken notebook: nested too deep") from error
    except (
        ValidationError,
        NBFormatError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        first_line = str(error).partition("\n")[0][:100]
        reason = f"{type(error).__name__}: {first_line}"
        raise InputError(f"broken notebook: it is not as its format says ({reason})") from error


def _cell_blocks(cell: Mapping[str, Any], language: str) -> Iterator[tuple[str, bool]]:
    source = cell["source"].strip("\r\n").rstrip()
    if cell["cell_type"] != "code":
        yield source, cell["cell_type"] == "markdown"
        return
    if source:
        yield fenced(source, language), False
    for output in cell.get("outputs", []):
        if text := _output_text(output):
            yield text, False


def _output_text(output: Mapping[str, Any]) -> str:
    """What a reader sees of an output: text, not pictures; of an error its last line."""
    kind = output["output_type"]
    if kind == "error":
        return fenced(_COLOUR.sub("", f"{output['ename']}: {output['evalue']}"))
    data = output.get("data", {})
    if "text/markdown" in data:
        return str(data["text/markdown"])
    text = output["text"] if kind == "stream" else data.get("text/plain", "")
    bare = _COLOUR.sub("", text).strip("\r\n").rstrip()
    return fenced(bare) if bare else ""
