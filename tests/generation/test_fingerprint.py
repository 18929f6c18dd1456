"""Fingerprints of routing: the same everywhere, and different from the first layer that is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from workbench.generation.fingerprint import CANARIES, RoutingFingerprint, routing_fingerprint
from workbench.generation.loading import load_generator
from workbench.generation.prompts import plain_prompt
from workbench.routing.intervene import Edit

LAYERS = 4


@pytest.fixture(scope="module")
def folder(make_tiny):
    return make_tiny(seed=11, layers=LAYERS)


@pytest.fixture
def generator(folder):
    return load_generator(folder, context=1024, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def fingerprint(folder) -> RoutingFingerprint:
    return routing_fingerprint(load_generator(folder, context=1024, device="cpu", dtype="float32"))


def test_the_hashes_and_margins_are_those_of_a_plain_loop(generator, fingerprint):
    chosen: list[list[bytes]] = [[] for _ in range(LAYERS)]
    gaps: list[list[float]] = [[] for _ in range(LAYERS)]
    for text in CANARIES:
        prompt = plain_prompt(text, tokenizer=generator.tokenizer, budget_tokens=1024)
        trace = generator.read(prompt, capture="logits")
        for token in range(len(trace.token_ids)):
            for layer in range(LAYERS):
                chosen[layer].append(bytes(trace.experts[token, : layer + 1].reshape(-1).tolist()))
                a, b, c = sorted(map(float, trace.router_logits[token, layer]))[:-4:-1]
                first, second = (a - b) / max(abs(a), abs(b)), (b - c) / max(abs(b), abs(c))
                gaps[layer].append(min(first, second))
    assert fingerprint.tokens == len(gaps[0])
    for layer in range(LAYERS):
        digest = hashlib.sha256(b"".join(chosen[layer])).hexdigest()
        assert fingerprint.sha256_to_layer[layer] == digest
        assert fingerprint.least_margin[layer] == pytest.approx(min(gaps[layer]))
        low = np.percentile(gaps[layer], 1)
        assert fingerprint.low_margin[layer] == pytest.approx(low)
        for kind, bound in (("float32", 2**-10), ("bfloat16", 2**-7)):
            share = sum(gap <= bound for gap in gaps[layer]) / len(gaps[layer])
            assert getattr(fingerprint, f"fragile_{kind}")[layer] == pytest.approx(share)
    assert fingerprint.sha256 == fingerprint.sha256_to_layer[-1]


@pytest.mark.slow  # imports torch and transformers once more
def test_another_process_finds_the_same(folder, fingerprint):
    code = (
        "import json, sys; from workbench.generation.loading import load_generator; "
        "from workbench.generation.fingerprint import routing_fingerprint; "
        "g = load_generator(sys.argv[1], context=1024, device='cpu', dtype='float32'); "
        "print(json.dumps(routing_fingerprint(g).to_dict()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    again = RoutingFingerprint.from_dict(json.loads(run.stdout))
    assert again.sha256_to_layer == fingerprint.sha256_to_layer
    assert again.token_sha256 == fingerprint.token_sha256
    assert fingerprint.differs_from(again).first_layer is None


def test_what_was_read_before_changes_nothing(generator, fingerprint):
    for text in CANARIES[::-1]:
        prompt = plain_prompt(
            text + " And then?", tokenizer=generator.tokenizer, budget_tokens=1024
        )
        generator.generate(prompt, max_new_tokens=2)
    held = len(generator.prefixes), generator.prefixes.held_bytes
    assert held[0] > 0
    assert routing_fingerprint(generator) == fingerprint
    # nothing was read over what was held, nor put in its place
    assert (len(generator.prefixes), generator.prefixes.held_bytes) == held


@pytest.mark.parametrize("layer", range(LAYERS))
def test_another_router_is_found_in_its_layer(generator, fingerprint, layer):
    import torch

    with torch.no_grad():
        generator.model.model.layers[layer].mlp.router.weight.mul_(-1)
    found = fingerprint.differs_from(routing_fingerprint(generator))
    assert found.first_layer == layer and found.origin == ()
    assert f"differs from layer {layer} on" in str(found)
    assert "nothing that is known of who routed differs" in str(found)


def test_a_slightly_perturbed_router_is_found_in_its_layer_or_above(generator, fingerprint):
    import torch

    weight = generator.model.model.layers[2].mlp.router.weight
    with torch.no_grad():
        weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    found = fingerprint.differs_from(routing_fingerprint(generator)).first_layer
    assert found is not None and found >= 2


def test_bfloat16_differs_from_float32_by_choices_that_are_close(folder, fingerprint):
    coarse = routing_fingerprint(
        load_generator(folder, context=1024, device="cpu", dtype="bfloat16")
    )
    found = fingerprint.differs_from(coarse)
    assert found.first_layer is not None and found.may_be_rounding and found.close_choices > 0
    assert "dtype: float32 and bfloat16" in found.origin
    assert "so close that rounding could turn them" in str(found) and "\n" not in str(found)
    assert found.first_layer == coarse.differs_from(fingerprint).first_layer


def test_wide_margins_leave_rounding_out(fingerprint):
    none = (0.0,) * LAYERS
    sure = replace(fingerprint, fragile_float32=none, fragile_bfloat16=none)
    changed = replace(sure, sha256_to_layer=(*sure.sha256_to_layer[:3], "0" * 64))
    found = sure.differs_from(changed)
    assert (found.first_layer, found.may_be_rounding, found.close_choices) == (3, False, 0)
    assert "no choice there is close enough" in str(found)
    # one of both is enough, and of bfloat16 only where one computed in it
    close = replace(changed, fragile_bfloat16=(0, 0, 0, 0.5))
    assert not sure.differs_from(close).may_be_rounding
    coarse = replace(close, origin={**close.origin, "dtype": "bfloat16"})
    assert sure.differs_from(coarse).close_choices == round(fingerprint.tokens / 2)
    assert not sure.differs_from(replace(coarse, fragile_bfloat16=(0.5, 0, 0, 0))).may_be_rounding


def test_an_origin_is_compared_by_every_name(fingerprint):
    origin = {**fingerprint.origin, "torch": "9.9", "kernel": "new"}
    del origin["device"]
    found = fingerprint.differs_from(replace(fingerprint, origin=origin))
    own = fingerprint.origin["torch"]
    assert found.origin == (
        "device: cpu and unknown",
        f"torch: {own} and 9.9",
        "kernel: unknown and new",
    )
    assert str(found).startswith(f"all {fingerprint.tokens} tokens are routed alike (device: cpu")


def test_other_tokens_or_layers_are_not_compared(fingerprint):
    with pytest.raises(ValueError, match="tokens that are not the same"):
        fingerprint.differs_from(replace(fingerprint, token_sha256="0" * 64))
    short = {
        name: getattr(fingerprint, name)[:2]
        for name in ("sha256_to_layer", "least_margin", "low_margin", "fragile_float32", "fragile_bfloat16")
    }  # fmt: skip
    with pytest.raises(ValueError, match="4 and 2 layers: their models have nothing to compare"):
        fingerprint.differs_from(replace(fingerprint, **short))


def test_a_dense_model_and_an_intervened_one_have_none(tiny_dense, generator):
    with pytest.raises(ValueError, match="is a dense model: it has no router to look at"):
        routing_fingerprint(tiny_dense)
    with (
        generator.intervened([Edit("ban", expert=3)]),
        pytest.raises(ValueError, match="being intervened in"),
    ):
        routing_fingerprint(generator)


def test_a_fingerprint_survives_json(fingerprint):
    assert (
        RoutingFingerprint.from_dict(json.loads(json.dumps(fingerprint.to_dict()))) == fingerprint
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 0}, "has format 0, this program makes and reads 1"),
        ({"format": None}, "has format None"),
        ({"more": 1}, "wrong or missing: more"),
        ({"sha256_to_layer": "0" * 64}, "sha256_to_layer must be a list"),
        ({"sha256_to_layer": ["0" * 63] * LAYERS}, "a sha256 in hex"),
        ({"sha256_to_layer": []}, "a sha256 in hex"),
        ({"sha256_to_layer": [1] * LAYERS}, "a sha256 in hex"),
        ({"token_sha256": "x" * 64}, "a sha256 in hex"),
        ({"token_sha256": ["0" * 64]}, "a sha256 in hex"),
        ({"tokens": 0}, "at least one token, not of 0"),
        ({"tokens": "30"}, "at least one token, not of '30'"),
        ({"tokens": True}, "at least one token, not of True"),
        ({"least_margin": [0.1]}, "least_margin must be 4 numbers from 0, one a layer"),
        ({"least_margin": [float("nan")] * LAYERS}, "least_margin must be 4 numbers"),
        ({"least_margin": [float("inf")] * LAYERS}, "least_margin must be 4 numbers"),
        ({"low_margin": [-0.1] * LAYERS}, "low_margin must be 4 numbers"),
        ({"low_margin": None}, "low_margin must be a list"),
        ({"fragile_bfloat16": [1.5] * LAYERS}, "fragile_bfloat16 must be 4 numbers from 0 to 1"),
        ({"fragile_float32": ["0.5"] * LAYERS}, "fragile_float32 must be 4 numbers"),
        ({"origin": [["dtype", "float32"]]}, "origin must be an object"),
        ({"origin": {"dtype": 32}}, "origin must say what routed"),
    ],
)
def test_what_is_no_fingerprint_is_refused_in_one_sentence(fingerprint, change, match):
    with pytest.raises(ValueError, match=match) as error:
        RoutingFingerprint.from_dict({**fingerprint.to_dict(), **change})
    assert "\n" not in str(error.value)


def test_a_missing_field_and_no_object_at_all_are_named(fingerprint):
    held = fingerprint.to_dict()
    del held["tokens"]
    with pytest.raises(ValueError, match="wrong or missing: tokens"):
        RoutingFingerprint.from_dict(held)
    for nothing in ([], {}, None, "fingerprint"):
        with pytest.raises(ValueError, match="is no routing fingerprint: it has no format"):
            RoutingFingerprint.from_dict(nothing)


def test_the_pocket_model_reads_about_300_tokens():
    assert 200 <= routing_fingerprint(load_generator("pocket")).tokens <= 400
