"""The recorder against an independent forward pass in NumPy, in every way tokens may be fed."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.generation.prompts import build_prompt
from workbench.routing.capture import RoutingRecorder, TokenTable, find_routers
from workbench.routing.intervene import Edit, intervened


def table(ids, prompt_tokens):
    return TokenTable(
        token_ids=ids,
        texts=tuple(map(str, ids)),
        segments=np.zeros(len(ids), dtype=np.int16),
        segment_names=("question",),
        spans=np.zeros((len(ids), 2), dtype=np.int32),
        prompt_tokens=prompt_tokens,
        log_probabilities=np.full(len(ids) - prompt_tokens, -1.0, dtype=np.float32),
    )


def true_routes(reference, model, ids):
    """experts and gates [tokens, layers, 2] of a whole sequence in the long regime"""
    _, routes = reference.Reference(model).forward(ids, long=True)
    layers = model.config.num_hidden_layers
    experts, gates = np.zeros((len(ids), layers, 2), int), np.zeros((len(ids), layers, 2))
    for layer, token, chosen, weights in routes:
        experts[token, layer], gates[token, layer] = chosen, weights
    return experts, gates


def prompt_ids(length, seed=1):
    return np.random.default_rng(seed).integers(10, 300, length).tolist()


def generate(model, ids, **options):
    import torch

    with torch.inference_mode():
        return model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=8,
            **{"max_new_tokens": 12, **options},
        )[0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 16},
        {"cache_implementation": "static"},
    ],
    ids=["cached", "no cache", "prompt lookup", "chunked prefill", "static cache"],
)
def test_trace_equals_an_independent_forward_pass(tiny_moe, reference, options):
    ids = prompt_ids(50)
    with RoutingRecorder(tiny_moe.model) as recorder:
        final = generate(tiny_moe.model, ids, **options)
    trace = table(final, len(ids)).trace(recorder.choices(final), recorder.n_experts)
    experts, gates = true_routes(reference, tiny_moe.model, final)
    assert trace.routed.sum() == len(final) - 1
    assert not trace.routed[-1]
    np.testing.assert_array_equal(trace.experts[:-1], experts[:-1])
    np.testing.assert_allclose(trace.gate_weights[:-1].astype(float), gates[:-1], atol=2e-3)
    np.testing.assert_array_equal(trace.counts().sum(axis=1), 2 * (len(final) - 1))


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_router_logits_are_those_of_an_independent_forward_pass(tiny_moe, reference, options):
    ids = prompt_ids(50)
    with RoutingRecorder(tiny_moe.model, logits=True) as recorder:
        final = generate(tiny_moe.model, ids, **options)
    choices = recorder.choices(final)
    computed = reference.Reference(tiny_moe.model)
    computed.forward(final, long=True)
    for (layer, token), row in computed.router_logits.items():
        if token < len(final) - 1:
            np.testing.assert_allclose(choices.router_logits[token, layer], row, atol=2e-3)
    assert not choices.router_logits[-1].any()
    assert choices.router_logits.shape == (62, tiny_moe.model.config.num_hidden_layers, 16)
    with RoutingRecorder(tiny_moe.model) as recorder:
        generate(tiny_moe.model, ids, **options)
    assert recorder.choices(final).router_logits is None


def true_contributions(reference, model, ids):
    """contributions [tokens, layers, 2] and output_norms [tokens, layers] of a whole sequence in the long regime"""
    computed = reference.Reference(model)
    computed.forward(ids, long=True)
    layers = range(model.config.num_hidden_layers)
    each = [[computed.contributions[layer, t] for layer in layers] for t in range(len(ids))]
    sums = [[computed.output_norms[layer, t] for layer in layers] for t in range(len(ids))]
    return np.array(each), np.array(sums)


WAYS = {
    "cached": {},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 16},
    "static cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
def test_contributions_are_those_of_an_independent_forward_pass(tiny_moe, reference, way):
    ids = prompt_ids(50)
    plain = generate(tiny_moe.model, ids, **WAYS[way])
    with RoutingRecorder(tiny_moe.model, contributions=True) as recorder:
        final = generate(tiny_moe.model, ids, **WAYS[way])
    assert final == plain
    choices = recorder.choices(final)
    each, sums = true_contributions(reference, tiny_moe.model, final)
    np.testing.assert_allclose(choices.contributions[:-1], each[:-1], rtol=2e-3)
    np.testing.assert_allclose(choices.output_norms[:-1], sums[:-1], rtol=2e-3)
    assert not choices.contributions[-1].any() and choices.router_logits is None
    assert choices.contributions.dtype == choices.output_norms.dtype == np.float16


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stock_moe(moe_folder, request):
    """As transformers loads it, in two precisions."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(moe_folder, dtype=request.param).eval()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_recording_contributions_changes_no_bit(stock_moe, implementation):
    import torch

    stock_moe.set_experts_implementation(implementation)
    ids = torch.tensor([prompt_ids(40), prompt_ids(40, seed=9)])
    with torch.inference_mode():
        plain = stock_moe(ids).logits
        with RoutingRecorder(stock_moe, contributions=True) as recorder:
            assert torch.equal(stock_moe(ids).logits, plain)
    choices = recorder.choices(ids[1].tolist(), row=1)
    assert choices.routed.all() and (choices.contributions > 0).all()
    assert (choices.contributions.astype(float).sum(axis=2) >= 0.99 * choices.output_norms).all()
    assert stock_moe.config._experts_implementation == implementation


