"""Ions of the one spectrum that all spectra become."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.peaks.picking import Noise, profile_peaks, signal_to_noise
from stmsi._core.peaks.profile_axis import bin_spacing, fill_gaps, looks_like_profile
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.peaks.profile_axis import BinSpacing
    from stmsi._core.spectra.extraction import Rows
    from stmsi.pp._picking.options import PickOptions

COLUMNS = (Key.var.MZ, "frequency", "intensity", "snr")


class Statistics:
    """Sum, largest value and number of values above 0 of each column; the rows are not kept."""

    def __init__(self, n: int) -> None:
        self.total, self.top, self.count = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)

    def append(self, rows: Rows) -> None:
        """Count the rows of the next chunk."""
        self.total += np.bincount(rows.indices, weights=rows.data, minlength=len(self.total))
        self.count += np.bincount(rows.indices, minlength=len(self.count))
        np.maximum.at(self.top, rows.indices, rows.data)

    def spectrum(self, n: int, options: PickOptions) -> NDArray[np.float64]:
        """The mean of `n` spectra, or their skyline."""
        return self.total / n if options.spectrum == "mean" else self.top


def spacing_of_axis(axis: NDArray[np.float64], options: PickOptions, spectrum_type: str) -> BinSpacing | None:
    """Distance of the bins of a shared axis, `None` where it is a list of centroids."""
    profile = options.profile
    if profile is None:
        profile = spectrum_type == "profile" or (spectrum_type != "centroid" and looks_like_profile(axis))
    spacing = bin_spacing(axis) if profile else None
    return spacing if spacing is None or options.profile or spacing.credible else None


def ions_of_axis(
    axis: NDArray[np.float64], seen: Statistics, n: int, options: PickOptions, spacing: BinSpacing | None
) -> pd.DataFrame:
    """Ions of spectra that share an axis; column ``bin`` has the summit. With `spacing`, they are profiles."""
    whole, frequency = seen.spectrum(n, options), seen.count / n
    if spacing is not None:
        found = ions_of_profile(axis, whole, options, spacing)
        return found.assign(frequency=frequency[found["bin"]])
    ratio = recurrence_snr(whole, frequency, options)
    kept = np.flatnonzero((ratio >= options.snr) & (whole > 0))
    columns = (kept, axis[kept], frequency[kept], whole[kept], ratio[kept])
    return pd.DataFrame(dict(zip(("bin", *COLUMNS), columns, strict=True)))


def ions_of_profile(
    axis: NDArray[np.float64], whole: NDArray[np.float64], options: PickOptions, spacing: BinSpacing
) -> pd.DataFrame:
    """Ions of one profile; column ``bin`` has the summit. Where zeros are not stored, there are bins all the same."""
    filled, place = fill_gaps(axis, spacing)
    values = np.zeros(len(filled))
    values[place] = whole
    peaks = profile_peaks(filled, values, options.tolerance, options.unit, options.snr)
    columns = (np.searchsorted(place, peaks.bin), peaks.mz, np.nan, peaks.height, peaks.snr, peaks.width)
    return pd.DataFrame(dict(zip(("bin", *COLUMNS, Key.var.PEAK_WIDTH), columns, strict=True)))


def recurrence_snr(
    whole: NDArray[np.float64], frequency: NDArray[np.float64], options: PickOptions
) -> NDArray[np.float64]:
    """Signal-to-noise ratio where the noise is what does not recur."""
    rare = whole[(frequency < options.min_frequency) & (whole > 0)]
    baseline = np.median(rare) if rare.size else 0.0
    sigma = 1.4826 * np.median(np.abs(rare - baseline)) if rare.size else 0.0
    return signal_to_noise(whole, Noise(np.full(len(whole), baseline), np.full(len(whole), sigma)))
