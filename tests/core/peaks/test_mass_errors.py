import numpy as np

from stmsi._core.peaks.mass_errors import mass_errors, recalibrated


def test_errors_drift_and_gaps():
    time = np.linspace(0, 1, 501)
    errors = np.column_stack([5 - 3 * time, np.full(501, np.nan), np.where(time < 0.5, 1.0, np.nan)])
    found = mass_errors(errors, time)
    np.testing.assert_allclose(found.median, [3.5, np.nan, 1])
    np.testing.assert_allclose(found.drift, [-3, np.nan, 0], atol=0.02)
    assert found.found.tolist() == [501, 0, 250]


def test_equal_weights_give_the_median():
    values = np.random.default_rng(0).normal(size=(20, 1))
    for n in (19, 20):
        found = mass_errors(values[:n], np.linspace(0, 1, n), np.full((n, 1), 3.0))
        np.testing.assert_allclose(found.median, np.median(values[:n]))


def test_spectra_without_the_calibrant_weigh_little():
    rng = np.random.default_rng(0)
    errors = np.where(np.arange(200) < 60, 15 + rng.normal(0, 1, 200), rng.uniform(-20, 20, 200))[:, None]
    height = np.where(np.arange(200) < 60, 100.0, 3.0)[:, None]
    time = rng.permutation(200) / 199
    assert abs(mass_errors(errors, time, height).median[0] - 15) < 0.5
    assert mass_errors(errors, time).median[0] < 14


def test_recalibration_is_a_line_inside_the_calibrants_only():
    exact = np.array([100.0, 400.0, 700.0])
    error = np.array([2.0, 5.0, 8.0])
    measured = np.array([100.0, 250.0, 700.0, 1400.0]) * (1 + np.array([2.0, 3.5, 8.0, 8.0]) * 1e-6)
    np.testing.assert_allclose(recalibrated(measured, exact, error), [100, 250, 700, 1400], rtol=1e-10)
    np.testing.assert_allclose(recalibrated([500.0], [100.0, 900.0], [np.nan, 4.0]), 500 / (1 + 4e-6), rtol=1e-12)
    assert recalibrated([500.0], [100.0], [np.nan]).tolist() == [500]


def test_a_few_bright_spectra_do_not_decide_alone():
    rng = np.random.default_rng(0)
    off = []
    for _ in range(20):
        errors, height = rng.normal(3, 0.7, (1000, 1)), rng.lognormal(5, 2, (1000, 1))
        found = mass_errors(errors, rng.permutation(1000) / 999, height)
        off.append((found.median[0] - 3, found.drift[0], found.spread[0] - 0.7))
    np.testing.assert_array_less(np.sqrt(np.mean(np.square(off), axis=0)), (0.12, 0.4, 0.12))
