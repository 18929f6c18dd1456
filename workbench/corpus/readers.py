"""Files → documents. One bad file never stops a run: it is reported with its reason, and the rest goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.corpus.documents import Corpus, Document, Notice, Skipped, in_one_line
from workbench.corpus.extracted import Extracted
from workbench.corpus.folders import find_files, kind_of_special, reason_of
from workbench.corpus.formats import extract, format_of
from workbench.corpus.languages import language_of
from workbench.errors import InputError
from workbench.store import sha256_bytes

MAX_BYTES = 200_000_000
READING = "2"  # raise it whenever the same file would become another document
_WITHOUT_LANGUAGE = frozenset({"code", "csv", "jsonl", "log"})


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    *,
    max_bytes: int = MAX_BYTES,
    progress: OnProgress | None = None,
    cancel: CancelToken | None = None,
) -> Corpus:
    r"""Read a folder with all below it, a file, or several of them: the documents in the order of their ids.

    Text, Markdown, code, HTML, PDF, DOCX, notebooks, CSV and JSONL are read; any other file is taken for plain text if
    it is text. What cannot be read is in ``.skipped`` with its reason, what should be known of the rest, such as a
    guessed encoding, in ``.notices``. Hidden files are left out, no link is followed out of a folder, and a
    ``.workbenchignore`` in any folder holds patterns, as git's ``.gitignore`` does, of what is to be left out.

    With several paths ids are relative to the deepest folder that holds them all. A file of more than `max_bytes` is
    skipped. `progress` is told of every file; `cancel` is looked at before each.

    Raises
    ------
    InputError
        A path does not exist, or no file could be read; the message says what was skipped and why.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "pump.md").write_text("# Pump\nIt failed.")
    ...     _ = Path(folder, "scan.bin").write_bytes(bytes(9))
    ...     corpus = read_corpus(folder)
    >>> corpus["pump"].title, str(corpus.skipped[0])
    ('Pump', "scan.bin: binary data, no text format known for '.bin'")
    """
    reading = CorpusReader(paths, max_bytes=max_bytes, progress=progress, cancel=cancel)
    documents = tuple(reading)
    return Corpus(documents, tuple(reading.skipped), tuple(reading.notices), str(reading.root))


class CorpusReader:
    r"""The documents that :func:`read_corpus` would read, one at a time: for folders that do not fit into memory.

    Iterating reads; afterwards `skipped` and `notices` say what was left out and what should be known. ``len`` counts
    the files that will be opened. What is below the paths is looked up when it is made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "pump.md").write_text("# Pump\nIt failed.")
    ...     [document.id for document in CorpusReader(folder)]
    ['pump.md']
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        max_bytes: int = MAX_BYTES,
        progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._asked = [paths] if isinstance(paths, str | Path) else list(paths or [])
        if not all(isinstance(path, str | Path) and str(path) for path in self._asked):
            raise ValueError(f"{paths!r} is no path to read; name a folder or a file")
        self._found = find_files([Path(path) for path in self._asked])
        self._max_bytes, self._progress, self._cancel = max_bytes, progress, cancel
        self.root = self._found.root
        self.skipped: list[Skipped] = []
        self.notices: list[Notice] = []

    def __len__(self) -> int:
        return len(self._found.files)

    def __iter__(self) -> Iterator[Document]:
        return (d for _, d in self.unless_known(lambda _: None) if d is not None)

    def unless_known(
        self, known: Callable[[str], str | None]
    ) -> Iterator[tuple[str, Document | None]]:
        """The id of each file that can be read, and its document, or None where `known` tells its sha256.

        `known` gives for an id the sha256 of the bytes that were read before, by this version of the program, or None:
        a file that still has them is not extracted again, and has no notices.
        """
        self.skipped, self.notices = list(self._found.skipped), []
        has_read = False
        for done, file in enumerate(self._found.files):
            if self._cancel is not None:
                self._cancel.raise_if_cancelled("reading")
            if self._progress is not None:
                self._progress(Progress("read", done, len(self)))
            try:
                data = _bytes_of(file.path, self._max_bytes)
                digest = sha256_bytes(data)
                document: Document | None = None
                notices: Sequence[str] = ()
                if known(file.id) != digest:
                    document, notices = _document(data, file.path.name, file.id, digest)
            except InputError as error:
                self.skipped.append(Skipped(file.id, str(error)))
                continue
            self.notices += [Notice(file.id, message) for message in notices]
            has_read = True
            yield file.id, document
        if self._progress is not None:
            self._progress(Progress("read", len(self), len(self)))
        self.skipped.sort(key=lambda skipped: skipped.path)
        if not has_read:
            asked = ", ".join(in_one_line(str(path)) for path in self._asked)
            raise InputError(_nothing_read(asked, self.skipped))