def test_an_interrupt_between_router_and_experts_counts_nothing_and_leaves_no_hook(tiny_moe):
    import torch

    ids = prompt_ids(20)
    last = tiny_moe.model.model.layers[-1].mlp.experts

    def interrupt(*_):
        raise KeyboardInterrupt

    with RoutingRecorder(tiny_moe.model, contributions=True) as recorder:
        handle = last.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt), torch.inference_mode():
            tiny_moe.model(torch.tensor([ids]))
        handle.remove()
        assert not recorder.choices(ids).routed.any()
        with torch.inference_mode():
            tiny_moe.model(torch.tensor([ids[:5]]))
        assert recorder.choices(ids).routed.tolist() == [True] * 5 + [False] * 15
    for layer in tiny_moe.model.model.layers:
        assert not layer.mlp.experts._forward_hooks and not layer.mlp.experts._forward_pre_hooks


def test_a_dropped_expert_contributes_nothing(tiny_moe):
    ids = prompt_ids(30)
    with (
        intervened(tiny_moe.model, [Edit("drop", expert=3)]),
        RoutingRecorder(tiny_moe.model, contributions=True) as recorder,
    ):
        final = generate(tiny_moe.model, ids, max_new_tokens=4)
    found = recorder.choices(final).first(33)
    is_dropped = found.experts == 3
    assert is_dropped.any() and not found.contributions[is_dropped].any()
    assert (found.contributions[~is_dropped] > 0).all()


def test_two_recorders_see_the_same_contributions(tiny_moe):
    ids = prompt_ids(30)
    plain = generate(tiny_moe.model, ids)
    with (
        RoutingRecorder(tiny_moe.model, contributions=True) as outer,
        RoutingRecorder(tiny_moe.model, contributions=True) as inner,
    ):
        assert generate(tiny_moe.model, ids) == plain
    for name, array in outer.choices(plain).arrays().items():
        np.testing.assert_array_equal(array, inner.choices(plain).arrays()[name])


@pytest.mark.parametrize("how", ["generate", "quote", "batch", "read"])
def test_a_generator_gives_contributions_on_every_path(small_prompts, tiny_moe, reference, how):
    """Also of tokens whose keys and values were computed for an earlier prompt."""
    capture = "contributions" if how in ("quote", "batch") else "all"
    tiny_moe.prefixes.clear()
    for place, prompt in enumerate(small_prompts):
        if how == "generate":
            found = tiny_moe.generate(prompt, max_new_tokens=5, capture=capture)
        elif how == "quote":
            found = tiny_moe.quote(prompt, capture=capture)
        elif how == "batch":
            found = tiny_moe.generate_batch(small_prompts, max_new_tokens=5, capture=capture)[place]
        if how != "read":
            assert place == 0 or found.cache.reused_tokens > 0
        trace = tiny_moe.read(prompt, capture=capture) if how == "read" else found.routing
        each, sums = true_contributions(reference, tiny_moe.model, trace.token_ids.tolist())
        kept = trace.routed
        assert kept[:-1].all()
        np.testing.assert_allclose(trace.contributions[kept], each[kept], rtol=2e-3)
        np.testing.assert_allclose(trace.output_norms[kept], sums[kept], rtol=2e-3)
        assert (trace.router_logits is None) == (capture == "contributions")


