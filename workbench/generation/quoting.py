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


@dataclass(slots=True)
class _Node:
    keys: list[Key] = field(default_factory=list)  # the answers that pass through here
    children: dict[int, _Node] = field(default_factory=dict)


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
