"""A generator → a fingerprint of how it routes a few fixed texts, small enough for the manifest of a run.

Two environments of the same fingerprint chose the same experts in the same order for every token of these texts; of two
that are not the same, the first layer that differs is known. Knows no other text than its own.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.generation.phi import Generator
from workbench.generation.prefix_cache import PrefixCache
from workbench.generation.prompts import plain_prompt
from workbench.markup import shorten
from workbench.routing.intervene import is_intervened
from workbench.routing.margins import BFLOAT16, FLOAT16, margins
from workbench.routing.trace import RoutingTrace

# Goes up with every change of CANARIES: fingerprints of other texts cannot be compared
FORMAT = 1
CANARIES = (
    "The night shift found valve V-14 open at 22:47. Why?",
    "Der Überlauf blieb trocken, obwohl die Pumpe lief.",
    "La boulangère a vendu quarante-deux pains, un peu brûlés.",
    "船在黎明前离开港口。 Три чайки молчали.",
    "0 1 1 2 3 5 8 13; 3.14159; 17 × 23 = 391; 50 % of 6e3",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "| pump | litres |\n|------|-------:|\n| P1   |  1,204 |\n| P3   |    987 |\n",
)
_LOW = 1  # percent
_SHA256 = re.compile("[0-9a-f]{64}")
_SHARES = ("fragile_float32", "fragile_bfloat16")
_BY_LAYER = ("least_margin", "low_margin", *_SHARES)


@dataclass(frozen=True, slots=True)
class FingerprintDifference:
    """In what two fingerprints differ. Made by :meth:`RoutingFingerprint.differs_from`.

    `first_layer` is the first layer, from 0, whose choices are not the same, None where all are. `may_be_rounding` says
    that some choice there is so close in one of both that rounding could turn it; `close_choices` is how many of the
    `tokens` are. `origin` names what differs of who routed: "dtype: float32 and bfloat16".
    """

    first_layer: int | None
    may_be_rounding: bool
    close_choices: int
    tokens: int
    origin: tuple[str, ...]

    def __str__(self) -> str:
        who = "; ".join(self.origin) or "nothing that is known of who routed differs"
        edge = f"the routing of {self.tokens} tokens differs from layer {self.first_layer} on"
        if self.first_layer is None:
            return f"all {self.tokens} tokens are routed alike ({who})"
        if self.may_be_rounding:
            why = (
                f"{self.close_choices} choices there are so close that rounding could turn them too"
            )
        else:
            why = "no choice there is close enough for rounding to turn it"
        return f"{edge} ({who}); {why}"


@dataclass(frozen=True, slots=True)
class RoutingFingerprint:
    """How a generator routes the canaries. Made by :func:`routing_fingerprint`.

    ``sha256_to_layer[l]`` is that of the experts of layers 0 to l, [tokens, layers ≤ l, k] uint8 in the order chosen:
    two fingerprints are alike up to the layer where they first differ, and nowhere beyond. ``token_sha256`` is that of
    the `tokens` token ids read.

    A margin is the gap between an expert chosen and the next in rank over the larger size of their router logits
    (:func:`workbench.routing.margins.margins`), the least of a token's k choices. [layers] each: `least_margin` and
    `low_margin`, its first percentile; `fragile_float32` and `fragile_bfloat16`, the shares of tokens whose margin is
    within rounding. Router logits are recorded as float16, so the former counts margins up to 2**-10, more than float32
    could turn.
    """

    sha256_to_layer: tuple[str, ...]
    token_sha256: str
    tokens: int
    least_margin: tuple[float, ...]
    low_margin: tuple[float, ...]
    fragile_float32: tuple[float, ...]
    fragile_bfloat16: tuple[float, ...]
    origin: Mapping[str, str]

    def __post_init__(self) -> None:
        layers = len(self.sha256_to_layer)
        if not layers or not all(map(_is_sha256, (*self.sha256_to_layer, self.token_sha256))):
            raise ValueError("a fingerprint has a sha256 in hex for the tokens and for each layer")
        if type(self.tokens) is not int or self.tokens < 1:
            raise ValueError(f"a fingerprint is of at least one token, not of {self.tokens!r}")
        for name in _BY_LAYER:
            values, most = getattr(self, name), 1.0 if name in _SHARES else math.inf
            if len(values) != layers or not all(_is_number(value, most) for value in values):
                raise ValueError(
                    f"{name} must be {layers} numbers from 0{' to 1' if most == 1 else ''}, one a layer, got "
                    f"{shorten(str(list(values)), 80)}"
                )
        if not all(isinstance(word, str) for pair in self.origin.items() for word in pair):
            raise ValueError("origin must say what routed in names and texts")

    def __repr__(self) -> str:
        return (
            f"RoutingFingerprint({self.sha256[:12]}…, {self.tokens} tokens, {len(self.sha256_to_layer)} layers; "
            "next: .differs_from(other), .to_dict())"
        )

    @property
    def sha256(self) -> str:
        """The sha256 of all experts in all layers."""
        return self.sha256_to_layer[-1]

    def differs_from(self, other: RoutingFingerprint) -> FingerprintDifference:
        """From which layer on `other` routes differently, and whether rounding may be the reason.

        Rounding is that of bfloat16 where one of both computed in it, else that of the recorded logits. Rounding errors
        of earlier layers add up, so far more tokens than the close ones may differ further up.

        Raises
        ------
        ValueError
            The two have other tokens or another number of layers: other tokenizers or models.
        """
        if self.token_sha256 != other.token_sha256:
            raise ValueError(
                f"the two read {self.tokens} and {other.tokens} tokens that are not the same: their tokenizers or "
                "contexts differ, compare their routing by text instead"
            )
        layers = len(self.sha256_to_layer), len(other.sha256_to_layer)
        if layers[0] != layers[1]:
            raise ValueError(
                f"the two have {layers[0]} and {layers[1]} layers: their models have nothing to compare"
            )
        pairs = zip(self.sha256_to_layer, other.sha256_to_layer, strict=True)
        first = next((layer for layer, (one, two) in enumerate(pairs) if one != two), None)
        close = 0
        if first is not None:
            is_coarse = "bfloat16" in (self.origin.get("dtype"), other.origin.get("dtype"))
            shares = [f.fragile_bfloat16 if is_coarse else f.fragile_float32 for f in (self, other)]
            close = round(max(share[first] for share in shares) * self.tokens)
        names = dict.fromkeys((*self.origin, *other.origin))
        said = {name: tuple(o.origin.get(name, "unknown") for o in (self, other)) for name in names}
        return FingerprintDifference(
            first_layer=first,
            may_be_rounding=close > 0,
            close_choices=close,
            tokens=self.tokens,
            origin=tuple(
                f"{name}: {one} and {two}" for name, (one, two) in said.items() if one != two
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fingerprint as JSON takes it; :meth:`from_dict` reads it."""
        held = asdict(self)
        lists = {n: list(value) for n, value in held.items() if isinstance(value, tuple)}
        return {"format": FORMAT, **held, **lists, "origin": dict(self.origin)}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> RoutingFingerprint:
        """The fingerprint that ``to_dict`` gave. Raises ``ValueError`` with one sentence for anything else."""
        if not isinstance(held, Mapping) or "format" not in held:
            raise ValueError(
                f"{shorten(repr(held), 80)} is no routing fingerprint: it has no format"
            )
        if held["format"] != FORMAT:
            raise ValueError(
                f"the fingerprint has format {held['format']!r}, this program makes and reads {FORMAT}: take it again"
            )
        names = [field.name for field in fields(cls)]
        odd = sorted(set(names).symmetric_difference(held.keys() - {"format"}))
        if odd:
            raise ValueError(
                f"a fingerprint has {', '.join(names)}; wrong or missing: {', '.join(odd)}"
            )
        for name in ("sha256_to_layer", *_BY_LAYER):
            if not isinstance(held[name], list):
                raise ValueError(f"{name} must be a list, got {shorten(repr(held[name]), 80)}")
        if not isinstance(held["origin"], Mapping):
            raise ValueError(f"origin must be an object, got {shorten(repr(held['origin']), 80)}")
        own: dict[str, Any] = {n: held[n] for n in names}
        lists = {n: tuple(value) for n, value in own.items() if isinstance(value, list)}
        return cls(**{**own, **lists})


