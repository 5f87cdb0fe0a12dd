import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.spectra.detection_limits import blank_limit, noise_floor, otsu_limit


def test_limit_of_blanks_counts_zeros():
    blank = np.random.default_rng(0).random((50, 4)) * [1, 10, 0, 1]
    blank[blank < 0.3] = 0
    np.testing.assert_allclose(blank_limit(sp.csr_matrix(blank)), blank.mean(0) + 3 * blank.std(0), rtol=1e-9)


@pytest.mark.parametrize("column", [np.zeros(100), np.full(100, 3.0), np.full(100, np.nan), np.arange(9.0)])
@pytest.mark.parametrize("limit", [otsu_limit])
def test_columns_without_two_parts(column, limit):
    found = limit(column[:, None])
    assert np.isfinite(found).all()
    if len(np.unique(column[~np.isnan(column)])) < 2:
        assert found == [0]


def test_noise_floor_of_rare_dense_and_silent_ions():
    values = np.zeros((100, 3))
    values[:40, 0], values[:, 1] = np.arange(1, 41), 5
    limit = noise_floor(sp.csr_matrix(values))
    assert limit[0] == pytest.approx(np.quantile(np.arange(1, 41), 0.01))
    assert limit[1:].tolist() == [0, 0]
