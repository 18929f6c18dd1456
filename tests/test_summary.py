"""summarize(): parts that cover everything, sentences that are their sources, plans that hold."""

from __future__ import annotations

import json
import re

import pytest

import workbench as wb
from workbench.cancel import CancelToken


@pytest.fixture(scope="module")
def document():
    paragraphs = [
        f"## Part {i}\n\nPump {i} ran for {i * 7} hours. It used {i * 3} litres of oil. "
        f"The crew of shift {i} noted a noise at noon. Nothing else happened on day {i}.\n"
        for i in range(1, 9)
    ]
    return _document("log.md", "# The log\n\n" + "\n".join(paragraphs))


def _document(name, text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, "utf-8")
        return wb.read_document(path)


@pytest.fixture(scope="module")
def small_context(tiny_moe):
    return tiny_moe.with_context(768)


def test_parts_hold_every_visible_character_once_and_fit_their_prompts(document, small_context):
    plan = wb.plan_summary(document, generator=small_context, max_new_tokens=128)
    assert plan.strategy == "map-reduce"
    covered = [0] * len(document.text)
    for part in plan.parts:
        for chunk in part:
            for at in range(chunk.start, chunk.stop):
                covered[at] += 1
    for at, times in enumerate(covered):
        assert times == 1 or (times == 0 and document.text[at].isspace())


def test_parts_follow_the_sections(document, small_context):
    plan = wb.plan_summary(document, generator=small_context, max_new_tokens=128)
    starts = [m.start() for m in re.finditer("## Part", document.text)]
    assert {part[0].start for part in plan.parts} >= set(starts[1:])


@pytest.mark.parametrize("strategy", ["auto", "map-reduce"])
def test_quoted_sentences_are_their_sources_in_document_order(document, small_context, strategy):
    summary = wb.summarize(
        document,
        generator=small_context,
        strategy=strategy,
        sentences=3,
        max_new_tokens=128,
        progress=False,
    )
    assert 1 <= len(summary.sentences) <= 3
    places = []
    for sentence in summary.sentences:
        (span,) = sentence.sources
        assert document.text[span.start : span.stop] == sentence.text
        places.append(span.start)
    assert places == sorted(places)
    assert summary.coverage.read > 0.9
    assert all(node.status == "ok" for node in summary.nodes)
    top = [node for node in summary.nodes if node.level > 0]
    assert all(set(node.children) < {n.id for n in summary.nodes} for node in top)


def test_a_short_document_is_read_at_once(tiny_moe):
    summary = wb.summarize(
        _document("a.txt", "One pump ran. Another stopped."),
        generator=tiny_moe,
        sentences=1,
        progress=False,
    )
    assert (summary.plan.strategy, len(summary.nodes)) == ("full", 1)


def test_free_style_keeps_the_spans_its_marks_lead_to(document, small_context):
    summary = wb.summarize(
        document,
        generator=small_context,
        style="free",
        sentences=2,
        max_new_tokens=24,
        progress=False,
    )
    for sentence in summary.sentences:
        for span in sentence.sources:
            assert 0 <= span.start < span.stop <= len(document.text)


def test_cancelling_keeps_what_is_done_and_says_what_is_not(document, small_context):
    cancel = CancelToken()
    cancel.cancel()
    summary = wb.summarize(
        document, generator=small_context, max_new_tokens=128, progress=False, cancel=cancel
    )
    assert summary.sentences == ()
    assert {node.status for node in summary.nodes} == {"cancelled"}
    assert summary.coverage.read == 0


def test_the_plan_is_told_before_the_first_call(document, small_context, capsys):
    wb.summarize(document, generator=small_context, sentences=2, max_new_tokens=128)
    err = capsys.readouterr().err
    assert err.index("map-reduce summary of log.md") < err.index("summarize:")


def test_json_has_the_documented_fields(document, small_context):
    summary = wb.summarize(
        document, generator=small_context, sentences=2, max_new_tokens=128, progress=False
    )
    facts = json.loads(json.dumps(summary.to_dict()))
    assert {"summary", "sentences", "plan", "coverage", "nodes"} <= facts.keys()
    assert all({"text", "sources"} <= s.keys() for s in facts["sentences"])


def test_display_is_escaped(tiny_moe):
    evil = _document("evil.txt", "<script>alert(1)</script> is what it says. Nothing more.")
    html = wb.summarize(evil, generator=tiny_moe, sentences=2, progress=False)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("Some text.", {"sentences": 0}, "sentences=0"),
        ("word. " * 4000, {"strategy": "full"}, "use strategy 'map-reduce'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tiny_moe, text, options, words):
    with pytest.raises(ValueError, match=words):
        wb.summarize(_document("a.txt", text), generator=tiny_moe, progress=False, **options)