def routing_fingerprint(generator: Generator) -> RoutingFingerprint:
    """Read the canaries, about 300 tokens, and keep how they were routed.

    Each is read from its beginning, whatever the generator holds of earlier prompts.

    Raises
    ------
    ValueError
        The generator is dense, or its experts are being intervened in.

    >>> from workbench.generation.loading import load_generator
    >>> found = routing_fingerprint(load_generator("pocket"))
    >>> len(found.sha256_to_layer), RoutingFingerprint.from_dict(found.to_dict()) == found
    (5, True)
    >>> found.differs_from(found).first_layer is None
    True
    """
    generator.check_routes()
    if is_intervened(generator.model):
        raise ValueError("experts are being intervened in: take the fingerprint before or after")
    fresh = replace(generator, prefixes=PrefixCache(0))
    traces = [
        fresh.read(
            plain_prompt(text, tokenizer=fresh.tokenizer, budget_tokens=fresh.context),
            capture="logits",
        )
        for text in CANARIES
    ]
    experts = np.concatenate([trace.experts[trace.rows()] for trace in traces])
    ids = np.concatenate([trace.token_ids for trace in traces]).astype("<i8")
    gaps = np.concatenate([_least_gaps(trace) for trace in traces])  # [tokens, layers]
    return RoutingFingerprint(
        sha256_to_layer=tuple(
            hashlib.sha256(np.ascontiguousarray(experts[:, : layer + 1]).tobytes()).hexdigest()
            for layer in range(experts.shape[1])
        ),
        token_sha256=hashlib.sha256(ids.tobytes()).hexdigest(),
        tokens=len(experts),
        least_margin=tuple(gaps.min(axis=0).tolist()),
        low_margin=tuple(np.percentile(gaps, _LOW, axis=0).tolist()),
        fragile_float32=tuple((gaps <= FLOAT16).mean(axis=0).tolist()),
        fragile_bfloat16=tuple((gaps <= BFLOAT16).mean(axis=0).tolist()),
        origin=fresh.origin(),
    )


def _least_gaps(trace: RoutingTrace) -> NDArray[np.float64]:
    """How near each token's choices in order come to another, the first by the second and so on: [tokens, layers]."""
    assert trace.router_logits is not None  # they were asked for
    logits = trace.router_logits[trace.rows()]
    return np.asarray(np.min([margins(logits, k=k) for k in range(1, trace.k + 1)], axis=0))


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def _is_number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and 0 <= value <= most and math.isfinite(value)
