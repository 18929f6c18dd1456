"""Oracles: counting loops and scipy's Jensen-Shannon distance, all orders of few blocks, planted drifts."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control

from workbench.routing.drift import position_drift

EXPERTS = 6


def sticky(tokens: int, generator: np.random.Generator, *, run: int = 1) -> np.ndarray:
    """Experts [tokens, 2, 2] without drift, the same for `run` neighbours at a time."""
    keys = generator.random((-(-tokens // run), 2, EXPERTS)).argsort(axis=2)[:, :, :2]
    return np.repeat(keys, run, axis=0)[:tokens].astype(np.uint8)


@settings(deadline=None)
@given(st.integers(8, 60), st.integers(2, 5), st.integers(0, 2**32))
def test_usage_and_bits_are_those_of_the_tokens_between_the_edges(tokens, n, seed) -> None:
    generator = np.random.default_rng(seed)
    experts = sticky(tokens, generator)
    positions = np.sort(generator.choice(500, tokens, replace=False)) + 1000
    found = position_drift(experts, positions, n_experts=EXPERTS, n_buckets=n, permutations=3)
    assert found.tokens.sum() == tokens and np.ptp(found.tokens) <= 1
    shares = []
    for bucket in range(n):
        start, stop = found.edges[bucket], found.edges[bucket + 1]
        own = [t for t, p in zip(experts, positions, strict=True) if start <= p < stop]
        assert len(own) == found.tokens[bucket]
        shares.append([[np.mean([e in t[la] for t in own]) for e in range(6)] for la in range(2)])
    np.testing.assert_allclose(found.usage, shares, atol=1e-12)
    for bucket, layer in np.ndindex(n, 2):
        theirs = jensenshannon(shares[0][layer], shares[bucket][layer], base=2)
        assert found.bits[bucket, layer] == pytest.approx(np.nan_to_num(theirs) ** 2, abs=1e-9)
    assert (found.bits[0] == 0).all() and (found.p_values[0] == 1).all()


def test_tokens_outside_the_edges_are_left_out() -> None:
    experts = np.array([5, 5, 0, 0, 1, 1, 1, 5])[:, None, None]
    found = position_drift(
        experts, np.arange(8), n_experts=EXPERTS, edges=np.array([2, 4, 7]), permutations=0
    )
    assert found.tokens.tolist() == [2, 3] and found.bits.tolist() == [[0.0], [1.0]]
    assert found.usage[:, 0, :2].tolist() == [[1, 0], [0, 1]] and not found.usage[:, :, 5].any()
    assert (found.p_values == 1).all() and np.isnan(found.excess_bits).all()


def test_the_null_is_that_of_all_orders_of_whole_blocks() -> None:
    generator = np.random.default_rng(3)
    experts = generator.integers(0, 3, (30, 1, 1))
    found = position_drift(
        experts, np.arange(30), n_experts=3, edges=np.array([0, 18, 30]), block_tokens=6,
        permutations=4000,
    )  # fmt: skip
    blocks = np.stack([np.bincount(experts[s : s + 6, 0, 0], minlength=3) for s in range(0, 30, 6)])
    every = [
        jensenshannon(blocks[list(o[:3])].sum(axis=0), blocks[list(o[3:])].sum(axis=0), base=2) ** 2
        for o in permutations(range(5))
    ]
    drawn = found.null_bits[:, 1, 0]
    assert set(drawn.round(9)) == set(np.round(every, 9))
    assert drawn.mean() == pytest.approx(np.mean(every), rel=0.05)
    assert (found.null_bits[:, 0] == 0).all()
    expected = np.mean(np.array(every) >= found.bits[1, 0] - 1e-12)
    assert found.p_values[1, 0] == pytest.approx(expected, abs=0.03)


def test_blocks_of_unlike_length_cover_each_bucket() -> None:
    experts = sticky(100, np.random.default_rng(1))
    found = position_drift(
        experts, np.arange(100), n_experts=EXPERTS, edges=np.array([0, 7, 60, 100]), block_tokens=16
    )
    for bucket, (start, stop) in enumerate([(0, 7), (7, 60), (60, 100)]):
        share = [(experts[start:stop, 1] == e).any(axis=1).mean() for e in range(EXPERTS)]
        np.testing.assert_allclose(found.usage[bucket, 1], share)


def test_a_drift_is_found_where_it_is() -> None:
    generator = np.random.default_rng(0)
    experts = sticky(4000, generator)
    late = generator.random(4000) < np.linspace(0, 0.8, 4000)
    experts[:, 1, 0] = np.where(late & (experts[:, 1, 1] != 2), 2, experts[:, 1, 0])
    found = position_drift(experts, np.arange(4000), n_experts=EXPERTS)
    assert (found.q_values[3:, 1] <= 0.05).all() and (found.excess_bits[4:, 1] > 0.01).all()
    assert (np.diff(found.bits[3:, 1]) > -0.01).all()
    assert (found.p_values[1:, 0] <= 0.05).mean() < 0.3
    by_scipy = false_discovery_control(found.p_values[1:].reshape(-1)).reshape(7, 2)
    np.testing.assert_allclose(found.q_values[1:], by_scipy)
    assert found.excess_bits[1:, 0].mean() == pytest.approx(0, abs=0.002)


def test_few_tokens_differ_much_and_are_not_called_drift() -> None:
    found = position_drift(
        sticky(64, np.random.default_rng(2)), np.arange(64), n_experts=EXPERTS, block_tokens=2
    )
    assert found.bits[1:].mean() > 0.05 and (found.q_values > 0.05).all()


def test_blocks_as_long_as_what_belongs_together_keep_the_promise() -> None:
    """Neighbours alike in runs of twelve: shuffled singly they are called drift far too often."""

    def called(block_tokens: int) -> float:
        return float(
            np.mean(
                [
                    position_drift(
                        sticky(960, np.random.default_rng(seed), run=12), np.arange(960),
                        n_experts=EXPERTS, n_buckets=4, block_tokens=block_tokens, permutations=59,
                    ).p_values[1:] <= 0.05
                    for seed in range(40)
                ]
            )
        )  # fmt: skip

    assert called(24) <= 0.10
    assert called(1) > 0.3


def test_shuffles_in_blocks_are_the_same_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, options = sticky(500, np.random.default_rng(4)), {"n_experts": EXPERTS}
    together = position_drift(experts, np.arange(500), permutations=20, **options)
    monkeypatch.setattr("workbench.routing.drift._AT_ONCE", 1)
    apart = position_drift(experts, np.arange(500), permutations=20, **options)
    np.testing.assert_array_equal(together.null_bits, apart.null_bits)
    other = position_drift(experts, np.arange(500), permutations=20, seed=1, **options)
    assert not np.array_equal(together.null_bits, other.null_bits)


def test_a_frame_has_one_row_per_bucket_and_layer() -> None:
    experts = sticky(90, np.random.default_rng(5))
    found = position_drift(experts, np.arange(90), n_experts=EXPERTS, n_buckets=3)
    frame = found.to_frame()
    assert len(frame) == 6
    row = frame[(frame.bucket == 2) & (frame.layer == 1)].iloc[0]
    assert (row.start, row.stop, row.tokens) == (60, 90, 30)
    assert (row.bits, row.p) == (found.bits[2, 1], found.p_values[2, 1])
    assert "3 buckets × 2 layers, 90 tokens" in repr(found)


def test_wrong_arguments_are_named() -> None:
    experts, positions = sticky(20, np.random.default_rng(6)), np.arange(20)
    options = {"n_experts": EXPERTS}
    with pytest.raises(ValueError, match="positions must rise"):
        position_drift(experts, positions[::-1], **options)
    with pytest.raises(ValueError, match="positions must rise"):
        position_drift(experts, np.tile(np.arange(10, dtype=np.uint8), 2), **options)
    with pytest.raises(ValueError, match="n_buckets=1 must be from 2 to the 20 tokens"):
        position_drift(experts, positions, n_buckets=1, **options)
    with pytest.raises(ValueError, match="n_buckets=21"):
        position_drift(experts, positions, n_buckets=21, **options)
    with pytest.raises(ValueError, match="between the positions 20 and 30"):
        position_drift(experts, positions, edges=np.array([0, 20, 30]), **options)
    with pytest.raises(ValueError, match="edges must be three numbers"):
        position_drift(experts, positions, edges=np.array([0, 5, 5]), **options)
    with pytest.raises(ValueError, match="block_tokens=0"):
        position_drift(experts, positions, block_tokens=0, **options)
    with pytest.raises(ValueError, match=r"positions \[3\] must have one row"):
        position_drift(experts, positions[:3], **options)
