"""Traces of random routing, for pictures of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from workbench.routing.trace import RoutingTrace


def made_trace(
    *,
    tokens: int = 60,
    layers: int = 3,
    n_experts: int = 16,
    k: int = 2,
    texts: Sequence[str] = ("Which", " valve", " failed"),
    segment_names: tuple[str, ...] = ("question", "evidence 1", "evidence 2", "answer"),
    seed: int = 0,
) -> RoutingTrace:
    """A trace whose last token is not routed; the segments follow one another in their order."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, n_experts, (tokens, layers))
    step = 1 + generator.integers(0, n_experts // k, (tokens, layers))
    experts = np.stack([(first + choice * step) % n_experts for choice in range(k)], axis=2)
    routed = np.arange(tokens) < tokens - 1
    experts[~routed] = 0
    return RoutingTrace(
        experts=experts.astype(np.uint8),
        gate_weights=None,
        n_experts=n_experts,
        token_ids=np.arange(tokens),
        token_texts=tuple(texts[i % len(texts)] for i in range(tokens)),
        phases=np.zeros(tokens, dtype=np.uint8),
        segments=(np.arange(tokens) * len(segment_names) // tokens).astype(np.int16),
        segment_names=segment_names,
        spans=np.zeros((tokens, 2), dtype=np.int32),
        routed=routed,
    )


@pytest.fixture
def random_trace() -> Callable[..., RoutingTrace]:
    return made_trace
