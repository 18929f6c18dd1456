"""The page of a trace as text: nothing foreign in it, nothing of a document that could be run, every array whole."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from workbench.routing.page import trace_page
from workbench.routing.trace import RoutingTrace, TracedSource, example_trace

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028\u2029",
    "&lt;b&gt;",
    "]]>",
    "'\"`${1}\\",
)


class Elements(HTMLParser):
    """Every element of a page with its attributes and the text directly in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.is_open = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            self.found[-1][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            "".join(text)
            for name, own, text in self.found
            if name == tag and all(own.get(key) == value for key, value in attributes.items())
        ]


def hostile_trace() -> RoutingTrace:
    tokens, layers = len(HOSTILE), 2
    random = np.random.default_rng(0)
    return RoutingTrace(
        experts=random.integers(0, 16, (tokens, layers, 2)).astype(np.uint8),
        gate_weights=random.uniform(0, 1, (tokens, layers, 2)).astype(np.float16),
        n_experts=16,
        token_ids=np.arange(tokens),
        token_texts=HOSTILE,
        phases=np.zeros(tokens, dtype=np.uint8),
        segments=np.array([0, 0, 0, 1, 1, 1], dtype=np.int16),
        segment_names=("evidence 1", "<i>answer"),
        spans=np.arange(2 * tokens, dtype=np.int32).reshape(tokens, 2),
        routed=np.arange(tokens) < tokens - 1,
        log_probabilities=np.linspace(-3, 0, tokens, dtype=np.float32),
        sources=(TracedSource("evidence 1", "</script><b>.md", "c", 7, 400, 0, rank=3),),
        origin={"generator": "<script>alert(2)</script>"},
    )


def test_a_page_names_nothing_of_the_network():
    html = trace_page(example_trace(), title="Valve")
    assert not re.search(r"https?:|//\w|src=|href=|@import|url\(|fetch\(|import\(|XMLHttp", html)


def test_the_policy_allows_the_pages_own_script_and_style_alone():
    elements = Elements(trace_page(hostile_trace(), title="Valve"))
    (policy,) = [
        own["content"]
        for _, own, _ in elements.found
        if own.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    scripts = [
        "".join(text)
        for tag, own, text in elements.found
        if tag == "script" and not own.get("type")
    ]

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert len(scripts) == len(elements.texts("style")) == 1
    assert rules == {
        "default-src": "'none'",
        "script-src": named(scripts[0]),
        "style-src": named(elements.texts("style")[0]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # the policy stands before everything it is to govern
    tags = [tag for tag, _, _ in elements.found]
    assert tags[:4] == ["html", "head", "meta", "meta"]


def test_no_attribute_holds_a_script_or_a_style():
    for tag, own, _ in Elements(trace_page(hostile_trace(), title='" onload="x')).found:
        assert not [name for name in own if name.startswith("on") or name == "style"], (tag, own)


def test_hostile_texts_are_only_in_json_that_no_text_can_end():
    title = "<script>alert(3)</script>"
    html = trace_page(hostile_trace(), title=title)
    assert html.isascii() or not any(sign in html for sign in "\u2028\u2029")
    for text in (*HOSTILE[:2], "<i>answer", "<b>.md", "alert(2)</script>", title):
        assert text not in html
    assert html.count("</script>") == html.count("<script")
    assert "<!--" not in html
    elements = Elements(html)
    assert "img" not in {tag for tag, _, _ in elements.found}
    (facts,) = elements.texts("script", id="facts")
    assert not re.search(r"[<>&]", facts) and facts.isascii()
    assert json.loads(facts)["texts"] == list(HOSTILE)
    assert json.loads(facts)["documents"] == ["</script><b>.md", None]
    assert elements.texts("title") == [title]


@pytest.mark.parametrize("trace", [example_trace(), hostile_trace()])
def test_the_arrays_of_a_page_are_those_of_the_trace(trace: RoutingTrace):
    elements = Elements(trace_page(trace, title="x"))
    held = {
        own["id"]: base64.b64decode("".join(text))
        for tag, own, text in elements.found
        if tag == "script" and own.get("type") == "text/plain"
    }
    expected = {
        "experts": (np.uint8, trace.experts),
        "gates": ("<f2", trace.gate_weights),
        "routed": (np.uint8, trace.routed),
        "codes": ("<i2", trace.segments),
        "spans": ("<i4", trace.spans),
    }
    for name, (kind, array) in expected.items():
        np.testing.assert_array_equal(np.frombuffer(held[name], kind), array.reshape(-1))
    frame = trace.to_frame()
    np.testing.assert_array_equal(np.frombuffer(held["logs"], "<f4"), frame["log_probability"])
    places = np.frombuffer(held["places"], "<i4").reshape(-1, 2)
    for (start, stop), row in zip(places, frame.itertuples(), strict=True):
        if row.document is None or row.document != row.document:
            assert (start, stop) == (-1, -1)
        else:
            assert (start, stop) == (row.document_start, row.document_stop)


def test_a_page_without_gate_weights_has_no_block_of_them():
    without = trace_page(replace(example_trace(), gate_weights=None), title="x")
    assert 'id="gates"' not in without and 'id="experts"' in without


def test_without_scripts_the_usage_is_a_table():
    trace = hostile_trace()
    html = trace_page(trace, title="x")
    fallback = html[html.index("<noscript>") : html.index("</noscript>")]
    cells = [float(cell) for cell in re.findall(r"<td>([\d.]+)</td>", fallback)]
    found = np.array(cells).reshape(trace.layers, trace.n_experts + 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(trace.layers))
    np.testing.assert_allclose(found[:, 1:], trace.usage(), atol=5e-4)
    nothing = replace(example_trace(), routed=np.zeros(3, dtype=bool))
    assert "No token was routed." in trace_page(nothing, title="x")


def test_the_same_trace_gives_the_same_page():
    assert trace_page(hostile_trace(), title="x") == trace_page(hostile_trace(), title="x")


def test_the_header_says_what_routed_and_how_much():
    html = trace_page(hostile_trace(), title="x")
    assert "6 tokens, 5 of them routed · 2 layers · 16 experts, 2 a token" in html
    assert "<dt>generator</dt><dd>&lt;script&gt;alert(2)&lt;/script&gt;</dd>" in html
