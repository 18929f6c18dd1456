"""Prefixes are reused exactly, within their budget, and only where they hold; forwarded tokens are counted."""

from __future__ import annotations

import contextlib
import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.cancel import CancelToken
from workbench.errors import Cancelled
from workbench.generation.kv_cache import held_bytes
from workbench.generation.options import Decoding
from workbench.generation.prefix_cache import Prefix, PrefixCache, common_tokens
from workbench.generation.prompts import plain_prompt

DOCUMENT = (
    "Valve V-14 failed at 22:47 because its hinge pin sheared. The pump P3 tripped later. " * 4
)


@pytest.fixture
def moe(tiny_moe):
    """The tiny generator with an empty prefix cache of its own."""
    return replace(tiny_moe, prefixes=PrefixCache(64 << 20))


@pytest.fixture
def dense(tiny_dense):
    return replace(tiny_dense, prefixes=PrefixCache(64 << 20))


def prompt_of(generator, text):
    return plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=1000)


def asking(generator, question):
    return prompt_of(generator, f"{DOCUMENT} {question}")


@contextlib.contextmanager
def forwarded(model):
    """Token slots fed to the model within: a list with one number a pass.

    The hook is part of the prefixes' key, so what is to be reused must have been read within too.
    """
    counts = []

    def count(_module, args, kwargs):
        counts.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel())

    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_many_questions_over_one_document_read_it_once(name, request):
    generator = request.getfixturevalue(name)
    fresh = replace(generator, prefixes=PrefixCache(0))
    questions = ["Which valve failed first?", "Why?", "When did the pump trip, and who saw it?"]
    with forwarded(generator.model) as counts:
        for n, question in enumerate(questions):
            prompt = asking(generator, question)
            counts.clear()
            found = generator.generate(prompt, max_new_tokens=6)
            fed = sum(counts)
            expected = len(prompt.token_ids) + len(found.token_ids) - 1
            assert fed == expected - found.cache.reused_tokens
            assert found.cache.computed_tokens + found.cache.reused_tokens == len(prompt.token_ids)
            if n:
                shared = common_tokens(
                    prompt.token_ids, asking(generator, questions[n - 1]).token_ids
                )
                assert found.cache.reused_tokens == shared > 150
            alone = fresh.generate(prompt, max_new_tokens=6)
            assert alone.cache.reused_tokens == 0
            assert found.token_ids == alone.token_ids
            np.testing.assert_allclose(found.log_probabilities, alone.log_probabilities, atol=1e-3)


def test_the_routing_trace_is_stitched_of_cached_and_computed_tokens(moe):
    fresh = replace(moe, prefixes=PrefixCache(0))
    for question in ("Which valve failed first?", "Why did the pump trip?"):
        prompt = asking(moe, question)
        found, alone = (g.generate(prompt, max_new_tokens=6).routing for g in (moe, fresh))
        np.testing.assert_array_equal(found.experts, alone.experts)
        np.testing.assert_array_equal(found.routed, alone.routed)
        np.testing.assert_allclose(
            found.gate_weights.astype(float), alone.gate_weights.astype(float), atol=2e-3
        )


def test_quoting_and_reading_share_prefixes_with_generating(moe):
    prompt = asking(moe, "Which valve failed first?")
    with forwarded(moe.model) as counts:
        moe.generate(prompt, max_new_tokens=3)
        counts.clear()
        trace = moe.read(prompt)
    assert counts == [1]
    expected = replace(moe, prefixes=PrefixCache(0)).read(prompt)
    np.testing.assert_array_equal(trace.experts, expected.experts)
    assert trace.routed.all()


def test_an_answer_continued_as_history_is_not_read_again(moe):
    """The keys and values of the answer's own tokens are kept too."""
    prompt = asking(moe, "Which valve failed first?")
    first = moe.generate(prompt, max_new_tokens=5, stop=["never said"])
    longer = replace(
        prompt,
        token_ids=(*prompt.token_ids, *first.token_ids, 20, 21, 22),
        token_spans=np.zeros((len(prompt.token_ids) + len(first.token_ids) + 3, 2), dtype=np.int32),
    )
    found = moe.generate(longer, max_new_tokens=2)
    assert found.cache.reused_tokens == len(prompt.token_ids) + len(first.token_ids) - 1


