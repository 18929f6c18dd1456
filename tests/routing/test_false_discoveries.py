"""Where there is no difference hardly any is found: the share of false discoveries over many runs without any.

Under a null hypothesis that holds for every cell, a run is a false discovery if any of its cells is called different,
and Benjamini and Hochberg at 5 % promise at most 5 % of such runs. Beside it, the share of single p-values of at most
5 % must be near 5 %: a test that never finds anything would pass otherwise.
"""

from __future__ import annotations

import numpy as np
import pytest

from workbench.effects.scan import ContextUse, ExpertScan
from workbench.generation.prompts import build_prompt
from workbench.routing.compare import BLOCK, compare_routing
from workbench.routing.contrasts import contrast
from workbench.routing.drift import position_drift
from workbench.routing.groups import group_usage
from workbench.routing.specialization import specialization
from workbench.routing.trace import RoutingTrace

pytestmark = pytest.mark.slow  # some hundred runs each

RUNS, LAYERS, EXPERTS = 200, 2, 6
SHUFFLES = 299  # 12 cells: one alone can be called different, 12 / 300 < 5 %
MOST_FALSE = 0.07  # two standard errors of 200 runs above 5 % would be 8 %
QUESTIONS = (
    "Which valve failed first?", "When did the pump trip?", "What did the repair cost?",
    "Who sells bread on Fridays?", "Is the valve open at 22:47?", "How long is bread baked?",
    "What does bread need?", "Was anybody hurt?", "When was the hinge pin replaced?",
    "What is the pin made of?", "Which night does the report cover?", "Is V-14 a valve or a pump?",
    "Where is P3?", "What happened at 23:24?", "Who was hurt on Monday?", "Is it shut?",
)  # fmt: skip


def made(experts: np.ndarray, ids: np.ndarray | None = None) -> RoutingTrace:
    """A trace of these experts [tokens, layers, k]."""
    count = len(experts)
    return RoutingTrace(
        experts=experts.astype(np.uint8),
        gate_weights=None,
        n_experts=EXPERTS,
        token_ids=np.arange(count) if ids is None else ids,
        token_texts=("x",) * count,
        phases=np.zeros(count, np.uint8),
        segments=np.zeros(count, np.int16),
        segment_names=("answer",),
        spans=np.zeros((count, 2), np.int32),
        routed=np.ones(count, bool),
    )


def drawn(share: np.ndarray, tokens: int, generator: np.random.Generator) -> np.ndarray:
    """Two different experts a layer for each token, of a usage [layers, experts]: [tokens, layers, 2]."""
    keys = generator.gumbel(size=(tokens, *share.shape)) + np.log(share)
    return np.argsort(-keys, axis=2)[:, :, :2]


