"""Which file is read how: the table of formats, and the formats whose text is the decoded file itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from workbench.corpus.docx_text import extract_docx
from workbench.corpus.encodings import decode_text
from workbench.corpus.extracted import Extracted
from workbench.corpus.html_text import extract_html
from workbench.corpus.metadata import front_matter
from workbench.corpus.notebook_text import extract_notebook
from workbench.corpus.pdf_text import extract_pdf
from workbench.corpus.sections import markdown_headings, sections_from
from workbench.errors import InputError

_SUFFIXES = {
    "text": "txt text rst adoc org tex srt vtt",
    "markdown": "md markdown mdown mkd qmd rmd",
    "html": "html htm xhtml",
    "ipynb": "ipynb",
    "pdf": "pdf",
    "docx": "docx",
    "csv": "csv tsv",
    "jsonl": "jsonl ndjson",
    "log": "log",
    "code": """py pyi js mjs ts tsx jsx java kt scala c h cc cpp hpp cs go rs rb php swift sh bash ps1 bat pl r jl lua
        sql m f90 hs ml clj ex erl vue css scss json xml yaml yml toml ini cfg conf cmake mk diff patch""",
}
_FORMATS = {
    f".{suffix}": name for name, suffixes in _SUFFIXES.items() for suffix in suffixes.split()
}
_CODE_NAMES = frozenset({"makefile", "dockerfile", "justfile", "cmakelists.txt"})
# Read as plain text these would be mark-up or binary; the reason names what would do.
_SAVE_AS = {
    ".doc": ".docx",
    ".docm": ".docx",
    ".odt": ".docx",
    ".rtf": ".docx",
    ".pages": ".docx",
    ".epub": ".html",
    ".pptx": ".pdf",
    ".ppt": ".pdf",
    ".odp": ".pdf",
    ".xlsx": ".csv",
    ".xls": ".csv",
    ".ods": ".csv",
}
_EXTRACT: dict[str, Callable[[bytes], Extracted]] = {
    "html": extract_html,
    "ipynb": extract_notebook,
    "pdf": extract_pdf,
    "docx": extract_docx,
}


def format_of(name: str) -> str:
    """The format that a file's name promises; plain text where it promises none.

    >>> format_of("manual/pump.MD"), format_of("LICENSE")
    ('markdown', 'text')
    """
    path = PurePath(name)
    return (
        "code"
        if path.name.casefold() in _CODE_NAMES
        else _FORMATS.get(path.suffix.casefold(), "text")
    )


def extract(data: bytes, name: str) -> Extracted:
    r"""Text and parts of a file with these bytes and this name.

    >>> extract(b"# Pump\r\nIt failed.", "pump.md").sections[0].title
    'Pump'

    Raises
    ------
    InputError
        It cannot be read; the message is the reason alone, without the name.
    """
    suffix = PurePath(name).suffix.casefold()
    if suffix in _SAVE_AS:
        raise InputError(f"{suffix!r} files are not read; save it as {_SAVE_AS[suffix]}")
    format = format_of(name)
    if format in _EXTRACT:
        return _EXTRACT[format](data)
    try:
        decoded = decode_text(data)
    except InputError as error:
        if format == "text" and suffix not in _FORMATS:
            known = f"for {suffix!r}" if suffix else "without a suffix"
            raise InputError(f"binary data, no text format known {known}") from error
        raise InputError(f"binary data, though {(suffix or name)!r} promises text") from error
    is_markdown = format == "markdown"
    headings = markdown_headings(decoded.text) if is_markdown else ()
    metadata, notice = front_matter(decoded.text) if is_markdown else ({}, None)
    title = metadata.get("title")
    return Extracted(
        decoded.text,
        title=title if isinstance(title, str) else None,
        sections=sections_from(headings, len(decoded.text)),
        encoding=decoded.encoding,
        notices=tuple(filter(None, (decoded.notice, notice))),
        metadata=metadata,
    )
