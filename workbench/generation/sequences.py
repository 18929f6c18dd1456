"""Token ids → a model fed with them: the part that an earlier sequence shares is reused, the rest is fed in chunks.

A ``TokenSequence`` is one row that grows over one cache. Whatever happens to it (cancelled, interrupted, an error),
``open_sequence`` leaves the cache cut to the tokens that were computed whole and keeps it for the next prompt.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.errors import DoesNotFit
from workbench.generation.kv_cache import (
    cached_tokens,
    empty_like,
    held_bytes,
    make_cache,
    reserve,
    shrink,
    take_prefix,
    truncate,
)
from workbench.generation.memory import size
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import Prefix, PrefixCache
from workbench.routing.capture import Choices, RoutingRecorder


@dataclass(frozen=True, slots=True)
class Pace:
    """How many tokens of a prompt are fed at a time: all of one of up to `whole` tokens, else `chunk`.

    A first pass needs no attention mask; a chunk that follows others needs one of [chunk, sequence], which is slower.
    """

    chunk: int
    whole: int

    def is_worth(self, reused: int, total: int) -> bool:
        """Whether to feed a prompt's rest in chunks after `reused` tokens rather than all of it in one pass.

        >>> pace = Pace(chunk=512, whole=8192)
        >>> pace.is_worth(60, 500), pace.is_worth(60, 8000), pace.is_worth(60, 9000)
        (True, False, True)
        """
        rest = total - reused
        return rest <= self.chunk or total > self.whole or reused >= total // 4


class TokenSequence:
    """Tokens fed to a model over one cache; ``token_ids`` are those the cache holds."""

    def __init__(
        self,
        model: Any,
        cache: Any,
        *,
        pace: Pace,
        recorder: RoutingRecorder | None,
        token_ids: Sequence[int] = (),
        choices: Choices | None = None,
    ) -> None:
        self.cache = cache
        self.pace = pace
        self.recorder = recorder
        self.token_ids = list(token_ids)
        self.reused_tokens = len(self.token_ids)
        self._model = model
        self._known = choices

    def feed(self, token_ids: Sequence[int], *, keep: int = 0) -> NDArray[np.float32]:
        """Append tokens; log-probabilities [keep, vocabulary] after the last `keep` of them, after each if 0."""
        output = self._forward(token_ids, keep)
        return np.asarray(output[0].float().log_softmax(-1).cpu().numpy(), dtype=np.float32)

    def prefill(self, token_ids: Sequence[int], *, cancel: CancelToken | None = None) -> bool:
        """Feed what is still missing of `token_ids`; False if cancelled on the way."""
        chunk = self.pace.chunk
        if not self.token_ids and len(token_ids) <= self.pace.whole:
            chunk = self.pace.whole
        with stoppable(self._model, cancel):
            while len(self.token_ids) < len(token_ids):
                start = len(self.token_ids)
                self._forward(token_ids[start : start + chunk], 1)
        if len(self.token_ids) < len(token_ids):
            truncate(self.cache, len(self.token_ids))
        return len(self.token_ids) == len(token_ids)

    @property
    def computed_tokens(self) -> int:
        """How many tokens of the sequence were fed, not reused."""
        return len(self.token_ids) - self.reused_tokens

    def rewind(self, count: int) -> None:
        """Take the last `count` tokens back."""
        self.cache.crop(-count)  # transformers 5 takes the number to remove as a negative length
        del self.token_ids[len(self.token_ids) - count :]

    def choices(self, token_ids: Sequence[int]) -> Choices | None:
        """What the routers chose for the tokens of the finished sequence, those reused included."""
        if self.recorder is None:
            return None
        return self.recorder.choices(token_ids, before=self._known)

    def _forward(self, token_ids: Sequence[int], keep: int) -> Any:
        import torch

        output = self._model(
            input_ids=torch.tensor([list(token_ids)], device=self._model.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self.token_ids += token_ids
        return output.logits


@contextlib.contextmanager
def open_sequence(
    model: Any,
    token_ids: Sequence[int],
    *,
    room: int,
    room_bytes: int,
    decoding: Decoding,
    pace: Pace,
    key_of: Callable[[], Hashable],
    prefixes: PrefixCache,
    recorder: RoutingRecorder | None,
    turn: Turn,
    cancel: CancelToken | None = None,
) -> Iterator[TokenSequence]:
    """A sequence that begins with what the prefix cache has of `token_ids`, with room for `room` tokens.

    At least the last token is left to feed, so that logits follow. Waits for its `turn` (see ``Turn.taken``), and asks
    for the key of its prefixes then, before it puts hooks of its own on the model. Raises ``DoesNotFit`` when memory
    runs out; the prefix cache is empty then.
    """
    import torch

    sequence = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(turn.taken(cancel))
        key = key_of()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(recorder or contextlib.nullcontext())
        try:
            sequence = _begin(
                model, token_ids[:-1], room, room_bytes, decoding, pace, key, prefixes, recorder
            )
            try:
                yield sequence
            finally:
                if decoding.keeps_prefixes:
                    _keep(sequence, key, prefixes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            prefixes.clear()
            if sequence is not None:
                sequence.cache = None
            # the frames of the failed pass hold its tensors, in closures also where they are emptied
            error.__traceback__ = None
            raise DoesNotFit(
                f"memory ran out in a sequence of up to {room:,} tokens (keys and values need {size(room_bytes)}): "
                "ask for fewer new tokens or passages, take a smaller context, or Decoding(cache='int8')"
            ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not allocate; torch's CPU allocator raises an ordinary RuntimeError."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text


def weights_key(model: Any) -> Hashable:
    """What a model computes with: its weights, by identity, place and version, and the hooks that were put on it.

    Changes when a weight is replaced or overwritten in place or a hook comes or goes, so that no key of the prefix
    cache made before fits afterwards. A write through ``tensor.data``, to a weight that lies in host memory or on disk
    and is copied at every pass, and a patched ``forward`` are not noticed: clear the prefix cache then. Raises
    ``ValueError`` in training mode, where nothing computed once holds a second time.
    """
    weights = tuple(
        (_number(p), p.data_ptr(), 0 if p.is_inference() else p._version)
        for p in model.parameters()
        if not p.is_meta  # whose place is taken by another after every pass
    )
    hooks = []
    for module in model.modules():
        if module.training:
            raise ValueError("the model is in training mode: call generator.model.eval() first")
        hooks += [*module._forward_hooks, *module._forward_pre_hooks]
    return hash(weights), tuple(hooks)


class Turn:
    """One call of a generator at a time: other threads wait, a call from within a call is refused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextlib.contextmanager
    def taken(self, cancel: CancelToken | None = None) -> Iterator[None]:
        """Wait for the turn; raises ``Cancelled`` if `cancel` is set meanwhile, ``ValueError`` within a call."""
        if self._owner == threading.get_ident():
            raise ValueError(
                "this generator is in the middle of an answer: what is called while it speaks (on_text, a hook) must "
                "not call it again"
            )
        while not self._lock.acquire(timeout=0.05):
            if cancel is not None:
                cancel.raise_if_cancelled("a call that waited for another one")
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()


