import numpy as np
import pytest

from stmsi._core.peaks.picking import noise_of, profile_peaks, signal_to_noise

IONS = np.array([184.0733, 263.2369, 400.3421, 525.3, 616.1767, 760.5851])


def _axis(step, low=180.0, high=800.0):
    return np.exp(np.arange(np.log(low), np.log(high), step * 1e-6))


def _profile(axis, height, rng, n=30):
    """Mean of `n` profiles of resolving power 10,000, noise of 1."""
    clean = sum(height * np.exp(-0.5 * ((axis - m) / (m / 10_000 / 2.355)) ** 2) for m in IONS)
    return clean + np.mean([np.abs(rng.normal(0, 1, axis.size)) for _ in range(n)], axis=0)


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


@pytest.mark.parametrize("step", [10, 20, 40])
def test_ions_and_not_noise(step):
    axis = _axis(step)
    peaks = profile_peaks(axis, _profile(axis, 200, np.random.default_rng(step)), 5.0, "ppm", 3.0)
    nearest = np.abs(peaks.mz[:, None] / IONS - 1).min(axis=0) * 1e6
    assert nearest.max() < 0.3
    assert peaks.mz.size <= IONS.size + 4
    at = np.abs(peaks.mz[:, None] - IONS).argmin(axis=0)
    np.testing.assert_allclose(peaks.width[at] / IONS, 1e-4, rtol=0.1)


def test_a_spike_of_one_bin_is_no_peak():
    axis = _axis(20)
    spectrum = _profile(axis, 200, np.random.default_rng(0))
    spectrum[np.abs(axis - 300).argmin()] += 50
    peaks = profile_peaks(axis, spectrum, 5.0, "ppm", 3.0)
    assert np.abs(peaks.mz - 300).min() > 1


def test_weak_peaks_are_found_and_noise_on_a_summit_makes_one_of_it():
    axis = _axis(5)
    rng = np.random.default_rng(1)
    spectrum = _profile(axis, 200, rng)
    spectrum *= rng.normal(1, 0.05, axis.size)  # noise that grows with the signal splits raw summits
    spectrum += 1.0 * np.exp(-0.5 * ((axis - 700) / (700 / 10_000 / 2.355)) ** 2)
    peaks = profile_peaks(axis, spectrum, 5.0, "ppm", 3.0)
    assert all((np.abs(peaks.mz / m - 1) < 60e-6).sum() == 1 for m in (*IONS, 700))
