from __future__ import annotations

from itertools import accumulate

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from workbench.pocket.batches import Row, collate, encode, pool, prompt_texts  # noqa: E402
from workbench.pocket.data import example  # noqa: E402
from workbench.pocket.kernels import ATTENTION, EXPERTS, register_kernels  # noqa: E402
from workbench.pocket.structured import Shape, structured_model  # noqa: E402
from workbench.pocket.train import begins_branch  # noqa: E402


@pytest.mark.parametrize("units", [6, 40])
def test_isolated_question_is_computed_as_if_it_were_alone(small_tokenizer, units: int) -> None:  # type: ignore[no-untyped-def]
    """Oracle: the transformers model itself (sdpa, eager experts) on the single-turn prompt."""
    register_kernels()
    size = len(small_tokenizer)
    shape = Shape(vocabulary=size, dim=32, layers=2, heads=4, key_value_heads=2, feed_forward=16)
    model = structured_model(shape, [""] * size).eval()
    examples = [
        example(seed=f"alone-{i}", units=units, family="facts", style="quote", turns=4)
        for i in range(2)
    ]
    batch = collate([encode(small_tokenizer, made, isolated=True) for made in examples])
    model.config._attn_implementation, model.config._experts_implementation = ATTENTION, EXPERTS
    with torch.no_grad():
        packed = model.model(
            input_ids=batch.ids[None], position_ids=batch.position[None], layout=batch.layout
        ).last_hidden_state[0]
    model.config._attn_implementation, model.config._experts_implementation = "sdpa", "eager"
    shared, rests = prompt_texts(examples[1])
    text = shared + rests[2] + examples[1].turns[2].answer + "<|end|>"
    ids = small_tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        alone = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    first, second = batch.layout.extents
    start = first.tokens + second.shared + sum(second.lengths[:2])
    own = len(ids) - second.real
    assert batch.ids[start : start + own].tolist() == ids[second.real :]
    assert torch.allclose(packed[start : start + own], alone[second.real :], atol=1e-4)


def test_rows_are_padded_at_the_end_of_beginning_and_branches(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    batch = collate(
        [
            Row([9, 8, 7], [6, 5, 4, 3], [False, True, False, True], [0, 0, 1, 1]),
            Row([], [2], [True], [0]),
        ]
    )
    first, second = batch.layout.extents
    assert (first.shared, first.real, first.lengths) == (32, 3, (2, 30))
    assert (second.shared, second.real, second.lengths) == (0, 0, (32,))
    assert batch.ids[batch.real].tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    assert batch.position[batch.real].tolist() == [0, 1, 2, 3, 4, 3, 4, 0]
    assert batch.ids[batch.target].tolist() == [5, 3, 2]
    assert begins_branch(batch).nonzero().flatten().tolist() == [0, 32, 34, 64]


def test_chat_turns_follow_one_another_in_one_branch(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    made = example(seed="chat", units=8, style="quote", family="events", turns=3)
    row = encode(small_tokenizer, made, isolated=False)
    assert set(row.branch) == {0}
    text = small_tokenizer.decode(row.ids)
    assert text.count("<|user|>") == len(made.turns) - 1
    assert all(turn.answer in text for turn in made.turns)


def test_answers_can_be_cut_after_their_first_tokens(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    made = example(seed="cut", units=8, style="quote", family="facts")
    whole, cut = (encode(small_tokenizer, made, isolated=True, most=m) for m in (None, 4))
    counts = [
        sum(t for t, b in zip(cut.target, cut.branch, strict=True) if b == n)
        for n in set(cut.branch)
    ]
    assert max(counts) == 4
    assert sum(cut.target) < sum(whole.target)
    assert len(cut.ids) - sum(cut.target) == len(whole.ids) - sum(whole.target)


def test_pool_is_a_function_of_its_arguments_and_fills_its_batches(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    first, again = (
        pool(small_tokenizer, seed="3", number=2, level=1, batch_tokens=1500, count=3)
        for _ in range(2)
    )
    other = pool(small_tokenizer, seed="3", number=3, level=1, batch_tokens=1500, count=3)
    assert len(first) == 3
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))
    assert all(700 < len(batch.ids) <= 1500 for batch in first)
    for batch in first:
        ends = list(accumulate(extent.tokens for extent in batch.layout.extents))
        assert ends[-1] == len(batch.ids)
