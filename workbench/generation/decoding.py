"""Steps of decoding: a model over a growing cache, a witness of ``generate``, stop tokens, text of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.errors import CheckpointError
from workbench.generation.results import Timing

if TYPE_CHECKING:
    import torch

TURN_TOKENS = ("<|end|>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>")
OnText = Callable[[str], None]


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the checkpoint's own end tokens and Phi's turn tokens; the end of a turn first.

    >>> from workbench.generation.loading import load_generator
    >>> generator = load_generator("pocket")
    >>> generator.tokenizer.convert_ids_to_tokens(stop_ids(generator.model, generator.tokenizer))[0]
    '<|end|>'
    """
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in TURN_TOKENS if token in vocabulary]
    for config in (model.generation_config, model.config):
        own = config.eos_token_id
        ids += own if isinstance(own, list) else [own] if own is not None else []
    if not ids:
        raise CheckpointError("this checkpoint names no end token in its generation_config.json")
    return list(dict.fromkeys(ids))


class Stepper:
    """Feeds a model over one growing cache; log-probabilities [tokens, vocabulary] come back in float32."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)

    def feed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens. A first, long feed returns only the last row."""
        import torch

        is_prefill = self._cache.get_seq_length() == 0
        output = self._model(
            input_ids=torch.tensor([list(token_ids)], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1 if is_prefill else 0,
        )
        return np.asarray(output.logits[0].float().log_softmax(-1).cpu().numpy(), dtype=np.float32)

    def rewind(self, count: int) -> None:
        """Take the last `count` tokens back."""
        self._cache.crop(-count)  # transformers 5 takes the number to remove as a negative length


class Watch:
    """Sees every step of ``generate``: log-probability of the chosen token, time of the first token, cancellation."""

    def __init__(self, cancel: CancelToken | None) -> None:
        self._cancel = cancel
        self._before: torch.Tensor | None = None
        self._logs: list[float] = []
        self._started = time.perf_counter()
        self._first: float | None = None
        self.was_cancelled = False

    def see_scores(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A logits processor that changes nothing."""
        if self._first is None:
            self._first = time.perf_counter()
        self._note(input_ids[0, -1])
        self._before = scores[0].float().log_softmax(-1)
        return scores

    def stop(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion: True for every row once somebody cancelled."""
        self.was_cancelled = self._cancel is not None and self._cancel.is_cancelled
        return input_ids.new_full((len(input_ids),), self.was_cancelled).bool()

    def log_probabilities(self, answer: Sequence[int]) -> NDArray[np.float32]:
        """Of every answer token: [tokens]."""
        if self._before is not None and len(self._logs) < len(answer):
            self._logs.append(float(self._before[answer[-1]]))
        return np.asarray(self._logs[: len(answer)], dtype=np.float32)

    def timing(self) -> Timing:
        """Prefill until the first scores, decode from there."""
        now = time.perf_counter()
        first = self._first if self._first is not None else now
        return Timing(first - self._started, now - first)

    def _note(self, token: torch.Tensor) -> None:
        if self._before is not None:
            self._logs.append(float(self._before[token]))


class TextGrower:
    """Tokens one by one → the text each adds; an unfinished character is held back until it is whole.

    Only the last few tokens are decoded again for each new one. The parts joined are the text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = 0  # what is decoded starts here …
        self._said = 0  # … and what was given out already ends here

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self._grown()
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._from, self._said = self._said, len(self._ids)
        return text

    def end(self) -> str:
        """What was held back."""
        text = self._grown()
        self._from = self._said = len(self._ids)
        return text

    def _grown(self) -> str:
        before = self._decode(self._ids[self._from : self._said])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class TextStreamer:
    """A streamer for ``generate``: hands every piece of text to `on_text` as it becomes certain."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        self._grower = TextGrower(tokenizer)
        self._on_text = on_text
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """New token ids; the first call holds the prompt."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        for token in value.reshape(-1).tolist():
            self._say(self._grower.add(token))

    def end(self) -> None:
        """The last piece."""
        self._say(self._grower.end())

    def _say(self, text: str) -> None:
        if text:
            self._on_text(text)


def decode_answer(tokenizer: Any, answer: Sequence[int]) -> tuple[str, NDArray[np.int32]]:
    """The text of answer tokens and the half-open characters behind each: [tokens, 2].

    Control tokens span nothing, and so do the bytes of a character until its last one.
    """
    grower, text, spans = TextGrower(tokenizer), "", []
    for i, token in enumerate(answer):
        grown = grower.add(token)
        if i == len(answer) - 1:
            grown += grower.end()
        spans.append((len(text), len(text) + len(grown)))
        text += grown
    return text, np.asarray(spans, dtype=np.int32).reshape(-1, 2)


def pad_id(model: Any, tokenizer: Any) -> int:
    """The padding token, or a stop token in its place."""
    return (
        tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else stop_ids(model, tokenizer)[0]
    )