def usages(count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """The usage of texts that all differ: [layers, experts] each."""
    return [generator.dirichlet(np.full(EXPERTS, 2.0), size=LAYERS) for _ in range(count)]


def check(false_runs: list[bool], p_values: list[np.ndarray]) -> None:
    """Few runs are called different, and single cells nearly as often as their level says: means may tie."""
    assert np.mean(false_runs) <= MOST_FALSE
    assert 0.025 <= np.mean(np.concatenate([p.reshape(-1) for p in p_values]) <= 0.05) <= 0.06


@pytest.mark.parametrize("paired", [False, True])
def test_conditions_that_are_none_are_seldom_called_different(paired: bool) -> None:
    """Texts of like usage on both sides; paired ones are more alike to one another than to the rest."""
    generator = np.random.default_rng(1)
    false_runs, p_values, divergence = [], [], []
    for seed in range(RUNS):
        texts = usages(12 if paired else 16, generator)
        if paired:
            sides = [[made(drawn(share, 20, generator)) for share in texts] for _ in "ab"]
        else:
            all_of = [made(drawn(share, 12, generator)) for share in texts]
            order = generator.permutation(16)
            sides = [[all_of[n] for n in some] for some in (order[:8], order[8:])]
        found = compare_routing(
            *sides, is_paired=paired, permutations=SHUFFLES, resamples=10, seed=seed
        )
        assert found.contrast.is_paired == paired
        false_runs.append(bool((found.contrast.q_values <= 0.05).any()))
        p_values.append(found.contrast.p_values)
        divergence.append(found.divergence_p)
    check(false_runs, p_values)
    assert 0.02 <= np.mean(np.stack(divergence) <= 0.05) <= 0.075


def test_two_readings_of_one_text_are_seldom_called_different() -> None:
    """One trace against one: blocks of neighbours stand for texts."""
    generator = np.random.default_rng(2)
    false_runs, p_values = [], []
    for seed in range(RUNS):
        texts = usages(12, generator)
        sides = [
            made(np.concatenate([drawn(share, BLOCK, generator) for share in texts])) for _ in "ab"
        ]
        found = compare_routing(*sides, permutations=SHUFFLES, resamples=10, seed=seed)
        assert found.contrast.clusters == (12, 12)
        false_runs.append(bool((found.contrast.q_values <= 0.05).any()))
        p_values.append(found.contrast.p_values)
    check(false_runs, p_values)


def test_a_condition_that_is_one_is_found_in_most_runs() -> None:
    """The other side of it: as many texts with a difference."""
    generator = np.random.default_rng(3)
    found_in = 0
    for seed in range(20):
        sides: list[list[RoutingTrace]] = [[], []]
        for share in usages(16, generator):
            for favoured, side in zip((1.0, 4.0), sides, strict=True):
                weights = share.copy()
                weights[1, 5] *= favoured
                side.append(made(drawn(weights, 40, generator)))
        found = compare_routing(
            *sides, is_paired=True, permutations=SHUFFLES, resamples=10, seed=seed
        )
        called = {tuple(cell) for cell in np.argwhere(found.contrast.q_values <= 0.05).tolist()}
        found_in += (1, 5) in called and found.contrast.difference[1, 5] < 0
    assert found_in >= 18


@pytest.fixture(scope="module")
def read(planted_moe, small_retriever) -> list[RoutingTrace]:
    """Prompts of the planted model."""
    found = []
    for question in QUESTIONS:
        prompt = build_prompt(
            question, small_retriever.search(question, k=2), documents=small_retriever.documents,
            tokenizer=planted_moe.tokenizer, budget_tokens=900,
        )  # fmt: skip
        found.append(planted_moe.read(prompt))
    return found


def test_shuffled_prompts_of_the_planted_model_are_seldom_called_different(read) -> None:
    """Prompts share documents and words, and the planted experts take whole segments; labels mean nothing still."""
    generator = np.random.default_rng(4)
    experts = np.concatenate([t.experts[t.rows("evidence")] for t in read])
    clusters = np.repeat(np.arange(len(read)), [t.rows("evidence").sum() for t in read])
    false_runs = []
    for seed in range(RUNS):
        order = generator.permutation(len(read))
        is_x = np.isin(clusters, order[:8])
        found = contrast(
            experts, is_x, clusters, n_experts=16, permutations=999, resamples=10, seed=seed
        )
        false_runs.append(bool((found.q_values <= 0.05).any()))
    assert np.mean(false_runs) <= MOST_FALSE
    sides = [[read[n] for n in some] for some in (order[:8], order[8:])]
    same = compare_routing(*sides, segment="evidence", is_paired=False, permutations=999)
    np.testing.assert_allclose(same.contrast.difference, found.difference, atol=1e-12)
    np.testing.assert_allclose(same.contrast.p_values, found.p_values, atol=0.06)


# Effects


def scan(effects: np.ndarray, counts: np.ndarray | None = None) -> ExpertScan:
    cases = len(effects)
    return ExpertScan(
        questions=tuple(f"question {n}" for n in range(cases)),
        effects=effects,
        counts=np.ones(effects.shape, np.int64) if counts is None else counts,
        log_probabilities=np.zeros(cases),
        action="ban",
        segment=None,
        passes=1.0,
    )


def test_effects_around_zero_are_seldom_called_effects() -> None:
    """Heavy tails, and cells of one answer that go together: all that sign flips take for granted is the symmetry."""
    generator = np.random.default_rng(5)
    false_runs, p_values, of_delta = [], [], []
    for seed in range(RUNS):
        size = generator.lognormal(sigma=0.7, size=(14, 1, 1))
        sides = [size * generator.standard_t(4, size=(14, LAYERS, EXPERTS)) for _ in range(2)]
        with_evidence, without = (scan(effects) for effects in sides)
        found = with_evidence.test(permutations=SHUFFLES, seed=seed)
        false_runs.append(bool((found.q_values <= 0.05).any()))
        p_values.append(found.p_values)
        use = ContextUse(with_evidence, without)
        delta = use.test(permutations=SHUFFLES, seed=seed)
        of_delta.append(bool((delta.q_values <= 0.05).any()))
        np.testing.assert_allclose(delta.difference, (sides[0] - sides[1]).mean(axis=0))
        np.testing.assert_allclose(use.delta.mean(axis=0), delta.difference)
    check(false_runs, p_values)
    assert np.mean(of_delta) <= MOST_FALSE


def test_an_effect_of_one_expert_is_found_in_most_runs() -> None:
    generator = np.random.default_rng(6)
    found_in = 0
    for seed in range(20):
        effects = generator.standard_t(4, size=(14, LAYERS, EXPERTS))
        effects[:, 1, 5] += 3.5
        found = scan(effects).test(permutations=SHUFFLES, seed=seed)
        found_in += bool(found.q_values[1, 5] <= 0.05) and found.low[1, 5] > 0
    assert found_in >= 18


def test_cells_beyond_their_load_are_as_many_as_is_said() -> None:
    """Effects that grow with load and do nothing else: 2 in neighbours + 1 are outside of all their neighbours."""
    generator = np.random.default_rng(7)
    share = []
    for _ in range(RUNS):
        counts = generator.integers(90, 110, size=(4, 8, 16))
        effects = generator.normal(size=counts.shape)
        share.append(scan(effects, counts).beyond_load(neighbours=20).mean())
    assert np.mean(share) == pytest.approx(2 / 21, rel=0.1)


# Bands of chance


def words_of(
    generator: np.random.Generator, tokens: int, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts, groups and token ids: each word is routed by chances of its own, each group has words of its own."""
    ids = generator.integers(0, 12, tokens)
    chances = generator.dirichlet(np.ones(groups) * 2, size=12)
    group = np.array([generator.choice(groups, p=chances[word]) for word in ids])
    keys = generator.gumbel(size=(tokens, LAYERS, EXPERTS))
    keys += np.log(generator.dirichlet(np.full(EXPERTS, 2.0), size=(12, LAYERS)))[ids]
    return np.argsort(-keys, axis=2)[:, :, :2], group, ids


def test_bands_of_chance_hold_what_words_explain_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(8)
    outside, informed = [], []
    for seed in range(60):
        experts, groups, ids = words_of(generator, 500, 3)
        found = group_usage(
            experts, groups, n_groups=3, n_experts=EXPERTS, token_ids=ids, permutations=200,
            seed=seed,
        )  # fmt: skip
        outside.append(((found.usage < found.low) | (found.usage > found.high)).mean())
        informed.append((found.information > found.information_null).mean())
    # usage goes in steps, and a band ends on one: somewhat less than 5 %
    assert 0.03 <= np.mean(outside) <= 0.06
    assert 0.35 <= np.mean(informed) <= 0.6


def test_bands_of_chance_do_not_hold_what_words_do_not_explain() -> None:
    generator = np.random.default_rng(9)
    experts, groups, ids = words_of(generator, 500, 3)
    moved = experts.copy()
    moved[groups == 1, 0, 0] = np.where(
        (moved[groups == 1, 0] == 4).any(axis=1), moved[groups == 1, 0, 0], 4
    )
    found = group_usage(
        moved, groups, n_groups=3, n_experts=EXPERTS, token_ids=ids, permutations=200
    )
    assert found.usage[1, 0, 4] > found.high[1, 0, 4]
    assert (found.usage[[0, 2], 0, 4] < found.low[[0, 2], 0, 4]).all()


@pytest.mark.parametrize("whole", [False, True])
def test_divergence_of_groups_that_are_none_is_seldom_surprising(whole: bool) -> None:
    generator = np.random.default_rng(10)
    p_values = []
    for seed in range(100):
        if whole:
            texts = usages(12, generator)
            experts = np.concatenate([drawn(share, 15, generator) for share in texts])
            exchangeable = np.repeat(np.arange(12), 15)
            groups = generator.permutation(np.arange(12) % 2)[exchangeable]
        else:
            experts, groups, exchangeable = words_of(generator, 200, 2)
        found = specialization(
            experts, groups, exchangeable=exchangeable, n_experts=EXPERTS, whole=whole,
            permutations=99, seed=seed,
        )  # fmt: skip
        p_values.append(found.p_values)
    assert 0.02 <= np.mean(np.stack(p_values) <= 0.05) <= 0.075


def test_a_text_whose_paragraphs_differ_by_chance_is_seldom_called_drifting() -> None:
    generator = np.random.default_rng(11)
    false_runs, p_values = [], []
    for seed in range(100):
        experts = np.concatenate([drawn(share, 16, generator) for share in usages(24, generator)])
        found = position_drift(
            experts, np.arange(len(experts)), n_experts=EXPERTS, n_buckets=4, block_tokens=16,
            permutations=199, seed=seed,
        )  # fmt: skip
        false_runs.append(bool((found.q_values <= 0.05).any()))
        p_values.append(found.p_values[1:])
    assert np.mean(false_runs) <= 0.09
    assert 0.02 <= np.mean(np.stack(p_values) <= 0.05) <= 0.08
