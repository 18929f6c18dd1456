"""Several prompts → one cache to decode them together, without a padded pass over any prompt.

Rows are bucketed by length. The longest row of a bucket is read first (or continued from the prefix cache); every other
row begins with what it shares with that one and feeds only the rest, rows of equal rests together. So no pass over a
prompt needs a mask of prompt × prompt; only decoding, one token a row, sees the padding that makes rows equally long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cancel import CancelToken
from workbench.generation.kv_cache import empty_like, show, take_prefix, view_rows
from workbench.generation.prefix_cache import common_tokens
from workbench.generation.sequences import Pace, TokenSequence, stoppable
from workbench.routing.capture import Choices, RoutingRecorder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class JoinedRows:
    """Prompts padded on the left to one length L, all but their last token in `cache`: what ``generate`` continues.

    ``input_ids`` and ``attention_mask`` [rows, L]; ``padding`` and ``reused_tokens`` [rows]; ``choices`` of the fed
    tokens of each row, None without capture.
    """

    cache: Any
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    padding: tuple[int, ...]
    reused_tokens: tuple[int, ...]
    choices: tuple[Choices | None, ...]

    def positions(self, row: int, slots: int) -> NDArray[np.int64]:
        """The place in its row of what stands in each of the first `slots` slots, -1 for padding."""
        return np.maximum(np.arange(slots) - self.padding[row], -1)


def plan_buckets(
    lengths: Sequence[int], *, new_tokens: int, most_rows: int, most_tokens: int
) -> list[list[int]]:
    """Places of rows that are decoded together, the longest first in each bucket.

    A bucket holds at most `most_rows` rows and, padded to its longest, `most_tokens` tokens, but always one row; no row
    is padded to more than twice its length.

    >>> plan_buckets([10, 100, 12, 90], new_tokens=5, most_rows=8, most_tokens=1000)
    [[1, 3], [2, 0]]
    """
    buckets: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if buckets:
            longest, rows = lengths[buckets[-1][0]], len(buckets[-1])
            fits = rows < most_rows and (rows + 1) * (longest + new_tokens) <= most_tokens
            if fits and longest + new_tokens <= 2 * (lengths[place] + new_tokens):
                buckets[-1].append(place)
                continue
        buckets.append([place])
    return buckets


def join_rows(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    base: TokenSequence,
    new_tokens: int,
    pad: int,
    cancel: CancelToken | None,
) -> JoinedRows | None:
    """Read all `rows` but their last tokens into one cache; None if cancelled on the way.

    The first row is the longest, and `base` holds it already.
    """
    import torch

    length = len(rows[0])
    cache = empty_like(base.cache, rows=len(rows), capacity=length - 1 + new_tokens)
    shared = [_shared(base, row) for row in rows]
    choices: list[Choices | None] = []
    for (fed, common), group in groupby(
        range(len(rows)), key=lambda i: (len(rows[i]) - 1, shared[i])
    ):
        members = list(group)
        part = view_rows(cache, members[0], members[-1] + 1, padding=length - 1 - fed)
        take_prefix(part, base.cache, common)
        ids = [list(rows[i][:fed]) for i in members]
        recorder = base.recorder and base.recorder.another()
        if not _feed(model, part, ids, common, base.pace, recorder, cancel):
            return None
        begun = base.choices(base.token_ids[:common])
        for n, row in enumerate(ids):
            choices.append(recorder.choices(row, row=n, before=begun) if recorder else None)
    show(cache, length - 1)
    padding = tuple(length - len(row) for row in rows)
    return JoinedRows(
        cache=cache,
        input_ids=torch.tensor(
            [[pad] * p + list(row) for p, row in zip(padding, rows, strict=True)],
            device=model.device,
        ),
        attention_mask=torch.tensor(
            [[0] * p + [1] * (length - p) for p in padding], device=model.device
        ),
        padding=padding,
        reused_tokens=(base.reused_tokens, *shared[1:]),
        choices=tuple(choices),
    )


def _shared(base: TokenSequence, row: Sequence[int]) -> int:
    """How many tokens `row` takes over from `base`; none where reading it in one pass is faster."""
    count = min(common_tokens(base.token_ids, row), len(row) - 1)
    return count if base.pace.is_worth(count, len(row) - 1) else 0


def _feed(
    model: Any,
    cache: Any,
    rows: Sequence[Sequence[int]],
    start: int,
    pace: Pace,
    recorder: RoutingRecorder | None,
    cancel: CancelToken | None,
) -> bool:
    """Feed equally long rows from `start` on, as many tokens of all of them together as `pace` allows."""
    import torch

    limit = pace.whole if start == 0 and len(rows) * len(rows[0]) <= pace.whole else pace.chunk
    width = max(1, limit // len(rows))
    at = start
    with recorder or contextlib.nullcontext(), stoppable(model, cancel):
        while at < len(rows[0]):
            part = [row[at : at + width] for row in rows]
            model(
                input_ids=torch.tensor(part, device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            at += width
    return at >= len(rows[0])