def test_a_short_common_beginning_does_not_cost_a_long_document(moe):
    """Where cutting would lose more than it saves, the shared part is copied."""
    document = asking(moe, "Which valve failed first?")
    moe.generate(document, max_new_tokens=2)
    other = moe.generate(prompt_of(moe, "Valve of another kind"), max_new_tokens=2)
    assert 0 < other.cache.reused_tokens < 20
    again = moe.generate(document, max_new_tokens=2)
    assert again.cache.reused_tokens == len(document.token_ids) - 1
    assert len(moe.prefixes) == 2


def test_weights_hooks_dtype_attention_and_regime_are_part_of_the_key(moe):
    prompt = asking(moe, "Why?")

    def reused(generator=moe, **options):
        return generator.generate(prompt, max_new_tokens=2, **options).cache.reused_tokens

    full = len(prompt.token_ids) - 1
    assert (reused(), reused()) == (0, full)
    weight = moe.model.model.layers[0].self_attn.k_proj.weight
    with torch.no_grad():
        weight.mul_(1.0)  # written in place: a new version of the weights
    assert (reused(), reused()) == (0, full)
    handle = moe.model.model.layers[1].register_forward_hook(lambda *_: None)
    try:
        assert reused() == 0
    finally:
        handle.remove()
    moe.model.set_attn_implementation("eager")
    try:
        assert reused() == 0
    finally:
        moe.model.set_attn_implementation("sdpa")
    assert reused() == full
    assert reused(capture=False) == 0
    assert reused(decoding=Decoding(cache="fp8")) == 0
    assert reused(decoding=Decoding(reuse_prefix=False)) == 0


