import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stmsi._core.spatial import kriging
from stmsi._core.spatial.kriging import krige, shared_weights
from stmsi._core.spatial.random_fields import matern32


def grid(rows=16, cols=20):
    return np.stack(np.meshgrid(np.arange(cols), np.arange(rows)), -1).reshape(-1, 2) * 100.0


def field(xy, n, rng, length=400.0, noise=0.5):
    root = np.linalg.cholesky(matern32(cdist(xy, xy), length) + 1e-8 * np.eye(len(xy)))
    return root @ rng.normal(size=(len(xy), n)) + noise * rng.normal(size=(len(xy), n))


@pytest.fixture
def measured():
    """Fields of which half of the spots are measured, the truth, and the positions."""
    rng = np.random.default_rng(0)
    xy = grid()
    truth = field(xy, 4, rng) + 2
    values = truth.copy()
    values[rng.random(len(xy)) < 0.5] = np.nan
    values[:40, 3] = np.nan
    return values, truth, xy


@pytest.mark.parametrize(("i", "noise"), [(0, 0.2), (3, 0.65)])
def test_a_setting_is_the_textbook_solution(measured, i, noise):
    """Against a dense system for every spot, measured ones left out one by one."""
    values, _, xy = measured
    known = np.flatnonzero(~np.isnan(values[:, 0]))
    length = kriging.LENGTHS[i] * 100.0
    block = kriging._Block.of(xy, np.arange(len(xy)), known, kriging._OFFSET)
    settings = kriging._Settings(np.array([length]), np.array([noise]))
    one = np.ones((1, 1))
    value, variance, offset = block.krige(values[known, :1], settings, one, one)
    K = (1 - noise) * matern32(cdist(xy, xy), length) + kriging._OFFSET
    total = 1 + kriging._OFFSET
    for spot in [*known[:3], *np.setdiff1d(np.arange(len(xy)), known)[:3]]:
        others = known[known != spot]
        system = K[np.ix_(others, others)] + noise * np.eye(len(others))
        weights = np.linalg.solve(system, K[others, spot])
        assert value[spot, 0] == pytest.approx(weights @ values[others, 0])
        assert variance[spot, 0] == pytest.approx((total - weights @ K[others, spot]) / total)
    system = K[np.ix_(known, known)] + noise * np.eye(len(known))
    assert offset[0] == pytest.approx(kriging._OFFSET * np.linalg.solve(system, values[known, 0]).sum())


def test_likelihood_is_that_of_contrasts(measured):
    """Restricted likelihood by an explicit basis of contrasts."""
    from scipy.linalg import null_space

    values, _, xy = measured
    known = np.flatnonzero(~np.isnan(values[:, 0]))[:40]
    z = values[known, :1]
    settings = kriging._Settings(np.array([200.0, 600.0, np.nan]), np.array([0.2, 0.65, 1.0]))
    likelihood, sill = kriging._restricted_likelihood(z, xy[known], settings)
    A = null_space(np.ones((1, len(known)))).T
    for j in range(3):
        length, noise = settings.length[j], settings.noise[j]
        K = np.zeros((40, 40)) if np.isnan(length) else matern32(cdist(xy[known], xy[known]), length)
        V = A @ ((1 - noise) * K + noise * np.eye(40)) @ A.T
        quadratic = ((A @ z).T @ np.linalg.solve(V, A @ z)).item()
        assert sill[j, 0] == pytest.approx(quadratic / 39)
        assert likelihood[j, 0] == pytest.approx(-0.5 * (39 * np.log(quadratic / 39) + np.linalg.slogdet(V)[1]))


def test_it_predicts_better_than_the_mean_and_knows_its_error(measured):
    values, truth, xy = measured
    found = krige(values, xy)
    new = np.isnan(values)
    error = np.where(new, truth - found.value, np.nan)
    level = np.nanmean(np.where(new, truth - np.nanmean(values, axis=0), np.nan) ** 2, axis=0)
    assert (np.nanmean(error**2, axis=0) < 0.7 * level).all()
    spread = np.nanvar(error / np.sqrt(found.variance), axis=0)
    left_out = np.nanvar(np.where(new, np.nan, (truth - found.value) / np.sqrt(found.variance)), axis=0)
    np.testing.assert_allclose(spread / left_out, 1, atol=0.4)
    assert (found.length > 150).all()
    assert (found.length < 1200).all()
    assert (found.noise < 0.6).all()


def test_far_away_it_says_the_offset():
    xy = np.vstack([grid(6, 6), [[50_000.0, 0.0]]])
    values = np.append(np.random.default_rng(1).normal(3, 1, 36), np.nan)[:, None]
    found = krige(values, xy)
    assert found.value[-1, 0] == pytest.approx(found.offset[0], abs=1e-3)
    assert found.offset[0] == pytest.approx(3, abs=0.6)
    assert 0.7 < found.variance[-1, 0] < 1.3


def test_noise_alone_is_told():
    xy = grid()
    found = krige(np.random.default_rng(2).normal(size=(len(xy), 8)), xy)
    assert (found.noise > 0.7).all()


@pytest.mark.parametrize("xy", [None, np.zeros((6, 2)), grid(1, 6)])
def test_few_spots_give_a_shrunk_offset(xy):
    values = np.full((6, 2), np.nan)
    values[:2] = 1.0, 2.0
    found = krige(values, xy)
    share = 2 / (2 + 1 / kriging._OFFSET)
    np.testing.assert_allclose(found.value[2:], np.tile(np.array([1.0, 2.0]) * share, (4, 1)))
    np.testing.assert_allclose(found.value[:2], np.tile(np.array([1.0, 2.0]) * 1 / (1 + 1 / kriging._OFFSET), (2, 1)))
    assert np.isnan(found.length).all()
    np.testing.assert_array_equal(found.noise, 1)


def test_nothing_measured_changes_nothing():
    values = np.full((5, 2), np.nan)
    found = krige(values, grid(1, 5))
    np.testing.assert_array_equal(found.value, 0)
    np.testing.assert_array_equal(found.variance, 1)


def test_a_constant_has_no_length():
    found = krige(np.full((12, 1), 3.0), grid(3, 4))
    assert np.isnan(found.length).all()
    assert np.isfinite(found.value).all()
    assert np.isfinite(found.variance).all()


def test_each_variable_has_its_own_measured_spots(measured):
    values, _, xy = measured
    together = krige(values, xy)
    assert not np.isnan(together.value).any()
    shuffled = krige(values[:, ::-1], xy)
    np.testing.assert_allclose(shuffled.value[:, ::-1], together.value)


def test_large_sections_by_blocks_are_nearly_the_same(measured, monkeypatch):
    values, truth, xy = measured
    whole = krige(values, xy)
    monkeypatch.setattr(kriging, "_MOST_SPOTS", 80)
    monkeypatch.setattr(kriging, "_SUPPORT", 70)
    monkeypatch.setattr(kriging, "_OF_BLOCK", 40)
    parts = krige(values, xy)
    new = np.isnan(values)
    rms = [np.sqrt(np.mean((truth - f.value)[new] ** 2)) for f in (whole, parts)]
    assert rms[1] < 1.03 * rms[0]
    assert np.corrcoef(whole.value[~new], parts.value[~new])[0, 1] > 0.98


def test_weights_are_shared():
    """A variable that tells nothing takes the weights of the others."""
    likelihood = np.zeros((3, 5))
    likelihood[2, :4] = 20.0
    weight = shared_weights(likelihood)
    np.testing.assert_allclose(weight.sum(axis=0), 1)
    assert weight[2, 4] > 0.8
