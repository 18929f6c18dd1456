"""The routing of one sequence as arrays: which experts every token used in every layer. NumPy only, no torch.

Phi-MoE routes with sparsemixer (transformers ``modeling_phimoe.py``; Microsoft, arXiv 2409.12136): ``experts`` are the
chosen indices, ``gate_weights`` what multiplies their outputs (about 1 each, they do not sum to 1).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError

FORMAT = 1
PREFILL, DECODE = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTrace:
    """Experts and gate weights of every token of one prompt and its answer.

    ``experts`` and ``gate_weights``: [tokens, layers, k]. Rows where ``routed`` is False (the last generated token is
    never fed back) hold 0 and are left out of every count. ``segments`` [tokens] index ``segment_names``: "system",
    "template", "question", "evidence 1", …, "answer". ``spans`` [tokens, 2] are half-open characters of the prompt's
    text, for answer tokens of the answer's text.

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
        for name, row in rows.items():
            if len(row) != tokens:
                raise ValueError(f"{name} has {len(row)} rows, experts has {tokens}")
        if self.gate_weights is not None and self.gate_weights.shape != self.experts.shape:
            raise ValueError(
                f"gate_weights {self.gate_weights.shape} differ from experts {self.experts.shape}"
            )
        if self.experts.size and int(self.experts.max()) >= self.n_experts:
            raise ValueError(
                f"expert {int(self.experts.max())} named, but there are {self.n_experts} experts"
            )
        if tokens and int(self.segments.max()) >= len(self.segment_names):
            raise ValueError("segments index a name that is not in segment_names")

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
        chosen = self.experts[self.rows(segment)]  # [rows, layers, k]
        flat = chosen.astype(np.int64) + self.n_experts * np.arange(self.layers)[None, :, None]
        counts = np.bincount(flat.reshape(-1), minlength=self.layers * self.n_experts)
        return counts.reshape(self.layers, self.n_experts)

    def usage(self, segment: str | None = None) -> NDArray[np.float64]:
        """Share of routed tokens sent to each expert: [layers, experts]; rows sum to k, uniform is k / experts."""
        rows = int(self.rows(segment).sum())
        if rows == 0:
            raise ValueError(f"no routed token in segment {segment!r}")
        return self.counts(segment) / rows

    def save(self, path: str | Path) -> Path:
        """Write the trace as one .npz file without pickle; ``load_trace`` reads it."""
        path = Path(path)
        header = {
            "format": FORMAT,
            "n_experts": self.n_experts,
            "token_texts": self.token_texts,
            "segment_names": self.segment_names,
        }
        arrays: dict[str, NDArray[Any]] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "experts": self.experts,
            "token_ids": self.token_ids,
            "phases": self.phases,
            "segments": self.segments,
            "spans": self.spans,
            "routed": self.routed,
        }
        if self.gate_weights is not None:
            arrays["gate_weights"] = self.gate_weights
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
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
            if header["format"] > FORMAT:
                raise InputError(
                    f"{path} has trace format {header['format']}, this program reads up to {FORMAT}"
                )
            return RoutingTrace(
                experts=arrays["experts"],
                gate_weights=arrays["gate_weights"] if "gate_weights" in arrays else None,
                n_experts=header["n_experts"],
                token_ids=arrays["token_ids"],
                token_texts=tuple(header["token_texts"]),
                phases=arrays["phases"],
                segments=arrays["segments"],
                segment_names=tuple(header["segment_names"]),
                spans=arrays["spans"],
                routed=arrays["routed"],
            )
    except FileNotFoundError:
        raise InputError(f"no routing trace at {path}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is not a routing trace written by workbench: {error}") from error


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