class _Stopped(Exception):
    pass


@contextlib.contextmanager
def stoppable(model: Any, cancel: CancelToken | None) -> Iterator[None]:
    """Give a forward pass up between two layers once `cancel` is set; what it left in a cache is to be cut off."""

    def look(_module: Any, _args: Any) -> None:
        if cancel is not None and cancel.is_cancelled:
            raise _Stopped

    handles = [layer.register_forward_pre_hook(look) for layer in model.model.layers if cancel]
    try:
        with contextlib.suppress(_Stopped):
            yield
    finally:
        for handle in handles:
            handle.remove()


_numbers: Any = None  # a WeakIdKeyDictionary, made when torch is there
_counter = itertools.count()


def _number(parameter: Any) -> int:
    """A number that no other parameter ever had: addresses and ids are given again to others."""
    global _numbers
    if _numbers is None:
        from torch.utils.weak import WeakIdKeyDictionary

        _numbers = WeakIdKeyDictionary()
    if parameter not in _numbers:
        _numbers[parameter] = next(_counter)
    return int(_numbers[parameter])


def _begin(
    model: Any,
    token_ids: Sequence[int],
    room: int,
    room_bytes: int,
    decoding: Decoding,
    pace: Pace,
    key: Hashable,
    prefixes: PrefixCache,
    recorder: RoutingRecorder | None,
) -> TokenSequence:
    """Continue the best prefix in place, or copy its shared part where cutting it would lose more than it saves."""
    found = prefixes.take(key, token_ids) if decoding.keeps_prefixes else None
    if found is not None and not pace.is_worth(found[1], len(token_ids)):
        prefixes.put(found[0])
        found = None
    if found is None:
        prefixes.make_room(room_bytes)
        cache = make_cache(model.config, decoding.cache, room)
        return TokenSequence(model, cache, pace=pace, recorder=recorder)
    prefix, count = found
    choices = None if prefix.choices is None else prefix.choices.first(count)
    if decoding.cache != "offloaded" and count < len(prefix.token_ids) - count:
        prefixes.make_room(room_bytes)
        cache = empty_like(prefix.cache, rows=1, capacity=room)
        take_prefix(cache, prefix.cache, count)
        prefixes.put(prefix)
        prefixes.make_room(room_bytes)
    else:
        cache = prefix.cache
        prefixes.make_room(room_bytes)
        truncate(cache, count)
        reserve(cache, room)
    return TokenSequence(
        model,
        cache,
        pace=pace,
        recorder=recorder,
        token_ids=list(token_ids[:count]),
        choices=choices,
    )


def _keep(sequence: TokenSequence, key: Hashable, prefixes: PrefixCache) -> None:
    count = min(len(sequence.token_ids), cached_tokens(sequence.cache))
    ids = sequence.token_ids[:count]
    truncate(sequence.cache, count)
    shrink(sequence.cache, count)
    choices = sequence.choices(ids)
    if choices is not None and not choices.routed.all():
        return  # somebody fed the model outside of what was recorded
    prefixes.put(
        Prefix(
            key,
            np.asarray(ids, dtype=np.int64),
            sequence.cache,
            choices,
            held_bytes(sequence.cache),
        )
    )
