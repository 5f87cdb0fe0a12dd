"""The error of masses that calibrants show: its size, its drift, and m/z without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_TO_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_PPM = 1e6
_BRIGHTEST = 0.97  # quantile at which weights are cut: a few bright spectra are no more exact than others, and would decide alone


class MassErrors(NamedTuple):
    """Errors of calibrants: median and spread (ppm), drift from the first to the last spectrum (ppm), times found."""

    median: NDArray[np.float64]
    spread: NDArray[np.float64]
    drift: NDArray[np.float64]
    found: NDArray[np.int64]


def mass_errors(errors: ArrayLike, time: ArrayLike, weight: ArrayLike | None = None) -> MassErrors:
    """Summary of the errors (ppm; spectra x calibrants, NaN: not found) of calibrants over the time (0 to 1).

    The drift is twice the difference of the medians of the last and the first half. With `weight` (as `errors`), medians
    are weighted: in spectra that lack the calibrant, noise is found in its place, and it is low. No weight is larger than the
    0.97 quantile.
    """
    errors, time = np.asarray(errors, np.float64), np.asarray(time, np.float64)
    weight = np.ones(errors.shape) if weight is None else np.asarray(weight, np.float64)
    found = np.isfinite(errors).sum(axis=0)
    median, spread, drift = (np.full(errors.shape[1], np.nan) for _ in range(3))
    for j in np.flatnonzero(found):
        seen = np.isfinite(errors[:, j])
        values, at, worth = errors[seen, j], time[seen], weight[seen, j]
        worth = np.minimum(worth, np.quantile(worth, _BRIGHTEST))
        median[j] = _weighted_median(values, worth)
        spread[j] = _TO_SIGMA * _weighted_median(np.abs(values - median[j]), worth)
        late = at > np.median(at)
        if late.any() and (apart := at[late].mean() - at[~late].mean()) > 0:
            halves = [_weighted_median(values[half], worth[half]) for half in (late, ~late)]
            drift[j] = (halves[0] - halves[1]) / apart
    return MassErrors(median, spread, drift, found)


def _weighted_median(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """The value that halves the weight, between two values where none does; the median where all weights are equal."""
    order = np.argsort(values, kind="stable")
    weight = np.maximum(weight[order], np.finfo(float).tiny)
    middle = np.cumsum(weight) - weight / 2
    return float(np.interp(weight.sum() / 2, middle, values[order]))


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