def test_a_trace_without_options_takes_6_bytes_a_layer_and_token(small_prompts, tiny_moe):
    trace = tiny_moe.read(small_prompts[0])
    assert trace.contributions is None and trace.output_norms is None
    held = trace.experts.nbytes + trace.gate_weights.nbytes
    assert held == 6 * trace.layers * len(trace.token_ids)


@pytest.fixture
def small_prompts(small_retriever, tiny_moe):
    return [
        build_prompt(
            question,
            small_retriever.search("valve", k=2),
            documents=small_retriever.documents,
            tokenizer=tiny_moe.tokenizer,
            budget_tokens=900,
        )
        for question in ("Which valve leaked?", "Which pump failed?")
    ]


@pytest.mark.parametrize("how", ["generate", "quote", "batch", "read"])
def test_a_generator_gives_logits_where_they_are_asked_for(small_prompts, tiny_moe, how):
    first, second = small_prompts
    for prompt in (
        first,
        second,
    ):  # the second begins like the first: its beginning is not computed again
        traces = []
        for capture in (True, "logits"):
            if how == "generate":
                found = tiny_moe.generate(prompt, max_new_tokens=5, capture=capture).routing
            elif how == "quote":
                found = tiny_moe.quote(prompt, capture=capture).routing
            elif how == "batch":
                both = tiny_moe.generate_batch([first, second], max_new_tokens=5, capture=capture)
                found = both[prompt is second].routing
            else:
                found = tiny_moe.read(prompt, capture=capture)
            traces.append(found)
        plain, with_logits = traces
        assert plain.router_logits is None
        for trace in traces:  # all but the last token, those of a cached prefix too
            assert trace.routed[:-1].all() and trace.routed[-1] == (how == "read")
        if how != "read":
            assert not with_logits.router_logits[-1].any() and not plain.experts[-1].any()
        np.testing.assert_array_equal(plain.experts, with_logits.experts)
        logits = with_logits.router_logits[with_logits.routed].astype(float)
        np.testing.assert_array_equal(
            logits.argmax(axis=2), with_logits.experts[with_logits.routed][:, :, 0]
        )
    with pytest.raises(ValueError, match="capture='everything' is not known"):
        tiny_moe.generate(first, capture="everything")


def search_beams(model, rows, mask=None, **options):
    import torch

    ids = torch.tensor(rows)
    with torch.inference_mode():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids) if mask is None else torch.tensor(mask),
            do_sample=False,
            return_dict_in_generate=True,
            **{
                "pad_token_id": 8,
                "max_new_tokens": 12,
                "num_beams": 4,
                "num_return_sequences": 3,
                "eos_token_id": None,
                **options,
            },
        )


def teacher_forced(model, ids):
    import torch

    with torch.inference_mode(), RoutingRecorder(model, contributions=True) as recorder:
        model(torch.tensor([ids]))
    return recorder.choices(ids)


def assert_same_routing(found, forced, fed):
    assert found.routed[:fed].all() and not found.routed[fed:].any()
    np.testing.assert_array_equal(found.experts[:fed], forced.experts[:fed])
    np.testing.assert_allclose(found.gate_weights[:fed], forced.gate_weights[:fed], atol=2e-3)
    np.testing.assert_allclose(found.contributions[:fed], forced.contributions[:fed], rtol=4e-3)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "prompt lookup"])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_is_routed_as_when_it_is_fed_alone(tiny_moe, way, seed):
    """And a row by itself is right or refused."""
    ids = prompt_ids(30, seed=seed)
    with RoutingRecorder(tiny_moe.model, contributions=True) as recorder:
        output = search_beams(tiny_moe.model, [ids], **WAYS[way])
    refused = 0
    for final, indices in zip(output.sequences.tolist(), output.beam_indices, strict=True):
        forced = teacher_forced(tiny_moe.model, final)
        found = recorder.choices(final, beam_indices=indices)
        assert_same_routing(found, forced, len(final) - 1)
        for row in range(4):
            try:
                alone = recorder.choices(final, row=row)
            except ValueError as error:
                assert "pass beam_indices=output.beam_indices[0]" in str(error)
                refused += 1
            else:
                assert_same_routing(alone, forced, len(final) - 1)
    assert refused >= 9


