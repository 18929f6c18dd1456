"""Interventions against an independent forward pass in NumPy whose routing is edited by hand."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from workbench.generation.prompts import build_prompt
from workbench.routing.capture import RoutingRecorder, find_routers
from workbench.routing.intervene import Edit, TokenMask, intervened

IDS = np.random.default_rng(5).integers(10, 300, 40).tolist()


def logits_of(model, ids=IDS):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


def expected(reference, model, edit, *, layers=None, meant=None):
    """Logits [tokens, vocabulary] where `edit` takes the place of sparsemixer in some layers and tokens."""
    made = reference.Reference(model)
    plain = made.route

    def route(layer, token, row):
        if (layers is not None and layer not in layers) or (meant is not None and not meant[token]):
            return plain(layer, token, row)
        return edit(lambda changed: plain(layer, token, changed), row)

    made.route = route
    return made.forward(IDS, long=True)[0]


def banned(expert):
    def edit(plain, row):
        changed = row.copy()
        changed[expert] = -np.inf
        return plain(changed)

    return edit


def dropped(expert):
    def edit(plain, row):
        chosen, gates = plain(row)
        return chosen, [0.0 if e == expert else g for e, g in zip(chosen, gates, strict=True)]

    return edit


def forced(expert):
    def edit(plain, row):
        chosen, gates = plain(row)
        return (chosen, gates) if expert in chosen else ([chosen[0], expert], [gates[0], 1.0])

    return edit


def biased(expert, amount):
    def edit(plain, row):
        changed = row.copy()
        changed[expert] += amount
        return plain(changed)

    return edit


@pytest.fixture(scope="module")
def busiest(tiny_moe):
    """The expert that the tokens of the first layer use most."""
    with RoutingRecorder(tiny_moe.model) as recorder:
        logits_of(tiny_moe.model)
    return int(np.bincount(recorder.choices(IDS).experts[:, 0].reshape(-1)).argmax())


CASES = {
    "ban": (lambda e: [Edit("ban", e)], banned),
    "drop": (lambda e: [Edit("drop", e)], dropped),
    "force": (lambda e: [Edit("force", e)], forced),
    "bias": (lambda e: [Edit("bias", e, amount=-0.7)], lambda e: biased(e, -0.7)),
}


@pytest.mark.parametrize("layers", [None, (1,)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_edit_is_what_an_edited_forward_pass_computes(
    tiny_moe, reference, busiest, name, layers
):
    edits, edit = CASES[name]
    made = [Edit(e.action, e.expert, layers, e.amount) for e in edits(busiest)]
    with intervened(tiny_moe.model, made):
        found = logits_of(tiny_moe.model)
    plain = logits_of(tiny_moe.model)
    wanted = expected(reference, tiny_moe.model, edit(busiest), layers=layers)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert abs(found - plain).max() > 1e-3  # it did something


@pytest.mark.parametrize("name", ["ban", "drop"])
@pytest.mark.parametrize("chunk", [40, 7, 1])
def test_only_the_tokens_that_are_meant_are_edited(tiny_moe, reference, busiest, name, chunk):
    import torch
    from transformers import DynamicCache

    mask = TokenMask(np.arange(20) % 3 == 0, beyond=True)
    edits, edit = CASES[name]
    meant = mask.at(0, 40)
    assert meant[:20].tolist() == (np.arange(20) % 3 == 0).tolist() and meant[20:].all()
    cache = DynamicCache(config=tiny_moe.model.config)
    parts = []
    recorder = RoutingRecorder(tiny_moe.model, logits=True)
    with (
        recorder,
        intervened(tiny_moe.model, edits(busiest), tokens=mask),
        torch.inference_mode(),
    ):
        for start in range(0, 40, chunk):
            ids = torch.tensor([IDS[start : start + chunk]])
            parts.append(tiny_moe.model(ids, past_key_values=cache).logits[0].numpy())
    recorded = recorder.choices(IDS).router_logits[:, :, busiest]
    assert (np.isneginf(recorded) == (meant[:, None] & (name == "ban"))).all()
    wanted = expected(reference, tiny_moe.model, edit(busiest), meant=meant)
    np.testing.assert_allclose(np.concatenate(parts), wanted, atol=2e-4)


def test_a_dial_at_nothing_is_bit_identical(tiny_moe, busiest):
    plain = logits_of(tiny_moe.model)
    with intervened(tiny_moe.model, [Edit("bias", busiest, amount=0.0)]):
        np.testing.assert_array_equal(logits_of(tiny_moe.model), plain)
    with intervened(tiny_moe.model, [Edit("ban", busiest)], tokens=TokenMask(np.zeros(40, bool))):
        np.testing.assert_array_equal(logits_of(tiny_moe.model), plain)
    np.testing.assert_array_equal(logits_of(tiny_moe.model), plain)  # and nothing stays behind
    assert all(not router._forward_hooks for router in find_routers(tiny_moe.model))


def test_a_banned_expert_is_never_used_and_those_above_it_are_the_same(tiny_moe, busiest):
    with RoutingRecorder(tiny_moe.model) as recorder:
        logits_of(tiny_moe.model)
    plain = recorder.choices(IDS)
    with intervened(tiny_moe.model, [Edit("ban", busiest, layers=(1,))]):
        with RoutingRecorder(tiny_moe.model, logits=True) as recorder:
            logits_of(tiny_moe.model)
    found = recorder.choices(IDS)
    assert (plain.experts[:, 0] == found.experts[:, 0]).all()
    assert not (found.experts[:, 1] == busiest).any() and np.isfinite(found.gate_weights).all()
    assert np.isneginf(found.router_logits[:, 1, busiest]).all()
    with (
        RoutingRecorder(tiny_moe.model) as outer,
        intervened(tiny_moe.model, [Edit("ban", busiest)]),
    ):
        logits_of(tiny_moe.model)
    assert not (outer.choices(IDS).experts == busiest).any()  # what was decided, whoever came first
    assert np.isfinite(found.router_logits[:, 0]).all()


def test_banning_what_is_not_used_changes_nothing(tiny_moe):
    few = IDS[:4]
    with RoutingRecorder(tiny_moe.model) as recorder:
        plain = logits_of(tiny_moe.model, few)
    used = set(recorder.choices(few).experts[:, 0].reshape(-1).tolist())
    unused = min(set(range(16)) - used)
    with intervened(tiny_moe.model, [Edit("drop", unused, layers=(0,))]):
        np.testing.assert_array_equal(logits_of(tiny_moe.model, few), plain)


def test_a_generator_does_not_reuse_what_was_computed_under_an_intervention(
    small_prompt, tiny_moe, busiest
):
    before = tiny_moe.generate(small_prompt, max_new_tokens=6)
    with intervened(tiny_moe.model, [Edit("ban", busiest)]):
        under = tiny_moe.generate(small_prompt, max_new_tokens=6)
        again = tiny_moe.generate(small_prompt, max_new_tokens=6)
    after = tiny_moe.generate(small_prompt, max_new_tokens=6)
    assert not (under.routing.experts[under.routing.routed] == busiest).any()
    assert under.token_ids == again.token_ids and again.cache.reused_tokens > 0
    assert (before.routing.experts == after.routing.experts).all()
    np.testing.assert_array_equal(before.log_probabilities, after.log_probabilities)


@pytest.fixture
def small_prompt(tiny_moe):
    from workbench.generation.prompts import plain_prompt

    return plain_prompt("Which valve leaked? " * 5, tokenizer=tiny_moe.tokenizer, budget_tokens=900)


@pytest.mark.parametrize("segment", ["question", "evidence", "evidence 2", "answer"])
def test_a_generator_edits_the_segment_it_is_told(small_retriever, tiny_moe, busiest, segment):
    prompt = build_prompt(
        "Which valve leaked?",
        small_retriever.search("valve", k=2),
        documents=small_retriever.documents,
        tokenizer=tiny_moe.tokenizer,
        budget_tokens=900,
    )
    with tiny_moe.intervened([Edit("ban", busiest)], prompt=prompt, segment=segment):
        for found in (
            tiny_moe.generate(prompt, max_new_tokens=8).routing,
            tiny_moe.quote(prompt).routing,
        ):
            assert not found.counts(segment)[:, busiest].any()
            others = found.routed & ~found.rows(segment)
            assert (found.experts[others][:, 0] == busiest).any()
    with pytest.raises(ValueError, match="no segment 'evidences'; there are template"):
        with tiny_moe.intervened([Edit("ban", 1)], prompt=prompt, segment="evidences"):
            pass
    with tiny_moe.intervened([Edit("ban", 1)]):
        with pytest.raises(ValueError, match="take another context before or after"):
            tiny_moe.with_context(512)
    with pytest.raises(ValueError, match="give prompt and segment together"):
        with tiny_moe.intervened([Edit("ban", 1)], segment="question"):
            pass
    assert all(not router._forward_hooks for router in find_routers(tiny_moe.model))


def test_a_trace_made_under_an_intervention_says_so(tiny_moe, small_prompt):
    from workbench.routing.compare import compare_routing

    plain = tiny_moe.read(small_prompt)
    with tiny_moe.intervened([Edit("ban", 3, (0, 2)), Edit("bias", 4, amount=0.5)]):
        under = tiny_moe.read(small_prompt)
    assert under.origin["edits"] == "ban 3 in layers 0, 2; bias 4 by +0.5 in all layers"
    assert "edits" not in plain.origin and "edits" not in tiny_moe.origin()
    found = compare_routing(plain, under, permutations=9, block_tokens=20)
    assert found.differs == ("edits: none and ban 3 in layers 0, 2; bias 4 by +0.5 in all layers",)
    with tiny_moe.intervened([Edit("ban", 3)], prompt=small_prompt, segment="question"):
        assert tiny_moe.read(small_prompt).origin["edits"].endswith(" in all layers for question")


def test_a_segment_is_of_the_prompt_that_is_read(tiny_moe, small_prompt):
    from workbench.generation.prompts import plain_prompt

    other = plain_prompt("Quite another text.", tokenizer=tiny_moe.tokenizer, budget_tokens=500)
    with tiny_moe.intervened([Edit("ban", 3)], prompt=small_prompt, segment="question"):
        with pytest.raises(ValueError, match="of another prompt than the one that is read"):
            tiny_moe.read(other)
        with pytest.raises(ValueError, match="of another prompt than the one that is read"):
            tiny_moe.generate(other, max_new_tokens=2)
        tiny_moe.generate(small_prompt, max_new_tokens=2)


def test_forcing_leaves_the_gate_of_those_that_had_chosen_the_expert(tiny_moe, small_prompt):
    before = tiny_moe.read(small_prompt)
    with tiny_moe.intervened([Edit("force", 5, (1,))]):
        after = tiny_moe.read(small_prompt)
    rows = before.rows()
    had = (before.experts[rows, 1] == 5).any(axis=1)
    assert had.any() and not had.all()
    np.testing.assert_array_equal(after.experts[rows, 1][had], before.experts[rows, 1][had])
    np.testing.assert_array_equal(
        after.gate_weights[rows, 1][had], before.gate_weights[rows, 1][had]
    )
    assert (after.experts[rows, 1][~had, 1] == 5).all()
    assert (after.gate_weights[rows, 1][~had, 1] == 1.0).all()


def test_an_intervention_waits_for_an_answer_of_another_thread(tiny_moe, small_prompt):
    entered, order = threading.Event(), []

    def on_text(text):
        if not entered.is_set():
            entered.set()
            time.sleep(0.3)
        order.append("text")

    def answer():
        found.append(tiny_moe.generate(small_prompt, max_new_tokens=12, on_text=on_text))

    found = []
    alone = tiny_moe.generate(small_prompt, max_new_tokens=12)
    thread = threading.Thread(target=answer)
    thread.start()
    entered.wait(20)
    with tiny_moe.intervened([Edit("ban", 0), Edit("ban", 1)]):
        order.append("edited")
    thread.join()
    assert order[-1] == "edited" and found[0].token_ids == alone.token_ids


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], "no edit is given"),
        ([Edit("ban", 16)], "there is no expert to ban 16 in all layers; there are 0 to 15"),
        ([Edit("ban", 1, layers=(9,))], "there is no layer to ban 1 in layers 9"),
        ([Edit("ban", e) for e in range(15)], "15 of 16 experts would be banned in layer 0; two must be left"),
        ([Edit("force", 1), Edit("force", 2)], "2 experts would be forced in layer 0"),
        ([Edit("force", 1), Edit("ban", 1)], r"expert 1 of layer 0 is edited more than once \(force and ban\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_leaves_no_hook(tiny_moe, edits, message):
    with pytest.raises(ValueError, match=message), intervened(tiny_moe.model, edits):
        pass
    assert all(not router._forward_hooks for router in find_routers(tiny_moe.model))


def test_wrong_uses_are_refused(tiny_moe, tiny_dense):
    import torch

    with (
        pytest.raises(ValueError, match="has no sparsemixer router"),
        intervened(tiny_dense.model, [Edit("ban", 1)]),
    ):
        pass
    with intervened(tiny_moe.model, [Edit("ban", 1)]):
        with (
            pytest.raises(ValueError, match="intervened in already"),
            intervened(tiny_moe.model, [Edit("ban", 2)]),
        ):
            pass
    with intervened(tiny_moe.model, [Edit("ban", 2)], tokens=TokenMask(np.ones(3, bool))):
        with pytest.raises(ValueError, match="one sequence at a time"):
            tiny_moe.model(torch.tensor([[5, 6], [7, 8]]))
    with pytest.raises(ValueError, match="action='kill' is not known"):
        Edit("kill", 1)
    for wrong, message in (
        ({"expert": -1}, "expert=-1 is no expert's number"),
        ({"expert": "7"}, "expert='7' is no expert's number"),
        ({"expert": 7, "layers": 3}, "layers=3 must be a tuple of layers"),
        ({"expert": 7, "layers": ("3",)}, "must be a tuple of layers"),
        ({"expert": 7, "layers": ()}, "must be a tuple of layers"),
        ({"expert": 7, "amount": "much"}, "amount='much' is no number"),
    ):
        with pytest.raises(ValueError, match=message):
            Edit("bias", **wrong)
    for edits in ("ban", Edit("ban", 1), [("ban", 1)]):
        with pytest.raises(ValueError, match="must be a list of Edit"):
            with intervened(tiny_moe.model, edits):
                pass
    for wrong in ({"action": "ban", "amount": 1.0}, {"action": "bias", "amount": float("nan")}):
        with pytest.raises(
            ValueError, match=r"is for 'bias' alone|is no number from -60,000 to 60,000"
        ):
            Edit(expert=1, **wrong)
