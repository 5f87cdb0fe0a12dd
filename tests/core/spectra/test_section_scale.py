import numpy as np
import pandas as pd

from stmsi._core.spectra.section_scale import N_QUANTILES, distribution, section_ranks, transfer


def _values(seed=0, n=80):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(size=(n, 4)).round(1) * (rng.random((n, 4)) < [1, 0.5, 0.1, 0])
    values[3] = np.nan
    return values


def test_ranks_are_those_of_pandas():
    values = _values()
    above = pd.DataFrame(np.where(values > 0, values, np.nan))
    expected = (above.rank() - 0.5) / above.count()
    found = section_ranks(values)
    np.testing.assert_allclose(found[values > 0], expected.to_numpy()[values > 0])
    np.testing.assert_array_equal(found[values == 0], 0)
    assert np.isnan(found[3]).all()


def test_distributions_are_quantiles_of_what_is_above_zero():
    values = _values()
    found = distribution(values)
    assert found.shape == (N_QUANTILES, 4)
    column = values[:, 1]
    np.testing.assert_allclose(found[:, 1], np.quantile(column[column > 0], np.linspace(0, 1, 101)))
    assert np.isnan(found[:, 3]).all()


def test_there_and_back_again():
    rng = np.random.default_rng(1)
    one, other = rng.lognormal(size=(300, 3)), 7 + 3 * rng.lognormal(size=(200, 3))
    one[:20, 1] = 0
    source, target = distribution(one), distribution(other)
    moved = transfer(one, source, target)
    np.testing.assert_allclose(transfer(moved, target, source), one, rtol=1e-9)
    np.testing.assert_allclose(distribution(moved), target, rtol=0.1)
    assert (moved[:20, 1] == 0).all()


def test_columns_without_a_distribution_and_flat_ones_stay_sane():
    values = np.array([[0.0, 2.0, np.nan], [0.0, 2.0, 1.0], [0.0, 2.0, 3.0]])
    reference = distribution(np.array([[1.0, 5.0, 1.0], [2.0, 7.0, 2.0]]))
    moved = transfer(values, distribution(values), reference)
    np.testing.assert_array_equal(moved[:, 0], 0)
    np.testing.assert_allclose(moved[:, 1], 6.0)
    np.testing.assert_allclose(moved[:, 2], [np.nan, 1, 2])
