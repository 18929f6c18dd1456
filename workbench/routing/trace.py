"""The routing of one sequence as arrays: which experts every token used in every layer. NumPy only, no torch.

Phi-MoE routes with sparsemixer (transformers ``modeling_phimoe.py``; Microsoft, arXiv 2409.12136): ``experts`` are the
chosen indices, ``gate_weights`` what multiplies their outputs (about 1 each, they do not sum to 1).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.routing.statistics import expert_counts
from workbench.store import write_atomic

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 3
PREFILL, DECODE = 0, 1
_PHASES = ("prefill", "decode")
_ARRAYS = (
    "experts", "gate_weights", "router_logits", "token_ids", "phases", "segments", "spans", "routed",
    "log_probabilities", "contributions", "output_norms",
)  # fmt: skip


_TRACES = "give answer.routing, generator.read(prompt) or wb.load_trace(file)"

# What NumPy and zipfile let through on files that are damaged, or made by somebody else
_DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TracedSource:
    """Where the text of an evidence segment comes from: characters `start` to `stop` of a document.

    `segment` is its name in the trace, `prompt_start` where in the prompt's text it begins, `rank` that of the hit it
    was part of, from 1, 0 if it was none.
    """

    segment: str
    document_id: str
    chunk_id: str
    start: int
    stop: int
    prompt_start: int
    rank: int = 0
    language: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTrace:
    """Experts and gate weights of every token of one prompt and its answer.

    ``experts`` and ``gate_weights``: [tokens, layers, k]. Rows where ``routed`` is False (the last generated token is
    never fed back) hold 0 and are left out of every count. ``segments`` [tokens] index ``segment_names``: "system",
    "template", "question", "evidence 1", …, "answer". ``spans`` [tokens, 2] are half-open characters of the prompt's
    text, for answer tokens of the answer's text. ``log_probabilities`` [tokens] (nats) are nan for tokens of the
    prompt. ``sources`` say which document and hit an evidence segment is of, ``origin`` which checkpoint, precision,
    device and library routed.

    Where they were asked for: ``router_logits`` [tokens, layers, experts] are those before sparsemixer,
    ``contributions`` [tokens, layers, k] the Euclidean norms of gate weight × expert output, and ``output_norms``
    [tokens, layers] those of their sum; norms have three digits and end at 65,504, more is inf.

    >>> trace = example_trace()
    >>> trace.counts().tolist()            # [layers, experts]: two tokens routed, k = 2
    [[2, 1, 1, 0]]
    >>> trace.usage().sum(axis=1).tolist()
    [2.0]
    """

    experts: NDArray[np.uint8]
    gate_weights: NDArray[np.float16] | None
    n_experts: int
    token_ids: NDArray[np.int64]
    token_texts: tuple[str, ...]
    phases: NDArray[np.uint8]
    segments: NDArray[np.int16]
    segment_names: tuple[str, ...]
    spans: NDArray[np.int32]
    routed: NDArray[np.bool_]
    log_probabilities: NDArray[np.float32] | None = None
    router_logits: NDArray[np.float16] | None = None
    contributions: NDArray[np.float16] | None = None
    output_norms: NDArray[np.float16] | None = None
    sources: tuple[TracedSource, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.experts.ndim != 3:
            raise ValueError(f"experts must be [tokens, layers, k], got shape {self.experts.shape}")
        tokens = len(self.experts)
        rows: dict[str, Sized] = {
            "token_ids": self.token_ids,
            "token_texts": self.token_texts,
            "phases": self.phases,
            "segments": self.segments,
            "spans": self.spans,
            "routed": self.routed,
        }
        if self.log_probabilities is not None:
            rows["log_probabilities"] = self.log_probabilities
        for name, row in rows.items():
            if len(row) != tokens:
                raise ValueError(f"{name} has {len(row)} rows, experts has {tokens}")
        chosen = self.experts.shape
        shapes: dict[str, tuple[NDArray[Any] | None, tuple[int, ...]]] = {
            "gate_weights": (self.gate_weights, chosen),
            "router_logits": (self.router_logits, (*chosen[:2], self.n_experts)),
            "contributions": (self.contributions, chosen),
            "output_norms": (self.output_norms, chosen[:2]),
        }
        for name, (array, shape) in shapes.items():
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} {array.shape} should be {shape}")
        if self.experts.size and int(self.experts.max()) >= self.n_experts:
            raise ValueError(
                f"expert {int(self.experts.max())} named, but there are {self.n_experts} experts"
            )
        if tokens and int(self.segments.max()) >= len(self.segment_names):
            raise ValueError("segments index a name that is not in segment_names")
        unknown = {source.segment for source in self.sources} - set(self.segment_names)
        if unknown:
            raise ValueError(f"a source names the segment {min(unknown)!r}, which is not there")

    def __repr__(self) -> str:
        tokens, layers, k = self.experts.shape
        routed = int(self.routed.sum())
        return (
            f"RoutingTrace({tokens} tokens, {routed} routed, {layers} layers, {self.n_experts} experts, k={k}; "
            "next: .usage(), wb.plot_expert_usage(trace))"
        )

    @property
    def layers(self) -> int:
        """Number of layers with a router."""
        return int(self.experts.shape[1])

    @property
    def k(self) -> int:
        """Experts per token and layer."""
        return int(self.experts.shape[2])

    def rows(self, segment: str | None = None) -> NDArray[np.bool_]:
        """Routed tokens of a segment: [tokens]. "evidence" takes every "evidence n"; None takes all.

        >>> example_trace().rows("answer").tolist()
        [False, True, False]
        """
        if segment is None:
            return self.routed.copy()
        codes = [
            i
            for i, name in enumerate(self.segment_names)
            if name == segment or name.startswith(f"{segment} ")
        ]
        if not codes:
            raise ValueError(f"no segment {segment!r}; there are {', '.join(self.segment_names)}")
        return np.asarray(self.routed & np.isin(self.segments, codes))

    def counts(self, segment: str | None = None) -> NDArray[np.int64]:
        """How often each expert was chosen: [layers, experts]; each row sums to k × routed tokens."""
        return expert_counts(self.experts[self.rows(segment)], self.n_experts)

    def usage(self, segment: str | None = None) -> NDArray[np.float64]:
        """Share of routed tokens sent to each expert: [layers, experts]; rows sum to k, uniform is k / experts."""
        rows = int(self.rows(segment).sum())
        if rows == 0:
            raise ValueError(f"no routed token in segment {segment!r}")
        return self.counts(segment) / rows

    def to_frame(self) -> pd.DataFrame:
        """One row a token: what it is, where its text is from, how likely it was.

        ``start`` and ``stop`` are its span in the prompt or answer, ``document_start`` and ``document_stop`` that in
        the document, for evidence.

        >>> example_trace().to_frame()[["text", "segment", "routed"]].values.tolist()
        [['Which', 'question', True], [' valve', 'answer', True], ['?', 'answer', False]]
        """
        import pandas as pd

        of = {source.segment: source for source in self.sources}
        found = [of.get(self.segment_names[code]) for code in self.segments]
        logs = self.log_probabilities
        places = [
            _in_document(source, *span)
            for source, span in zip(found, self.spans.tolist(), strict=True)
        ]
        columns: dict[str, Any] = {
            "token_id": self.token_ids,
            "text": self.token_texts,
            "phase": [_PHASES[phase] for phase in self.phases],
            "segment": [self.segment_names[code] for code in self.segments],
            "document": [source and source.document_id for source in found],
            "chunk": [source and source.chunk_id for source in found],
            "rank": pd.array([source.rank if source else None for source in found], dtype="Int64"),
            "language": [source and source.language for source in found],
            "document_start": pd.array([start for start, _ in places], dtype="Int64"),
            "document_stop": pd.array([stop for _, stop in places], dtype="Int64"),
            "start": self.spans[:, 0],
            "stop": self.spans[:, 1],
            "log_probability": np.full(len(found), np.nan, np.float32) if logs is None else logs,
            "routed": self.routed,
        }
        return pd.DataFrame(columns).rename_axis("position")

    def choices_frame(self) -> pd.DataFrame:
        """One row a choice of a routed token: position, layer, choice (0 is the first), expert, weight, contribution.

        A gate weight or contribution that was not recorded is nan.

        >>> example_trace().choices_frame().values.tolist()[1]
        [0.0, 0.0, 1.0, 1.0, 1.0, nan]
        """
        import pandas as pd

        position, layer, choice = np.indices(self.experts.shape)
        weights, added = self.gate_weights, self.contributions
        nothing = np.full(self.experts.shape, np.nan, dtype=np.float32)
        columns = {
            "position": position,
            "layer": layer,
            "choice": choice,
            "expert": self.experts,
            "gate_weight": nothing if weights is None else weights.astype(np.float32),
            "contribution": nothing if added is None else added.astype(np.float32),
        }
        kept = {
            name: np.asarray(values)[self.routed].reshape(-1) for name, values in columns.items()
        }
        return pd.DataFrame(kept)

    def save(self, path: str | Path) -> Path:
        """Write the trace as one .npz file without pickle, with a checksum of all of it; ``load_trace`` reads it.

        The file appears whole or not at all.
        """
        path = Path(path)
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        header = {
            "format": FORMAT,
            "n_experts": self.n_experts,
            "token_texts": self.token_texts,
            "segment_names": self.segment_names,
            "sources": [asdict(source) for source in self.sources],
            "origin": dict(self.origin),
        }
        header["sha256"] = _digest(header, arrays)
        stored = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        written = io.BytesIO()
        np.savez_compressed(written, allow_pickle=False, header=stored, **arrays)
        write_atomic(path, written.getvalue())
        return path


def load_trace(path: str | Path) -> RoutingTrace:
    """Read a trace written by ``RoutingTrace.save``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load_trace(example_trace().save(Path(folder) / "trace.npz"))
    >>> again.token_texts
    ('Which', ' valve', '?')
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != FORMAT:
                raise InputError(
                    f"{path} has trace format {header['format']}, this program reads {FORMAT}; record it again, or "
                    "update workbench"
                )
            held = {name: arrays[name] for name in _ARRAYS if name in arrays}
            promised = header.pop("sha256")
            if promised != _digest(header, held):
                raise ValueError("its checksum is another")
            return RoutingTrace(
                **{"gate_weights": None, **held},
                n_experts=int(header["n_experts"]),
                token_texts=tuple(header["token_texts"]),
                segment_names=tuple(header["segment_names"]),
                sources=tuple(TracedSource(**source) for source in header["sources"]),
                origin=header["origin"],
            )
    except FileNotFoundError:
        raise InputError(f"no routing trace at {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the .npz file of a trace in it") from None
    except _DAMAGE as error:
        if not zipfile.is_zipfile(path):
            raise InputError(
                f"{path} is not a routing trace written by workbench, nor any .npz file"
            ) from None
        raise InputError(f"{path} is not a routing trace written by workbench: {error}") from error


