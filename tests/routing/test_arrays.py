"""What is given in place of an array is answered by one sentence, by every statistic that the docs list."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.routing import (
    agreement,
    contrasts,
    contributions,
    distances,
    drift,
    groups,
    margins,
    pairs,
    specialization,
    statistics,
    vocabulary,
)
from workbench.routing.trace import example_trace

ids = np.array([1, 2])
CALLS = {
    "group_counts": lambda t: statistics.group_counts(t, ids, n_groups=3, n_experts=4),
    "expert_counts": lambda t: statistics.expert_counts(t, 4),
    "balance": statistics.balance,
    "effective_experts": lambda t: statistics.effective_experts(t, ids, n_experts=4),
    "balance_loss": lambda t: statistics.balance_loss(t, t, k=2),
    "margins": margins.margins,
    "fragile": margins.fragile,
    "decisiveness": margins.decisiveness,
    "coactivation": lambda t: pairs.coactivation(t, n_experts=4),
    "transitions": lambda t: pairs.transitions(t, n_experts=4),
    "transition_information": lambda t: pairs.transition_information(t, n_experts=4),
    "locality": lambda t: pairs.locality(t, n_experts=4),
    "cache_hits": lambda t: pairs.cache_hits(t, capacity=2),
    "contrast": lambda t: contrasts.contrast(t, ids > 1, ids, n_experts=4),
    "contrast_clusters": lambda t: contrasts.contrast_clusters(t, t, is_paired=True),
    "specialization": lambda t: specialization.specialization(
        t, ids, exchangeable=ids, n_experts=4, whole=False
    ),
    "group_usage": lambda t: groups.group_usage(t, ids, n_groups=3, n_experts=4),
    "vocabulary_specialization": lambda t: vocabulary.vocabulary_specialization(
        t, ids, n_experts=4
    ),
    "top_tokens": lambda t: vocabulary.top_tokens(t, layer=0, expert=0),
    "position_drift": lambda t: drift.position_drift(t, ids, n_experts=4),
    "routing_distances": distances.routing_distances,
    "evidence_affinity": lambda t: distances.evidence_affinity(
        t, ids, is_answer=ids > 1, token_ids=ids, n_sources=3, n_experts=4
    ),
    "output_shares": lambda t: contributions.output_shares(t, t),
    "mean_contributions": lambda t: contributions.mean_contributions(t, t, 4),
    "rank_agreement": lambda t: contributions.rank_agreement(t, t),
    "agreement": lambda t: agreement.agreement(t, t),
    "weighted_agreement": lambda t: agreement.weighted_agreement(t, t, t, t),
}


@pytest.mark.parametrize("given", [example_trace(), None], ids=["a trace", "nothing"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_trace_or_nothing_in_place_of_an_array_is_one_sentence(call, given):
    with pytest.raises(ValueError, match=rf"(must be|give) .*{type(given).__name__}"):
        call(given)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_an_array_of_other_axes_is_one_sentence(call):
    with pytest.raises(ValueError, match=r"must be|give"):
        call(np.zeros((2, 2, 2, 2)))
