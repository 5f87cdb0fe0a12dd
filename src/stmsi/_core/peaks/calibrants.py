"""Calibrants in single spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stmsi._core.peaks.centroids import gaussian_centres

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AROUND = 2.5  # full widths to either side of a summit; beyond the first one is the baseline


class Calibrants(NamedTuple):
    """Exact m/z (Da), where to look for them, and for profiles the width of a peak there in Da and in bins."""

    mz: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    width: NDArray[np.float64] | None = None
    bins: NDArray[np.float64] | None = None

    def find(
        self, mz: NDArray[np.float64], intensity: NDArray[Any], row: NDArray[np.integer], n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Error (ppm; NaN: not found) and height of the most intense peak near each in each of `n` spectra.

        `mz` ascends in each `row`. In profiles, a peak has a summit in the window, and its m/z is its centre.
        """
        errors, heights = np.full((n, len(self.mz)), np.nan), np.zeros((n, len(self.mz)))
        peak = intensity > 0
        if self.width is not None:
            peak &= _summits(intensity, row)
        for j in range(len(self.mz)):
            near = np.flatnonzero((mz >= self.low[j]) & (mz <= self.high[j]) & peak)
            last = near[np.lexsort((intensity[near], row[near]))]  # the most intense one of a row is its last
            last = last[np.append(row[last][1:] != row[last][:-1], True)[: last.size]]
            centre, height = mz[last], intensity[last].astype(np.float64)
            if self.width is not None and self.bins is not None and last.size:
                centre, height = _centres(mz, intensity, row, last, float(self.width[j]), float(self.bins[j]))
            errors[row[last], j], heights[row[last], j] = (centre / self.mz[j] - 1) * 1e6, height
        return errors, heights


def _summits(intensity: NDArray[Any], row: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Bins that are higher than the one before and not lower than the next of their spectrum."""
    before = np.concatenate([[-1], np.where(row[1:] == row[:-1], intensity[:-1], -1)])[: len(row)]
    after = np.concatenate([np.where(row[1:] == row[:-1], intensity[1:], -1), [-1]])[-len(row) :]
    return (intensity > before) & (intensity >= after)


def _centres(
    mz: NDArray[np.float64],
    intensity: NDArray[Any],
    row: NDArray[np.integer],
    summit: NDArray[np.intp],
    width: float,
    bins: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """m/z of the centre of each peak, and its height above what is beside it."""
    reach = max(int(np.ceil(_AROUND * bins)), 2)
    at = summit[:, None] + np.arange(-reach, reach + 1)
    inside = (at >= 0) & (at < len(mz))
    at = np.clip(at, 0, len(mz) - 1)
    offset = mz[at] - mz[summit][:, None]
    inside &= (row[at] == row[summit][:, None]) & (np.abs(offset) <= _AROUND * width + 1e-12)
    values = np.where(inside, intensity[at].astype(np.float64), 0.0)  # what is not stored is 0
    beside = np.where(inside & (np.abs(offset) <= width), np.nan, values)
    some = np.isfinite(beside).any(axis=1)
    baseline = np.zeros(len(summit))
    baseline[some] = np.nanmedian(beside[some], axis=1)
    height = np.maximum(values - baseline[:, None], 0)
    centre = gaussian_centres(np.where(inside, offset, np.nan), height, np.full(len(summit), width))
    return mz[summit] + centre, height[:, reach]
