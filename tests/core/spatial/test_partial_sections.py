import numpy as np
import pytest

from stmsi._core.spatial.partial_sections import correct_section, rescale

XY = np.stack(np.meshgrid(np.arange(15), np.arange(12)), -1).reshape(-1, 2) * 100.0


def test_scale_is_shrunk_to_1():
    rng = np.random.default_rng(0)
    p = rng.normal(5, 1, (400, 2))
    y = 3 * p - 4
    many, slopes = rescale(p, p, y)
    n = len(p)
    # the error 2 p - 4 has four times the variance of p, and is divided by the squared spread
    np.testing.assert_allclose(slopes[0], 1 + 2 * n / (n + 30 + 4 / 0.5**2))
    np.testing.assert_array_equal(slopes[1], 0)
    np.testing.assert_allclose(many - p, (slopes[0] - 1) * (p - p.mean(axis=0)))
    y[4:] = np.nan
    few, slopes = rescale(p, p, y)
    assert (np.abs(slopes[0] - 1) < 0.5).all()
    assert np.isfinite(few).all()


def test_a_smoother_prediction_is_found():
    rng = np.random.default_rng(1)
    truth, noise = rng.normal(size=(500, 3)), rng.normal(size=(500, 3))
    _, slopes = rescale(truth + noise, truth, truth)
    assert (slopes[1] > 0.7).all()


def test_a_prediction_that_hardly_varies_is_not_blown_up():
    rng = np.random.default_rng(5)
    p = 1e-6 * rng.random((300, 1))
    _, slopes = rescale(p, p, 1e3 * p + rng.normal(5, 1, p.shape))
    assert abs(slopes[0, 0] - 1) < 0.1


@pytest.mark.parametrize("prediction", [np.zeros((180, 2)), np.full((180, 2), 2.0)])
def test_a_constant_prediction_keeps_its_scale(prediction):
    measured = np.random.default_rng(2).gamma(2, 1, (180, 2))
    rescaled, _ = rescale(prediction, prediction, measured)
    np.testing.assert_allclose(rescaled, prediction)


def section(rng):
    """Smooth truth, a prediction that lacks one smooth part, and presence."""
    x, y = XY.T / 1500
    seen, missed = np.sin(5 * x + y), np.cos(4 * y - 2 * x)
    truth = np.maximum(4 + 2 * seen + 2 * missed, 0)[:, None] + 0.2 * rng.normal(size=(len(XY), 2))
    prediction = (3 + 2 * seen)[:, None] + 0.2 * rng.normal(size=(len(XY), 2))
    return truth.clip(0), prediction.clip(0)


def test_neighbours_and_scale_both_help():
    truth, prediction = section(np.random.default_rng(3))
    known = np.random.default_rng(4).random(len(XY)) < 0.5
    measured = np.where(known[:, None], truth, np.nan)
    probability = np.full(truth.shape, 0.8)
    found = correct_section(prediction, probability, measured, np.where(known[:, None], 1.0, np.nan), XY)
    only = correct_section(prediction, probability, measured, np.where(known[:, None], 1.0, np.nan), None)
    error = [np.mean((truth - p)[~known] ** 2) for p in (prediction, only.intensity, found.intensity)]
    assert error[0] > error[1] > 4 * error[2]
    assert (found.presence[~known] > 0.9).all()
    assert (found.variance[~known] < 0.7).all()
    assert found.presence.max() <= 1
    assert found.intensity.min() >= 0


def test_one_spot():
    one = np.array([[2.0, 0.0]])
    found = correct_section(one, one / 4, np.array([[3.0, np.nan]]), np.array([[1.0, np.nan]]), np.zeros((1, 2)))
    assert np.isfinite(found.intensity).all()
    np.testing.assert_array_equal(found.intensity, one)  # the spot itself has no part in its own correction
