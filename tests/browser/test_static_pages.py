"""Static HTML in Chromium: hostile text stays text, both colour schemes are readable, nothing is fetched."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.report import Picture, Section, answers_section, picture_html, report_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(small_retriever, tiny_moe, tmp_path_factory):
    answers = [
        wb.ask(question, retriever=small_retriever, generator=tiny_moe, k=4)
        for question in ["<img src=x onerror='window.hit=1'>valve?", "Which valve failed first?"]
    ]
    from workbench.plots.figures import png_bytes
    from workbench.plots.routing import plot_expert_usage

    picture = Picture(
        png_bytes(plot_expert_usage(answers[1].routing)), "experts <script>window.hit=1</script>"
    )
    html = report_page(
        "<script>window.hit=1</script>",
        [answers_section("Answers", answers), Section("Experts", picture_html(picture))],
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html, "utf-8")
    return path


@pytest.mark.smoke
def test_hostile_text_runs_nothing_and_nothing_is_fetched(page, report):
    page.goto(report.as_uri())
    assert page.evaluate("window.hit") is None
    assert (page.errors, page.foreign) == ([], [])
    assert page.locator("img").count() == 1
    assert page.evaluate("document.images[0].naturalWidth") > 200
    assert "<script>" in page.inner_text("h1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_ground_differ_in_both_colour_schemes(page, report, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    colours = page.evaluate(
        "() => { const s = getComputedStyle(document.querySelector('.wb')); "
        "const c = document.createElement('canvas').getContext('2d'); "
        "const rgb = (v) => { c.fillStyle = v; c.fillRect(0,0,1,1); return [...c.getImageData(0,0,1,1).data]; }; "
        "return [rgb(s.color), rgb('Canvas')]; }"
    )
    text = colours[0][:3]
    assert (sum(text) > 380) == (scheme == "dark")


def test_a_passage_opens_without_a_script(page, report):
    page.goto(report.as_uri())
    closed = page.locator("details:not([open])").first
    closed.locator("summary").click()
    assert page.locator("details[open]").count() >= 1
