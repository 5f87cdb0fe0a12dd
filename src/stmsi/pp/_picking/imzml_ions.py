"""Ions of an imzML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.peaks.calibrants import Calibrants
from stmsi._core.peaks.mass_errors import mass_errors
from stmsi._core.peaks.picking import highest_within
from stmsi._core.peaks.profile_axis import common_profile
from stmsi._core.spectra.common_ions import reference_ions
from stmsi._core.spectra.extraction import spectra_of
from stmsi._core.spectra.spectrum_arrays import windows
from stmsi._data.keys import Key
from stmsi._imzml.extract import count_ions, extract, fill_cells, plan_axis, plan_targets, profile_spacing, spread
from stmsi._imzml.file import ImzmlFile
from stmsi._imzml.traits import Kinds, choose_spectra, warn_of_mixtures
from stmsi._settings import logger
from stmsi.pp._picking.calibrated_masses import with_masses
from stmsi.pp._picking.summed_spectra import (
    COLUMNS,
    Statistics,
    ions_of_axis,
    ions_of_profile,
    recurrence_snr,
    spacing_of_axis,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi._core.peaks.mass_errors import MassErrors
    from stmsi._core.peaks.profile_axis import BinSpacing
    from stmsi.pp._picking.options import PickOptions

_SAMPLE = 2000  # spectra that are searched for calibrants


def ions_of_file(path: Path, options: PickOptions, kinds: Kinds) -> pd.DataFrame:
    with ImzmlFile(path) as file:
        traits = file.index.traits
        chosen = choose_spectra(traits, kinds, np.arange(len(file.xyz)), path.name)
        warn_of_mixtures(traits, chosen, path.name)
        stored = traits.name("spectrum_type", chosen)
        shared = file.shared_axis(chosen)
        spacing = None
        if shared is not None:
            seen = Statistics(len(shared[0]))
            extract(file, chosen, plan_axis(*shared), options.reading(), seen)
            spacing = spacing_of_axis(shared[0], options, stored)
            found = ions_of_axis(shared[0], seen, len(chosen), options, spacing)
        else:
            spacing = profile_spacing(file, chosen, options.profile)
            found = (
                _from_centroids(file, chosen, options)
                if spacing is None
                else _from_profiles(file, chosen, options, spacing)
            )
        if spacing is not None:
            found = _with_frequency(found, file, chosen, options)
        found = options.recurring(found)
        options.require_some(found, path.name)
        frame = with_masses(found, _calibrant_errors(file, chosen, options, found, spacing), options)
    logger.info("%s: %d ions", path.name, len(frame))
    return frame


def _from_profiles(
    file: ImzmlFile, chosen: NDArray[np.intp], options: PickOptions, spacing: BinSpacing
) -> pd.DataFrame:
    """Ions of profiles that do not share an axis."""
    cells = fill_cells(file, chosen, options.reading(), spacing)
    if cells is None:
        return pd.DataFrame(columns=["bin", *COLUMNS, Key.var.PEAK_WIDTH], dtype=np.float64)
    mean = options.spectrum == "mean"
    axis, whole = common_profile(cells, spacing, mean=mean)
    return ions_of_profile(axis, whole / len(chosen) if mean else whole, options, spacing)


def _with_frequency(
    found: pd.DataFrame, file: ImzmlFile, chosen: NDArray[np.intp], options: PickOptions
) -> pd.DataFrame:
    """Share of the profiles in which the reader will find each ion."""
    if len(found) == 0:
        return found
    reading, counts = options.reading(), Statistics(len(found))
    width = found[Key.var.PEAK_WIDTH].to_numpy()
    plan = plan_targets(file, chosen, found[Key.var.MZ].to_numpy(), reading, width=width, profile=True)
    extract(file, chosen, plan, reading, counts)
    return found.assign(frequency=counts.count / len(chosen))


def _from_centroids(file: ImzmlFile, chosen: NDArray[np.intp], options: PickOptions) -> pd.DataFrame:
    """Ions of centroided spectra: peaks that lie close together."""
    counts = count_ions(file, chosen, options.reading())
    whole = counts.intensity / len(chosen) if options.spectrum == "mean" else counts.top
    ratio = recurrence_snr(whole, counts.spectra / len(chosen), options)
    ions, kept = reference_ions(counts, len(chosen), options.min_frequency)
    found = pd.DataFrame(
        {Key.var.MZ: ions.mz, "frequency": ions.frequency, "intensity": whole[kept], "snr": ratio[kept]}
    )
    found = found[found["snr"] >= options.snr].reset_index(drop=True)
    return _joined(found, file, chosen, options)


def _joined(found: pd.DataFrame, file: ImzmlFile, chosen: NDArray[np.intp], options: PickOptions) -> pd.DataFrame:
    """Ions within the tolerance of a higher one belong to it: noise beside an ion may have led to a cut through it."""
    owner = highest_within(found[Key.var.MZ], found["intensity"], options.tolerance, options.unit)
    joined = np.flatnonzero(np.bincount(owner, minlength=len(found)) > 1)
    if joined.size == 0:
        return found
    weight = np.bincount(owner, found["frequency"], len(found))
    mean = np.bincount(owner, found["frequency"] * found[Key.var.MZ], len(found)) / np.where(weight > 0, weight, 1)
    reading = options.reading("sum" if options.spectrum == "mean" else "max")
    counts = Statistics(joined.size)
    extract(file, chosen, plan_targets(file, chosen, mean[joined], reading), reading, counts)
    whole = counts.spectrum(len(chosen), options)
    columns = [Key.var.MZ, "frequency", "intensity"]
    found.loc[joined, columns] = np.column_stack([mean[joined], counts.count / len(chosen), whole])
    return found[owner == np.arange(len(found))].reset_index(drop=True)


def _calibrant_errors(
    file: ImzmlFile, chosen: NDArray[np.intp], options: PickOptions, found: pd.DataFrame, spacing: BinSpacing | None
) -> MassErrors | None:
    """Errors of the calibrants in spectra spread over the acquisition, in profiles by the centres of their peaks."""
    if options.calibrants.size == 0:
        return None
    picked = spread(chosen, _SAMPLE)
    file.lengths(picked)
    parts = [picked[start : start + 64] for start in range(0, len(picked), 64)]
    low, high = windows(options.calibrants, options.search)
    near = Calibrants(options.calibrants, low, high)
    if spacing is not None:
        width = np.interp(options.calibrants, found[Key.var.MZ], found[Key.var.PEAK_WIDTH])
        near = near._replace(width=width, bins=width / spacing.at(options.calibrants))
    seen = [near.find(*spectra_of(file.chunk(part)), len(part)) for part in parts]
    errors, height = (np.vstack(values) for values in zip(*seen, strict=True))
    return mass_errors(errors, picked / max(len(file.xyz) - 1, 1), height)
