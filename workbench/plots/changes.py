"""Edits, dials and contexts → how much answers, their likelihood and their routing change, beside control arms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.effects.answers import MEASURES, EditEffect
from workbench.effects.contexts import ContextContrast
from workbench.effects.dial import DialTest
from workbench.markup import counted
from workbench.plots.conventions import SERIES, layers_down, series_axes
from workbench.plots.figures import new_axes
from workbench.plots.labels import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# what each share is called, and where it stands if nothing changes
_SHARES = {
    "changed": ("answers with another text", 0.0),
    "marks_kept": ("citations kept", 1.0),
    "overlap": ("overlap of cited characters", 1.0),
    "abstained": ("abstentions, after less before", 0.0),
    "right": ("right citations, after less before", 0.0),
}
_CONTROL, _BAND = "#777777", "#d0d0d0"


def plot_answer_change(effect: EditEffect, *, ax: Axes | None = None) -> Axes:
    """One row a measure: its mean over questions with the edits, with its 95% interval, and every control arm.

    Shares, or changes of shares, stand between -1 and 1, and the small upright line of a row is where it would be if
    nothing changed. The mark of the edits is filled where it lies outside the range of all control arms, hollow where
    it does not; of edits that do nothing particular, 2 in arms + 1 are filled. The last row says in words by how many
    nats the first answers became more or less likely.

    >>> import workbench as wb
    >>> from workbench.effects.answers import edit_effect
    >>> from workbench.routing.intervene import Edit
    >>> generator = wb.load_generator("pocket")
    >>> retriever = wb.build_retriever(wb.read_corpus("corpora/manual/pump.md"))
    >>> answer = wb.ask("How often are the bearings checked?", k=1, retriever=retriever, generator=generator)
    >>> effect = edit_effect(
    ...     generator, [answer], [Edit("ban", 3, (0,))], documents=retriever.documents, arms=2
    ... )
    >>> print(plot_answer_change(effect).get_title())
    ban 3 in layer 0 (all tokens)
    1 answer, 2 control arms
    """
    rows = effect.to_frame().set_index("measure").to_dict("index")
    names = [name for name in _SHARES if name in rows]
    ax = ax if ax is not None else new_axes(width=9.0, height=2.2 + 0.5 * len(names))
    for place, name in enumerate(names):
        row, still = rows[name], _SHARES[name][1]
        ax.vlines(still, place - 0.35, place + 0.35, color="black", linewidth=1)
        arms = effect.controls[:, MEASURES.index(name)]
        spread = np.linspace(
            0.14, 0.3, len(arms)
        )  # below the row, so that equal arms are told apart
        ax.scatter(arms, place + spread, s=13, color=_CONTROL, marker="o", linewidths=0)
        ax.hlines(place, row["low"], row["high"], color=SERIES[0][0], linewidth=2)
        is_beyond = bool(row.get("beyond", False))
        ax.scatter(
            [row["mean"]], [place], s=48, marker="D", zorder=3, linewidths=1.5,
            facecolor=SERIES[0][0] if is_beyond else "white", edgecolor=SERIES[0][0],
        )  # fmt: skip
        ax.annotate(
            _with_interval(row), (1.01, place),
            xycoords=ax.get_yaxis_transform(), va="center", fontsize="small",
        )  # fmt: skip
    ax.axhline(len(names) - 0.5, color="black", linewidth=0.8)
    ax.text(0.0, len(names), _in_nats(rows["likelihood_change"]), ha="center", va="center")
    ax.set_yticks(
        range(len(names) + 1), [*(_SHARES[n][0] for n in names), "likelihood of the first answer"]
    )
    ax.set_ylim(len(names) + 0.5, -0.5)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xlabel("share of answers or citations, or its change (upright line: nothing changes)")
    arms_text = counted(len(effect.arms), "control arm") if effect.arms else "no control arm"
    ax.set_title(f"{_edited(effect)}\n{counted(len(effect.answers), 'answer')}, {arms_text}")
    _explain_marks(ax, has_arms=bool(effect.arms))
    return ax


def plot_dial(test: DialTest, *, ax: Axes | None = None) -> Axes:
    """The change of the answers' log-probability by how far the dial is turned.

    The thick line with intervals (95%, over answers) is of cases that the dial did not learn from, the thin one of
    those it did; the grey band is the range of the control arms. The dashed line stands at the amount that was best on
    the cases it learned from, the dotted one at 0, the model as it is.

    >>> from workbench.effects.controls import ExpertPlace
    >>> from workbench.effects.dial import Dial
    >>> amounts, learned = (-1.0, 0.0, 1.0), np.array([-0.5, 0.0, 0.4])
    >>> dial = Dial((ExpertPlace(0, 3),), np.array([0.5]), amounts, learned, 1.0, None)
    >>> ax = plot_dial(DialTest(dial, np.array([[-0.4, 0.0, 0.2], [-0.2, 0.0, 0.4]]), np.zeros((2, 3))))
    >>> print(ax.get_title())
    dial of 1 expert, on 2 answers it did not learn from
    at +1: +0.300 nats (-0.971 to +1.571)
    """
    frame, dial = test.to_frame(), test.dial
    ax = ax if ax is not None else new_axes(width=9.0, height=4.4)
    at = frame["amount"]
    ax.fill_between(
        at, frame["control_low"], frame["control_high"], color=_BAND, edgecolor=_CONTROL, linewidth=0.6,
        label=f"{counted(len(test.controls), 'control arm')}, range",
    )  # fmt: skip
    ax.axhline(0.0, color="black", linewidth=0.6)
    ax.axvline(0.0, color="black", linewidth=1, linestyle=":", label="the model as it is")
    ax.axvline(
        dial.amount, color="black", linewidth=1.2, linestyle="--", label=f"chosen: {dial.amount:+g}"
    )
    colour, marker, _ = SERIES[1]
    ax.plot(
        at, frame["learned"], color=colour, marker=marker, markersize=3, linewidth=0.9,
        label="cases it learned from",
    )  # fmt: skip
    colour, marker, _ = SERIES[0]
    ax.vlines(at, frame["low"], frame["high"], color=colour, linewidth=1.6)
    ax.plot(
        at, frame["tested"], color=colour, marker=marker, markersize=6, linewidth=2,
        label="other cases (bars: 95%)",
    )  # fmt: skip
    ax.set_xlabel("amount (in spreads of a layer's router logits)")
    ax.set_ylabel("change of log-probability (nats)")
    found = test.at_best
    experts, answers = counted(len(dial.experts), "expert"), counted(found.questions, "answer")
    ax.set_title(
        f"dial of {experts}, on {answers} it did not learn from\n"
        f"at {dial.amount:+g}: {found.difference:+.3f} nats ({found.low:+.3f} to {found.high:+.3f})"
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False)
    return ax


def plot_contexts(
    contrasts: Sequence[ContextContrast],
    *,
    segment: Literal["question", "answer"] = "answer",
    ax: Axes | None = None,
) -> Axes:
    """The share of a token's experts that are others after the evidence than after each condition, by layer.

    One line a condition, with 95% intervals; `segment` says whose tokens. Without any evidence the positions differ,
    too; what changes against the same words shuffled is due to what they say. The legend holds what the evidence adds
    to the answers' log-probability over each condition.

    >>> import workbench as wb
    >>> from workbench.effects.contexts import contrast_contexts
    >>> generator = wb.load_generator("pocket")
    >>> retriever = wb.build_retriever(wb.read_corpus("corpora/manual/pump.md"))
    >>> questions = ("How often are the bearings checked?", "What kind of grease do the motors need?")
    >>> answers = [wb.ask(q, k=1, retriever=retriever, generator=generator) for q in questions]
    >>> ax = plot_contexts(contrast_contexts(answers, generator=generator, conditions=["without"]))
    >>> ax.get_title()
    "experts of the answer's tokens that evidence changes"
    """
    if segment not in ("question", "answer"):
        raise ValueError(f"segment={segment!r} is not compared; use 'question' or 'answer'")
    if not contrasts:
        raise ValueError("there is nothing to plot; give what contrast_contexts() returns")
    layers = len(contrasts[0].answer.agreement)
    ax = series_axes(ax, layers=layers)
    offsets = np.linspace(-0.2, 0.2, len(contrasts)) if len(contrasts) > 1 else np.zeros(1)
    for number, one in enumerate(contrasts):
        frame = one.to_frame()
        frame = frame[frame["segment"] == segment]
        colour, marker, style = SERIES[number % len(SERIES)]
        places = frame["layer"] + offsets[number]
        ax.hlines(places, frame["low"], frame["high"], color=colour, linewidth=1.4)
        ax.plot(
            frame["shift"], places, color=colour, marker=marker, linestyle=style, linewidth=1, markersize=5,
            markeredgecolor="black", markeredgewidth=0.5,
            label=f"{_AGAINST[one.condition]}\n(gain {one.gain.difference:+.2f} nats,\n"
            f" {one.gain.low:+.2f} to {one.gain.high:+.2f})",
        )  # fmt: skip
    layers_down(ax, layers)
    ax.set_xlim(left=0.0)
    ax.set_xlabel("share of a token's experts that are others (bars: 95% interval)")
    ax.set_title(f"experts of the {segment}'s tokens that evidence changes")
    ax.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize="small", frameon=False, title="evidence against",
        labelspacing=0.8, alignment="left",
    )  # fmt: skip
    return ax


_AGAINST = {
    "without": "no evidence",
    "shuffled": "its words shuffled",
    "distractor": "another question's",
}


def _edited(effect: EditEffect) -> str:
    """What was edited, in words, short enough for a title."""
    said = []
    for edit in effect.edits:
        layers = "all layers"
        if edit.layers is not None:
            layers = (
                f"layer{'' if len(edit.layers) == 1 else 's'} {', '.join(map(str, edit.layers))}"
            )
        said.append(f"{edit.action} {edit.expert} in {layers}")
    text = "; ".join(said) if len(said) <= 3 else f"{len(said)} edits of experts"
    tokens = "all tokens" if effect.segment is None else f"{label(effect.segment)} tokens"
    return f"{text} ({tokens})"


def _with_interval(row: Mapping[Hashable, Any], unit: str = "") -> str:
    """A mean, and its interval where there is more than one question."""
    text = f"{row['mean']:+.2f}{unit}"
    return f"{text} ({row['low']:+.2f} to {row['high']:+.2f})" if row["questions"] > 1 else text


def _in_nats(row: Mapping[Hashable, Any]) -> str:
    text = _with_interval(row, " nats")
    if "control" not in row:
        return text
    where = "outside" if row["beyond"] else "within"
    return f"{text}, {where} control arms: {row['control_low']:+.2f} to {row['control_high']:+.2f}"


def _explain_marks(ax: Axes, *, has_arms: bool) -> None:
    from matplotlib.lines import Line2D

    colour = SERIES[0][0]
    mark: dict[str, Any] = {"marker": "D", "color": colour, "markersize": 6, "linewidth": 2}
    handles = [
        Line2D([], [], markerfacecolor="white", label="with the edits, 95% interval", **mark)
    ]
    if has_arms:
        handles += [
            Line2D([], [], label="the same, outside all control arms", **mark),
            Line2D(
                [],
                [],
                marker="o",
                color=_CONTROL,
                markersize=3.5,
                linewidth=0,
                label="a control arm",
            ),
        ]
    below = 0.62 / ax.get_window_extent().height * ax.figure.dpi  # of inches, in axes
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -below),
        ncols=3,
        fontsize="small",
        frameon=False,
    )
