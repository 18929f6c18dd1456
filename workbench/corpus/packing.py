"""Sentences → spans that hold at most so many tokens. Knows no document and no tokenizer: takes a measure(text)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.corpus.sentences import Span, trimmed_span

# measure(text) -> character offsets [tokens, 2] of the tokens of `text`, in order
Measure = Callable[[str], NDArray[np.integer[Any]]]

_MEASURED_CHARACTERS = 20_000  # one call of measure sees about as many at most
# A "word" of any length is one unknown token to some tokenizers; what holds it must still end somewhere.
_CHARACTERS_PER_TOKEN = 32
_LINE_END = re.compile(r"\r\n|[\n\r]")


def pack_sentences(
    text: str, spans: Sequence[Span], measure: Measure, max_tokens: int
) -> Iterator[Span]:
    r"""Spans of whole sentences, each of at most `max_tokens` tokens by `measure` of its text alone.

    `spans` are the sentences in order. One that is too long is cut between tokens, at white space if there is any.

    >>> def letters(text):
    ...     return np.array([m.span() for m in re.finditer(r"\w", text)]).reshape(-1, 2)
    >>> list(pack_sentences("Ab c. De. Fghi jk.", [(0, 5), (6, 9), (10, 18)], letters, 5))
    [(0, 9), (10, 14), (15, 18)]
    """
    for group in _packed(_atoms(text, spans, measure, max_tokens), max_tokens):
        unchecked = [group]
        while unchecked:
            atoms = unchecked.pop()
            start, stop = atoms[0].start, atoms[-1].stop
            tokens = _measured(measure, text[start:stop])
            if len(tokens) <= max_tokens:
                yield start, stop
            elif len(atoms) > 1:
                middle = _balanced(atoms, max_tokens)
                unchecked += [atoms[middle:], atoms[:middle]]
            else:
                pieces = list(_cut(text, start, stop, start + tokens[:, 0], max_tokens))
                if len(pieces) < 2:
                    raise ValueError(
                        f"max_tokens={max_tokens} is less than the {len(tokens)} tokens of "
                        f"{text[start:stop]!r}; ask for more"
                    )
                unchecked += [[piece] for piece in reversed(pieces)]


@dataclass(frozen=True, slots=True)
class _Atom:
    """What is not cut any more: a sentence, or a part of a long one; `tokens` are counted among its neighbours."""

    start: int
    stop: int
    tokens: int
    opens_paragraph: bool = False


def _atoms(text: str, spans: Sequence[Span], measure: Measure, max_tokens: int) -> list[_Atom]:
    atoms: list[_Atom] = []
    for window in _windows(text, spans, max_tokens * _CHARACTERS_PER_TOKEN):
        base = window[0][0]
        starts = base + _measured(measure, text[base : window[-1][1]])[:, 0]
        firsts = [*np.searchsorted(starts, [start for start, _ in window]).tolist(), len(starts)]
        lasts = np.searchsorted(starts, [stop for _, stop in window]).tolist()
        for (start, stop), first, last, following in zip(
            window, firsts, lasts, firsts[1:], strict=False
        ):
            opens = bool(atoms) and len(_LINE_END.findall(text, atoms[-1].stop, start)) > 1
            if last - first <= max_tokens:
                atoms.append(
                    _Atom(start, stop, following - first, opens)
                )  # with the tokens of space behind it
            else:
                atoms += _cut(text, start, stop, starts[first:last], max_tokens, opens)
    return atoms


def _windows(text: str, spans: Sequence[Span], longest: int) -> Iterator[list[Span]]:
    """Runs of sentences to measure at once; a sentence of more than `longest` characters comes in pieces."""
    window: list[Span] = []
    for span in spans:
        for start, stop in _pieces(text, *span, longest):
            if window and stop - window[0][0] > _MEASURED_CHARACTERS:
                yield window
                window = []
            window.append((start, stop))
    if window:
        yield window


def _pieces(text: str, start: int, stop: int, longest: int) -> Iterator[Span]:
    """``text[start:stop]`` in pieces of at most `longest` characters, cut at white space if there is any."""
    while stop - start > longest:
        limit = start + longest
        space = (
            max((match.end() for match in re.finditer(r"\s+", text[start:limit])), default=0)
            + start
        )
        cut = space if space - start > longest // 4 else limit
        whole = (
            place
            for place in range(cut, max(start, cut - 32), -1)
            if not _is_within_character(text, place)
        )
        cut = next(whole, cut)
        if trimmed := trimmed_span(text, start, cut):
            yield trimmed
        start = cut
    if trimmed := trimmed_span(text, start, stop):
        yield trimmed


def _cut(
    text: str,
    start: int,
    stop: int,
    token_starts: NDArray[np.integer[Any]],
    max_tokens: int,
    opens: bool = False,
) -> Iterator[_Atom]:
    """One sentence in parts of about equal size, each of at most `max_tokens` tokens, cut where tokens begin."""
    places = token_starts.tolist()
    done = 0
    while (rest := len(places) - done) > max_tokens:
        parts = -(-rest // max_tokens)
        target = done + -(-rest // parts)
        cuts = [
            i
            for i in range(done + 1, done + max_tokens + 1)
            if start < places[i] < stop and places[i] > places[i - 1]
        ]
        cuts = [i for i in cuts if not _is_within_character(text, places[i])] or cuts
        spaced = [i for i in cuts if text[places[i] - 1].isspace() or text[places[i]].isspace()]
        cuts = [i for i in spaced if i - done >= max_tokens // 4] or cuts
        if not cuts:
            break
        cut = min(cuts, key=lambda i: abs(i - target))
        if trimmed := trimmed_span(text, start, places[cut]):
            yield _Atom(*trimmed, cut - done, opens)
            opens = False
        start, done = places[cut], cut
    if trimmed := trimmed_span(text, start, stop):
        yield _Atom(*trimmed, len(places) - done, opens)


def _packed(atoms: Sequence[_Atom], max_tokens: int) -> list[list[_Atom]]:
    """Atoms in groups of at most `max_tokens` tokens; the last is not left much smaller than the one before."""
    groups: list[list[_Atom]] = []
    used = 0
    for atom, paragraph_tokens in zip(atoms, _paragraph_tokens(atoms), strict=True):
        is_full = used + atom.tokens > max_tokens
        is_long = (
            bool(groups) and atom.stop - groups[-1][0].start > max_tokens * _CHARACTERS_PER_TOKEN
        )
        ends_well = (
            atom.opens_paragraph and 2 * used >= max_tokens and used + paragraph_tokens > max_tokens
        )
        if not groups or is_full or is_long or ends_well:
            groups.append([])
            used = 0
        groups[-1].append(atom)
        used += atom.tokens
    if len(groups) > 1 and 3 * used < max_tokens:
        last_two = groups[-2] + groups[-1]
        middle = _balanced(last_two, max_tokens)
        groups[-2:] = [last_two[:middle], last_two[middle:]]
    return groups


def _paragraph_tokens(atoms: Sequence[_Atom]) -> list[int]:
    """For each atom the tokens from it to the end of its paragraph: [atoms]."""
    tokens = []
    rest = 0
    for atom in reversed(atoms):
        rest += atom.tokens
        tokens.append(rest)
        rest = 0 if atom.opens_paragraph else rest
    return tokens[::-1]


def _balanced(atoms: Sequence[_Atom], max_tokens: int) -> int:
    """Where to part `atoms` so that the larger part is as small as can be, rather the second than the first."""
    sizes = np.cumsum([atom.tokens for atom in atoms])
    larger = np.maximum(sizes[:-1], sizes[-1] - sizes[:-1])
    return len(larger) - int(np.argmin(larger[::-1]))


def _measured(measure: Measure, text: str) -> NDArray[np.integer[Any]]:
    """Offsets [tokens, 2] that `measure` gives for `text`, checked."""
    offsets = np.asarray(measure(text))
    if offsets.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if offsets.ndim != 2 or offsets.shape[1] != 2 or offsets.min() < 0 or offsets.max() > len(text):
        raise ValueError(
            f"measure returned {offsets.shape} offsets that are no [tokens, 2] of {len(text)} characters"
        )
    offsets[:, 0] = np.maximum.accumulate(
        offsets[:, 0]
    )  # the parts of one character may be listed in any order
    return offsets


def _is_within_character(text: str, offset: int) -> bool:
    """Whether a cut at `offset` would part what is read as one character, such as a letter and its accent."""
    before, after = text[offset - 1 : offset], text[offset : offset + 1]
    joins = "\u200d\ufe0e\ufe0f"
    is_mark = after != "" and (
        unicodedata.category(after)[0] == "M" or "\U0001f3fb" <= after <= "\U0001f3ff"
    )
    return (
        is_mark
        or before == "\u200d"
        or (after != "" and after in joins)
        or (before == "\r" and after == "\n")
    )
