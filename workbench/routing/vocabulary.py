"""Experts and token ids → which words an expert takes, and what kind of words they are. NumPy and the standard library.

`token_ids` say which word a row of `experts` is counted under, and that is the caller's choice: the token that was read
(``trace.token_ids``), the one that follows it (``experts[:-1]`` with ``token_ids[1:]``, within one sequence), or the
one that the model predicted (the largest logit of each row).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.routing.arrays import check_experts, check_labels
from workbench.routing.groups import log_odds
from workbench.routing.statistics import expert_counts, group_counts

TOKEN_CLASSES = (
    "control or space", "punctuation or symbol", "digits", "capitalised", "lower case", "other script",
)  # fmt: skip
_CONTROL, _PUNCTUATION, _DIGITS, _CAPITALISED, _LOWER, _OTHER = range(len(TOKEN_CLASSES))
_CONTROL_TOKEN = re.compile(r"<\|.*\|>|</?s>|<(unk|pad|bos|eos|mask)>", re.DOTALL)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What sentencepiece writes for a space, and what byte-level pieces write for a space, a new line and a tab
_SPACES = "▁ĠĊĉ"


@dataclass(frozen=True, slots=True, eq=False)
class VocabularySpecialization:
    """How often each word chose each expert. Made by :func:`vocabulary_specialization`.

    `token_ids` [entries] are the words that have tokens enough, in order, `tokens` [entries] how many each has.
    `share` [entries, layers, experts] is the share of them that each expert took, drawn towards `usage` [layers,
    experts], that of all `total` tokens, words with few tokens included; the rows of both sum to k. `chosen` [entries,
    layers, experts] are the counts behind it. `prior_strength` is how many tokens the usage of the layer weighs.
    """

    token_ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    share: NDArray[np.float32]
    chosen: NDArray[np.int32]
    usage: NDArray[np.float64]
    total: int
    prior_strength: float

    def __repr__(self) -> str:
        entries, layers, experts = self.share.shape
        return (
            f"VocabularySpecialization({entries} words × {layers} layers × {experts} experts, {self.tokens.sum()} of "
            f"{self.total} tokens; next: top_tokens(found, layer=0, expert=0))"
        )


@dataclass(frozen=True, slots=True)
class TakenToken:
    """A word that an expert takes: it took `chosen` of its `tokens`.

    `share` is chosen / tokens drawn towards the usage of the layer; `z` says how surely the expert takes this word more
    often than the layer's other tokens (:func:`workbench.routing.groups.log_odds`).
    """

    token_id: int
    tokens: int
    chosen: int
    share: float
    z: float


def vocabulary_specialization(
    experts: NDArray[np.integer],
    token_ids: NDArray[np.integer],
    *,
    n_experts: int,
    min_count: int = 10,
    prior_strength: float = 10.0,
) -> VocabularySpecialization:
    """The share of each word's tokens that each expert took, for words with at least `min_count` tokens.

    `experts` [tokens, layers, k] and `token_ids` [tokens] of routed tokens. N_xe / N_x is Muennighoff et al.'s
    vocabulary specialization, arXiv:2409.02060, section 5.4. Because a word with ten tokens is easily one expert's own
    by chance, it is drawn towards the usage u_e of its layer as if the word had been seen `prior_strength` (s) times
    more and routed as any token is: (N_xe + s · u_e) / (N_x + s).

    >>> experts = np.array([[[0]], [[0]], [[1]], [[1]], [[0]]])
    >>> ids = np.array([7, 7, 7, 8, 9])
    >>> found = vocabulary_specialization(experts, ids, n_experts=2, min_count=2, prior_strength=1.0)
    >>> found.token_ids.tolist(), found.share.round(3)    # (2 + 1 · 0.6) / (3 + 1), (1 + 1 · 0.4) / (3 + 1)
    ([7], array([[[0.65, 0.35]]], dtype=float32))
    """
    check_experts(experts, n_experts=n_experts)
    check_labels(experts, token_ids=token_ids)
    if min_count < 1:
        raise ValueError(f"min_count={min_count}; a word has one token at least")
    if prior_strength <= 0:
        raise ValueError(f"prior_strength={prior_strength:g} must be above 0")
    ids, entry, tokens = np.unique(token_ids, return_inverse=True, return_counts=True)
    often = tokens >= min_count
    number = np.cumsum(often) - 1
    rows = np.flatnonzero(often[entry])
    # Tokens of one word stand beside one another, so that the counts in use are few
    rows = rows[np.argsort(entry[rows], kind="stable")]
    counts = group_counts(
        experts[rows], number[entry[rows]], n_groups=int(often.sum()), n_experts=n_experts
    )
    chosen = counts.astype(np.int32)
    usage = expert_counts(experts, n_experts) / len(experts)
    share = chosen.astype(np.float32)
    share += (prior_strength * usage).astype(np.float32)
    share /= (tokens[often] + prior_strength).astype(np.float32)[:, None, None]
    return VocabularySpecialization(
        token_ids=ids[often].astype(np.int64),
        tokens=tokens[often],
        share=share,
        chosen=chosen,
        usage=usage,
        total=len(experts),
        prior_strength=prior_strength,
    )


def top_tokens(
    found: VocabularySpecialization, *, layer: int, expert: int, n: int = 20
) -> tuple[TakenToken, ...]:
    """The words, at most `n`, that an expert takes most surely beyond its share of the layer, the surest first.

    For each word: the tokens of it that the expert took and did not take, against those of all other words, with
    `prior_strength` tokens at the usage of the layer added to both sides. Words that it takes less often than others
    are left out.

    >>> experts = np.array([0, 0, 0, 1, 1, 1])[:, None, None]
    >>> found = vocabulary_specialization(experts, np.array([7, 7, 7, 7, 8, 8]), n_experts=2, min_count=2)
    >>> [(token.token_id, token.chosen, token.tokens) for token in top_tokens(found, layer=0, expert=0)]
    [(7, 3, 4)]
    """
    if not isinstance(found, VocabularySpecialization):
        raise ValueError(f"give what vocabulary_specialization returns, not {type(found).__name__}")
    _, layers, experts = found.share.shape
    if not 0 <= layer < layers or not 0 <= expert < experts:
        raise ValueError(
            f"layer={layer}, expert={expert}: there are layers 0 to {layers - 1} and experts 0 to {experts - 1}"
        )
    if n < 1:
        raise ValueError(f"n={n} is no number of words")
    taken = found.chosen[:, layer, expert].astype(np.int64)
    usage = found.usage[layer, expert]
    if usage in (0.0, 1.0):  # it took nothing or all, so no word more than another
        return ()
    of_all = round(usage * found.total)
    own = np.stack([taken, found.tokens - taken], axis=1)
    rest = np.array([of_all, found.total - of_all]) - own
    z = log_odds(own, rest, prior=found.prior_strength * np.array([usage, 1 - usage]))[:, 0]
    order = np.lexsort((-found.tokens, -z))[:n]
    return tuple(
        TakenToken(
            token_id=int(found.token_ids[row]),
            tokens=int(found.tokens[row]),
            chosen=int(taken[row]),
            share=float(found.share[row, layer, expert]),
            z=float(z[row]),
        )
        for row in order
        if z[row] > 0
    )


def token_classes(texts: Sequence[str]) -> NDArray[np.uint8]:
    """What kind of word each piece is, as a place in `TOKEN_CLASSES`: [tokens].

    The first letter or number of the piece decides: numbers are digits, letters that Unicode does not name Latin are of
    another script, upper and title case is capitalised, the rest lower case. Without any: punctuation or symbols, and
    if those are missing too, control or space, which ``<|end|>`` and ``<s>`` are as well. Marks of a space before a
    word are not looked at. A byte piece ("<0x0A>") is the character of that byte, and of another script above 0x7F,
    where it is a part of one. Pieces of byte-level tokenizers that spell other alphabets in Latin stand-ins must be
    decoded first.

    >>> [TOKEN_CLASSES[n] for n in token_classes(["▁The", "▁val", "ve", "42", ",", "<0x0A>", "где"])]
    ['capitalised', 'lower case', 'lower case', 'digits', 'punctuation or symbol', 'control or space', 'other script']
    """
    known = {text: _class_of(text) for text in set(texts)}
    return np.array([known[text] for text in texts], dtype=np.uint8)


def _class_of(text: str) -> int:
    if _CONTROL_TOKEN.fullmatch(text):
        return _CONTROL
    if piece := _BYTE_PIECE.fullmatch(text):
        byte = int(piece[1], 16)
        if byte > 0x7F:
            return _OTHER
        text = chr(byte)
    kind = _CONTROL
    for character in text.lstrip(_SPACES):
        category = unicodedata.category(character)
        if category[0] == "N":
            return _DIGITS
        if category[0] in "LM":
            if "LATIN" not in unicodedata.name(character, "").split():
                return _OTHER
            return _CAPITALISED if category in ("Lu", "Lt") else _LOWER
        if category[0] in "PS":
            kind = _PUNCTUATION
    return kind
