from __future__ import annotations

from types import SimpleNamespace

from workbench.generation.results import Candidate
from workbench.plots.context import plot_context
from workbench.plots.figures import png_bytes


def answer_with(*texts: str) -> SimpleNamespace:
    candidates = tuple(Candidate(n, text, -float(n)) for n, text in enumerate(texts, start=1))
    generation = SimpleNamespace(candidates=candidates, quotes=(1,))
    return SimpleNamespace(question="From $5 to $10?", generation=generation, abstained=False)


def test_text_of_documents_is_no_mathematics_and_draws_no_control_character() -> None:
    ax = plot_context(answer_with("$x^$ and $y_$", "a\x07\u202eb 中"))
    assert len(png_bytes(ax, dpi=50)) > 3000
    assert ax.title._preprocess_math(ax.get_title()) == ("From $5 to $10?", False)
    shown = [text._preprocess_math(text.get_text())[0] for text in ax.get_yticklabels()]
    assert shown == ["$x^$ and $y_$", "a▯▯b ▯"]
    assert [bar.get_width() for bar in ax.patches] == [-1.0, -2.0]


def test_a_long_question_is_broken_into_lines() -> None:
    answer = answer_with("one")
    answer.question = "word " * 20
    lines = plot_context(answer).get_title().split("\n")
    assert len(lines) == 3 and max(len(line) for line in lines) <= 46
