"""Quote style: decoding that can only say ``[n] sentence`` with a sentence of the prompt, or the abstention sentence.

All admissible answers form a trie of token ids. An answer's score is the model's own log-probability of the path up to
where it is the only one left: from there on every further token is forced, so nothing more is chosen. Knows a forward
function and token ids, nothing of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Key = int | None
# feed(token ids) appends them to the sequence and returns log-probabilities [tokens, vocabulary] after each of them
Feed = Callable[[Sequence[int]], NDArray[np.float32]]
# rewind(count) takes the last `count` tokens back
Rewind = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Quotes:
    """What was said: the answers' keys in order, their tokens, and the log-probability (nats) of each token.

    ``scores`` are those of the first choice, of every answer.
    """

    keys: tuple[Key, ...]
    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    scores: Mapping[Key, float]
    was_cancelled: bool


def decode_quotes(
    answers: Mapping[Key, Sequence[int]],
    first: NDArray[np.float32],
    *,
    feed: Feed,
    rewind: Rewind,
    end: int,
    separator: Sequence[int],
    most: int,
    on_quote: Callable[[Key], None],
    is_cancelled: Callable[[], bool],
    later: Callable[[Key], Sequence[int]] | None = None,
) -> Quotes:
    """Say the likeliest answer; then, up to `most`, another one as long as a `separator` is likelier than the `end`.

    The answer under None, the abstention, stands alone. `later` gives the tokens of an answer after a separator, where
    they differ from those at the beginning. Cancelling before a choice keeps what was said.
    """
    left = dict(answers)
    keys: list[Key] = []
    said: list[int] = []
    logs: list[float] = []
    scores: dict[Key, float] = {}
    following = first

    def say(tokens: Sequence[int]) -> NDArray[np.float32]:
        after = feed(tokens)
        laws = [following, *after[:-1]]
        logs.extend(float(law[token]) for law, token in zip(laws, tokens, strict=True))
        said.extend(tokens)
        law: NDArray[np.float32] = after[-1]
        return law

    while not is_cancelled():
        found = score_answers(left, following, feed=feed, rewind=rewind)
        scores = scores or found
        best = max(found, key=lambda key: found[key])
        following = say(left.pop(best))
        keys.append(best)
        on_quote(best)
        left.pop(None, None)
        may_go_on = best is not None and bool(left) and len(keys) < most
        if not may_go_on or following[end] >= following[separator[0]]:
            logs.append(float(following[end]))
            return Quotes(tuple(keys), (*said, end), tuple(logs), scores, was_cancelled=False)
        following = say(separator)
        if later is not None and len(keys) == 1:
            left = {key: later(key) for key in left}
    return Quotes(tuple(keys), tuple(said), tuple(logs), scores, was_cancelled=True)


def score_answers(
    answers: Mapping[Key, Sequence[int]], first: NDArray[np.float32], *, feed: Feed, rewind: Rewind
) -> dict[Key, float]:
    """Log-probability (nats) of choosing each answer, for answers given as token ids.

    `first` [vocabulary] are the log-probabilities of the next token. The sequence is left as it was found.

    >>> uniform = np.log(np.full(4, 0.25, dtype=np.float32))
    >>> scores = score_answers({1: [0, 1], 2: [0, 2], None: [3, 3, 3]}, uniform,
    ...                        feed=lambda ids: np.stack([uniform] * len(ids)), rewind=lambda count: None)
    >>> {key: round(float(np.exp(score)), 4) for key, score in scores.items()}
    {1: 0.0625, 2: 0.0625, None: 0.25}
    """
    if not answers:
        raise ValueError("there is no admissible answer to choose from")
    root = _Node()
    for key, ids in answers.items():
        if not ids:
            raise ValueError(f"answer {key!r} has no token")
        node = root
        node.keys.append(key)
        for token in ids:
            node = node.children.setdefault(int(token), _Node())
            node.keys.append(key)
    scores: dict[Key, float] = {}
    _score(root, first, 0.0, scores, feed, rewind)
    return scores


@dataclass(slots=True)
class _Node:
    keys: list[Key] = field(default_factory=list)  # the answers that pass through here
    children: dict[int, _Node] = field(default_factory=dict)


def _score(
    node: _Node,
    following: NDArray[np.float32],
    so_far: float,
    scores: dict[Key, float],
    feed: Feed,
    rewind: Rewind,
) -> None:
    ended = [
        key for key in node.keys if all(key not in child.keys for child in node.children.values())
    ]
    for key in ended:  # an answer that is a prefix of another, or two answers with equal tokens
        scores[key] = so_far
    for token, child in node.children.items():
        score = so_far + float(following[token])
        if len(child.keys) == 1:
            scores[child.keys[0]] = score
            continue
        if not child.children:
            for key in child.keys:
                scores[key] = score
            continue
        after = feed([token])
        _score(child, after[-1], score, scores, feed, rewind)
        rewind(1)
