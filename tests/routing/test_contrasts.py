from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from workbench.routing.contrasts import contrast, false_discovery_rate


def tokens_of(
    usage: list[np.ndarray], lengths: list[int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Experts [tokens, layers, 2] of clusters with this usage [layers, experts] of each, and their numbers."""
    experts, clusters = [], []
    for number, (share, length) in enumerate(zip(usage, lengths, strict=True)):
        keys = generator.gumbel(size=(length, *share.shape)) + np.log(share)
        experts.append(np.argsort(-keys, axis=2)[:, :, :2])
        clusters.append(np.full(length, number))
    return np.concatenate(experts), np.concatenate(clusters)


def shares(experts: np.ndarray, n: int) -> np.ndarray:
    return np.stack([(experts == e).any(axis=2).mean(axis=0) for e in range(n)], axis=1)


def test_an_unpaired_difference_is_tested_by_all_labels() -> None:
    generator = np.random.default_rng(0)
    usage = [generator.dirichlet(np.ones(4), size=2) for _ in range(7)]
    experts, clusters = tokens_of(usage, [5, 9, 14, 3, 8, 6, 20], generator)
    is_x = clusters < 3
    found = contrast(experts, is_x, clusters, n_experts=4, permutations=40_000)
    each = np.stack([shares(experts[clusters == c], 4) for c in range(7)])
    expected = each[:3].mean(axis=0) - each[3:].mean(axis=0)
    np.testing.assert_allclose(found.difference, expected, atol=1e-12)
    null = np.stack(
        [
            each[list(x)].mean(axis=0) - each[[c for c in range(7) if c not in x]].mean(axis=0)
            for x in combinations(range(7), 3)
        ]
    )
    p = (np.abs(null) >= np.abs(expected) - 1e-12).mean(axis=0)
    np.testing.assert_allclose(found.p_values, p, atol=0.02)
    assert not found.is_paired and found.clusters == (3, 4)
    assert (found.low <= found.difference).all() and (found.difference <= found.high).all()


def test_a_paired_difference_is_tested_by_all_signs() -> None:
    generator = np.random.default_rng(1)
    usage = [generator.dirichlet(np.ones(3), size=2) for _ in range(12)]
    experts, parts = tokens_of(usage, [4, 11] * 6, generator)
    clusters, is_x = parts // 2, parts % 2 == 0
    found = contrast(experts, is_x, clusters, n_experts=3, permutations=40_000)
    each = np.stack(
        [
            shares(experts[parts == 2 * c], 3) - shares(experts[parts == 2 * c + 1], 3)
            for c in range(6)
        ]
    )
    np.testing.assert_allclose(found.difference, each.mean(axis=0), atol=1e-12)
    null = np.stack([np.tensordot(signs, each, 1) / 6 for signs in product((-1, 1), repeat=6)])
    p = (np.abs(null) >= np.abs(each.mean(axis=0)) - 1e-12).mean(axis=0)
    np.testing.assert_allclose(found.p_values, p, atol=0.02)
    assert found.is_paired and found.clusters == (6, 6)


def test_clusters_weigh_the_same_whatever_their_length() -> None:
    experts = np.array([0] * 100 + [1] + [1] * 5 + [1] * 5)[:, None, None]
    clusters = np.repeat([0, 1, 2, 3], [100, 1, 5, 5])
    found = contrast(experts, clusters < 2, clusters, n_experts=2, permutations=9)
    assert found.difference.tolist() == [[0.5, -0.5]]


def test_the_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        means = generator.beta(8, 8, 30) + np.where(np.arange(30) < 15, 0.1, 0.0)
        draws = (generator.random((30, 40)) < means[:, None]).astype(int)
        clusters = np.repeat(np.arange(30), 40)
        found = contrast(
            draws.reshape(-1, 1, 1), clusters < 15, clusters, n_experts=2, permutations=1, resamples=400, seed=seed
        )  # fmt: skip
        covered += found.low[0, 1] <= 0.1 <= found.high[0, 1]
    assert 0.88 <= covered / 200 <= 0.98


@pytest.mark.parametrize("is_paired", [False, True])
def test_the_interval_is_that_of_the_standard_error(is_paired: bool) -> None:
    generator = np.random.default_rng(6)
    draws = (generator.random((80, 50)) < generator.beta(5, 5, 80)[:, None]).astype(int)
    clusters, is_x = np.arange(80), np.arange(80) % 2 == 0
    numbers = clusters // 2 if is_paired else clusters
    groups = np.repeat(is_x, 50), np.repeat(numbers, 50)
    options = {"n_experts": 2, "permutations": 1, "resamples": 20_000}
    found = contrast(draws.reshape(-1, 1, 1), *groups, **options)
    means = draws.mean(axis=1)
    x, y = means[is_x], means[~is_x]
    variance = (x - y).var() / 40 if is_paired else x.var() / 40 + y.var() / 40
    half = 1.96 * np.sqrt(variance)
    assert (found.high - found.low)[0, 1] / 2 == pytest.approx(half, rel=0.05)
    assert (found.high + found.low)[0, 1] / 2 == pytest.approx((x - y).mean(), abs=0.1 * half)


def test_shuffled_labels_are_seldom_called_different() -> None:
    """The false discovery rate of 200 runs without any difference: a run is false if any cell is called different."""
    generator = np.random.default_rng(3)
    false_runs = 0
    for seed in range(200):
        usage = [generator.dirichlet(np.full(8, 2.0), size=4) for _ in range(16)]
        experts, clusters = tokens_of(usage, [12] * 16, generator)
        labels = generator.permutation(np.arange(16) < 8)
        found = contrast(
            experts, labels[clusters], clusters, n_experts=8, permutations=1999, resamples=10, seed=seed
        )  # fmt: skip
        false_runs += (found.q_values <= 0.05).any()
    assert false_runs / 200 <= 0.07


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    generator = np.random.default_rng(4)
    usage = []
    for number in range(24):
        share = np.full((3, 8), 1.0)
        if number < 12:
            share[1, 3] = 6.0
        usage.append(share / share.sum(axis=1, keepdims=True))
    experts, clusters = tokens_of(usage, [60] * 24, generator)
    found = contrast(experts, clusters < 12, clusters, n_experts=8)
    called = {tuple(cell) for cell in np.argwhere(found.q_values <= 0.05).tolist()}
    assert (1, 3) in called and all(layer == 1 for layer, _ in called)
    assert found.p_values.min() >= 1 / 10_000  # never zero
    top = found.to_frame().iloc[0]
    assert (top.layer, top.expert) == (1, 3) and top.low > 0 and "cells differ" in repr(found)


def test_q_values_are_those_of_scipy() -> None:
    p = np.random.default_rng(5).random((3, 4)) ** 2
    np.testing.assert_allclose(
        false_discovery_rate(p), stats.false_discovery_control(p.reshape(-1)).reshape(3, 4)
    )


def test_what_cannot_be_compared_is_refused() -> None:
    experts = np.zeros((6, 1, 1), int)
    clusters = np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(
        ValueError, match="1 clusters have tokens of both groups and 2 of one alone"
    ):
        contrast(experts, np.array([1, 0, 1, 1, 0, 0], bool), clusters, n_experts=2)
    with pytest.raises(ValueError, match="1 and 2 clusters; chance cannot be told"):
        contrast(experts, clusters == 0, clusters, n_experts=2)
    with pytest.raises(ValueError, match="0 and 3 clusters"):
        contrast(experts, clusters < 0, clusters, n_experts=2)
    with pytest.raises(ValueError, match=r"is_x \[5\] must have one row for each of 6 tokens"):
        contrast(experts, np.ones(5, bool), clusters, n_experts=2)
    with pytest.raises(ValueError, match="confidence=95 is outside"):
        contrast(experts, clusters < 2, clusters, n_experts=2, confidence=95)
