from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from workbench.pocket import WEIGHTS, batches  # noqa: E402 (after importorskip)
from workbench.pocket.batches import collate, encode, pool, prompt_texts  # noqa: E402 (after importorskip)
from workbench.pocket.data import example  # noqa: E402 (after importorskip)
from workbench.pocket.kernels import ATTENTION, EXPERTS, register_kernels  # noqa: E402 (after importorskip)
from workbench.pocket.structured import Shape, structured_model  # noqa: E402 (after importorskip)
from workbench.pocket.train import Recipe, Run  # noqa: E402 (after importorskip)

TINY = Shape(dim=32, layers=2, heads=4, key_value_heads=2, feed_forward=16)
RECIPE = Recipe(steps=12, batch_tokens=600, warm_up_steps=3)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return transformers.AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of a few examples."""
    monkeypatch.setattr(batches, "_POOL", 12)


@pytest.mark.usefixtures("small_pools")
def test_run_resumed_after_a_kill_ends_as_the_uninterrupted_one(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = Run(tmp_path / "whole", tokenizer, RECIPE, shape=TINY)
    whole.train(until=6)
    Run(tmp_path / "cut", tokenizer, RECIPE, shape=TINY).train(until=4)
    torch.rand(7)  # what another process would leave behind
    resumed = Run(tmp_path / "cut", tokenizer, RECIPE, shape=TINY)
    assert resumed.resume()
    resumed.train(until=6)
    assert resumed.progress.step == whole.progress.step == 6
    assert resumed.progress.tokens == whole.progress.tokens
    for name, tensor in whole.optimiser.tensors().items():
        assert torch.equal(tensor, resumed.optimiser.tensors()[name]), name


def test_new_folder_has_nothing_to_resume(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert not Run(tmp_path, tokenizer, RECIPE, shape=TINY).resume()


@pytest.mark.usefixtures("small_pools")
def test_pool_is_a_function_of_its_arguments(tokenizer) -> None:  # type: ignore[no-untyped-def]
    first, again = (pool(tokenizer, seed=3, number=2, level=0, batch_tokens=800) for _ in range(2))
    assert len(first) == len(again)
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask)
        for a, b in zip(first, again, strict=True)
    )


@pytest.mark.parametrize("units", [6, 40])
def test_isolated_question_is_computed_as_if_it_were_alone(tokenizer, units: int) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the transformers model itself (sdpa, eager experts) on the single-turn prompt; 40 units are aligned."""
    register_kernels()
    model = structured_model(TINY, [""] * TINY.vocabulary).eval()
    examples = [
        example(seed=f"alone-{i}", units=units, family="facts", style="quote", turns=4)
        for i in range(2)
    ]
    rows = [encode(tokenizer, made, isolated=True) for made in examples]
    batch = collate(rows)
    model.config._attn_implementation, model.config._experts_implementation = ATTENTION, EXPERTS
    with torch.no_grad():
        packed = model.model(
            input_ids=batch.ids, position_ids=batch.position, attention_mask=batch.mask
        ).last_hidden_state
    model.config._attn_implementation, model.config._experts_implementation = "sdpa", "eager"
    shared, rests = prompt_texts(examples[1])
    ids = tokenizer(
        shared + rests[2] + examples[1].turns[2].answer + "<|end|>", add_special_tokens=False
    )["input_ids"]
    with torch.no_grad():
        alone = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    count = rows[1].branch.count(2)
    end = int(batch.real[1].nonzero()[-1]) + 1
    start = end - len(rows[1].ids) + rows[1].branch.index(2)
    assert batch.ids[1, start : start + count].tolist() == ids[-count:]
    assert torch.allclose(packed[1, start : start + count], alone[-count:], atol=1e-4)


def test_padding_is_neither_target_nor_real(tokenizer) -> None:  # type: ignore[no-untyped-def]
    made = [example(seed=f"pad-{n}", units=n, style="quote", family="events") for n in (3, 8)]
    batch = collate([encode(tokenizer, m, isolated=False) for m in made])
    assert not (batch.target & ~batch.real).any()
    assert (batch.ids[~batch.real] == tokenizer.pad_token_id).all()
