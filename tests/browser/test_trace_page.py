"""The page of a trace in Chromium, from a file: what a click picks, what a reader sees, how long a long one takes."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.routing.page import trace_page
from workbench.routing.trace import RoutingTrace, TracedSource

pytestmark = pytest.mark.browser
EVIL = "</script><img src=x onerror=window.hit=1>"


def synthetic_trace(tokens: int, layers: int) -> RoutingTrace:
    """Experts that tell their place: token t has expert (t + layer) mod 16 first and the one after it second."""
    first = (np.arange(tokens)[:, None] + np.arange(layers)) % 16
    words = ("▁Which", "▁valve", EVIL, "▁failed", "?", "<0x0A>", "\u202eabc", " ")
    logs = np.full(tokens, np.nan, dtype=np.float32)
    logs[-1] = -0.25
    segments = np.repeat([0, 1, 2], [tokens // 2, tokens - tokens // 2 - 20, 20])
    weights = np.random.default_rng(0).uniform(0.3, 1, (tokens, layers, 2)).astype(np.float16)
    weights[0, 0] = [1.0, 0.125]
    return RoutingTrace(
        experts=np.stack([first, (first + 1) % 16], axis=2).astype(np.uint8),
        gate_weights=weights,
        n_experts=16,
        token_ids=np.arange(tokens),
        token_texts=tuple(words[t % len(words)] for t in range(tokens)),
        phases=np.zeros(tokens, dtype=np.uint8),
        segments=segments.astype(np.int16),
        segment_names=("evidence 1", "evidence 2", "answer"),
        spans=np.stack([np.arange(tokens), np.arange(tokens) + 1], axis=1).astype(np.int32),
        routed=np.arange(tokens) < tokens - 1,
        log_probabilities=logs,
        sources=(TracedSource("evidence 2", "<b>pump.md", "c", 1000, 10**6, 0, rank=2),),
        origin={"generator": "pocket", "dtype": "float32"},
    )


@pytest.fixture
def opened(page, tmp_path: Path):
    """Open the page of a synthetic trace from a file; what its console says is kept in ``page.said``."""
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))

    def open_(tokens: int = 1000, layers: int = 5, segment: str | None = None):
        path = tmp_path / "trace.html"
        html = trace_page(synthetic_trace(tokens, layers), title="Valve", segment=segment)
        path.write_bytes(html.encode())
        page.goto(path.as_uri())
        page.locator("#tokens .token").first.wait_for()
        return page

    yield open_
    assert (page.said, page.errors, page.foreign) == ([], [], [])
    assert page.evaluate("window.hit") is None and page.locator("img").count() == 0


def numbers(page, token: int) -> list[int]:
    return [int(n) for n in page.locator(f".token[data-token='{token}'] i").all_inner_texts()]


def click_cell(page, layer: int, expert: int) -> None:
    box = page.locator("#usage").bounding_box()
    width = min((box["width"] - 34) / 16, 52)
    at = {"x": 34 + (expert + 0.5) * width, "y": 22 + (layer + 0.5) * 26}
    page.locator("#usage").click(position=at)


@pytest.mark.smoke
def test_a_cell_of_the_usage_picks_its_layer_and_its_experts_tokens(opened):
    page = opened()
    assert numbers(page, 20) == [4, 5] and page.locator(".token.uses").count() == 0
    click_cell(page, layer=3, expert=9)
    assert (page.input_value("#layer"), page.input_value("#expert")) == ("3", "9")
    assert numbers(page, 20) == [7, 8]
    users = [t for t in range(999) if 9 in ((t + 3) % 16, (t + 4) % 16)]
    outlined = page.eval_on_selector_all(".token.uses", "all => all.map(one => +one.dataset.token)")
    assert outlined == [t for t in users if t < 400]
    share = f"Layer 3, expert 9: 12.6 % of 999 routed tokens ({len(users)})"
    assert share in page.inner_text("#usage-says")


def test_hostile_text_is_shown_as_text_and_turned_writing_as_a_sign(opened):
    page = opened()
    assert page.locator(".token[data-token='2'] b").inner_text() == EVIL
    assert page.locator(".token[data-token='6'] b").inner_text() == "▯abc"
    assert page.locator(".token[data-token='7'] b").inner_text() == "␣"


def test_a_token_tells_where_it_is_from_and_every_layers_experts_and_gates(opened):
    page = opened()
    gates = synthetic_trace(1000, 5).gate_weights
    for token in (
        0,
        1,
        2,
    ):  # their first bytes stand at each of the three places of a base64 quartet
        page.locator(f".token[data-token='{token}']").hover()
        rows = page.locator("#detail tbody tr").all_inner_texts()
        assert len(rows) == 5
        for layer, row in enumerate(rows):
            first, (one, two) = token + layer, gates[token, layer]
            expected = [layer, first, f"{one:.3f}", first + 1, f"{two:.3f}"]
            assert row.split() == list(map(str, expected))
    page.select_option("#segment", "evidence 2")
    page.locator(".token[data-token='501']").hover()
    told = page.inner_text("#detail")
    for fact in ("501 of 1,000", "evidence 2", "<b>pump.md", "1,501–1,502 of the document"):
        assert fact in told
    assert re.search(r"rank\s+2", told) and "log-prob" not in told
    page.select_option("#segment", "answer")
    page.locator(".token[data-token='999']").hover()
    assert "-0.250 nats" in page.inner_text("#detail") and "not routed" in page.inner_text(
        "#detail"
    )


def test_a_segment_has_its_own_usage_and_the_text_goes_there(opened):
    page = opened()
    page.select_option("#segment", "answer")
    assert "19 routed tokens" in page.inner_text("#usage-says")
    assert page.locator(".token").last.get_attribute("data-token") == "999"
    page.select_option("#segment", "evidence")
    assert "980 routed tokens" in page.inner_text("#usage-says")


def test_it_opens_at_a_segment_and_the_next_use_stays_in_it(opened):
    page = opened(segment="evidence 2")
    assert page.input_value("#segment") == "evidence 2"
    assert "480 routed tokens" in page.inner_text("#usage-says")
    assert page.locator(".token[data-token='500']").count() == 1
    page.select_option("#layer", "0")
    page.select_option("#expert", "3")
    seen = []
    for _ in range(70):
        page.click("#next-use")
        seen.append(int(page.evaluate("document.activeElement.dataset.token")))
    assert all(500 <= token < 980 and token % 16 in (2, 3) for token in seen)
    assert len(set(seen)) == 60  # once around


def test_a_segment_without_tokens_is_not_offered(page, tmp_path):
    trace = synthetic_trace(100, 2)
    trace = replace(trace, segment_names=(*trace.segment_names, "history"))
    (tmp_path / "trace.html").write_text(trace_page(trace, title="x"), "utf-8")
    page.goto((tmp_path / "trace.html").as_uri())
    offered = page.locator("#segment option").all_inner_texts()
    assert offered == ["all", "evidence, all", "evidence 1", "evidence 2", "answer"]


def test_a_keyboard_is_enough(opened):
    page = opened()
    page.focus("#usage")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert (page.input_value("#layer"), page.input_value("#expert")) == ("1", "1")
    page.focus("#next-use")
    page.keyboard.press("Enter")
    focused = "document.activeElement.dataset.token"
    assert page.evaluate(focused) == "15"
    for key in ("ArrowRight", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
    assert page.evaluate(focused) == "416" and page.input_value("#layer") == "2"
    assert numbers(page, 416) == [2, 3] and "416 of 1,000" in page.inner_text("#detail")
    page.focus("#strip")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token").last.get_attribute("data-token") == "999"


def test_windows_follow_one_another_and_the_strip_leads_to_any(opened):
    page = opened()
    shown = "all => [all.length, +all[0].dataset.token]"
    page.click("#next")
    assert page.eval_on_selector_all(".token", shown) == [400, 400]
    page.click("#next")
    assert page.eval_on_selector_all(".token", shown) == [400, 600] and page.is_disabled("#next")
    page.locator("#position").fill("123")
    assert page.eval_on_selector_all(".token", shown) == [400, 123]
    box = page.locator("#strip").bounding_box()
    half = 34 + (box["width"] - 36) / 2
    page.locator("#strip").click(position={"x": half, "y": 10 + 2.5 * 14})
    assert abs(page.eval_on_selector_all(".token", shown)[1] - 300) <= 1
    assert page.input_value("#layer") == "2"


def test_another_width_is_drawn_anew(opened):
    page = opened()
    page.set_viewport_size({"width": 600, "height": 800})
    page.wait_for_function("document.querySelector('#usage').width < 600")
    click_cell(page, layer=4, expert=15)
    assert (page.input_value("#layer"), page.input_value("#expert")) == ("4", "15")
    assert page.evaluate("document.documentElement.scrollWidth") <= 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_ground_differ_in_both_colour_schemes(page, opened, scheme):
    page.emulate_media(color_scheme=scheme)
    opened()
    text, ground = page.evaluate(
        "() => { const s = getComputedStyle(document.body); "
        "return [s.color, s.backgroundColor].map(c => c.match(/\\d+/g).slice(0, 3).map(Number)); }"
    )
    assert sum(text) - sum(ground) > 500 if scheme == "dark" else sum(ground) - sum(text) > 500


def test_without_scripts_the_usage_is_still_there(browser, tmp_path):
    path = tmp_path / "trace.html"
    path.write_bytes(trace_page(synthetic_trace(100, 5), title="Valve").encode())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript td").count() == 5 * 17
    assert page.locator("#view").is_hidden()
    context.close()


def test_a_long_trace_of_a_real_size_opens_within_five_seconds(page, opened, tmp_path):
    path = tmp_path / "long.html"
    path.write_bytes(trace_page(synthetic_trace(131_072, 32), title="Long").encode())
    started = time.perf_counter()
    page.goto(path.as_uri())
    page.locator("#tokens .token").first.wait_for()
    assert time.perf_counter() - started < 5
    assert path.stat().st_size < 60_000_000 and page.locator(".token").count() == 400
    page.locator("#position").fill("131072")
    assert page.locator(".token").last.get_attribute("data-token") == "131071"
    page.locator(".token").nth(10).hover()
    assert page.locator("#detail tbody tr").count() == 32