def check_traces(traces: object, name: str = "traces") -> list[RoutingTrace]:
    """One trace or several as a list; raises ``ValueError`` for none, or for something that is no trace.

    >>> len(check_traces(example_trace()))
    1
    """
    if isinstance(traces, RoutingTrace):
        return [traces]
    if isinstance(traces, str) or not isinstance(traces, Sequence):
        raise ValueError(f"{name}={traces!r} is no RoutingTrace and no list of them; {_TRACES}")
    if not traces:
        raise ValueError(f"{name} holds no trace")
    for trace in traces:
        if not isinstance(trace, RoutingTrace):
            raise ValueError(f"{name} holds {trace!r}, which is no RoutingTrace; {_TRACES}")
    return list(traces)


def check_trace(trace: object) -> None:
    """Raise ``ValueError`` for something that is no trace."""
    if not isinstance(trace, RoutingTrace):
        raise ValueError(f"{trace!r} is no RoutingTrace; {_TRACES}")


def _in_document(
    source: TracedSource | None, start: int, stop: int
) -> tuple[int, int] | tuple[None, None]:
    """The characters of the document behind some of the prompt, but for those beyond the source."""
    if source is None:
        return None, None
    shift = source.start - source.prompt_start
    first, last = (min(max(place + shift, source.start), source.stop) for place in (start, stop))
    return first, last


def _digest(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of the header and of every array with its type and shape."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def example_trace() -> RoutingTrace:
    """A trace of three tokens, one layer and four experts, for examples.

    >>> example_trace().routed.tolist()
    [True, True, False]
    """
    return RoutingTrace(
        experts=np.array([[[0, 1]], [[0, 2]], [[0, 0]]], dtype=np.uint8),
        gate_weights=np.array([[[1.0, 1.0]], [[1.0, 0.75]], [[0.0, 0.0]]], dtype=np.float16),
        n_experts=4,
        token_ids=np.array([11, 12, 13]),
        token_texts=("Which", " valve", "?"),
        phases=np.array([PREFILL, DECODE, DECODE], dtype=np.uint8),
        segments=np.array([0, 1, 1], dtype=np.int16),
        segment_names=("question", "answer"),
        spans=np.array([[0, 5], [0, 6], [6, 7]], dtype=np.int32),
        routed=np.array([True, True, False]),
    )
