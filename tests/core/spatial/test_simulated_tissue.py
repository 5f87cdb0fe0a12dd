import numpy as np
import pytest
from scipy.spatial import cKDTree

from stmsi._core.spatial.simulated_tissue import (
    MARGIN,
    SPACING,
    LatentRaster,
    negative_binomial,
    tissue_mask,
    visium_positions,
)


@pytest.fixture
def raster():
    return LatentRaster(1500.0, 1000.0)


def test_the_raster_reaches_beyond_the_capture_area(raster):
    xy = raster.positions()
    assert xy.shape == (np.prod(raster.shape), 2)
    np.testing.assert_allclose(xy.min(axis=0), -MARGIN)
    assert (xy.max(axis=0) >= np.array([1500, 1000]) + MARGIN).all()
    assert (xy.max(axis=0) < np.array([1500, 1000]) + MARGIN + SPACING).all()


def test_fields_are_read_off_where_they_are(raster):
    x, y = raster.positions().T.reshape(2, *raster.shape)
    where = np.array([[0.0, 0.0], [1500, 1000], [333.3, 77.7], [-50, 1100]])
    np.testing.assert_allclose(
        raster.at(np.stack([x, y, 2 * x - y]), where), np.c_[where, 2 * where[:, 0] - where[:, 1]]
    )


def test_smooth_fields_have_unit_variance_and_a_length(raster):
    rng = np.random.default_rng(0)
    for length in (50.0, 200.0):
        field = raster.smooth_field(length, rng, 30)
        assert field.shape == (30, *raster.shape)
        np.testing.assert_allclose(field.std(axis=(1, 2)), 1)
        step = round(2 * length / SPACING)
        near, far = (np.mean(field[:, :, s:] * field[:, :, :-s]) - np.mean(field) ** 2 for s in (1, step))
        assert near > 0.9 - 10 / length
        # a Gaussian field smoothed with sigma correlates as exp(-d^2 / 4 sigma^2)
        assert far == pytest.approx(np.exp(-1), abs=0.2)


def test_diffusion_spreads_inside_the_tissue_only(raster):
    tissue = tissue_mask(raster, np.random.default_rng(0), 0.6)
    flat = raster.diffuse(np.where(tissue, 3.0, 99.0), 100.0, tissue)
    np.testing.assert_allclose(flat[tissue], 3.0)
    source = np.zeros(raster.shape)
    source[tuple(s // 2 for s in raster.shape)] = 1.0
    spread = raster.diffuse(source, 100.0, np.ones(raster.shape, bool))
    assert spread.max() < 0.1
    assert (spread > 0.01 * spread.max()).sum() > 50


@pytest.mark.parametrize("share", [0.3, 0.68])
def test_tissue_fills_its_share(raster, share):
    tissue = tissue_mask(raster, np.random.default_rng(0), share)
    x, y = raster.positions().T
    inside = ((x >= 0) & (x <= 1500) & (y >= 0) & (y <= 1000)).reshape(raster.shape)
    assert tissue[inside].mean() == pytest.approx(share, abs=0.02)
    assert not tissue[~inside].any()


def test_visium_spots_lie_on_a_hexagon():
    xy, array = visium_positions(1000.0, 800.0, 100.0)
    assert xy.min() >= 0
    assert (xy.max(axis=0) <= [1000, 800]).all()
    distance = cKDTree(xy).query(xy, k=7)[0]
    middle = (np.abs(xy - [500, 400]) < 250).all(axis=1)
    np.testing.assert_allclose(distance[middle, 1:], 100.0)
    assert (array.sum(axis=1) % 2 == 0).all()
    np.testing.assert_allclose(xy, np.c_[array[:, 1] * 50, array[:, 0] * 50 * np.sqrt(3)])


def test_counts_have_the_stated_mean_and_variance():
    rng = np.random.default_rng(0)
    log_rate = np.tile(np.log([1.0, 2.0, 7.0]), (100_000, 1)) + 500  # an offset does not matter
    counts = negative_binomial(log_rate, np.full(100_000, 100.0), 0.3, rng)
    mean = np.array([10.0, 20.0, 70.0])
    assert counts.dtype == np.float32
    np.testing.assert_allclose(counts.mean(axis=0), mean, rtol=0.02)
    np.testing.assert_allclose(counts.var(axis=0), mean + 0.3 * mean**2, rtol=0.05)
    np.testing.assert_array_equal(counts, np.round(counts))
