from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from workbench.pocket.batches import collate, induction_row  # noqa: E402 (after importorskip)
from workbench.pocket.evaluate import overlap_choice  # noqa: E402 (after importorskip)
from workbench.pocket.optimiser import Optimiser, orthogonalised  # noqa: E402 (after importorskip)
from workbench.pocket.structured import Shape, structured_model  # noqa: E402 (after importorskip)


def test_model_foretells_repetitions_before_any_training() -> None:
    """Chance is 1 in 600 tokens; the heads that look back and copy are placed, not learned."""
    shape = Shape(vocabulary=600, layers=3, feed_forward=16)
    model = structured_model(shape, [f"t{i}" for i in range(600)]).eval()
    rng = random.Random(2)
    batch = collate([induction_row(rng, 600, length=64) for _ in range(4)])
    with torch.no_grad():
        ids = torch.stack(batch.ids.split(64))
        logits = model(input_ids=ids).logits
    target = torch.stack(batch.target.split(64))[:, 1:]
    right = logits[:, :-1].argmax(-1)[target] == ids[:, 1:][target]
    assert right.float().mean() > 0.03


def test_orthogonalised_update_has_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(
        orthogonalised(torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0)))
    )
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_optimiser_descends_a_quadratic() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    optimiser = Optimiser(model, muon_rate=0.05, decay=0.0)
    losses = []
    for _ in range(40):
        loss = (model.weight - torch.eye(4)).square().sum()
        loss.backward()
        optimiser.step(1.0, optimiser.gradients())
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_overlap_baseline_prefers_the_rarer_word_and_can_abstain() -> None:
    units = ("The pump and the fan run.", "The fan is new.", "The fan is old.")
    assert overlap_choice(units, "fan pump") == 1
    assert overlap_choice(units, "Which valve?") is None


def test_words_of_one_idea_start_a_little_alike() -> None:
    texts = [f"t{i}" for i in range(600)]
    for place, word in enumerate((" begin", " began", " Begin", " carpet")):
        texts[400 + place] = word
    shape = Shape(vocabulary=600, layers=3, feed_forward=16)
    weight = structured_model(shape, texts).model.embed_tokens.weight[400:404].detach()
    begin, began, capital, carpet = torch.nn.functional.normalize(weight, dim=1)
    assert begin @ capital > begin @ began > 0.15 > begin @ carpet
