"""Peaks of one spectrum, and its noise.

Summits, prominences and widths are those of scipy.signal; own code measures them in units of the local noise and in m/z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks, peak_prominences, peak_widths

from stmsi._core.peaks.centroids import gaussian_centres

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stmsi._core.spectra.spectrum_arrays import Unit

_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_WINDOW = 201
_WINDOW_OF_PEAKS = 1001  # bins in which prominence and width are measured
_CLEAR = 10.0  # signal-to-noise ratio of peaks that tell the usual width
_NEIGHBOURS = 51  # of them, the width of which is averaged
_WIDTH = 2.0  # bins, where no peak is clear
_COARSE = 3.0  # bins; narrower peaks are not smoothed
_LEAST_WIDTH = 0.7  # of the usual one, after smoothing; a single bin has 0.55
_WIDTH_OF_SIGMA = 2 * np.sqrt(2 * np.log(2))
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
    """Peaks of a spectrum: bin of the summit, m/z (Da), height, signal-to-noise ratio, width at half maximum (Da)."""

    bin: NDArray[np.intp]
    mz: NDArray[np.float64]
    height: NDArray[np.float64]
    snr: NDArray[np.float64]
    width: NDArray[np.float64]


def profile_peaks(mz: ArrayLike, intensity: ArrayLike, tolerance: float, unit: Unit, snr: float) -> Peaks:
    r"""Peaks of a profile spectrum on an axis without gaps (ascending m/z, Da).

    A peak has a summit and a prominence of at least `snr` times the noise, and is no narrower than half the others are.
    Its summit must also exceed :math:`\sqrt{2 \ln n}` times the noise of the spectrum smoothed by half a peak, the most that
    noise reaches in n bins. Of two summits within the tolerance the higher one stays. m/z is the maximum of a Gaussian.
    """
    mz, intensity = np.asarray(mz, np.float64), np.asarray(intensity, np.float64)
    noise = noise_of(intensity)
    ratio = signal_to_noise(intensity, noise)
    usual = _usual_width(intensity, noise, ratio)
    smooth, around = _smoothed(intensity, float(np.median(usual)))
    quiet = noise_of(smooth)
    summit = find_peaks(_padded(smooth))[0] - 1
    prominence = _over(peak_prominences(_padded(smooth), summit + 1, wlen=_WINDOW_OF_PEAKS)[0], quiet.sigma[summit])
    height = signal_to_noise(smooth, quiet)[summit]
    kept = (prominence >= snr) & (height >= np.sqrt(2 * np.log(max(mz.size, 2))))
    summit = summit[kept]
    if around:
        wide = _half_widths(smooth, quiet.baseline, summit) >= _LEAST_WIDTH * usual[summit]
        summit = _highest_near(intensity, summit[wide], around)
    summit = summit[(ratio[summit] >= snr) & (intensity[summit] > 0)]
    owner = highest_within(mz[summit], intensity[summit], tolerance, unit)
    summit = summit[owner == np.arange(summit.size)]
    width = usual[summit] * (np.gradient(mz)[summit] if mz.size > 1 else 1.0)
    reach = int(np.ceil(usual[summit].max(initial=0.0))) + 2
    centre = _centres(mz, np.maximum(intensity - noise.baseline, 0), summit, width, reach)
    return Peaks(summit, centre, intensity[summit], ratio[summit], width)


def _padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A bin of 0 on either side, so that a summit may stand at an end."""
    return np.concatenate([[0.0], values, [0.0]])


def _over(value: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(value, sigma, out=np.where(value > 0, np.inf, 0.0), where=sigma > 0)


def _half_widths(
    values: NDArray[np.float64], baseline: NDArray[np.float64], summit: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Full width in bins at half the height above the baseline."""
    height = np.maximum(values[summit] - baseline[summit], 0)
    ends = np.maximum(summit + 1 - _WINDOW_OF_PEAKS, 0), np.minimum(summit + 1 + _WINDOW_OF_PEAKS, values.size + 1)
    return peak_widths(_padded(values), summit + 1, 0.5, prominence_data=(height, *ends))[0]


def _usual_width(intensity: NDArray[np.float64], noise: Noise, ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Full width at half maximum in bins that peaks around each bin have, by the clear ones that stand alone."""
    summit = find_peaks(_padded(intensity))[0] - 1
    summit = summit[(ratio[summit] >= _CLEAR) & (intensity[summit] > 0)]
    prominence = peak_prominences(_padded(intensity), summit + 1, wlen=_WINDOW_OF_PEAKS)[0]
    summit = summit[prominence >= (intensity - noise.baseline)[summit] / 2]
    if summit.size == 0:
        return np.full(intensity.size, _WIDTH)
    width = median_filter(
        _half_widths(intensity, noise.baseline, summit), min(_NEIGHBOURS, summit.size), mode="nearest"
    )
    return np.interp(np.arange(intensity.size), summit, width)


def _smoothed(intensity: NDArray[np.float64], width: float) -> tuple[NDArray[np.float64], int]:
    """The spectrum smoothed by half the width of a peak (bins), and how far that may move a summit.

    Peaks of few bins stay as they are: smoothing would join neighbours.
    """
    if width < _COARSE:
        return intensity, 0
    sigma = width / _WIDTH_OF_SIGMA / 2
    return gaussian_filter1d(intensity, sigma, mode="nearest"), int(np.ceil(sigma))


def _highest_near(intensity: NDArray[np.float64], summit: NDArray[np.intp], reach: int) -> NDArray[np.intp]:
    """The highest bin around each."""
    near = np.clip(summit[:, None] + np.arange(-reach, reach + 1), 0, intensity.size - 1)
    return np.unique(near[np.arange(summit.size), intensity[near].argmax(axis=1)])


def _centres(
    mz: NDArray[np.float64],
    height: NDArray[np.float64],
    summit: NDArray[np.intp],
    width: NDArray[np.float64],
    reach: int,
) -> NDArray[np.float64]:
    """m/z of the maximum of each peak, of bins no further than `reach`; a fit ends half-way to the next summit."""
    if summit.size == 0:
        return np.empty(0)
    at = summit[:, None] + np.arange(-reach, reach + 1)
    exists = (at >= 0) & (at < mz.size)
    at = np.clip(at, 0, mz.size - 1)
    offset = np.where(exists, mz[at] - mz[summit][:, None], np.nan)
    between = np.diff(mz[summit]) / 2
    left, right = np.append(np.inf, between), np.append(between, np.inf)
    return mz[summit] + gaussian_centres(offset, height[at], width, (left, right))


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
