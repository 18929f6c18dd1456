"""Pictures of edits, dials and contexts hold the numbers of their results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.effects.answers import MEASURES, ChangedAnswer, EditEffect
from workbench.effects.contexts import ContextContrast
from workbench.effects.controls import ExpertPlace
from workbench.effects.dial import Dial, DialTest
from workbench.evaluation.retrieval import compare
from workbench.plots.changes import plot_answer_change, plot_contexts, plot_dial
from workbench.plots.conventions import SERIES
from workbench.plots.figures import new_axes, png_bytes
from workbench.routing.compare import RoutingComparison
from workbench.routing.intervene import Edit


def made_effect(*, answers: int = 6, arms: int = 3, cited: bool = True) -> EditEffect:
    """A third of the answers change, all keep half of their citations, none abstains."""
    changed = tuple(
        ChangedAnswer(
            before=SimpleNamespace(text="a", abstained=False),
            after=SimpleNamespace(text="ab"[place % 3 == 0], abstained=False),
            likelihood_change=-2.0 - place,
            marks_kept=0.5 if cited else np.nan,
            overlap=0.25 * (place % 2) if cited else np.nan,
            is_right_before=None,
            is_right_after=None,
        )
        for place in range(answers)
    )
    controls = np.tile([0.5, -1.0, 0.9, 1.0, 0.0, np.nan], (arms, 1)) + 0.0
    controls[:, 0] -= np.arange(arms) / 10
    return EditEffect(
        edits=(Edit("ban", 3, (0, 2)), Edit("bias", 7, None, 1.0)), segment="answer", answers=changed,
        controls=controls.reshape(arms, len(MEASURES)), arms=((ExpertPlace(0, 1),),) * arms,
    )  # fmt: skip


def points(ax, size: float) -> list:
    """Where the marks of that size stand: 48 is that of the edits, 13 that of control arms."""
    return [
        c.get_offsets() for c in ax.collections if getattr(c, "get_sizes", lambda: [0])() == [size]
    ]


def test_each_share_has_its_mean_interval_and_control_arms() -> None:
    effect = made_effect()
    ax = plot_answer_change(effect)
    frame = effect.to_frame().set_index("measure")
    names = ["changed", "marks_kept", "overlap", "abstained"]
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows[:2] == ["answers with another text", "citations kept"] and len(rows) == 5
    for place, (name, mark, arms) in enumerate(
        zip(names, points(ax, 48), points(ax, 13), strict=True)
    ):
        assert mark.tolist() == [[frame.loc[name, "mean"], place]]
        np.testing.assert_array_equal(arms[:, 0], effect.controls[:, MEASURES.index(name)])
        assert ((arms[:, 1] > place) & (arms[:, 1] < place + 0.5)).all()
    bars = [c.get_segments()[0] for c in ax.collections if hasattr(c, "get_segments")]
    ends = [segment[:, 0].tolist() for segment in bars if segment[0, 1] == segment[1, 1]]
    np.testing.assert_allclose(ends, frame.loc[names, ["low", "high"]].values)


def test_marks_are_filled_where_the_edits_are_outside_all_control_arms() -> None:
    ax = plot_answer_change(made_effect())  # changed 1/3 in 0.3 … 0.5; abstained 0 as all arms
    marks = [c for c in ax.collections if getattr(c, "get_sizes", lambda: [0])() == [48]]
    is_filled = [not np.allclose(mark.get_facecolor()[0], 1.0) for mark in marks]
    assert is_filled == [False, True, True, False]


def test_what_is_in_nats_is_said_in_words() -> None:
    texts = [text.get_text() for text in plot_answer_change(made_effect()).texts]
    assert any(
        t.startswith("-4.50 nats (") and t.endswith("outside control arms: -1.00 to -1.00")
        for t in texts
    )
    alone = plot_answer_change(made_effect(answers=1, arms=0))
    assert "-2.00 nats" in [text.get_text() for text in alone.texts]  # neither interval nor arms
    assert len(alone.get_legend().get_texts()) == 1


def test_the_title_names_the_edits_or_counts_them() -> None:
    effect = made_effect(cited=False)
    ax = plot_answer_change(effect)
    assert ax.get_title() == (
        "ban 3 in layers 0, 2; bias 7 in all layers (answer tokens)\n6 answers, 3 control arms"
    )
    assert "citations kept" not in [text.get_text() for text in ax.get_yticklabels()]
    many = EditEffect(effect.edits * 2, None, effect.answers, effect.controls, effect.arms)
    assert plot_answer_change(many).get_title().startswith("4 edits of experts (all tokens)")


def made_dial(*, best: float = 0.5) -> DialTest:
    amounts = (-1.0, 0.0, 0.5, 2.0)
    learned = np.array([-0.5, 0.0, 0.4, 0.1])
    dial = Dial((ExpertPlace(0, 3), ExpertPlace(1, 2)), np.ones(2), amounts, learned, best, None)
    changes = np.array([[-1.0, 0.0, 0.2, -3.0], [-0.5, 0.0, 0.4, -2.0], [-0.3, 0.0, 0.1, -1.0]])
    controls = np.array([[0.1, 0.0, -0.1, 0.3], [-0.2, 0.0, 0.2, -0.4]])
    return DialTest(dial, changes, controls)


def test_a_dial_shows_both_halves_the_control_band_and_the_chosen_amount() -> None:
    test = made_dial()
    ax = plot_dial(test)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(
        lines["other cases (bars: 95%)"].get_ydata(), test.changes.mean(axis=0)
    )
    np.testing.assert_array_equal(lines["cases it learned from"].get_ydata(), test.dial.learned)
    widths = [
        lines[name].get_linewidth() for name in ("cases it learned from", "other cases (bars: 95%)")
    ]
    assert widths[0] < widths[1] / 2
    assert lines["chosen: +0.5"].get_xdata() == [0.5, 0.5]
    assert lines["the model as it is"].get_xdata() == [0.0, 0.0]
    band, bars = ax.collections
    low, high = test.controls.min(axis=0), test.controls.max(axis=0)
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    for amount, *ends in zip(test.dial.amounts, low, high, strict=True):
        assert {(amount, end) for end in ends} <= corners
    frame = test.to_frame()
    np.testing.assert_allclose(
        [segment[:, 1] for segment in bars.get_segments()], frame[["low", "high"]].values
    )
    assert "2 experts, on 3 answers" in ax.get_title() and "at +0.5: +0.233 nats" in ax.get_title()


def made_contrasts(*, layers: int = 5) -> list[ContextContrast]:
    def compared(kept: float) -> RoutingComparison:
        agreement = np.linspace(1.0, kept, layers)
        nothing = np.zeros((layers, 16))
        return RoutingComparison(
            nothing, nothing, None, nothing[:, 0], nothing[:, 0], nothing[:, 0],
            agreement, agreement - 0.1, np.minimum(agreement + 0.05, 1.0), True, (9, 9), (),
        )  # fmt: skip

    gain = compare([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    return [
        ContextContrast("without", gain, compared(0.4), compared(0.6)),
        ContextContrast("shuffled", gain, compared(0.7), compared(0.8)),
    ]


@pytest.mark.parametrize("segment", ["answer", "question"])
def test_contexts_show_the_share_of_experts_that_change(segment: str) -> None:
    contrasts = made_contrasts()
    ax = plot_contexts(contrasts, segment=segment)
    bars = [c.get_segments() for c in ax.collections]
    for one, line, bar in zip(contrasts, ax.lines, bars, strict=True):
        found = getattr(one, segment)
        np.testing.assert_allclose(line.get_xdata(), 1 - found.agreement)
        ends = np.array([sorted(part[:, 0]) for part in bar])
        np.testing.assert_allclose(
            ends, np.stack([1 - found.agreement_high, 1 - found.agreement_low], axis=1)
        )
    styles = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines]
    assert styles == list(SERIES[:2]) and ax.get_ylim() == (4.5, -0.5) and segment in ax.get_title()
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0].startswith("no evidence\n(gain +2.00 nats") and names[1].startswith("its words")


def test_contexts_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(ValueError, match="segment='evidence' is not compared; use 'question' or"):
        plot_contexts(made_contrasts(), segment="evidence")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_contexts([])


def test_changes_are_drawn_without_a_warning() -> None:
    for draw, result in (
        (plot_answer_change, made_effect()),
        (plot_dial, made_dial()),
        (plot_contexts, made_contrasts(layers=32)),
    ):
        ax = new_axes(width=6, height=3)
        assert draw(result, ax=ax) is ax
        assert len(png_bytes(draw(result), dpi=50)) > 3000
