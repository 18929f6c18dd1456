"""Keys and values of sequences: room set aside once, filled in place, cut back and forked without recomputing.

transformers' DynamicCache grows by concatenation, which copies all keys and values at every token; its fp8 layer
freezes one scale for a whole tensor at the first tokens. Here a layer is told its capacity, and those of 8 bits keep a
scale for each token and head. Both are ordinary transformers cache layers, so ``generate`` takes them as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from workbench.generation.options import CacheKind


class ReservedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [rows, heads, tokens, head size] of one layer, in room for `capacity` tokens.

    Beyond its capacity it moves into larger room. Its rows are not reordered: there is no beam search.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.rooms: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set the room aside, for the rows, heads and sizes of the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.rooms = self._make_rooms(key_states, value_states, self.capacity)
        self._show(0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; all keys and values so far come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if stop > self.capacity:
            self.reserve(max(stop, self.capacity + self.capacity // 2))
        for room, part in zip(self.rooms, self._encode(key_states, value_states), strict=True):
            room[:, :, start:stop] = part
        self._show(stop)
        return self._decode(stop)

    def reserve(self, capacity: int) -> None:
        """Have room for at least `capacity` tokens."""
        if capacity <= self.capacity:
            return
        if self.is_initialized:
            count = self.get_seq_length()
            self.rooms = [_moved(room, count, capacity) for room in self.rooms]
            self._show(count)
        self.capacity = capacity

    def shrink(self, capacity: int) -> None:
        """Give back room beyond `capacity` tokens where it is more than half."""
        if self.is_initialized and capacity < self.capacity // 2:
            count = self.get_seq_length()
            self.rooms = [_moved(room, count, capacity) for room in self.rooms]
            self.capacity = capacity
            self._show(count)

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back: transformers passes their number as a negative one."""
        if self.is_initialized:
            self._show(self.get_seq_length() - abs(tokens_to_remove))

    def empty(self, rows: int, capacity: int) -> ReservedLayer:
        """Room of the same kind for `rows` rows of `capacity` tokens, with none in it."""
        other = type(self)(capacity)
        other.dtype, other.device, other.is_initialized = self.dtype, self.device, True
        other.rooms = [
            room.new_empty((rows, room.shape[1], capacity, *room.shape[3:])) for room in self.rooms
        ]
        other._show(0)
        return other

    def take(self, other: ReservedLayer, count: int) -> None:
        """Begin every row with the first `count` tokens of the other's only row."""
        for room, theirs in zip(self.rooms, other.rooms, strict=True):
            room[:, :, :count] = theirs[:1, :, :count]
        self._show(count)

    def rows(self, start: int, stop: int, padding: int) -> ReservedLayer:
        """The same room seen as a cache of its own: rows `start` to `stop`, empty, after `padding` slots."""
        for room in self.rooms:
            room[start:stop, :, :padding] = 0  # masked out, but 0 × NaN would be NaN
        view = type(self)(self.capacity - padding)
        view.dtype, view.device, view.is_initialized = self.dtype, self.device, True
        view.rooms = [room[start:stop, :, padding:] for room in self.rooms]
        view._show(0)
        return view

    def reset(self) -> None:
        """Forget every token and give the room back."""
        super().reset()
        self.rooms = []

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.is_initialized:
            self.rooms = [room.repeat_interleave(repeats, dim=0) for room in self.rooms]
            self._show(self.get_seq_length())

    def offload(self) -> None:
        """Not offered: the room stays where it is."""
        raise NotImplementedError("reserved room is not moved between devices")

    reorder_cache = batch_select_indices = None  # type: ignore[assignment]

    def _make_rooms(
        self, keys: torch.Tensor, values: torch.Tensor, capacity: int
    ) -> list[torch.Tensor]:
        return [x.new_empty((*x.shape[:2], capacity, x.shape[-1])) for x in (keys, values)]

    def _encode(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return keys, values

    def _decode(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (room[:, :, :count] for room in self.rooms)
        return keys, values

    def _show(self, count: int) -> None:
        """Let ``keys`` and ``values`` be the first `count` tokens of the room; transformers reads the length there."""
        self.keys, self.values = (room[:, :, :count] for room in self.rooms[:2])


class Int8Layer(ReservedLayer):  # type: ignore[no-untyped-call]
    """The same in 8 bits: integers with one float32 scale for each token and head, its largest magnitude being 127.

    An element is off by at most half a step, 1/254 of the largest of its token and head.
    """

    storage = torch.int8
    largest = 127.0

    def _make_rooms(
        self, keys: torch.Tensor, values: torch.Tensor, capacity: int
    ) -> list[torch.Tensor]:
        return [
            x.new_empty((*x.shape[:2], capacity, size), dtype=dtype)
            for dtype, size in ((self.storage, keys.shape[-1]), (torch.float32, 1))
            for x in (keys, values)
        ]

    def _encode(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scales = [
            (x.abs().amax(-1, keepdim=True).float() / self.largest).clamp(min=1e-30)
            for x in (keys, values)
        ]
        parts = [
            self._rounded(x.float() / scale)
            for x, scale in zip((keys, values), scales, strict=True)
        ]
        return (*parts, *scales)

    def _rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round().to(self.storage)

    def _decode(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (
            (room[:, :, :count].float() * scale[:, :, :count]).to(self.dtype)
            for room, scale in zip(self.rooms[:2], self.rooms[2:], strict=True)
        )
        return keys, values


class Fp8Layer(Int8Layer):  # type: ignore[no-untyped-call]
    """The same as float8_e4m3fn (OCP 8-bit floating point, Micikevicius et al. 2022, arXiv 2209.05433).

    3 mantissa bits round a value by up to 1/16 of itself: about four times the error of integers in the same memory
    (benchmarks/kv_precision.py). Kept for comparison with servers that store fp8.
    """

    storage = torch.float8_e4m3fn
    largest = 448.0

    def _rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.to(self.storage)


LAYERS = {"reserved": ReservedLayer, "int8": Int8Layer, "fp8": Fp8Layer}


def make_cache(config: Any, kind: CacheKind, capacity: int) -> Any:
    """An empty cache for up to `capacity` tokens; None where everything is to be computed anew.

    Raises ``ValueError`` for "offloaded" without a GPU to offload from.
    """
    layers = config.num_hidden_layers
    if kind == "none":
        return None
    if kind == "static":
        return StaticCache(config=config, max_cache_len=capacity)
    if kind == "offloaded":
        if not torch.cuda.is_available():
            raise ValueError(
                "cache='offloaded' moves keys and values from a GPU to host memory, and there is no GPU: "
                "use 'reserved', or 'int8' for half the memory"
            )
        return DynamicCache(config=config, offloading=True)
    return Cache(layers=[LAYERS[kind](capacity) for _ in range(layers)])


def cached_tokens(cache: Any) -> int:
    """How many tokens every layer holds; fewer than some hold if a forward pass was interrupted."""
    return min((int(layer.get_seq_length()) for layer in cache.layers), default=0)


def truncate(cache: Any, count: int) -> None:
    """Keep the first `count` tokens in every layer, also where an interrupted pass left layers of unequal length."""
    for layer in cache.layers:
        surplus = int(layer.get_seq_length()) - count
        if surplus > 0:
            layer.crop(-surplus)


def reserve(cache: Any, capacity: int) -> None:
    """Have room for `capacity` tokens in every layer that sets room aside."""
    for layer in cache.layers:
        if isinstance(layer, ReservedLayer):
            layer.reserve(capacity)


def shrink(cache: Any, capacity: int) -> None:
    """Give back room that was set aside for an answer which became shorter."""
    for layer in _reserved(cache):
        layer.shrink(capacity)


def empty_like(cache: Any, *, rows: int, capacity: int) -> Any:
    """Room of the same kind and on the same devices, for `rows` rows of `capacity` tokens."""
    return Cache(layers=[layer.empty(rows, capacity) for layer in _reserved(cache)])


def take_prefix(cache: Any, source: Any, count: int) -> None:
    """Begin every row of `cache` with the first `count` tokens of the only row of `source`, which stays as it is."""
    for layer, theirs in zip(_reserved(cache), _reserved(source), strict=True):
        layer.take(theirs, count)


def view_rows(cache: Any, start: int, stop: int, *, padding: int) -> Any:
    """Rows `start` to `stop` of the same room as an empty cache of its own that begins after `padding` slots."""
    return Cache(layers=[layer.rows(start, stop, padding) for layer in _reserved(cache)])


def show(cache: Any, count: int) -> None:
    """Count the first `count` slots as filled: those of rows that were filled through ``view_rows``."""
    for layer in _reserved(cache):
        layer._show(count)


def held_bytes(cache: Any) -> int:
    """Bytes that the cache has set aside."""
    return sum(
        tensor.nbytes
        for layer in cache.layers
        for tensor in (
            layer.rooms if isinstance(layer, ReservedLayer) else [layer.keys, layer.values]
        )
        if tensor is not None
    )


def _reserved(cache: Any) -> list[ReservedLayer]:
    return [layer for layer in cache.layers if isinstance(layer, ReservedLayer)]


def _moved(room: torch.Tensor, count: int, capacity: int) -> torch.Tensor:
    larger = room.new_empty((*room.shape[:2], capacity, *room.shape[3:]))
    larger[:, :, :count] = room[:, :, :count]
    return larger
