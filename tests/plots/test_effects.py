"""Maps of effects hold the scan's numbers and mark what is tested, dead or beyond its load."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PatchCollection, PathCollection

from workbench.effects.cases import Case
from workbench.effects.scan import ContextUse, ExpertScan, scan_experts
from workbench.generation.prompts import build_prompt
from workbench.plots.conventions import LESS_HATCH, MORE_HATCH
from workbench.plots.effects import plot_context_use, plot_expert_effects
from workbench.plots.figures import new_axes, png_bytes

QUESTIONS = [
    f"{start} the {thing}?"
    for start in ("Which valve failed before", "What is said of", "Who wrote on")
    for thing in ("pump", "flood gate", "night shift", "bread")
]


def made_scan(
    *,
    answers: int = 12,
    layers: int = 3,
    experts: int = 16,
    seed: int = 0,
    segment: str | None = None,
) -> ExpertScan:
    """Noise, but for expert 2 of layer 1 that helps, 4 of layer 0 that harms, and 5 of layer 0 that nobody chose."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 60, (answers, layers, experts))
    effects = generator.normal(0, 0.1, (answers, layers, experts))
    effects[:, 1, 2] += 2
    effects[:, 0, 4] -= 1
    counts[:, 0, 5] = 0
    effects[:, 0, 5] = 0
    return ExpertScan(
        questions=tuple(map(str, range(answers))), effects=effects, counts=counts,
        log_probabilities=generator.normal(-3, 1, answers), action="drop", segment=segment, passes=1.0,
    )  # fmt: skip


def hatched(ax, hatch: str) -> set[tuple[int, int]]:
    found = [c for c in ax.collections if isinstance(c, PatchCollection) and c.get_hatch() == hatch]
    corners = (path.get_extents().min for c in found for path in c.get_paths())
    return {(round(y + 0.5), round(x + 0.5)) for x, y in corners}


def marked(ax, size: int) -> set[tuple[int, int]]:
    """Cells (row, column) with a mark of that size: 30 crosses, 22 signs, 9 dots."""
    found = [c for c in ax.collections if isinstance(c, PathCollection) and c.get_sizes() == [size]]
    return {(round(y), round(x)) for c in found for x, y in c.get_offsets()}


def test_the_map_holds_mean_effects_around_zero_and_crosses_what_was_never_used() -> None:
    scan = made_scan()
    ax = plot_expert_effects(scan)
    shown = ax.images[0].get_array()
    assert shown.mask.nonzero()[0].tolist() == [0] and shown.mask[0, 5]
    np.testing.assert_array_equal(shown[~shown.mask], scan.mean_effect[~shown.mask])
    assert ax.images[0].get_clim() == (-scan.mean_effect.max(), scan.mean_effect.max())
    assert marked(ax, 30) == {(0, 5)}
    assert "(drop; all tokens)" in ax.get_title()


def test_hatches_are_the_cells_of_the_test_by_their_sign() -> None:
    scan = made_scan()
    found = scan.test()
    ax = plot_expert_effects(scan, q=0.2)
    for hatch, is_so in ((MORE_HATCH, found.difference > 0), (LESS_HATCH, found.difference < 0)):
        cells = np.argwhere((found.q_values <= 0.2) & is_so)
        assert hatched(ax, hatch) == set(map(tuple, cells.tolist()))
    assert (1, 2) in hatched(ax, MORE_HATCH) and (0, 4) in hatched(ax, LESS_HATCH)
    assert f"12 answers: {(found.q_values <= 0.2).sum()} of 48 cells at q ≤ 0.2" in ax.get_title()
    with pytest.raises(ValueError, match="q=1 is outside 0 to 1"):
        plot_expert_effects(scan, q=1)


def test_one_answer_is_not_tested_and_its_signs_are_marked() -> None:
    ax = plot_expert_effects(made_scan(answers=1))
    assert not hatched(ax, MORE_HATCH) and not hatched(ax, LESS_HATCH)
    assert ax.get_title().endswith("1 answer: no test") and "hatched" not in ax.get_xlabel()
    assert marked(ax, 22) == {(1, 2), (0, 4)}


def test_dots_are_the_cells_beyond_their_load_if_there_are_enough_to_compare_with() -> None:
    scan = made_scan()
    ax = plot_expert_effects(scan)
    assert marked(ax, 9) == set(map(tuple, np.argwhere(scan.beyond_load()).tolist()))
    assert (1, 2) in marked(ax, 9) and "nearest load" in ax.get_xlabel()
    few = plot_expert_effects(made_scan(layers=2, experts=10))
    assert not marked(few, 9) and "nearest load" not in few.get_xlabel()


def test_effects_per_token_keep_the_marks_of_the_mean_effect() -> None:
    scan = made_scan()
    ax, mean = plot_expert_effects(scan, per_token=True), plot_expert_effects(scan)
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), scan.effect_per_token)
    assert hatched(ax, MORE_HATCH) == hatched(mean, MORE_HATCH)
    assert ax.images[0].colorbar.ax.get_ylabel() == "effect (nats a choice)"


def test_the_use_of_evidence_is_the_difference_of_both_scans() -> None:
    bare, full = made_scan(seed=1, segment="answer"), made_scan(seed=2, segment="answer")
    full.effects[:, 2, 9] += 1
    use = ContextUse(with_evidence=full, without_evidence=bare)
    ax = plot_context_use(use)
    mean = (full.effects - bare.effects).mean(axis=0)
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown[~shown.mask], mean[~shown.mask])
    assert (2, 9) in hatched(ax, MORE_HATCH) and marked(ax, 30) == {(0, 5)}
    gain = use.gain
    assert f"{gain.difference:+.2f} nats ({gain.low:+.2f} to {gain.high:+.2f})" in ax.get_title()
    assert "(drop; answer tokens)" in ax.get_title() and not marked(ax, 9)


@pytest.mark.parametrize("layers", [5, 32])
def test_maps_are_drawn_without_a_warning(layers: int) -> None:
    scan = made_scan(layers=layers)
    assert len(png_bytes(plot_expert_effects(scan), dpi=50)) > 5000
    ax = new_axes(width=5, height=3)
    assert plot_context_use(ContextUse(scan, scan), ax=ax) is ax
    assert len(png_bytes(ax, dpi=50)) > 5000


def test_planted_experts_are_marked_and_no_others(planted, planted_moe, small_retriever) -> None:
    said = [
        planted_moe.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in (planted.FROM_EVIDENCE, "22", planted.AFTER_DIGIT)
    ]
    parts = {
        "documents": small_retriever.documents, "tokenizer": planted_moe.tokenizer, "budget_tokens": 900,
    }  # fmt: skip
    cases = []
    for question in QUESTIONS:
        hits = small_retriever.search(question, k=1)
        cases.append(Case(question, build_prompt(question, hits, **parts), tuple(said)))
    scan = scan_experts(planted_moe, cases)
    ax = plot_expert_effects(scan)
    assert hatched(ax, MORE_HATCH) == {(0, planted.EVIDENCE), (0, planted.DIGITS)}
    assert hatched(ax, LESS_HATCH) == set() and marked(ax, 22) == set()
    assert (0, planted.DEAD) in marked(ax, 30)
