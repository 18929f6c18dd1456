"""Stop strings, and text that is held back while it may still become one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cancel import CancelToken
from workbench.errors import PromptTooLong
from workbench.generation.decoding import StopText, decode_answer
from workbench.generation.options import Decoding, Sampling
from workbench.generation.prompts import plain_prompt


@given(
    st.lists(st.text("ab", max_size=3), max_size=10),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_joined_are_the_text_before_the_first_stop_string(pieces, stops):
    text = StopText(stops)
    said = "".join(text.add(piece) for piece in pieces) + text.end()
    so_far = ""
    for piece in pieces:
        so_far += piece
        places = [so_far.find(stop) for stop in stops if stop in so_far]
        if places:
            assert said == so_far[: min(places)]
            assert text.is_stopped
            return
    assert said == so_far
    assert not text.is_stopped


@pytest.fixture(scope="module")
def spoken(tiny_moe):
    """A prompt, its whole answer, and a string from the middle of it."""
    prompt = plain_prompt("Which valve?", tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    whole = tiny_moe.generate(prompt, max_new_tokens=30)
    middle = whole.text[len(whole.text) // 2 :][:3]
    return prompt, whole, middle


@pytest.mark.parametrize(
    "way", [Decoding(), Decoding(prompt_lookup_tokens=3), Decoding(cache="none")]
)
def test_the_answer_ends_before_the_stop_string(tiny_moe, spoken, way):
    prompt, whole, stop = spoken
    parts = []
    found = tiny_moe.generate(
        prompt, max_new_tokens=30, stop=["never said", stop], on_text=parts.append, decoding=way
    )
    assert found.text == whole.text[: whole.text.index(stop)] == "".join(parts)
    assert found.finish_reason == "stop"
    assert found.token_ids == whole.token_ids[: len(found.token_ids)]
    assert stop in decode_answer(tiny_moe.tokenizer, found.token_ids)[0]
    assert stop not in decode_answer(tiny_moe.tokenizer, found.token_ids[:-1])[0]
    assert len(found.log_probabilities) == len(found.token_ids)
    assert int(found.routing.spans[len(prompt.token_ids) :].max()) <= len(found.text)


def test_rows_of_a_batch_stop_each_at_its_own_place(tiny_moe, spoken):
    prompt, _, stop = spoken
    other = plain_prompt("Why did it fail?", tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    alone = [tiny_moe.generate(p, max_new_tokens=30, stop=[stop]) for p in (prompt, other)]
    together = tiny_moe.generate_batch([prompt, other], max_new_tokens=30, stop=[stop])
    for one, row in zip(alone, together, strict=True):
        assert (row.text, row.token_ids, row.finish_reason) == (
            one.text,
            one.token_ids,
            one.finish_reason,
        )
        np.testing.assert_array_equal(row.routing.experts, one.routing.experts)


@pytest.mark.parametrize("stop", ["abc", [""]])
def test_a_stop_that_is_no_list_of_strings_is_refused(tiny_moe, spoken, stop):
    with pytest.raises(ValueError, match="list of strings"):
        tiny_moe.generate(spoken[0], stop=stop)


def test_prompt_lookup_with_sampling_is_refused(tiny_moe, spoken):
    with pytest.raises(ValueError, match="temperature=0"):
        tiny_moe.generate(
            spoken[0], sampling=Sampling(temperature=1.0), decoding=Decoding(prompt_lookup_tokens=3)
        )


@pytest.mark.parametrize("passes", [0, 1, 2, 5])
def test_cancelling_a_batch_keeps_what_every_row_has_said(tiny_moe, spoken, passes):
    """Cancelled before, while prompts are read, and while rows are decoded: at most one more pass."""
    prompts = [spoken[0], plain_prompt("Why?", tokenizer=tiny_moe.tokenizer, budget_tokens=500)]
    whole = tiny_moe.generate_batch(prompts, max_new_tokens=30)
    cancel, counted = CancelToken(), []

    def count(_module, _args):
        counted.append(1)
        if len(counted) == passes:
            cancel.cancel()

    if not passes:
        cancel.cancel()
    handle = tiny_moe.model.model.register_forward_pre_hook(count)
    try:
        found = tiny_moe.generate_batch(prompts, max_new_tokens=30, cancel=cancel)
    finally:
        handle.remove()
    assert len(counted) <= passes + 1
    for row, expected in zip(found, whole, strict=True):
        assert row.finish_reason == "cancelled"
        assert row.token_ids == expected.token_ids[: len(row.token_ids)]
        assert expected.text.startswith(row.text.rstrip("\N{REPLACEMENT CHARACTER}"))
        fed = max(0, len(row.token_ids) - 1)
        assert len(row.routing.routed) == len(row.routing.token_ids)
        assert not row.routing.routed[-1:].any() or not row.token_ids
        assert row.routing.routed.sum() >= fed


def test_a_row_beyond_the_context_is_named_before_anything_is_computed(tiny_moe, spoken):
    long = plain_prompt("why " * 600, tokenizer=tiny_moe.tokenizer, budget_tokens=2000)
    with pytest.raises(PromptTooLong, match=r"row 1: prompt .*with_context"):
        tiny_moe.generate_batch([spoken[0], long], max_new_tokens=3)
