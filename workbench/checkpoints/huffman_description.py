"""The weights of a Huffman code → the description that stands in front of it (RFC 8878, section 4.2.1).

Up to 128 weights are listed in four bits each; more are compressed by finite state entropy (section 4.1), with one
table of 64 states and two chains of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

_LISTED = 128
_LOG = 6  # of the number of states, the most that a description may use
_STATES = 1 << _LOG
_LARGEST = 127  # bytes of a compressed description: more are the sign of a list

Bits = tuple[int, int]  # a number and in how many bits it is written


def describe_weights(weights: Sequence[int]) -> bytes | None:
    """The description of `weights`, those of all symbols up to the last but one that is used; None if there is none.

    The last symbol's own weight is what is missing to a power of two, and is not written.

    >>> describe_weights([4, 3, 2, 0, 1]).hex()    # the first example of RFC 8878, section 4.2.1.1
    '84432010'
    """
    if len(weights) <= _LISTED:
        pairs = zip(weights[0::2], [*weights[1::2], 0], strict=False)
        return bytes([_LISTED - 1 + len(weights), *(high << 4 | low for high, low in pairs)])
    if len(set(weights)) == 1:
        return None
    shares = _shares([weights.count(value) for value in range(max(weights) + 1)])
    chained = _backward(_chained(weights, shares))
    whole = _forward(_written_shares(shares)) + chained
    return bytes([len(whole)]) + whole if len(whole) <= _LARGEST else None


def _shares(counts: Sequence[int]) -> list[int]:
    """How many of the 64 states each value gets: one at least where it occurs."""
    total = sum(counts)
    shares = [max(1, count * _STATES // total) if count else 0 for count in counts]
    commonest = shares.index(max(shares))
    shares[commonest] += _STATES - sum(shares)
    return shares


def _written_shares(shares: Sequence[int]) -> list[Bits]:
    """The table of shares in as few bits as what is left allows, zeros after a zero as their number (section 4.1.1)."""
    found: list[Bits] = [(_LOG - 5, 4)]
    left, threshold, bits = _STATES + 1, _STATES, _LOG + 1
    value = 0
    while left > 1:
        share = shares[value]
        value += 1
        spare = 2 * threshold - 1 - left  # so many numbers take a bit less
        left -= share
        number = share + 1
        if number >= threshold:
            number += spare
        found.append((number, bits - (number < spare)))
        if share == 0:
            zeros = 0
            while shares[value] == 0:
                value, zeros = value + 1, zeros + 1
            found += [(3, 2)] * (zeros // 3) + [(zeros % 3, 2)]
        while left < threshold:
            bits, threshold = bits - 1, threshold // 2
    return found


def _chained(weights: Sequence[int], shares: Sequence[int]) -> list[Bits]:
    """The two first states, then what leads from each state to the next of its chain, in the order of reading.

    Values of even places are one chain, those of odd places the other. The last state of each is the value's first,
    whose way on takes bits that are not there: that ends the reading.
    """
    states = _table(tuple(shares))
    at = [0] * len(weights)
    steps: list[Bits] = [(0, 0)] * len(weights)
    for place in reversed(range(len(weights))):
        own = states[weights[place]]
        if place + 2 >= len(weights):
            at[place] = own[0][0]
            continue
        target = at[place + 2]
        at[place], bits, base = next(
            one for one in own if one[2] <= target < one[2] + (1 << one[1])
        )
        steps[place] = (target - base, bits)
    return [(at[0], _LOG), (at[1], _LOG), *steps[:-2]]


@functools.lru_cache(maxsize=64)
def _table(shares: tuple[int, ...]) -> list[list[tuple[int, int, int]]]:
    """For each value its states in order: number, bits to read for the next state, and what to add to them."""
    spread = [0] * _STATES
    place, step = 0, (_STATES >> 1) + (_STATES >> 3) + 3
    for value, share in enumerate(shares):
        for _ in range(share):
            spread[place] = value
            place = (place + step) % _STATES
    found: list[list[tuple[int, int, int]]] = [[] for _ in shares]
    for state, value in enumerate(spread):
        number = shares[value] + len(found[value])
        bits = _LOG - (number.bit_length() - 1)
        found[value].append((state, bits, (number << bits) - _STATES))
    return found


def _forward(parts: Sequence[Bits]) -> bytes:
    """Numbers one after another from the lowest bit on."""
    whole, at = 0, 0
    for number, bits in parts:
        whole |= number << at
        at += bits
    return whole.to_bytes((at + 7) // 8, "little")


def _backward(parts: Sequence[Bits]) -> bytes:
    """Numbers to be read from the end: the first is highest, below a 1 that marks the end."""
    whole = 1
    for number, bits in parts:
        whole = whole << bits | number
    return whole.to_bytes((whole.bit_length() + 7) // 8, "little")
