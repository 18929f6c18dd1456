"""A trace → files for other programs: its tables as CSV or Parquet, itself as .npz, or a page to open in a browser.

Tables are two files that are joined by ``position``: NAME.csv has a row a token (``RoutingTrace.to_frame``), and
NAME.choices.csv beside it a row a choice of a routed token (``choices_frame``); likewise for .parquet. One joined table
would repeat every text once a layer and choice. Knows no other table format, and of .npz only who writes it.

A text that begins with = + - @, a tab or a carriage return is run by spreadsheets as a formula, whether it is quoted
in the CSV or not, and a document decides what its tokens are. In CSV such a text, and one that begins with ', therefore
has one ' in front, which :func:`read_tables` takes away; Parquet holds texts as they are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import InputError
from workbench.routing.page import trace_page
from workbench.routing.trace import RoutingTrace, check_trace, example_trace
from workbench.store import write_atomic

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".npz", ".csv", ".parquet", ".html")
_TEXTS = ("text", "phase", "segment", "document", "chunk", "language")
_SOMETIMES = ("document", "chunk", "language")
_RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r")
_MARK = "'"


@dataclass(frozen=True, slots=True, eq=False)
class TraceTables:
    """The two tables of a trace: `tokens` is its ``to_frame()``, `choices` its ``choices_frame()``."""

    tokens: pd.DataFrame
    choices: pd.DataFrame

    def __repr__(self) -> str:
        return (
            f"TraceTables({len(self.tokens)} tokens, {len(self.choices)} choices; "
            'next: .choices.join(.tokens, on="position"))'
        )


def export_trace(
    trace: RoutingTrace, path: str | Path, *, segment: str | None = None
) -> tuple[Path, ...]:
    """Write `trace` in the format that the suffix of `path` names; the files written, `path` first.

    ``.npz`` is the whole trace (:func:`workbench.routing.trace.load_trace` reads it), ``.html`` a page that needs no
    other file and no network (:func:`workbench.routing.page.trace_page`) and opens at `segment`, ``.csv`` and
    ``.parquet`` are its two tables, without router logits (:func:`read_tables` reads them). Parquet also keeps who
    routed (``frame.attrs["origin"]``), and is what long traces want: a choice takes about 30 bytes of CSV, 131,072
    tokens in 32 layers have 8.4 million.
    Every file appears whole or not at all, the choices before the tokens.

    Raises
    ------
    ValueError
        The suffix is none of these.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = export_trace(example_trace(), Path(folder) / "run.csv")
    ...     tables = read_tables(written[0])
    >>> [file.name for file in written]
    ['run.csv', 'run.choices.csv']
    >>> tables
    TraceTables(3 tokens, 4 choices; next: .choices.join(.tokens, on="position"))
    """
    check_trace(trace)
    path = Path(path)
    match _suffix(path, SUFFIXES):
        case ".npz":
            return (trace.save(path),)
        case ".html":
            write_atomic(path, trace_page(trace, title=path.stem, segment=segment).encode())
            return (path,)
        case ".csv":
            tokens = trace.to_frame().reset_index()
            for name in _TEXTS:
                tokens[name] = tokens[name].map(_guarded, na_action="ignore")
            data = _csv(tokens), _csv(trace.choices_frame())
        case _:
            tables = trace.to_frame().reset_index(), trace.choices_frame()
            data = _parquet(tables[0], trace), _parquet(tables[1], trace)
    write_atomic(_beside(path), data[1])
    write_atomic(path, data[0])
    return path, _beside(path)


def read_tables(path: str | Path) -> TraceTables:
    """The tables that :func:`export_trace` wrote to `path`, .csv or .parquet, and the choices beside it.

    They equal ``to_frame()`` and ``choices_frame()`` of the trace, types included. Raises ``ValueError`` for another
    suffix and ``InputError`` where one of the two files is missing or is no such table.
    """
    import pandas as pd

    path = Path(path)
    suffix = _suffix(path, (".csv", ".parquet"))
    found = []
    for file, model in ((path, example_trace().to_frame().reset_index()),
                        (_beside(path), example_trace().choices_frame())):  # fmt: skip
        try:
            if suffix == ".csv":
                frame = pd.read_csv(
                    file,
                    dtype={
                        name: str if name in _TEXTS else kind for name, kind in model.dtypes.items()
                    },
                    keep_default_na=False,
                    na_values={name: [""] for name in model.columns if name not in _TEXTS},
                )
            else:
                frame = pd.read_parquet(file)
        except FileNotFoundError:
            raise InputError(f"no table of a trace at {file}") from None
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file} is not a table that export_trace wrote: {reason}") from error
        if list(frame.columns) != list(model.columns):
            raise InputError(
                f"{file} is not a table that export_trace wrote: it has the columns "
                f"{', '.join(map(str, frame.columns))} and should have {', '.join(model.columns)}"
            )
        found.append(frame)
    tokens, choices = found
    if suffix == ".csv":
        for name in _TEXTS:
            texts = [text.removeprefix(_MARK) for text in tokens[name]]
            tokens[name] = [text or None for text in texts] if name in _SOMETIMES else texts
    return TraceTables(tokens.set_index("position"), choices)


def check_suffix(path: str | Path) -> None:
    """Raise ``ValueError`` for a file that :func:`export_trace` cannot write, before there is a trace."""
    _suffix(Path(path), SUFFIXES)


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise ValueError(
            f"{path.name} ends with {path.suffix or 'no suffix'}; use one of {', '.join(known)}"
        )
    return suffix


def _beside(path: Path) -> Path:
    """Where the choices of a token table are: run.csv → run.choices.csv."""
    return path.with_name(f"{path.stem}.choices{path.suffix}")


def _guarded(text: str) -> str:
    return _MARK + text if text.startswith((*_RUN_BY_SPREADSHEETS, _MARK)) else text


def _csv(frame: pd.DataFrame) -> bytes:
    import csv

    text: str = frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text.encode()


def _parquet(frame: pd.DataFrame, trace: RoutingTrace) -> bytes:
    frame.attrs["origin"] = dict(trace.origin)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()
