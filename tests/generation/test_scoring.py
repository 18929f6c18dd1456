"""Given answers after prompts, against what generating said of them and against the NumPy pass."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.cancel import CancelToken
from workbench.errors import Cancelled, PromptTooLong
from workbench.generation.prompts import plain_prompt


@pytest.fixture(scope="module")
def prompt(tiny_moe):
    return plain_prompt("Which valve leaked? " * 4, tokenizer=tiny_moe.tokenizer, budget_tokens=900)


@pytest.mark.parametrize("kind", ["tiny_moe", "tiny_dense"])
def test_a_given_answer_is_scored_as_the_oracle_does(kind, reference, prompt, request):
    generator = request.getfixturevalue(kind)
    answer = np.random.default_rng(3).integers(10, 300, 6).tolist()
    found = generator.score(prompt, answer)
    ids = [*prompt.token_ids, *answer]
    logits = reference.Reference(generator.model).forward(ids, long=True)[0]
    laws = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = laws[np.arange(len(ids) - 7, len(ids) - 1), answer]
    np.testing.assert_allclose(found.log_probabilities, wanted, atol=2e-4)
    assert found.finish_reason == "given" and found.token_ids == tuple(answer)
    assert (found.routing is None) == (kind == "tiny_dense")


def test_scoring_what_was_generated_routes_every_token_alike(tiny_moe, prompt):
    said = tiny_moe.generate(prompt, max_new_tokens=9)
    again = tiny_moe.score(prompt, said.token_ids)
    assert (said.routing.experts == again.routing.experts).all()
    assert (said.routing.routed == again.routing.routed).all() and not again.routing.routed[-1]
    np.testing.assert_allclose(said.log_probabilities, again.log_probabilities, atol=1e-4)
    assert again.text == said.text


def test_what_cannot_be_scored_is_refused(tiny_moe, prompt):
    with pytest.raises(ValueError, match="the answer has no token"):
        tiny_moe.score(prompt, [])
    with pytest.raises(PromptTooLong, match="need"):
        tiny_moe.score(prompt, [5] * 2000)
    with pytest.raises(ValueError, match="is no Prompt"):
        tiny_moe.score("Which valve?", [5])
    cancel = CancelToken()
    cancel.cancel()
    tiny_moe.prefixes.clear()
    with pytest.raises(Cancelled):
        tiny_moe.score(prompt, [5], cancel=cancel)