def read_document(
    path: str | Path, *, root: str | Path | None = None, max_bytes: int = MAX_BYTES
) -> Document:
    """Read one file. Its id is the path relative to `root`, or the file's name alone.

    Raises
    ------
    InputError
        It does not exist or cannot be read.
    ValueError
        It does not lie below `root`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "pump.txt").write_text("It failed.")
    ...     read_document(Path(folder, "pump.txt"))
    Document('pump.txt', 10 characters; next: .text, .sections, .to_dict())
    """
    file = Path(os.path.abspath(Path(path).expanduser()))
    base = file.parent if root is None else Path(os.path.abspath(Path(root).expanduser()))
    if not file.is_relative_to(base):
        raise ValueError(f"{file} does not lie below root={str(root)!r}")
    try:
        data = _bytes_of(file, max_bytes)
        id = file.relative_to(base).as_posix()
        document, _ = _document(data, file.name, id, sha256_bytes(data))
    except InputError as error:
        raise InputError(f"{in_one_line(str(path))}: {error}") from error
    return document


def _document(data: bytes, name: str, id: str, digest: str) -> tuple[Document, Sequence[str]]:
    """The document in a file's bytes, with notices; the message of an ``InputError`` is the reason alone."""
    extracted = extract(data, name)
    if not extracted.text.strip():
        raise InputError("holds no text")
    format = format_of(name)
    first_heading = next((section.title for section in extracted.sections if section.title), None)
    document = Document(
        id,
        extracted.text,
        title=extracted.title or first_heading or PurePosixPath(id).stem,
        sections=extracted.sections,
        pages=extracted.pages,
        language=None if format in _WITHOUT_LANGUAGE else _language(extracted),
        sha256=digest,
        encoding=extracted.encoding,
        format=format,
        metadata=extracted.metadata,
    )
    return document, extracted.notices


def _language(extracted: Extracted) -> str | None:
    """The language that the file names, else the one its words are likely of."""
    told = extracted.metadata.get("language") or extracted.metadata.get("lang")
    match = (
        re.match(r"([a-z]{2,3})(?:[-_].*)?\Z", told.casefold()) if isinstance(told, str) else None
    )
    return match[1] if match else language_of(extracted.text)


def _bytes_of(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file, read once; anything else is not even opened."""
    try:
        facts = path.stat()
        if path.is_dir():
            raise InputError("a folder; give one file, or read the folder with read_corpus")
        if kind := kind_of_special(facts.st_mode):
            raise InputError(f"{kind}, not a file; not opened")
        if facts.st_size > max_bytes:
            raise InputError(
                f"{facts.st_size:,} bytes, more than max_bytes={max_bytes:,}; split it or ask for more"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("no such file; check the path") from error
    except OSError as error:
        raise InputError(f"cannot be read: {reason_of(error)}") from error
    if not data:
        raise InputError("empty file")
    return data


def _nothing_read(asked: str, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"{asked}: no file to read, it is empty or holds hidden files alone; add text, Markdown, PDF or the like"
    reasons = "; ".join(map(str, skipped[:5])) + (
        f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    )
    return f"{asked}: no file could be read, {len(skipped)} skipped ({reasons})"