def test_regimes_do_not_share_prefixes_and_equal_regimes_do(moe):
    short = prompt_of(moe, "Which valve failed first?")
    narrow, wide = moe.with_context(200), moe.with_context(2048)
    assert (narrow.regime, wide.regime, moe.regime) == ("short", "long", "long")
    full = len(short.token_ids) - 1
    assert moe.generate(short, max_new_tokens=2).cache.reused_tokens == 0
    assert wide.generate(short, max_new_tokens=2).cache.reused_tokens == full
    assert narrow.generate(short, max_new_tokens=2).cache.reused_tokens == 0
    assert narrow.generate(short, max_new_tokens=2).cache.reused_tokens == full


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_what_was_read_before_a_cancel_or_an_interrupt_is_kept_and_right(moe, when):
    prompt = asking(moe, "Which valve failed first?")
    chunks = Decoding(prefill_tokens=20)
    expected = replace(moe, prefixes=PrefixCache(0)).generate(prompt, max_new_tokens=6)
    stop_at = 3 if when == "prefill" else len(prompt.token_ids) // 20 + 3
    passes, cancel = [], CancelToken()

    def interrupt(_module, _args):
        passes.append(1)
        if len(passes) == stop_at:
            raise KeyboardInterrupt

    # in the middle of a pass: the first layer has the tokens of this pass already, the last one has not
    handle = moe.model.model.layers[-1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        moe.generate(prompt, max_new_tokens=6, decoding=chunks)
    passes.extend([1] * 1000)
    kept = moe.generate(prompt, max_new_tokens=6, decoding=chunks)
    assert kept.token_ids == expected.token_ids
    assert kept.cache.reused_tokens == (40 if when == "prefill" else len(prompt.token_ids) - 1)
    np.testing.assert_array_equal(kept.routing.experts, expected.routing.experts)
    handle.remove()

    cancel.cancel()
    moe.prefixes.clear()
    nothing = moe.generate(prompt, max_new_tokens=6, cancel=cancel)
    assert (nothing.finish_reason, nothing.token_ids, nothing.text) == ("cancelled", (), "")
    assert not nothing.routing.routed.any()


def test_cancelling_within_a_chunk_gives_it_up_and_keeps_those_before(moe):
    """Also where a prompt is read in one pass: the model stops between two layers."""
    prompt = asking(moe, "Which valve failed first?")
    cancel = CancelToken()
    passes = []

    def watch(_module, _args):
        passes.append(1)
        if len(passes) == 2:
            cancel.cancel()

    handle = moe.model.model.layers[0].register_forward_pre_hook(watch)
    found = moe.generate(prompt, cancel=cancel, decoding=Decoding(prefill_tokens=30))
    assert found.finish_reason == "cancelled"
    assert found.routing.routed.sum() == 30
    assert (found.cache.computed_tokens, found.cache.reused_tokens) == (30, 0)
    again = moe.generate(prompt, max_new_tokens=2)
    assert again.cache.reused_tokens == 30
    handle.remove()

    late = CancelToken()
    layers = []

    def stop_late(_module, _args):
        layers.append(1)
        late.cancel()

    moe.prefixes.clear()
    handle = moe.model.model.layers[1].register_forward_pre_hook(stop_late)
    nothing = moe.generate(prompt, cancel=late)
    assert (nothing.finish_reason, nothing.cache.computed_tokens, len(layers)) == (
        "cancelled",
        0,
        1,
    )
    handle.remove()


def test_batches_read_what_their_rows_share_once(moe):
    prompts = [asking(moe, q) for q in ("Why?", "Which valve failed?", "When did it fail then?")]
    with forwarded(moe.model) as counts:
        found = moe.generate_batch(prompts, max_new_tokens=1)
        fed = sum(counts)
        again = moe.generate_batch(prompts, max_new_tokens=1)
    longest = max(len(p.token_ids) for p in prompts)
    rests = sum(g.cache.computed_tokens for g in found)
    # each row's last token is fed in the first common pass of decoding
    assert fed == rests
    assert rests < longest + 60
    assert sorted(g.cache.reused_tokens > 150 for g in found) == [False, True, True]
    assert all(g.cache.reused_tokens > 150 for g in again)


def test_the_least_recently_used_goes_first_and_the_budget_holds(moe):
    prompts = [prompt_of(moe, f"{letter} " * 100) for letter in "abc"]
    need = moe.cache_bytes(len(prompts[0].token_ids) + 2)
    moe.prefixes.budget_bytes = int(2.5 * need)
    for place in (0, 1, 0, 2):  # 1 is the least recently used when 2 comes
        moe.generate(prompts[place], max_new_tokens=2)
        assert moe.prefixes.held_bytes <= moe.prefixes.budget_bytes
    reused = [moe.generate(prompts[i], max_new_tokens=2).cache.reused_tokens > 90 for i in (0, 1)]
    assert reused == [True, False]


def test_held_bytes_are_those_of_the_tensors(moe):
    prompt = asking(moe, "Why?")
    moe.generate(prompt, max_new_tokens=4)
    room = len(prompt.token_ids) + 4
    config = moe.model.config
    head = config.hidden_size // config.num_attention_heads
    by_hand = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4 * room
    assert moe.prefixes.held_bytes == by_hand == moe.cache_bytes(room)
    (prefix,) = moe.prefixes._prefixes
    assert held_bytes(prefix.cache) == by_hand


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=6), st.integers(0, 40)), max_size=12),
    st.lists(st.integers(0, 2), max_size=6),
    st.integers(0, 100),
)
def test_take_finds_the_longest_common_beginning_by_brute_force(puts, wanted, budget):
    prefixes = PrefixCache(budget)
    held = []
    for ids, size in puts:
        prefixes.put(Prefix("k", np.array(ids, dtype=np.int64), object(), None, size))
        while held and sum(s for _, s in held) + size > budget:
            held.pop(0)
        if size <= budget and ids:
            held.append((ids, size))
    assert prefixes.held_bytes == sum(s for _, s in held) <= budget

    def shared(ids):
        return next(
            (i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b),
            min(len(ids), len(wanted)),
        )

    best = max((shared(ids) for ids, _ in held), default=0)
    assert prefixes.common("other key", wanted) == 0
    assert prefixes.common("k", wanted) == best
    found = prefixes.take("k", wanted)
    assert (found[1] if found else 0) == best
    assert len(prefixes) == len(held) - (best > 0)


