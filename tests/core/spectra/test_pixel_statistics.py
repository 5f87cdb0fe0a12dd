import numpy as np
import pytest
import scipy.sparse as sp

from stmsi._core.spectra.pixel_statistics import otsu_tissue, pixel_factors, section_quantiles


@pytest.fixture
def dense():
    rng = np.random.default_rng(0)
    X = rng.lognormal(2, 1, (40, 15)) * (rng.random((40, 15)) < 0.4)
    X[3], X[:, 5], X[:, 6] = 0, 0, 0
    X[7, 6] = 2.5  # one value only
    return X


def _above_zero(values, reduce):
    kept = values[values > 0]
    return reduce(kept) if kept.size else 0.0


@pytest.mark.parametrize("q", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
def test_quantiles_agree_with_numpy(dense, q):
    expected = [_above_zero(column, lambda v: np.quantile(v, q)) for column in dense.T]
    np.testing.assert_allclose(section_quantiles(sp.csc_matrix(dense), q), expected, rtol=1e-12)


def test_quantiles_pass_over_stored_zeros_and_leave_the_input_alone(dense):
    X = sp.csc_matrix(dense)
    X.data[::3] = 0
    before = X.copy()
    expected = [_above_zero(column, np.median) for column in X.toarray().T]
    np.testing.assert_allclose(section_quantiles(X, 0.5), expected, rtol=1e-12)
    assert X.nnz == before.nnz
    np.testing.assert_array_equal(X.data, before.data)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3), (4, 0)])
def test_quantiles_of_nothing_are_zero(shape):
    np.testing.assert_array_equal(section_quantiles(sp.csc_matrix(shape), 0.5), np.zeros(shape[1]))


@pytest.mark.parametrize(
    ("method", "reduce"),
    [("tic", np.sum), ("rms", lambda v: np.sqrt(np.mean(v**2))), ("median", np.median)],
)
def test_factors_agree_with_numpy(dense, method, reduce):
    X = sp.csr_matrix(dense)
    X.data[::5] = 0  # stored zeros are no signal
    before = X.copy()
    factors = pixel_factors(X, method)
    np.testing.assert_allclose(factors, [_above_zero(row, reduce) for row in X.toarray()], rtol=1e-12)
    assert factors[3] == 0
    assert X.nnz == before.nnz


def test_no_normalisation_divides_by_one(dense):
    np.testing.assert_array_equal(pixel_factors(sp.csr_matrix(dense), "none"), np.ones(40))


def test_a_dark_background_is_found():
    rng = np.random.default_rng(0)
    total = np.concatenate([rng.lognormal(3, 0.4, 300), rng.lognormal(6, 0.5, 700), [0.0]])
    tissue, background = otsu_tissue(total)
    assert background
    assert (tissue[:300].mean(), tissue[300:1000].mean()) == pytest.approx((0, 1), abs=0.02)
    assert not tissue[-1]


@pytest.mark.parametrize("kind", ["normal", "uniform", "constant", "two close regions", "one pixel"])
def test_tissue_alone_is_not_split(kind):
    rng = np.random.default_rng(1)
    total = {
        "normal": rng.lognormal(5, 0.8, 2000),
        "uniform": rng.uniform(50, 150, 2000),
        "constant": np.full(50, 7.0),
        "two close regions": np.concatenate([rng.normal(100, 5, 500), rng.normal(150, 5, 500)]),
        "one pixel": np.array([3.0]),
    }[kind]
    tissue, background = otsu_tissue(total)
    assert tissue.all()
    assert not background


def test_silent_pixels_are_background_in_any_case():
    tissue, background = otsu_tissue(np.array([0.0, 5.0, 5.1, 5.2]))
    assert tissue.tolist() == [False, True, True, True]
    assert background


def test_a_few_faulty_pixels_are_no_background():
    total = np.random.default_rng(2).lognormal(5, 0.1, 1000)
    total[:5] = 1.0
    total[5:8] = 0.0
    tissue, background = otsu_tissue(total)
    assert not background
    assert tissue.tolist() == [True] * 5 + [False] * 3 + [True] * 992


def test_no_signal_at_all_is_no_tissue():
    assert not otsu_tissue(np.zeros(5))[0].any()
