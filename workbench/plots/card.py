"""Expert card → one picture: its load by segment, its words, its companions, and some of its tokens in context."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from workbench.effects.card import ExpertCard, TokenContext
from workbench.markup import shorten
from workbench.plots.conventions import segment_style
from workbench.plots.figures import new_axes
from workbench.plots.labels import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Places in characters from the left
_COLUMNS = 118
_BARS, _BARS_STOP, _WORDS = 13, 40, 72
_BEFORE_STOP, _TOKEN, _PLACE = 42, 18, 36
# Width of a monospaced character, rounded up to whole dots, and height of a line, in font sizes
_CHARACTER, _LINE = 1.04 * 0.602, 1.45
_POINTS = 8.0
_FAMILY = "monospace"
_QUIET = "#555555"


def plot_expert_card(card: ExpertCard, *, ax: Axes | None = None) -> Axes:
    """Bars of the expert's share of each segment with a dashed line at uniform; its words, companions and contexts.

    Words stand with how many of their tokens the expert took, companions with the share of its tokens that use them
    and the lift over independent choices. Spaces belong to words: “ valve” and “valve” are two.

    >>> from workbench.effects.card import expert_card
    >>> from workbench.routing.trace import example_trace
    >>> ax = plot_expert_card(expert_card([example_trace()], layer=0, expert=2))
    >>> print(ax.get_title())
    expert 2 of layer 0
    used by 50.0% of 2 tokens (1 × uniform), mean gate weight 0.75
    """
    companions = _companion_lines(card)
    rows = max(len(card.segments), len(card.top), 1) + 1
    contexts_at = rows + 0.5 + len(companions) + (0.5 if companions else 0.0)
    bottom = contexts_at + (1 + len(card.contexts) if card.contexts else 0)
    if ax is None:
        points = _POINTS
        width, height = _COLUMNS * _CHARACTER * points / 72, bottom * _LINE * points / 72
        ax = new_axes(width=width + 0.2, height=height + 0.8)
    else:
        box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
        points = 72 * min(box.width / (_COLUMNS * _CHARACTER), box.height / (bottom * _LINE))
    ax.set_xlim(0, _COLUMNS)
    ax.set_ylim(bottom, 0)
    ax.set_axis_off()
    said = [f"expert {card.expert} of layer {card.layer}", card.summary(), card.effect_text()]
    ax.set_title("\n".join(filter(None, said)), fontsize=1.25 * points)
    _draw_segments(ax, card, points)
    _draw_words(ax, card, points)
    for number, line in enumerate(companions):
        _write(ax, 0, rows + 0.5 + number, line, points)
    if card.contexts:
        _write(ax, 0, contexts_at, "some of its tokens, in context", points, weight="bold")
    for number, context in enumerate(card.contexts):
        _draw_context(ax, context, contexts_at + 1 + number, points)
    return ax


def _draw_segments(ax: Axes, card: ExpertCard, points: float) -> None:
    from matplotlib.patches import Rectangle

    _write(ax, 0, 0, "share of each segment (dashed: uniform)", points, weight="bold")
    most = max([2 * card.uniform, *(segment.share for segment in card.segments)])
    scale = (_BARS_STOP - _BARS) / most
    for number, segment in enumerate(card.segments, start=1):
        colour, hatch = segment_style(segment.name)
        name = shorten(visible(segment.name, family=_FAMILY), _BARS - 1)
        _write(ax, _BARS - 1, number, name, points, ha="right")
        ax.add_patch(
            Rectangle(
                (_BARS, number + 0.15), scale * segment.share, 0.7,
                facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.6, gid="bar",
            )
        )  # fmt: skip
        times = segment.share / card.uniform
        text = f"{segment.share:.1%} of {segment.tokens:,} ({times:.2g} ×)"
        _write(ax, _BARS_STOP + 1, number, text, points)
    uniform = _BARS + scale * card.uniform
    ax.plot(
        [uniform] * 2,
        [1, 1 + max(len(card.segments), 1)],
        color="black",
        linestyle="--",
        linewidth=1.0,
    )


def _draw_words(ax: Axes, card: ExpertCard, points: float) -> None:
    _write(ax, _WORDS, 0, "words it takes most surely (how many of all, z)", points, weight="bold")
    for number, word in enumerate(card.top, start=1):
        text = shorten(visible(word.text, family=_FAMILY), 22)
        _write(ax, _WORDS, number, f"“{text}”", points)
        counts = f"{word.taken.chosen} of {word.taken.tokens}, z {word.taken.z:.1f}"
        _write(ax, _COLUMNS, number, counts, points, ha="right", color=_QUIET)
    if not card.top:
        _write(ax, _WORDS, 1, "none more than others", points, color=_QUIET)


def _draw_context(ax: Axes, context: TokenContext, row: float, points: float) -> None:
    """The token in a box, what is before it to the left and what follows to the right, and where it stands."""
    from matplotlib.patches import Rectangle

    before, text, after = (
        visible(part, family=_FAMILY) for part in (context.before, context.text, context.after)
    )
    text = shorten(text, _TOKEN)
    _write(ax, _BEFORE_STOP, row, before[-_BEFORE_STOP:], points, ha="right")
    ax.add_patch(
        Rectangle(
            (_BEFORE_STOP, row + 0.05),
            len(text),
            0.9,
            facecolor="#ffe9a8",
            edgecolor="black",
            linewidth=0.5,
        )
    )
    _write(ax, _BEFORE_STOP + len(text) / 2, row, text, points, ha="center", gid="token")
    right = _BEFORE_STOP + len(text)
    _write(ax, right, row, after[: _COLUMNS - _PLACE - right - 1], points)
    place = shorten(visible(context.place, family=_FAMILY), _PLACE)
    _write(ax, _COLUMNS, row, place, points, ha="right", color=_QUIET)


def _companion_lines(card: ExpertCard) -> list[str]:
    lines: list[str] = []
    for name, found in card.companions().items():
        if found:
            # what is said of one companion stays on one line
            listed = ", ".join(str(one).replace(" ", "\u00a0") for one in found)
            lines += textwrap.wrap(f"{name}: {listed}", _COLUMNS, subsequent_indent="    ")
    return lines


def _write(ax: Axes, x: float, row: float, text: str, points: float, **style: Any) -> None:
    ax.text(
        x, row + 0.5, text, fontsize=points, family=_FAMILY, va="center", parse_math=False, in_layout=False, **style
    )  # fmt: skip
