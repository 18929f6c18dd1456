"""The quote style: scores against brute force, verbatim answers, other weights other choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cancel import CancelToken
from workbench.errors import PromptTooLong
from workbench.generation.prompts import ABSTENTION, build_prompt
from workbench.generation.quoting import score_answers


def make_prompt(library, generator, **options):
    return build_prompt(
        "Which valve failed first?",
        library.hits,
        documents=library.documents,
        tokenizer=generator.tokenizer,
        budget_tokens=generator.context - 200,
        **options,
    )


class Fake:
    """A language model over few tokens whose next-token law is a hash of what came before."""

    def __init__(self, vocabulary):
        self.vocabulary, self.said, self.longest = vocabulary, [], 0

    def law(self):
        random = np.random.default_rng([7, *self.said])
        weights = random.uniform(0.1, 1, self.vocabulary)
        return np.log(weights / weights.sum()).astype(np.float32)

    def feed(self, ids):
        rows = []
        for token in ids:
            self.said.append(int(token))
            rows.append(self.law())
        return np.stack(rows)

    def rewind(self, count):
        del self.said[len(self.said) - count :]


@given(
    st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=10)
)
def test_scores_equal_brute_force_over_the_shortest_telling_prefix(answers):
    answers = {key: list(ids) for key, ids in enumerate(sorted(answers), start=1)}
    model = Fake(4)
    scores = score_answers(answers, model.law(), feed=model.feed, rewind=model.rewind)
    assert model.said == []
    for key, ids in answers.items():
        others = [other for k, other in answers.items() if k != key]
        length = next(
            (
                n
                for n in range(1, len(ids) + 1)
                if not any(other[:n] == ids[:n] for other in others)
            ),
            len(ids),
        )
        oracle, expected = Fake(4), 0.0
        for token in ids[:length]:
            expected += float(oracle.law()[token])
            oracle.feed([token])
        assert scores[key] == pytest.approx(expected, abs=1e-5)


def test_the_answer_is_a_source_with_its_mark_or_the_abstention(library, tiny_moe):
    prompt = make_prompt(library, tiny_moe)
    generation = tiny_moe.quote(prompt)
    admissible = {f"[{s.n}] {s.text}" for s in prompt.sources} | {ABSTENTION}
    assert generation.text in admissible
    assert {c.text for c in generation.candidates} == admissible
    assert generation.text == generation.candidates[0].text
    assert generation.finish_reason == "stop"


def test_other_weights_choose_otherwise(library, make_tiny):
    from workbench.generation.loading import load_generator

    choices = set()
    for seed in range(8):
        generator = load_generator(make_tiny(seed=seed, layers=1), context=1024, device="cpu")
        choices.add(
            generator.quote(make_prompt(library, generator), capture=False, may_abstain=False).text
        )
    assert len(choices) >= 2


def test_candidate_scores_equal_whole_forward_passes(library, tiny_moe):
    """The trie with its cache against one uncached pass for each candidate."""
    import torch

    prompt = make_prompt(library, tiny_moe)
    generation = tiny_moe.quote(prompt, capture=False)

    def encode(text):
        return tiny_moe.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    every = {c.n: encode(c.text) for c in generation.candidates}
    for candidate in generation.candidates:
        ids = every[candidate.n]
        others = [other for n, other in every.items() if n != candidate.n]
        length = next(
            n for n in range(1, len(ids) + 1) if not any(o[:n] == ids[:n] for o in others)
        )
        with torch.inference_mode():
            logits = (
                tiny_moe.model(torch.tensor([[*prompt.token_ids, *ids[:length]]]))
                .logits[0]
                .log_softmax(-1)
            )
        start = len(prompt.token_ids) - 1
        expected = sum(float(logits[start + i, ids[i]]) for i in range(length))
        assert candidate.log_probability == pytest.approx(expected, abs=1e-3)


def test_routing_of_a_quote_equals_one_pass_over_the_final_tokens(library, tiny_moe):
    import torch

    from workbench.routing.capture import find_routers

    prompt = make_prompt(library, tiny_moe)
    generation = tiny_moe.quote(prompt)
    trace = generation.routing
    seen = []
    handles = [
        r.register_forward_hook(lambda m, a, out: seen.append(out[2]))
        for r in find_routers(tiny_moe.model)
    ]
    with torch.inference_mode():
        tiny_moe.model(torch.tensor([[*prompt.token_ids, *generation.token_ids]]))
    for handle in handles:
        handle.remove()
    expected = torch.stack(seen, dim=1).numpy()
    np.testing.assert_array_equal(trace.experts[trace.routed], expected[trace.routed])
    assert trace.routed.sum() == len(trace.routed) - 1  # the end token is never fed


def test_several_sentences_are_distinct_lines(library, tiny_moe):
    prompt = make_prompt(library, tiny_moe)
    generation = tiny_moe.quote(prompt, max_sentences=3, may_abstain=False)
    lines = [f"[{s.n}] {s.text}" for s in prompt.sources]
    assert 1 <= len(generation.quotes) <= 3
    assert len(set(generation.quotes)) == len(generation.quotes)
    assert generation.text == "\n".join(lines[n - 1] for n in generation.quotes)
    assert len(generation.log_probabilities) == len(generation.token_ids)


def test_without_sources_only_abstention_is_left(library, tiny_moe):
    prompt = build_prompt("Who?", [], documents={}, tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    assert tiny_moe.quote(prompt).text == ABSTENTION
    with pytest.raises(ValueError, match="no source to quote"):
        tiny_moe.quote(prompt, may_abstain=False)


def test_a_cancelled_quote_says_so(library, tiny_moe):
    cancel = CancelToken()
    cancel.cancel()
    generation = tiny_moe.quote(make_prompt(library, tiny_moe), cancel=cancel)
    assert (generation.finish_reason, generation.text) == ("cancelled", "")


def test_an_answer_that_would_leave_the_context_is_refused(library, tiny_moe):
    prompt = make_prompt(library, tiny_moe)
    from dataclasses import replace

    with pytest.raises(PromptTooLong, match="with_context"):
        replace(tiny_moe, context=len(prompt.token_ids) + 3).quote(prompt)
