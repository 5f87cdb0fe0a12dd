"""The list of ions by name, and what calibrants say of its masses."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._core.peaks.mass_errors import recalibrated
from stmsi._core.spectra.spectrum_arrays import mz_labels
from stmsi._data.keys import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.peaks.mass_errors import MassErrors
    from stmsi.pp._picking.options import PickOptions

_BESIDE = 0.05  # share of m/z beyond the last calibrant that its error still holds for


def with_masses(found: pd.DataFrame, errors: MassErrors | None, options: PickOptions) -> pd.DataFrame:
    """The list named by m/z, free of the calibrants' error where asked for, with their errors in ``attrs``."""
    frame = found.drop(columns="bin", errors="ignore")
    calibration: dict[str, list[float]] = {}
    if errors is not None:
        columns = (options.calibrants, errors.median, errors.spread, errors.drift, errors.found)
        names = (Key.var.MZ, "error_ppm", "spread_ppm", "drift_ppm", "spectra")
        calibration = {name: column.tolist() for name, column in zip(names, columns, strict=True)}
        _warn_of_drift(errors, options)
        if options.recalibrate:
            frame[Key.var.MEASURED_MZ] = frame[Key.var.MZ]
            frame[Key.var.MZ] = recalibrated(frame[Key.var.MZ], options.calibrants, errors.median)
            _warn_of_range(frame[Key.var.MZ].to_numpy(), errors, options)
    frame.index = pd.Index(safe_ids(mz_labels(frame[Key.var.MZ].to_numpy())))
    frame.attrs["calibration"] = calibration
    return frame


def _warn_of_drift(errors: MassErrors, options: PickOptions) -> None:
    if not errors.found.any():
        warnings.warn("No calibrant was found; make search= larger or name others.", stacklevel=4)
        return
    calibrants = options.calibrants
    reach = options.tolerance * (np.ones(len(calibrants)) if options.unit == "ppm" else 1e6 / calibrants)
    drift = np.abs(errors.drift)
    worst = int(np.nanargmax(np.where(np.isfinite(drift), drift - reach, -np.inf)))
    if np.isfinite(drift[worst]) and drift[worst] > reach[worst]:
        warnings.warn(
            f"The mass of m/z {calibrants[worst]:.4f} drifts by {errors.drift[worst]:.1f} ppm over the acquisition, more than "
            f"the tolerance of {reach[worst]:.1f} ppm; make tolerance= larger or recalibrate the spectra.",
            stacklevel=4,
        )


def _warn_of_range(mz: NDArray[np.float64], errors: MassErrors, options: PickOptions) -> None:
    """Warn of ions beyond the calibrants: their correction is a guess."""
    known = options.calibrants[np.isfinite(errors.median)]
    if known.size == 0:
        return
    outside = int(((mz < known[0] * (1 - _BESIDE)) | (mz > known[-1] * (1 + _BESIDE))).sum())
    if outside:
        reach = f"m/z {known[0]:.4f}" + (f" to {known[-1]:.4f}" if known.size > 1 else "")
        warnings.warn(
            f"{outside} of {len(mz)} ions lie outside of the calibrants that were found ({reach}) and are corrected by the error "
            "at their end. Name calibrants that span the ions.",
            stacklevel=4,
        )