def test_a_beam_that_ended_early_is_routed_up_to_its_end(tiny_moe):
    ids = prompt_ids(30)
    common = search_beams(tiny_moe.model, [ids]).sequences[0, 33].item()
    with RoutingRecorder(tiny_moe.model, contributions=True) as recorder:
        output = search_beams(tiny_moe.model, [ids], eos_token_id=common, length_penalty=0.0)
    lengths = set()
    for padded, indices in zip(output.sequences.tolist(), output.beam_indices, strict=True):
        new = padded[30:]
        length = 30 + (new.index(common) + 1 if common in new else len(new))
        lengths.add(length)
        forced = teacher_forced(tiny_moe.model, padded[:length])
        for final, own in ((padded, indices), (padded[:length], indices[: length - 30])):
            found = recorder.choices(final, beam_indices=own)
            assert_same_routing(found, forced, length - 1)
        if length < len(padded):
            for wrong in (padded[:length], indices), (padded, indices[: length - 30]):
                with pytest.raises(ValueError, match="both cut after the same token"):
                    recorder.choices(wrong[0], beam_indices=wrong[1])
    assert len(lengths) > 1


def test_beams_of_a_padded_batch_are_told_apart(tiny_moe):
    short, long = prompt_ids(20, seed=2), prompt_ids(33, seed=3)
    rows, mask = [[8] * 13 + short, long], [[0] * 13 + [1] * 20, [1] * 33]
    with RoutingRecorder(tiny_moe.model, contributions=True) as recorder:
        output = search_beams(tiny_moe.model, rows, mask, num_return_sequences=1)
    for n, padding in ((0, 13), (1, 0)):
        final = output.sequences[n, padding:].tolist()
        places = np.maximum(np.arange(45) - padding, -1)
        found = recorder.choices(final, positions=places, beam_indices=output.beam_indices[n])
        assert_same_routing(found, teacher_forced(tiny_moe.model, final), len(final) - 1)
        with pytest.raises(ValueError, match="not of one sequence that was recorded"):
            recorder.choices(final, positions=places, beam_indices=output.beam_indices[1 - n])


def test_beam_indices_that_cannot_be_are_refused(tiny_moe):
    ids = prompt_ids(30)
    with RoutingRecorder(tiny_moe.model) as recorder:
        output = search_beams(tiny_moe.model, [ids])
    final, indices = output.sequences[0].tolist(), output.beam_indices[0].tolist()
    with pytest.raises(ValueError, match=r"of one sequence: pass output\.beam_indices\[0\]"):
        recorder.choices(final, beam_indices=output.beam_indices)
    for wrong in ([-1] * 12, [*indices[:3], -1, *indices[4:]], indices * 4, []):
        with pytest.raises(ValueError, match="must name a row for each generated"):
            recorder.choices(final, beam_indices=wrong)
    with pytest.raises(ValueError, match="row 9 is asked for, a pass had 4 rows"):
        recorder.choices(final, beam_indices=[9] * 12)
    for place in range(12):
        moved = [*indices[:place], (indices[place] + 1) % 4, *indices[place + 1 :]]
        with pytest.raises(ValueError, match="not of one sequence that was recorded"):
            recorder.choices(final, beam_indices=moved)


def test_a_cache_is_itself_again_after_recorders_watched_it(tiny_moe):
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=tiny_moe.model.config)
    order = torch.tensor([1, 0])
    ids = torch.tensor([[11, 12], [13, 14]])
    with torch.inference_mode(), RoutingRecorder(tiny_moe.model) as outer:
        with RoutingRecorder(tiny_moe.model) as inner:
            for _ in range(2):
                tiny_moe.model(ids, past_key_values=cache)
            cache.reorder_cache(order)
            cache.reorder_cache(order)
            tiny_moe.model(ids[:, :1], past_key_values=cache)
            fed = [11, 12, 11, 12, 11]
            assert inner.choices(fed).routed.all()  # there and back again
            cache.reorder_cache(order)
            tiny_moe.model(ids[:, :1].flip(0), past_key_values=cache)
        for recorder in (inner, outer):
            with pytest.raises(ValueError, match="changed places"):
                recorder.choices([*fed, 13])
        assert vars(cache)["reorder_cache"].recorder is outer
    assert "reorder_cache" not in vars(cache)


