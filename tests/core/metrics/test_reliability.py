import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmsi._core.metrics.reliability import binary_entropy, kept_errors


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 25))
def test_errors_are_those_of_the_least_uncertain_spots(seed, n):
    rng = np.random.default_rng(seed)
    error, uncertainty = rng.random((n, 3)), np.round(rng.random((n, 3)), 1)
    error[rng.random((n, 3)) < 0.2] = np.nan
    shares = np.array([0.1, 0.25, 0.7, 1.0])
    kept, mean = kept_errors(error, uncertainty, shares)
    for m in range(3):
        known = np.flatnonzero(~np.isnan(error[:, m]))
        ordered = known[np.argsort(uncertainty[known, m], kind="stable")]
        for s, share in enumerate(shares):
            count = int(np.ceil(round(share * len(known), 6)))
            assert kept[s, m] == count
            if count:
                assert mean[s, m] == pytest.approx(error[ordered[:count], m].mean())
            else:
                assert np.isnan(mean[s, m])


def test_entropy():
    p = np.array([0.0, 1e-3, 0.25, 0.5, 0.75, 1.0, np.nan])
    np.testing.assert_allclose(binary_entropy(p)[:6], [0, 0.0114, 0.8113, 1, 0.8113, 0], atol=1e-4)
    assert np.isnan(binary_entropy(p)[-1])
    np.testing.assert_allclose(binary_entropy(p.astype(np.float32)), binary_entropy(p), atol=1e-6)
