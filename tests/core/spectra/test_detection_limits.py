import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.spectra.detection_limits import blank_limit, mixture_limit, noise_floor, otsu_limit


def test_limit_of_blanks_counts_zeros():
    blank = np.random.default_rng(0).random((50, 4)) * [1, 10, 0, 1]
    blank[blank < 0.3] = 0
    np.testing.assert_allclose(blank_limit(sp.csr_matrix(blank)), blank.mean(0) + 3 * blank.std(0), rtol=1e-9)


def test_a_mixture_is_cut_between_noise_and_signal():
    rng = np.random.default_rng(1)
    noise, signal = rng.lognormal(0, 0.3, (400, 3)), rng.lognormal([3, 4, 2.5], 0.4, (600, 3))
    values = np.concatenate([noise, signal, np.zeros((50, 3)), np.full((5, 3), np.nan)])
    limit = mixture_limit(values)
    assert ((noise > limit).mean(axis=0) < 0.03).all()
    assert ((signal > limit).mean(axis=0) > 0.97).all()
    np.testing.assert_array_equal(mixture_limit(values), limit)


@pytest.mark.parametrize("column", [np.zeros(100), np.full(100, 3.0), np.full(100, np.nan), np.arange(9.0)])
@pytest.mark.parametrize("limit", [mixture_limit, otsu_limit])
def test_columns_without_two_parts(column, limit):
    found = limit(column[:, None])
    assert np.isfinite(found).all()
    if len(np.unique(column[~np.isnan(column)])) < 2:
        assert found == [0]


def test_one_normal_component_is_not_cut():
    values = np.random.default_rng(2).lognormal(2, 0.5, (500, 4))
    np.testing.assert_array_equal(mixture_limit(values), 0)


def test_noise_floor_of_rare_dense_and_silent_ions():
    values = np.zeros((100, 3))
    values[:40, 0], values[:, 1] = np.arange(1, 41), 5
    limit = noise_floor(sp.csr_matrix(values))
    assert limit[0] == pytest.approx(np.quantile(np.arange(1, 41), 0.01))
    assert limit[1:].tolist() == [0, 0]
