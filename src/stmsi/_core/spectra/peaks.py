"""Peaks of one spectrum, its noise, and the error of its masses.

The summits are those of scipy.signal.find_peaks; own code measures them in units of the local noise and in m/z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import find_peaks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stmsi._core.spectra.spectrum_arrays import Unit

_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_WINDOW = 201
_PPM = 1e6


class Noise(NamedTuple):
    """Baseline and standard deviation of the noise."""

    baseline: NDArray[np.float64]
    sigma: NDArray[np.float64]


def noise_of(intensity: ArrayLike) -> Noise:
    """Noise around each bin of a spectrum by running medians, which peaks do not move."""
    values = np.asarray(intensity, dtype=np.float64)
    window = max(min(_WINDOW, values.size), 1)
    baseline = median_filter(values, window, mode="reflect")
    sigma = _TO_SIGMA * median_filter(np.abs(values - baseline), window, mode="reflect")
    return Noise(baseline, sigma)


def signal_to_noise(intensity: NDArray[np.float64], noise: Noise) -> NDArray[np.float64]:
    """Height above the baseline in units of the noise; infinite where there is none and the height is above 0."""
    height = intensity - noise.baseline
    return np.divide(height, noise.sigma, out=np.where(height > 0, np.inf, 0.0), where=noise.sigma > 0)


class Peaks(NamedTuple):
    """Peaks of a spectrum: the bin of their summit, m/z (Da), height, and signal-to-noise ratio."""

    bin: NDArray[np.intp]
    mz: NDArray[np.float64]
    height: NDArray[np.float64]
    snr: NDArray[np.float64]


def profile_peaks(mz: ArrayLike, intensity: ArrayLike, tolerance: float, unit: Unit, snr: float) -> Peaks:
    """Summits of a profile spectrum (ascending m/z) that stand at least `snr` times the noise above the baseline.

    Of two summits within the tolerance the higher one stays. m/z is the centre of mass of the summit and its
    neighbours.
    """
    mz, intensity = np.asarray(mz, np.float64), np.asarray(intensity, np.float64)
    ratio = signal_to_noise(intensity, noise_of(intensity))
    # a bin on either side, so that a summit may stand at an end
    summit = find_peaks(np.concatenate([[-1.0], intensity, [-1.0]]))[0] - 1
    summit = summit[(ratio[summit] >= snr) & (intensity[summit] > 0)]
    owner = highest_within(mz[summit], intensity[summit], tolerance, unit)
    summit = summit[owner == np.arange(summit.size)]
    around = np.clip(summit[:, None] + np.array([-1, 0, 1]), 0, mz.size - 1)
    weight = intensity[around]
    # at an end, the summit would count twice
    weight[:, 0][summit == 0] = 0
    weight[:, 2][summit == mz.size - 1] = 0
    # a neighbour across a gap in the axis is no shoulder of this peak
    gap = np.abs(mz[around] - mz[summit][:, None])
    weight[gap > 3 * np.where(gap > 0, gap, np.inf).min(axis=1)[:, None]] = 0
    centre = (weight * mz[around]).sum(axis=1) / weight.sum(axis=1)
    return Peaks(summit, centre, intensity[summit], ratio[summit])


def highest_within(mz: ArrayLike, height: ArrayLike, tolerance: float, unit: Unit) -> NDArray[np.intp]:
    """For each of the ascending `mz` the one to which it belongs: the highest within the tolerance, or itself.

    From the highest down, each takes those around it that no higher one has taken.
    """
    mz, height = np.asarray(mz, np.float64), np.asarray(height, np.float64)
    owner = np.full(mz.size, -1, np.intp)
    for number in np.argsort(-height, kind="stable"):
        if owner[number] >= 0:
            continue
        reach = mz[number] * tolerance / _PPM if unit == "ppm" else tolerance
        first, last = np.searchsorted(mz, mz[number] + np.array([-reach, reach]) * (1 + 1e-12))
        around = owner[first:last]
        around[around < 0] = number
        owner[number] = number
    return owner


class MassErrors(NamedTuple):
    """Errors of calibrants: median and spread (ppm), drift from the first to the last spectrum (ppm), times found."""

    median: NDArray[np.float64]
    spread: NDArray[np.float64]
    drift: NDArray[np.float64]
    found: NDArray[np.int64]


def mass_errors(errors: ArrayLike, time: ArrayLike) -> MassErrors:
    """Summary of the errors (ppm; spectra x calibrants, NaN: not found) of calibrants over the time (0 to 1).

    The drift is twice the difference of the medians of the last and the first half.
    """
    errors, time = np.asarray(errors, np.float64), np.asarray(time, np.float64)
    found = np.isfinite(errors).sum(axis=0)
    median, spread, drift = (np.full(errors.shape[1], np.nan) for _ in range(3))
    for j in np.flatnonzero(found):
        seen = np.isfinite(errors[:, j])
        values, at = errors[seen, j], time[seen]
        median[j] = np.median(values)
        spread[j] = _TO_SIGMA * np.median(np.abs(values - median[j]))
        late = at > np.median(at)
        if late.any() and (apart := at[late].mean() - at[~late].mean()) > 0:
            drift[j] = (np.median(values[late]) - np.median(values[~late])) / apart
    return MassErrors(median, spread, drift, found)


def recalibrated(mz: ArrayLike, calibrant: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    """m/z without the `error` (ppm, NaN: not found) that calibrants show.

    The error is a straight line over m/z from three calibrants on, and constant with fewer.
    """
    mz, calibrant, error = (np.asarray(v, np.float64) for v in (mz, calibrant, error))
    seen = np.isfinite(error)
    if not seen.any():
        return mz
    line = np.polyfit(calibrant[seen], error[seen], 1 if seen.sum() >= 3 else 0)
    # no further than the calibrants reach: a line goes astray outside them
    inside = np.clip(mz, calibrant[seen].min(), calibrant[seen].max())
    return mz / (1 + np.polyval(line, inside) / _PPM)
