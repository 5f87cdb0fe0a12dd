import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stmsi._core.spatial.blocks import correlation_range, correlogram, grid_blocks, near_any, spread_blocks
from stmsi._core.spatial.sections import spot_pitch

XY = 100.0 * np.argwhere(np.ones((26, 26)))


def _fields(reach, m=20, noise=0.3, seed=0):
    """Maps whose correlation falls to 5 % at a distance."""
    rng = np.random.default_rng(seed)
    cov = np.exp(-3 * cdist(XY, XY) / reach) + 1e-8 * np.eye(len(XY))
    smooth = np.linalg.cholesky(cov) @ rng.normal(size=(len(XY), m))
    return np.sqrt(1 - noise) * smooth + np.sqrt(noise) * rng.normal(size=smooth.shape)


def test_the_correlogram_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    xy, y = rng.random((40, 2)) * 10, rng.normal(size=(40, 3))
    y[rng.random(y.shape) < 0.1] = np.nan
    found = correlogram(xy, y, n_bins=6)
    z = (y - np.nanmean(y, axis=0)) / np.nanstd(y, axis=0)
    first, second = np.triu_indices(40, 1)
    distance = cdist(xy, xy)[first, second]
    longest, pitch = 0.5 * np.hypot(*np.ptp(xy, axis=0)), spot_pitch(xy)
    edges = np.linspace(0.5 * pitch, longest, 7)
    edges[0] = 0
    for b in range(6):
        own = (distance > edges[b]) & (distance <= edges[b + 1])
        product = z[first[own]] * z[second[own]]
        np.testing.assert_allclose(found.rho[b], np.nanmean(product, axis=0))
        np.testing.assert_array_equal(found.pairs[b], (~np.isnan(product)).sum(axis=0))
        assert found.lag[b] == pytest.approx(distance[own].mean())


def test_the_range_grows_with_that_of_the_maps():
    found = [np.nanmedian(correlation_range(correlogram(XY, _fields(r)))) for r in (250, 500, 800)]
    # the mean of a section takes some of the correlation away
    assert 150 < found[0] < found[1] < found[2] < 1000
    assert found[1] == pytest.approx(500, rel=0.4)


def test_noise_has_no_range():
    y = np.random.default_rng(0).normal(size=(len(XY), 30))
    y[:, 0] = 1
    y[:, 1] = np.nan
    assert np.isnan(correlation_range(correlogram(XY, y))).all()


def test_a_gradient_reaches_further_than_half_the_section():
    assert (correlation_range(correlogram(XY, XY[:, :1] + XY[:, 1:])) > 1250).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_spots_have_no_range(n):
    assert np.isnan(correlation_range(correlogram(XY[:n], np.arange(2.0 * n).reshape(n, 2)))).all()


def test_blocks_are_at_least_as_large_as_asked():
    block, number = grid_blocks(XY, 600)
    assert number == (4, 4)
    assert len(np.unique(block)) == 16
    for b in range(16):
        own = XY[block == b]
        assert np.ptp(own, axis=0).min() >= 500
    assert grid_blocks(XY, 1e6)[0].max() == 0


def test_units_stay_in_one_block():
    unit = np.arange(len(XY)) // 4
    block, _ = grid_blocks(XY, 300, unit)
    assert all(len(np.unique(block[unit == u])) == 1 for u in np.unique(unit))
    assert len(np.unique(block)) > 10


def test_folds_are_of_one_size_and_none_is_empty():
    block, _ = grid_blocks(XY, 500)
    section = np.zeros(len(XY), np.int64)
    fold = spread_blocks(section, block, 5, np.random.default_rng(0))
    assert np.bincount(fold).min() > 0.7 * np.bincount(fold).max()
    assert all(len(np.unique(fold[block == b])) == 1 for b in np.unique(block))
    other = spread_blocks(section, block, 5, np.random.default_rng(1))
    assert (fold != other).any()


def test_nearness_is_that_of_all_distances_within_the_section():
    rng = np.random.default_rng(0)
    section = rng.integers(0, 2, len(XY))
    mask = rng.random(len(XY)) < 0.02
    near = near_any(XY, section, mask, 250)
    distance = np.where(section[:, None] == section, cdist(XY, XY), np.inf)
    np.testing.assert_array_equal(near, (distance[:, mask] <= 250).any(axis=1))
    np.testing.assert_array_equal(near_any(XY, section, mask, 0), mask)
