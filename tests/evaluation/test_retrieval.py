from __future__ import annotations

import itertools

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from workbench.evaluation.retrieval import (
    average_precision,
    compare,
    ndcg,
    recall,
    reciprocal_rank,
)

IDS = "abcdefghijklmnop"


@given(
    st.permutations(IDS),
    st.integers(0, 16),
    st.dictionaries(st.sampled_from(IDS + "XYZ"), st.integers(0, 3), min_size=1),
)
def test_measures_equal_those_of_trec_eval(order: list[str], found: int, judged: dict) -> None:
    ranking = order[:found]
    measures = {"ndcg_cut_10", "recip_rank", "recall_5", "map"}
    run = {"q": {id: float(len(ranking) - rank) for rank, id in enumerate(ranking)}}
    theirs = pytrec_eval.RelevanceEvaluator({"q": judged}, measures).evaluate(run)
    expected = theirs.get("q", dict.fromkeys(measures, 0.0))
    assert ndcg(ranking, judged, k=10) == pytest.approx(expected["ndcg_cut_10"])
    assert reciprocal_rank(ranking, judged) == pytest.approx(expected["recip_rank"])
    assert recall(ranking, judged, k=5) == pytest.approx(expected["recall_5"])
    assert average_precision(ranking, judged) == pytest.approx(expected["map"])


def test_p_is_that_of_every_change_of_sign() -> None:
    one, other = [0.9, 0.4, 0.7, 0.8, 0.3, 0.6], [0.5, 0.5, 0.2, 0.4, 0.1, 0.6]
    differences = np.array(one) - np.array(other)
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    exact = (np.abs((signs * differences).mean(1)) >= abs(differences.mean()) - 1e-12).mean()
    found = compare(one, other, resamples=20_000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.difference == pytest.approx(differences.mean())
    assert found.low < found.difference < found.high


def test_equal_systems_do_not_differ_and_unequal_lists_are_refused() -> None:
    same = compare([0.3, 0.9, 0.1], [0.3, 0.9, 0.1])
    assert (same.difference, same.p) == (0.0, 1.0)
    assert str(same).startswith("+0.000 (+0.000 to +0.000), p = 1.0000, n = 3")
    with pytest.raises(ValueError, match="3 and 2 scores: give one of each system"):
        compare([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="0 and 0 scores"):
        compare([], [])
