import numpy as np

from stmsi._core.spectra.peaks import mass_errors, noise_of, profile_peaks, recalibrated, signal_to_noise


def test_noise_ignores_peaks():
    rng = np.random.default_rng(0)
    spectrum = rng.normal(10, 2, 2000)
    spectrum[::50] += 500
    noise = noise_of(spectrum)
    np.testing.assert_allclose(np.median(noise.sigma), 2, rtol=0.1)
    np.testing.assert_allclose(noise.baseline, 10, atol=1)
    assert (signal_to_noise(spectrum, noise)[::50] > 100).all()


def test_without_noise_every_summit_counts():
    mz = np.arange(100.0, 110.0)
    peaks = profile_peaks(mz, [0, 3, 0, 0, 1, 0, 0, 0, 0, 2], 5.0, "ppm", 3.0)
    assert peaks.mz.tolist() == [101, 104, 109]
    assert np.isinf(peaks.snr).all()
    assert profile_peaks(mz, np.zeros(10), 5.0, "ppm", 3.0).mz.size == 0


def test_of_close_summits_the_highest_stays():
    mz = 100 + np.arange(9) * 0.01
    spectrum = [0, 2, 0, 5, 0, 1, 0, 3, 0]
    assert profile_peaks(mz, spectrum, 0.03, "Da", 1.0).bin.tolist() == [3, 7]
    assert profile_peaks(mz, spectrum, 0.005, "Da", 1.0).bin.tolist() == [1, 3, 5, 7]


def test_errors_drift_and_gaps():
    time = np.linspace(0, 1, 501)
    errors = np.column_stack([5 - 3 * time, np.full(501, np.nan), np.where(time < 0.5, 1.0, np.nan)])
    found = mass_errors(errors, time)
    np.testing.assert_allclose(found.median, [3.5, np.nan, 1])
    np.testing.assert_allclose(found.drift, [-3, np.nan, 0], atol=0.02)
    assert found.found.tolist() == [501, 0, 250]


def test_recalibration_is_a_line_inside_the_calibrants_only():
    exact = np.array([100.0, 400.0, 700.0])
    error = np.array([2.0, 5.0, 8.0])
    measured = np.array([100.0, 250.0, 700.0, 1400.0]) * (1 + np.array([2.0, 3.5, 8.0, 8.0]) * 1e-6)
    np.testing.assert_allclose(recalibrated(measured, exact, error), [100, 250, 700, 1400], rtol=1e-10)
    np.testing.assert_allclose(recalibrated([500.0], [100.0, 900.0], [np.nan, 4.0]), 500 / (1 + 4e-6), rtol=1e-12)
    assert recalibrated([500.0], [100.0], [np.nan]).tolist() == [500]
