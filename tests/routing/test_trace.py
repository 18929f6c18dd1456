"""Counting over a trace, against a plain loop; saving and loading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.routing.statistics import usage_entropy
from workbench.routing.trace import RoutingTrace, example_trace, load_trace


@pytest.fixture
def trace() -> RoutingTrace:
    random = np.random.default_rng(3)
    tokens, layers, experts = 40, 5, 16
    chosen = np.stack(
        [np.stack([random.permutation(experts)[:2] for _ in range(layers)]) for _ in range(tokens)]
    ).astype(np.uint8)
    routed = np.ones(tokens, dtype=bool)
    routed[-1] = False
    return RoutingTrace(
        experts=chosen,
        gate_weights=random.uniform(0.3, 1, chosen.shape).astype(np.float16),
        n_experts=experts,
        token_ids=np.arange(tokens),
        token_texts=tuple(f"t{i}" for i in range(tokens)),
        phases=np.repeat([0, 1], [30, 10]).astype(np.uint8),
        segments=np.repeat([0, 1, 2, 3], [5, 10, 15, 10]).astype(np.int16),
        segment_names=("question", "evidence 1", "evidence 12", "answer"),
        spans=np.zeros((tokens, 2), dtype=np.int32),
        routed=routed,
    )


@pytest.mark.parametrize("segment", [None, "question", "evidence", "evidence 1", "answer"])
def test_counts_equal_a_plain_loop_and_rows_sum_to_k_times_routed_tokens(trace, segment):
    expected = np.zeros((trace.layers, trace.n_experts), dtype=int)
    tokens = 0
    for t in range(len(trace.token_ids)):
        name = trace.segment_names[trace.segments[t]]
        wanted = (
            segment is None
            or name == segment
            or (segment == "evidence" and name.startswith("evidence "))
        )
        if not wanted or not trace.routed[t]:
            continue
        tokens += 1
        for layer in range(trace.layers):
            for expert in trace.experts[t, layer]:
                expected[layer, expert] += 1
    np.testing.assert_array_equal(trace.counts(segment), expected)
    np.testing.assert_array_equal(trace.counts(segment).sum(axis=1), trace.k * tokens)
    np.testing.assert_allclose(trace.usage(segment).sum(axis=1), trace.k)


def test_segments_add_up_to_the_total(trace):
    parts = sum(trace.counts(name) for name in trace.segment_names)
    np.testing.assert_array_equal(parts, trace.counts())


def test_evidence_1_is_not_evidence_12(trace):
    assert trace.rows("evidence 1").sum() == 10
    assert trace.rows("evidence").sum() == 25


def test_an_unknown_segment_is_named_with_those_that_exist(trace):
    with pytest.raises(ValueError, match="no segment 'evidence 2'; there are question, evidence 1"):
        trace.counts("evidence 2")


def test_a_saved_trace_loads_equal(trace, tmp_path):
    again = load_trace(trace.save(tmp_path / "trace.npz"))
    for name in ("experts", "gate_weights", "token_ids", "phases", "segments", "spans", "routed"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trace, name))
    assert (again.n_experts, again.token_texts, again.segment_names) == (
        trace.n_experts,
        trace.token_texts,
        trace.segment_names,
    )


def test_indices_without_gates_survive_saving(trace, tmp_path):
    assert (
        load_trace(replace(trace, gate_weights=None).save(tmp_path / "t.npz")).gate_weights is None
    )


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_trace_is_one_sentence(tmp_path, content):
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a routing trace"):
        load_trace(path)


def test_a_pickled_array_is_never_loaded(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, header=np.array([{"format": 1}], dtype=object))
    with pytest.raises(InputError, match="not a routing trace"):
        load_trace(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_texts", ("a",)),
        ("gate_weights", np.zeros((1, 1, 2), dtype=np.float16)),
        ("n_experts", 2),
        ("segment_names", ("question",)),
    ],
)
def test_records_that_contradict_themselves_are_refused(field, value):
    with pytest.raises(ValueError):
        replace(example_trace(), **{field: value})


def test_entropy_of_uniform_use_is_the_logarithm_of_the_experts():
    assert usage_entropy(np.full((1, 16), 0.125)) == pytest.approx([4.0])