def test_padding_is_never_counted(tiny_moe, reference):
    import torch

    short, long = prompt_ids(20, seed=2), prompt_ids(33, seed=3)
    rows = [[8] * 13 + short, long]
    mask = torch.tensor([[0] * 13 + [1] * 20, [1] * 33])
    with torch.inference_mode(), RoutingRecorder(tiny_moe.model) as recorder:
        output = tiny_moe.model.generate(
            torch.tensor(rows),
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=8,
        ).tolist()
    for row, padding, length in [(0, 13, 20), (1, 0, 33)]:
        final = output[row][padding:]
        places = np.maximum(np.arange(40) - padding, -1)
        choices = recorder.choices(final, row=row, positions=places)
        trace = table(final, length).trace(choices, recorder.n_experts)
        np.testing.assert_array_equal(
            trace.experts[:-1], true_routes(reference, tiny_moe.model, final)[0][:-1]
        )
        assert trace.routed.sum() == len(final) - 1


def test_a_rejected_branch_leaves_no_trace(tiny_moe):
    import torch
    from transformers import DynamicCache

    ids = prompt_ids(30)
    cache = DynamicCache(config=tiny_moe.model.config)
    with torch.inference_mode(), RoutingRecorder(tiny_moe.model) as recorder:
        tiny_moe.model(torch.tensor([ids[:20]]), past_key_values=cache)
        tiny_moe.model(
            torch.tensor([[299, ids[21]]]), past_key_values=cache
        )  # a wrong token, then a right one
        cache.crop(-2)
        tiny_moe.model(torch.tensor([ids[20:21]]), past_key_values=cache)
    trace = table(ids[:22], 20).trace(recorder.choices(ids[:22]), recorder.n_experts)
    np.testing.assert_array_equal(trace.routed, [True] * 21 + [False])


def test_a_wrong_token_of_a_batch_that_was_taken_back_is_no_reason_to_refuse(tiny_moe):
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([prompt_ids(10), prompt_ids(10, seed=4)])
    cache = DynamicCache(config=tiny_moe.model.config)
    with torch.inference_mode(), RoutingRecorder(tiny_moe.model) as recorder:
        tiny_moe.model(ids, past_key_values=cache)
        final = [*ids[0, :8].tolist(), 299, 298]
        with pytest.raises(ValueError, match="row 0 was fed other tokens than these"):
            recorder.choices(final)
        cache.crop(-3)
        tiny_moe.model(ids[:, 7:8], past_key_values=cache)
    assert recorder.choices(final).routed.tolist() == [True] * 8 + [False] * 2


def test_hooks_are_gone_after_the_with_block(tiny_moe):
    with RoutingRecorder(tiny_moe.model):
        pass
    assert all(not router._forward_hooks for router in find_routers(tiny_moe.model))
    assert not tiny_moe.model.model._forward_pre_hooks


def test_a_dense_model_and_training_mode_are_refused(tiny_dense, tiny_moe):
    with pytest.raises(
        ValueError, match=r"is dense; the MoE is microsoft/Phi-3\.5-MoE-instruct, or the"
    ):
        RoutingRecorder(tiny_dense.model)
    tiny_moe.model.train()
    try:
        with pytest.raises(ValueError, match=r"model\.eval"):
            RoutingRecorder(tiny_moe.model)
    finally:
        tiny_moe.model.eval()


def test_sparsemixer_with_another_k_is_refused(tiny_moe):
    router = find_routers(tiny_moe.model)[0]
    router.top_k = 3
    try:
        with pytest.raises(ValueError, match="is 3, but sparsemixer always takes 2"):
            RoutingRecorder(tiny_moe.model)
    finally:
        router.top_k = 2


def make_mixtral(k, dtype="float32"):
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(k)
    config = MixtralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_local_experts=8,
        num_experts_per_tok=k,
        initializer_range=0.25,
        sliding_window=None,
    )
    return MixtralForCausalLM(config).to(getattr(torch, dtype)).eval()


