"""Prompts that begin alike are read once: keys and values of earlier sequences, the least recently used dropped first.

Knows token ids and opaque caches, not what is in them. A key stands for everything that keys and values depend on
beside the tokens: weights, regime, dtype, attention, kind of cache.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.generation.memory import size
from workbench.routing.capture import Choices


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A finished sequence: the tokens whose keys and values `cache` holds, and what routers chose for them.

    ``choices`` is None for a dense model, or where capture was off (such prefixes have another key).
    """

    key: Hashable
    token_ids: NDArray[np.int64]
    cache: Any
    choices: Choices | None
    held_bytes: int


class PrefixCache:
    """Sequences that may be continued, within `budget_bytes`.

    >>> prefixes = PrefixCache(budget_bytes=100)
    >>> prefixes.put(Prefix("k", np.array([5, 6, 7]), "keys and values", None, held_bytes=60))
    >>> prefixes.common("k", [5, 6, 9])
    2
    >>> prefixes.put(Prefix("k", np.array([1, 2]), "others", None, held_bytes=60))   # no room for both
    >>> prefixes.common("k", [5, 6, 9]), prefixes
    (0, PrefixCache(1 prefix, 0.0 MiB of 0.0 MiB; next: .clear()))
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._is_set = False
        self._prefixes: list[Prefix] = []  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __repr__(self) -> str:
        count = f"{len(self)} prefix{'' if len(self) == 1 else 'es'}"
        return f"PrefixCache({count}, {size(self.held_bytes)} of {size(self.budget_bytes)}; next: .clear())"

    @property
    def budget_bytes(self) -> int:
        """What all prefixes may hold together; setting it takes effect at once, and 0 turns reuse off."""
        return self._budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes={budget_bytes} must be at least 0")
        self._budget_bytes, self._is_set = budget_bytes, True
        self.make_room(0)

    def suggest_budget(self, budget_bytes: int) -> None:
        """Raise the budget for a larger context, unless somebody has set it."""
        if not self._is_set:
            self._budget_bytes = max(self._budget_bytes, budget_bytes)

    @property
    def held_bytes(self) -> int:
        """What all prefixes hold together."""
        return sum(prefix.held_bytes for prefix in self._prefixes)

    def common(self, key: Hashable, token_ids: Sequence[int]) -> int:
        """How many of the first tokens some prefix holds."""
        with self._lock:
            return max(
                (common_tokens(p.token_ids, token_ids) for p in self._prefixes if p.key == key),
                default=0,
            )

    def take(self, key: Hashable, token_ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """Remove the prefix with the most tokens in common and return it with their number; None if there is none."""
        with self._lock:
            shared = [
                (common_tokens(p.token_ids, token_ids), place)
                for place, p in enumerate(self._prefixes)
                if p.key == key
            ]
            count, place = max(shared, default=(0, 0))  # of equals the most recently used
            return (self._prefixes.pop(place), count) if count else None

    def put(self, prefix: Prefix) -> None:
        """Keep `prefix` as the most recently used; one that exceeds the budget alone is not kept."""
        self.make_room(prefix.held_bytes)
        with self._lock:
            if prefix.held_bytes <= self.budget_bytes and len(prefix.token_ids):
                self._prefixes.append(prefix)

    def make_room(self, needed_bytes: int) -> None:
        """Drop the least recently used until `needed_bytes` more stay within the budget, or none is left."""
        with self._lock:
            while self._prefixes and self.held_bytes + needed_bytes > self.budget_bytes:
                self._prefixes.pop(0)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._prefixes.clear()


def common_tokens(first: Sequence[int] | NDArray[np.int64], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike.

    >>> common_tokens([1, 2, 3], [1, 2, 4, 5])
    2
    """
    a, b = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    shorter = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(unequal[0]) if len(unequal) else shorter
