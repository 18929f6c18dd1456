from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.generation.prompts import known_marks
from workbench.pocket import WEIGHTS
from workbench.pocket.batches import prompt_texts
from workbench.pocket.data import MAX_UNITS, example
from workbench.pocket.tokenizer import CONTROL, FIRST_MARK, MARKS

transformers = pytest.importorskip("transformers")


@pytest.fixture(params=["released", "trained anew"])
def tokenizer(request: pytest.FixtureRequest, small_tokenizer):  # type: ignore[no-untyped-def]
    if request.param == "trained anew":
        return small_tokenizer
    return transformers.AutoTokenizer.from_pretrained(WEIGHTS)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text())
def test_any_text_round_trips(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "".join(CONTROL),
        "".join(MARKS),
        "<0x41><0xFF>",
        " ▁ ▁",
        "a\u0301\u200d\U0001f469",
        "\r\n\t  \n",
    ],
)
def test_control_strings_and_odd_signs_round_trip(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(plain) == text
    assert not {0, 1, 2, 3, 4, 5, 6, 7} & set(plain)


def test_marks_are_single_tokens_that_decode(tokenizer) -> None:  # type: ignore[no-untyped-def]
    marks = "".join(MARKS[: known_marks(tokenizer)])
    ids = tokenizer(marks, add_special_tokens=False)["input_ids"]
    assert ids == list(range(FIRST_MARK, FIRST_MARK + known_marks(tokenizer)))
    assert tokenizer.decode(ids, skip_special_tokens=True) == marks


def test_trained_tokenizer_knows_a_mark_for_every_sentence(small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert known_marks(small_tokenizer) == MAX_UNITS


def test_chat_template_gives_the_ids_of_training(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for style in ("quote", "free"):
        made = example(seed=f"chat-{style}", units=8, style=style, family="facts")
        shared, rests = prompt_texts(made)
        user = f"{made.evidence}\n\n{made.turns[0].line}"
        messages = [{"role": "system", "content": made.system}, {"role": "user", "content": user}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert (
            ids
            == tokenizer(shared, add_special_tokens=False)["input_ids"]
            + tokenizer(rests[0], add_special_tokens=False)["input_ids"]
        )


def test_stop_tokens_are_end_and_endoftext(tokenizer) -> None:  # type: ignore[no-untyped-def]
    stops = transformers.GenerationConfig.from_pretrained(WEIGHTS).eos_token_id
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|end|>", "<|endoftext|>"]