def true_mixtral(model, ids):
    """logits, experts, gates, contributions and output norms of each token and layer, from the layers' inputs"""
    import torch

    inputs = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args, n=n: inputs.update({n: args[0][0]}))
        for n, layer in enumerate(model.model.layers)
    ]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    k, found = model.config.num_experts_per_tok, {}
    for n, layer in enumerate(model.model.layers):
        w = {name: value.detach().double().numpy() for name, value in layer.mlp.named_parameters()}
        for t, x in enumerate(inputs[n].double().numpy()):
            logits = w["gate.weight"] @ x
            chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:k]
            powers = np.exp(logits - logits.max())
            gates = powers[chosen] / powers[chosen].sum()
            added = []
            for expert, gate in zip(chosen, gates, strict=True):
                a, b = np.split(w["experts.gate_up_proj"][expert] @ x, 2)
                added.append(gate * (w["experts.down_proj"][expert] @ (a / (1 + np.exp(-a)) * b)))
            norms = np.linalg.norm(added, axis=1)
            found[t, n] = logits, chosen, gates, norms, np.linalg.norm(sum(added))
    return found


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("how", ["forward", "generate", "chunked"])
def test_mixtral_is_recorded_as_an_independent_computation_has_it(k, how):
    import torch

    model, ids = make_mixtral(k), prompt_ids(30)
    with RoutingRecorder(model, logits=True, contributions=True) as recorder:
        if how == "forward":
            with torch.inference_mode():
                model(torch.tensor([ids]))
            final = ids
        else:
            final = generate(model, ids, **({"prefill_chunk_size": 8} if how == "chunked" else {}))
    choices = recorder.choices(final)
    trace = table(final, 30).trace(choices, recorder.n_experts)
    assert trace.experts.shape == (len(final), 3, k) and trace.k == k and trace.n_experts == 8
    assert trace.routed.sum() == len(final) - (how != "forward")
    for (t, layer), (logits, experts, gates, norms, total) in true_mixtral(model, final).items():
        if trace.routed[t]:
            np.testing.assert_array_equal(trace.experts[t, layer], experts)
            np.testing.assert_allclose(trace.gate_weights[t, layer], gates, atol=2e-3)
            np.testing.assert_allclose(trace.router_logits[t, layer], logits, atol=4e-3)
            np.testing.assert_allclose(trace.contributions[t, layer], norms, rtol=5e-3)
            np.testing.assert_allclose(trace.output_norms[t, layer], total, rtol=5e-3)
    sums = trace.gate_weights[trace.routed].astype(float).sum(axis=2)
    np.testing.assert_allclose(sums, 1, atol=2e-3)
    np.testing.assert_array_equal(trace.usage().sum(axis=1), k)


def test_recording_contributions_of_mixtral_changes_a_rounding_at_most():
    import torch

    for dtype, most in (("float32", 0.0), ("bfloat16", 0.1)):
        model, ids = make_mixtral(2, dtype), torch.tensor([prompt_ids(40)])
        with torch.inference_mode():
            plain = model(ids).logits
            with RoutingRecorder(model, contributions=True):
                recorded = model(ids).logits
        assert (plain - recorded).abs().max() <= most * plain.abs().max()


def test_probabilities_are_not_taken_for_router_logits():
    import torch

    model, ids = make_mixtral(2), torch.tensor([prompt_ids(10)])

    def soften(_module, _args, output):
        return (output[0].softmax(dim=-1), *output[1:])

    for router in find_routers(model):
        router.register_forward_hook(soften)
    with torch.inference_mode(), pytest.raises(ValueError, match="returns probabilities as router"):
        with RoutingRecorder(model, logits=True):
            model(ids)
    with torch.inference_mode(), RoutingRecorder(model) as recorder:
        model(ids)
    assert recorder.choices(ids[0].tolist()).routed.all()


def test_what_cannot_be_recorded_or_intervened_in_is_named():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    small = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    other = OlmoeForCausalLM(OlmoeConfig(vocab_size=320, num_experts=4, **small)).eval()
    with pytest.raises(ValueError, match=r"not known here \(olmoe\): known are phimoe and mixtral"):
        RoutingRecorder(other)
    assert find_routers(other) == []
    with (
        pytest.raises(ValueError, match="gates by renormalised softmax, and an intervention"),
        intervened(make_mixtral(2), [Edit("ban", 1)]),
    ):
        pass
