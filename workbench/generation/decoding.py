"""Steps of decoding: a witness of ``generate``, what ends an answer, the text of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.errors import CheckpointError
from workbench.generation.options import Sampling
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


class Watch:
    """Sees every step of ``generate``: log-probabilities of chosen tokens, the time of the first, cancelling, stopping.

    Rows are those of the batch; `prompt_slots` is how many slots stand before the first answer token of every row.
    `lookup` is how many tokens a pass may guess (prompt lookup): a guess that is taken back is overwritten.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        rows: int,
        prompt_slots: int,
        cancel: CancelToken | None = None,
        stop: Sequence[str] = (),
        lookup: int = 0,
    ) -> None:
        self._cancel = cancel
        self._prompt_slots = prompt_slots
        self._laws: dict[
            int, torch.Tensor
        ] = {}  # slot → log-probabilities [rows, vocabulary] of its token
        self._logs: dict[int, torch.Tensor] = {}  # slot → log-probability [rows] of the token in it
        self._kept_laws = lookup + 2
        self._texts = [StopText(stop) for _ in range(rows)] if stop else []
        self._growers = [TextGrower(tokenizer) for _ in self._texts]
        self._stopped_after: dict[int, int] = {}
        self._seen = prompt_slots
        self._started = time.perf_counter()
        self._first: float | None = None
        self.was_cancelled = False

    def see_scores(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A logits processor that changes nothing."""
        if self._first is None:
            self._first = time.perf_counter()
        slot = input_ids.shape[1]
        if slot - 1 in self._laws:
            self._logs[slot - 1] = self._laws[slot - 1].gather(1, input_ids[:, -1:])[:, 0]
        self._laws[slot] = scores.float().log_softmax(-1)
        for old in [known for known in self._laws if known < slot - self._kept_laws]:
            del self._laws[old]
        return scores

    def stop(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion: True for rows that said a stop string, for every row once somebody cancelled."""
        import torch

        self.was_cancelled = self._cancel is not None and self._cancel.is_cancelled
        stopped = [self.was_cancelled] * len(input_ids)
        for row, text in enumerate(self._texts):
            new = input_ids[row, self._seen :].tolist()
            for slot, token in enumerate(new, start=self._seen):
                text.add(self._growers[row].add(token))
                if text.is_stopped:
                    self._stopped_after.setdefault(row, slot + 1 - self._prompt_slots)
            stopped[row] |= text.is_stopped
        self._seen = input_ids.shape[1]
        return torch.tensor(stopped, device=input_ids.device)

    def stopped_after(self, row: int) -> int | None:
        """How many answer tokens of a row it took to say a stop string; None if it said none."""
        return self._stopped_after.get(row)

    def log_probabilities(self, answer: Sequence[int], *, row: int = 0) -> NDArray[np.float32]:
        """Of every answer token of a row: [tokens]."""
        logs = []
        for slot, token in enumerate(answer, start=self._prompt_slots):
            if slot in self._laws:  # more certain than a note, which may be of a guess taken back
                logs.append(float(self._laws[slot][row, token]))
            else:
                logs.append(float(self._logs[slot][row]))
        return np.asarray(logs, dtype=np.float32)

    def timing(self) -> Timing:
        """Prefill until the first scores, decode from there."""
        now = time.perf_counter()
        first = self._first if self._first is not None else now
        return Timing(first - self._started, now - first)


class Draw:
    """A logits processor that draws: the largest of the scores, each shifted by noise, is a sample of their softmax.

    The Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka 2014, arXiv 1411.0030). The random numbers are of a
    generator of its own, so that threads and the caller's seed are left alone.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        import torch
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._random = torch.Generator(device=device).manual_seed(sampling.seed)
        self._warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] shifted by Gumbel noise."""
        import torch

        for warp in self._warpers:
            scores = warp(input_ids, scores)
        noise = torch.empty_like(scores).exponential_(generator=self._random)
        return scores - noise.log()


class StopText:
    """Growing text that ends before the first of the stop strings; what may begin one is held back.

    >>> text = StopText(["END"])
    >>> [text.add(piece) for piece in ("one E", "NE two E", "ND three")], text.is_stopped
    (['one ', 'ENE two ', ''], True)
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.is_stopped = False

    def add(self, piece: str) -> str:
        """What is certain to be part of the text now."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self._held, self.is_stopped = "", True
            return text[: min(found)]
        keep = max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back and turned out to be text."""
        held, self._held = self._held, ""
        return held


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

    def __init__(self, tokenizer: Any, on_text: OnText, stop: Sequence[str] = ()) -> None:
        self._grower = TextGrower(tokenizer)
        self._stop = StopText(stop)
        self._on_text = on_text
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """New token ids; the first call holds the prompt."""
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        for token in value.reshape(-1).tolist():
            self._say(self._stop.add(self._grower.add(token)))

    def end(self) -> None:
        """The last piece."""
        self._say(self._stop.add(self._grower.end()) + self._stop.end())

    def _say(self, text: str) -> None:
        if text:
            self._on_text(text)


def decode_answer(
    tokenizer: Any, answer: Sequence[int], stop: Sequence[str] = ()
) -> tuple[str, NDArray[np.int32]]:
    """The text of answer tokens, up to a stop string, and the half-open characters behind each: [tokens, 2].

    Control tokens span nothing, and so do the bytes of a character until its last one, and what follows a stop string.
    """
    grower, text, spans = TextGrower(tokenizer), "", []
    for i, token in enumerate(answer):
        grown = grower.add(token)
        if i == len(answer) - 1:
            grown += grower.end()
        spans.append((len(text), len(text) + len(grown)))
        text += grown
    places = [place for place in (text.find(end) for end in stop) if place >= 0]
    text = text[: min(places, default=len(text))]
    return text, np.asarray(spans, dtype=np.int32).reshape(-1, 2).clip(max=len(text))


def pad_id(model: Any, tokenizer: Any) -> int:
    """The padding token, or a stop token in its place."""
    return (
        tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else stop_ids(model, tokenizer)[0]
    )
