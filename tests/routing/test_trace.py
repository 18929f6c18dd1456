"""Counting over a trace, against a plain loop; saving and loading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.routing.statistics import usage_entropy
from workbench.routing.trace import RoutingTrace, TracedSource, example_trace, load_trace

OPTIONAL = ["gate_weights", "log_probabilities", "router_logits", "contributions", "output_norms"]


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
        spans=np.arange(2 * tokens, dtype=np.int32).reshape(tokens, 2),
        routed=routed,
        log_probabilities=np.where(np.arange(tokens) < 30, np.nan, -0.5).astype(np.float32),
        router_logits=random.standard_normal((tokens, layers, experts)).astype(np.float16),
        contributions=random.uniform(0, 9, chosen.shape).astype(np.float16),
        output_norms=random.uniform(0, 9, (tokens, layers)).astype(np.float16),
        sources=(
            TracedSource("evidence 1", "pump.md", "c1", 3, 20, 10, rank=1, language="en"),
            TracedSource("evidence 12", "öl.md", "c7", 0, 29, 30, rank=4),
        ),
        origin={"generator": "tiny", "regime": "short"},
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
    for name in RoutingTrace.__slots__:
        one, two = getattr(again, name), getattr(trace, name)
        if isinstance(two, np.ndarray):
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype
        else:
            assert one == two


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_not_known_survives_saving(trace, tmp_path, name):
    again = load_trace(replace(trace, **{name: None}).save(tmp_path / "t.npz"))
    assert getattr(again, name) is None and len(again.experts) == 40


def test_a_change_anywhere_in_the_arrays_or_the_header_is_seen(trace, tmp_path):
    path = trace.save(tmp_path / "trace.npz")
    with np.load(path) as arrays:
        held = dict(arrays)
    for name in held:
        if name == "header":
            changed = held[name].tobytes().replace(b"pump.md", b"pimp.md")
            spoiled = np.frombuffer(changed, dtype=np.uint8)
        else:
            spoiled = held[name].copy()
            spoiled.reshape(-1).view(np.uint8)[-1] ^= 1
        np.savez(path, **{**held, name: spoiled})
        with pytest.raises(InputError, match="not a routing trace written by workbench: its check"):
            load_trace(path)
    np.savez(path, **{name: array for name, array in held.items() if name != "spans"})
    with pytest.raises(InputError, match="not a routing trace"):
        load_trace(path)


@pytest.mark.parametrize("flipped", range(0, 2000, 97))
def test_a_flipped_bit_of_the_file_is_one_sentence_or_changes_nothing(trace, tmp_path, flipped):
    path = trace.save(tmp_path / "trace.npz")
    data = bytearray(path.read_bytes())
    data[flipped * len(data) // 2000] ^= 4
    path.write_bytes(data)
    try:
        np.testing.assert_array_equal(load_trace(path).experts, trace.experts)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("version", [2, 4])
def test_another_format_is_named(trace, tmp_path, version):
    path = trace.save(tmp_path / "trace.npz")
    with np.load(path) as arrays:
        held = dict(arrays)
    old = held["header"].tobytes().replace(b'"format": 3', b'"format": %d' % version)
    np.savez(path, **{**held, "header": np.frombuffer(old, dtype=np.uint8)})
    with pytest.raises(InputError, match=f"has trace format {version}, this program reads 3"):
        load_trace(path)


def test_the_frames_tell_each_token_and_each_choice(trace):
    frame = trace.to_frame()
    assert len(frame) == 40 and frame.index.name == "position"
    row = frame.loc[20]
    assert (row.segment, row.document, row.chunk) == ("evidence 12", "öl.md", "c7")
    assert row["rank"] == 4 and frame.language.isna().sum() == 30
    assert frame.loc[7].language == "en" and frame.loc[35].log_probability == -0.5
    assert frame.phase.tolist() == ["prefill"] * 30 + ["decode"] * 10
    assert frame["rank"].isna().sum() == 15 and frame.document.isna().sum() == 15
    assert frame[["start", "stop"]].loc[3].tolist() == [6, 7]
    assert frame[["document_start", "document_stop"]].loc[[5, 6, 14, 15, 29]].values.tolist() == [
        [3, 4], [5, 6], [20, 20], [0, 1], [28, 29],
    ]  # fmt: skip
    choices = trace.choices_frame()
    assert len(choices) == 39 * 5 * 2 and not (choices.position == 39).any()
    for index in (0, 17, 200, 389):
        one = choices.loc[index]
        place = int(one.position), int(one.layer), int(one.choice)
        assert one.expert == trace.experts[place]
        assert one.gate_weight == np.float32(trace.gate_weights[place])
        assert one.contribution == np.float32(trace.contributions[place])
    for name in ("gate_weight", "contribution"):
        without = replace(trace, **{f"{name}s": None}).choices_frame()
        assert without[name].isna().all() and without.drop(columns=name).notna().all(axis=None)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_trace_is_one_sentence(tmp_path, content):
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a routing trace"):
        load_trace(path)


def test_a_folder_in_place_of_a_trace_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; give the \.npz file"):
        load_trace(tmp_path)


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
        ("log_probabilities", np.zeros(1, dtype=np.float32)),
        ("router_logits", np.zeros((3, 1, 5), dtype=np.float16)),
        ("contributions", np.zeros((3, 1, 1), dtype=np.float16)),
        ("output_norms", np.zeros((3, 1, 2), dtype=np.float16)),
        ("sources", (TracedSource("evidence 9", "a", "b", 0, 1, 0),)),
    ],
)
def test_records_that_contradict_themselves_are_refused(field, value):
    with pytest.raises(ValueError):
        replace(example_trace(), **{field: value})


def test_entropy_of_uniform_use_is_the_logarithm_of_the_experts():
    assert usage_entropy(np.full((1, 16), 0.125)) == pytest.approx([4.0])
