"""Make the pictures of the README from a real run: python docs/make_pictures.py (needs Chromium and the test extra)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import workbench as wb
from workbench.demo import CORPORA, judge, read_questions
from workbench.plots.figures import png_bytes
from workbench.report import Picture, Section, answers_section, picture_html, report_page

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """One question, its answer with the passages, and the experts that were used."""
    retriever = wb.build_retriever(wb.read_corpus(CORPORA))
    generator = wb.load_generator("pocket")
    truths = read_questions(CORPORA / "questions.jsonl")
    judged = (judge(truth, retriever, generator) for truth in truths if truth["answerable"])
    answer = next(
        j.answer for j in judged if j.evidence_quoted
    )  # one that it gets right, and the README says so
    experts = Picture(
        png_bytes(wb.plot_expert_usage(answer.routing)),
        "Share of the prompt's and the answer's tokens that each layer sent to each expert.",
    )
    html = report_page(
        "Where does this answer come from?",
        [
            answers_section("The passages and the characters", [answer]),
            Section("The experts", picture_html(experts)),
        ],
    )
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "page.html"
        page_file.write_text(html, "utf-8")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            headless=True,
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.screenshot(path=str(IMAGES / "overview.png"), full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
