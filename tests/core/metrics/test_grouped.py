"""Correlations from the moments of cells against those of all values."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stmsi._core.metrics.grouped import grouped_correlation


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 99), st.floats(0, 1e4))
def test_moments_give_the_correlation_of_all_values(sizes, seed, level):
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(len(sizes)), sizes)
    values = level + rng.normal(size=(2, len(cell))) + rng.normal(size=(2, len(sizes)))[:, cell]
    y, p = values
    weight = np.bincount(cell).astype(float)
    mean = tuple(np.bincount(cell, v) / weight for v in values)
    away = values - np.stack([m[cell] for m in mean])
    variance = tuple(np.bincount(cell, v**2) / weight for v in away)
    covariance = np.bincount(cell, away[0] * away[1]) / weight
    # a second group of the same cells, mirrored
    found, sd_y, sd_p = grouped_correlation(
        np.repeat([0, 1], len(sizes)), np.tile(weight, 2), (np.tile(mean[0], 2), np.concatenate([mean[1], -mean[1]])),
        (np.tile(variance[0], 2), np.tile(variance[1], 2)), np.concatenate([covariance, -covariance]),
    )  # fmt: skip
    expected = np.corrcoef(y, p)[0, 1]
    np.testing.assert_allclose(found, [expected, -expected], atol=1e-6)
    np.testing.assert_allclose(sd_y, y.std(), rtol=1e-6)
    np.testing.assert_allclose(sd_p, p.std(), rtol=1e-6)


def test_rounding_is_no_spread():
    mean = (np.array([1.0, 2.0, 3.0]), 7 + np.array([0, 1e-7, 2e-7]))
    found, sd_y, sd_p = grouped_correlation(np.zeros(3, int), np.ones(3), mean)
    assert np.isnan(found).all()
    assert (sd_y > 0).all()
    assert (sd_p == 0).all()


def test_no_cells():
    empty = np.empty(0)
    assert grouped_correlation(np.empty(0, int), empty, (empty, empty))[0].shape == (0,)
