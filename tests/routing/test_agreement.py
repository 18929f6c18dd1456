from __future__ import annotations

import numpy as np
import pytest

from workbench.routing.agreement import agreement, weighted_agreement


def drawn(seed: int, *, tokens: int = 30, layers: int = 3, n: int = 6, k: int = 2) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .random((tokens, layers, n))
        .argsort(axis=2)[:, :, :k]
        .astype(np.uint8)
    )


def test_agreement_is_the_share_of_common_experts() -> None:
    one, other = drawn(0), drawn(1)
    found = agreement(one, other)
    for t in range(30):
        for layer in range(3):
            common = set(one[t, layer].tolist()) & set(other[t, layer].tolist())
            assert found[t, layer] == len(common) / 2
    assert (agreement(one, one[:, :, ::-1]) == 1).all()  # in whatever order


def test_weighted_agreement_is_ruzickas() -> None:
    generator = np.random.default_rng(2)
    one, other = drawn(3), drawn(4)
    w1, w2 = (generator.random((30, 3, 2)).astype(np.float16) for _ in range(2))
    found = weighted_agreement(one, w1, other, w2)
    for t in range(30):
        for layer in range(3):
            a = dict(zip(one[t, layer].tolist(), w1[t, layer].tolist(), strict=True))
            b = dict(zip(other[t, layer].tolist(), w2[t, layer].tolist(), strict=True))
            low = sum(min(a.get(e, 0), b.get(e, 0)) for e in a | b)
            high = sum(max(a.get(e, 0), b.get(e, 0)) for e in a | b)
            assert found[t, layer] == pytest.approx(low / high)
    np.testing.assert_allclose(weighted_agreement(one, w1, one, w1), 1)
    assert np.isnan(weighted_agreement(one, 0 * w1, other, 0 * w2)).all()


def test_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="of the same tokens twice"):
        agreement(drawn(0), drawn(0)[:5])
    with pytest.raises(ValueError, match="differ in shape"):
        weighted_agreement(drawn(0), np.ones((30, 3, 1)), drawn(1), np.ones((30, 3, 2)))
