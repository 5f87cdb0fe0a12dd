"""Ions in place of the bins of an MSI table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.peaks.calibrants import Calibrants
from stmsi._core.peaks.mass_errors import mass_errors
from stmsi._core.peaks.profile_axis import windows_of_bins
from stmsi._core.spectra.spectrum_arrays import windows
from stmsi._data.checks import check_nonnegative, listing
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr
from stmsi._settings import logger
from stmsi.pp._picking.calibrated_masses import with_masses
from stmsi.pp._picking.summed_spectra import Statistics, ions_of_axis, spacing_of_axis

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi.pp._picking.options import PickOptions


def reduce_table(table: AnnData, options: PickOptions) -> None:
    """Put ions into the place of the bins of a table."""
    if Key.var.MZ not in table.var:
        msg = f"var has no column {Key.var.MZ!r}, the m/z of each bin in Da; found {listing(table.var.columns)}."
        raise KeyError(msg)
    mz = pd.to_numeric(table.var[Key.var.MZ], errors="coerce").to_numpy(np.float64)
    if not (np.isfinite(mz) & (mz > 0)).all():
        msg = f"{int((~(mz > 0)).sum())} bins have no m/z in var[{Key.var.MZ!r}]; fill them in or leave these bins out."
        raise ValueError(msg)
    order = np.argsort(mz, kind="stable")
    X = as_csr(table.X)
    check_nonnegative(X, "MSI intensities")
    seen = Statistics(len(mz))
    seen.total = np.asarray(X.sum(axis=0), np.float64).ravel()[order]
    seen.top = X.max(axis=0).toarray().ravel().astype(np.float64)[order]
    seen.count = np.asarray((X > 0).sum(axis=0)).ravel()[order]
    stored = [a.get("spectrum_type") for a in table.uns.get(Key.uns.MSI, {}).get("attrs", {}).values()]
    kind = str(stored[0]) if stored and len(set(stored)) == 1 else ""
    spacing = spacing_of_axis(mz[order], options, kind)
    found = options.recurring(ions_of_axis(mz[order], seen, table.n_obs, options, spacing))
    options.require_some(found, "The table")
    summit, ions = found["bin"].to_numpy(np.intp), found[Key.var.MZ].to_numpy()
    errors = None
    if options.calibrants.size:  # a list knows no time, so no drift
        near = Calibrants(options.calibrants, *windows(options.calibrants, options.search))
        errors = mass_errors(
            near.find(ions, found["intensity"].to_numpy(), np.zeros(len(ions), np.intp), 1)[0], np.zeros(1)
        )
    frame = with_masses(found, errors, options)
    # bins within the tolerance of a summit, the summit always, each in one ion at most: the nearest
    low, high = windows(ions, options.tolerance, options.unit)
    if spacing is not None:
        low, high = windows_of_bins(ions, low, high, spacing, found[Key.var.PEAK_WIDTH].to_numpy())
    nearest = np.searchsorted((ions[1:] + ions[:-1]) / 2, mz[order])
    inside = (mz[order] >= low[nearest]) & (mz[order] <= high[nearest])
    inside[summit], nearest[summit] = True, np.arange(len(summit))
    bins = np.flatnonzero(inside)
    share = sp.csr_matrix((np.ones(bins.size, np.float32), (order[bins], nearest[bins])), shape=(len(mz), len(summit)))
    reduced = {name: sp.csr_matrix(as_csr(table.layers[name]) @ share) for name in table.layers if name is not None}
    X = sp.csr_matrix(X @ share, dtype=np.float32)
    calibration = frame.attrs.pop("calibration")
    table._inplace_subset_var(order[summit])
    table.X = X
    for name, layer in reduced.items():
        table.layers[name] = layer
    table.var_names = frame.index
    table.var[Key.var.NAME] = frame.index.astype(str)
    for column in frame:
        table.var[column] = frame[column].to_numpy()
    recorded = ("spectrum", "snr", "tolerance", "unit", "min_frequency", "search", "recalibrate")
    params = {name: getattr(options, name) for name in recorded}
    table.uns[Key.uns.PEAKS] = {"params": params, "calibration": pd.DataFrame(calibration)}
    logger.info("%d bins became %d ions.", len(mz), table.n_vars)