def test_a_weight_that_is_replaced_never_meets_keys_of_the_one_before(moe):
    """Addresses and ids of freed parameters are given again, with the same version."""
    projection = moe.model.model.layers[1].self_attn.q_proj
    original = projection.weight
    prompt = asking(moe, "Why?")
    try:
        for scale in (1, 3, -1, 0.2, 2, -2, 5, 1, 3, 0.5, 4, -3):
            projection.weight = torch.nn.Parameter((original.detach() * scale).clone())
            gc.collect()
            found = moe.generate(prompt, max_new_tokens=2)
            assert found.cache.reused_tokens == 0
    finally:
        projection.weight = original


def test_training_mode_is_refused_also_without_capture(moe):
    moe.model.train()
    try:
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            moe.generate(asking(moe, "Why?"), max_new_tokens=2, capture=False)
    finally:
        moe.model.eval()


def test_a_call_from_within_a_call_is_refused_and_the_outer_one_can_go_on(moe):
    prompt, errors = asking(moe, "Which valve failed first?"), []
    expected = moe.generate(prompt, max_new_tokens=6)

    def call_again(_text):
        for call in (lambda: moe.generate(prompt, max_new_tokens=2), lambda: moe.with_context(512)):
            with pytest.raises(ValueError, match="in the middle of an answer") as caught:
                call()
            errors.append(caught.value)

    found = moe.generate(prompt, max_new_tokens=6, on_text=call_again)
    assert errors
    assert found.token_ids == expected.token_ids
    np.testing.assert_array_equal(found.routing.routed, expected.routing.routed)


def test_a_call_that_waits_for_its_turn_can_be_cancelled(moe):
    cancel, waiting = CancelToken(), threading.Event()
    prompt, outcome = asking(moe, "Why?"), []

    def wait():
        waiting.set()
        try:
            moe.generate(prompt, max_new_tokens=2, cancel=cancel)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    with moe._turn.taken():
        thread.start()
        waiting.wait()
        cancel.cancel()
        thread.join(timeout=20)
    assert "waited for another one" in str(outcome[0])


def test_a_budget_takes_effect_at_once_and_stays_as_it_was_set(moe):
    moe.generate(asking(moe, "Why?"), max_new_tokens=2)
    assert len(moe.prefixes) == 1
    moe.prefixes.budget_bytes = 0
    assert len(moe.prefixes) == 0
    moe.with_context(2048)
    assert moe.prefixes.budget_bytes == 0
    with pytest.raises(ValueError, match="at least 0"):
        moe.prefixes.budget_bytes = -1


def test_a_larger_context_gets_a_larger_budget_unless_it_was_set(moe_folder):
    from workbench.generation.loading import load_generator

    small = load_generator(moe_folder, context=256, device="cpu")
    large = load_generator(moe_folder, context=2048, device="cpu")
    assert small.with_context(2048).prefixes.budget_bytes == large.prefixes.budget_bytes


def test_room_for_an_answer_that_stayed_short_is_given_back(moe):
    prompt = prompt_of(moe, "why")
    moe.generate(prompt, max_new_tokens=800, stop=list("abcdefghijklmnopqrstuvwxyz "))
    assert moe.prefixes.held_bytes < moe.cache_bytes(400)
    again = moe.generate(prompt, max_new_tokens=5)
    fresh = replace(moe, prefixes=PrefixCache(0)).generate(prompt, max_new_tokens=5)
    assert again.cache.reused_tokens > 0
    assert again.token_ids == fresh.token_ids


def test_a_new_prompt_is_read_in_one_pass_where_memory_allows_and_else_in_chunks(moe):
    prompt = prompt_of(moe, "why " * 350)
    fed = len(prompt.token_ids) - 1
    assert 512 < fed <= moe.whole_tokens
    with forwarded(moe.model) as counts:
        moe.generate(prompt, max_new_tokens=1)
        assert counts == [fed, 1]
        counts.clear()
        moe.prefixes.clear()
        replace(moe, whole_tokens=0).generate(prompt, max_new_tokens=1)
        assert counts == [512, fed - 512, 1]


def test_a_loaded_generator_reuses_prefixes_without_being_asked(moe_folder):
    from workbench.generation.loading import load_generator

    generator = load_generator(moe_folder, context=1024, device="cpu")
    prompt = asking(generator, "Why?")
    generator.generate(prompt, max_new_tokens=2)
    assert generator.generate(prompt, max_new_tokens=2).cache.reused_tokens > 100
