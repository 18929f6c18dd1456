"""Comparisons of two conditions: planted differences, hand-counted agreement, and chance where there is none."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from workbench.routing.compare import BLOCK, compare_routing
from workbench.routing.trace import RoutingTrace, example_trace

LAYERS, EXPERTS = 2, 6


def make(experts, *, segments=None, ids=None, origin=None) -> RoutingTrace:
    """A trace of these experts [tokens, layers, 2]."""
    count = len(experts)
    return RoutingTrace(
        experts=experts.astype(np.uint8),
        gate_weights=None,
        n_experts=EXPERTS,
        token_ids=np.arange(count) if ids is None else np.asarray(ids),
        token_texts=("x",) * count,
        phases=np.zeros(count, np.uint8),
        segments=np.zeros(count, np.int16) if segments is None else np.asarray(segments, np.int16),
        segment_names=("question", "answer"),
        spans=np.zeros((count, 2), np.int32),
        routed=np.ones(count, bool),
        origin=origin or {},
    )


def drawn(generator, count, *, favour=None) -> np.ndarray:
    """Two different experts a layer; one may be favoured."""
    keys = generator.gumbel(size=(count, LAYERS, EXPERTS))
    if favour is not None:
        keys[:, 1, favour] += 2.0
    return np.argsort(-keys, axis=2)[:, :, :2]


def test_the_same_twice_agrees_and_differs_nowhere():
    one = make(drawn(np.random.default_rng(0), 100))
    found = compare_routing(one, one, permutations=199)
    assert found.same_tokens and found.agreement.tolist() == [1.0, 1.0]
    assert found.agreement_low.tolist() == found.agreement_high.tolist() == [1.0, 1.0]
    assert not found.divergence_bits.any() and (found.divergence_p == 1).all()
    assert not found.contrast.difference.any() and (found.contrast.p_values == 1).all()
    assert found.tokens == (100, 100) and found.differs == ()


def test_agreement_is_what_one_counts_by_hand():
    generator = np.random.default_rng(1)
    sides = [[make(drawn(generator, n)) for n in (5, 9, 30)] for _ in range(2)]
    found = compare_routing(*sides, permutations=99)
    each = [
        [
            np.mean(
                [
                    len({*x} & {*y}) / 2
                    for x, y in zip(a.experts[:, l], b.experts[:, l], strict=True)
                ]
            )
            for l in range(LAYERS)  # noqa: E741 (the layer)
        ]
        for a, b in zip(*sides, strict=True)
    ]
    np.testing.assert_allclose(found.agreement, np.mean(each, axis=0))
    assert (found.agreement_low <= found.agreement).all()
    assert (found.agreement <= found.agreement_high).all() and found.contrast.is_paired


def test_divergence_is_that_of_the_mean_usage():
    generator = np.random.default_rng(2)
    a = [make(drawn(generator, n, favour=1), ids=range(n)) for n in (20, 40, 10, 33)]
    b = [make(drawn(generator, n), ids=range(n)) for n in (25, 12, 50)]
    found = compare_routing(a, b, permutations=999)
    assert not found.same_tokens and np.isnan(found.agreement).all()
    for layer in range(LAYERS):
        shares = [np.mean([t.usage()[layer] / 2 for t in side], axis=0) for side in (a, b)]
        assert found.divergence_bits[layer] == pytest.approx(jensenshannon(*shares, base=2) ** 2)
    assert found.divergence_p[1] < 0.05 < found.divergence_p[0]
    assert found.contrast.q_values[1, 1] == found.contrast.q_values.min()
    assert found.to_frame()["p"].tolist() == found.divergence_p.tolist()


def test_chance_is_that_of_all_ways_to_swap():
    generator = np.random.default_rng(3)
    sides = [[make(drawn(generator, 12, favour=f)) for _ in range(5)] for f in (2, None)]
    found = compare_routing(*sides, permutations=999)
    usage = np.stack([[t.usage() / 2 for t in side] for side in sides])  # [2, traces, …]
    null = []
    for swap in product((0, 1), repeat=5):
        first = usage[list(swap), range(5)].mean(axis=0)
        other = usage[[1 - s for s in swap], range(5)].mean(axis=0)
        null.append([jensenshannon(first[n], other[n], base=2) ** 2 for n in range(LAYERS)])
    np.testing.assert_allclose(found.null_bits, np.mean(null, axis=0), rtol=0.05)
    reached = np.mean(np.array(null) >= found.divergence_bits - 1e-12, axis=0)
    np.testing.assert_allclose(found.divergence_p, reached, atol=0.04)


def test_a_lone_trace_is_cut_into_runs():
    generator = np.random.default_rng(4)
    a, b = make(drawn(generator, 100)), make(drawn(generator, 100))
    found = compare_routing(a, b, permutations=99)
    assert found.contrast.clusters == (3, 3)  # 32, 32 and 36
    parts = [slice(0, BLOCK), slice(BLOCK, 2 * BLOCK), slice(2 * BLOCK, None)]
    for expert in range(EXPERTS):
        shares = [
            (a.experts[part] == expert).sum(axis=(0, 2)) / len(a.experts[part]) for part in parts
        ]
        np.testing.assert_allclose(found.usage_a[:, expert], np.mean(shares, axis=0))


def test_what_routes_differently_is_named():
    generator = np.random.default_rng(5)
    experts = drawn(generator, 80)
    a = make(experts, origin={"generator": "pocket", "dtype": "float32"})
    b = make(experts, origin={"generator": "pocket", "dtype": "bfloat16"})
    assert compare_routing(a, b, permutations=9).differs == ("dtype: float32 and bfloat16",)
    with pytest.raises(
        ValueError, match=r"a are not of one generator .dtype: float32 and bfloat16"
    ):
        compare_routing([a, b], [a, b])


def test_only_the_segment_asked_for_is_compared():
    generator = np.random.default_rng(6)
    experts, others = drawn(generator, 90), drawn(generator, 90)
    others[20:] = experts[20:]
    segments = np.arange(90) >= 20
    a, b = (make(e, segments=segments) for e in (experts, others))
    assert compare_routing(a, b, segment="answer", permutations=9).agreement.tolist() == [1.0, 1.0]
    assert compare_routing(a, b, permutations=9).agreement.max() < 1
    # the same answer after prompts of another length
    longer = make(
        np.concatenate([others, experts[20:]]),
        segments=np.concatenate([np.zeros(90), np.ones(70)]),
        ids=[*range(500, 590), *range(20, 90)],
    )
    assert compare_routing(a, longer, segment="answer", permutations=9).same_tokens


def test_tokens_of_both_segments_are_refused():
    trace = example_trace()
    trace = replace(trace, segment_names=("evidence 1", "evidence 2"))
    with pytest.raises(ValueError, match="tokens are of 'evidence' and of 'evidence 2'"):
        compare_routing(trace, trace, segment="evidence", segment_b="evidence 2", block_tokens=1)


def test_what_cannot_be_compared_is_refused():
    one = make(drawn(np.random.default_rng(7), 70))
    small = replace(one, n_experts=8)
    short = make(drawn(np.random.default_rng(7), 40))
    for a, b, wanted in (
        (one, [], "b holds no trace"),
        (
            one,
            small,
            "a trace of b has 2 layers, 8 experts and k=2, the first one of a 2, 6 and k=2",
        ),
        (one, "pocket", "b='pocket' is no RoutingTrace and no list of them"),
        (short, short, "40 tokens of one trace are too few to tell chance"),
    ):
        with pytest.raises(ValueError, match=wanted):
            compare_routing(a, b)
    with pytest.raises(ValueError, match="no routed token in segment 'answer'"):
        compare_routing(one, one, segment="answer")
    with pytest.raises(ValueError, match="no segment 'evidence'"):
        compare_routing(one, one, segment="evidence")
    with pytest.raises(ValueError, match="1 and 2 traces cannot be paired"):
        compare_routing(one, [one, one], is_paired=True)
    with pytest.raises(ValueError, match="paired token by token, and their tokens differ"):
        compare_routing(one, replace(one, token_ids=one.token_ids + 1), is_paired=True)
