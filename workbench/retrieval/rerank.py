"""A question and passages become scores by a model that reads both together. Knows no index."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from workbench.retrieval.model_folders import named_folder, opened_model, refuse_pickles

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


@runtime_checkable
class Reranker(Protocol):
    """What retrieval needs of a reranker; any object with these members will do."""

    @property
    def name(self) -> str:
        """A hub id, or the name of a folder."""

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text answers the question, the more the better: [texts]."""


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers. Made by :func:`load_reranker`.

    What is too long for it is cut by its tokenizer, question and passage in turn; `cut_texts` counts the passages that
    were, so that nothing of it is silent.
    """

    def __init__(self, name: str, model: CrossEncoder) -> None:
        self._name, self._model = name, model
        self._lock = threading.Lock()
        self.cut_texts = 0

    def __repr__(self) -> str:
        return f"CrossEncoderReranker({self.name!r}; next: SearchOptions(reranker=…))"

    @property
    def name(self) -> str:
        """The hub id, or the name of the folder."""
        return self._name

    def score(self, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each text answers the question, the more the better: [texts]."""
        if not texts:
            return np.empty(0, dtype=np.float32)
        pairs = [(question, text) for text in texts]
        with self._lock:
            limit = self._model.max_seq_length
            if limit is not None:
                found = self._model.tokenizer(pairs, truncation=False, verbose=False)["input_ids"]
                self.cut_texts += sum(len(ids) > limit for ids in found)
            scores = self._model.predict(pairs, show_progress_bar=False, convert_to_numpy=True)
        if np.ndim(scores) != 1:
            raise ValueError(
                f"the reranker {self.name!r} gives {np.shape(scores)[1]} scores a pair; choose one that gives one"
            )
        return np.asarray(scores, dtype=np.float32)


def load_reranker(spec: str | Path, *, device: str = "auto") -> CrossEncoderReranker:
    """Load a cross-encoder from a folder or the hub, such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.

    Weights must be safetensors; code that comes with a model is never run.

    Raises
    ------
    CheckpointError
        There is no such model, or it has weights that are not safetensors.
    """

    def load(folder: Path, device: str) -> CrossEncoder:
        from sentence_transformers import CrossEncoder

        model: CrossEncoder = CrossEncoder(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
        return model

    name, folder = named_folder(spec, what="reranker")
    refuse_pickles(name, folder, what="reranker")
    return CrossEncoderReranker(name, opened_model(name, folder, device, load, what="reranker"))
