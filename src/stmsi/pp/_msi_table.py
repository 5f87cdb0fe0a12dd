"""What several verbs read of an MSI table: tissue, total ion current, raster positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.keys import Key
from stmsi._data.tables import require_obs

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray


def tissue_of(msi: AnnData, tissue_key: str | None) -> NDArray[np.bool_]:
    """Which pixels are tissue, from a column of ``obs``; all without one."""
    if tissue_key is None:
        return np.ones(msi.n_obs, bool)
    column = require_obs(msi, tissue_key, "stmsi.pp.normalize_msi(tissue='otsu') writes obs['on_tissue'].")
    if not pd.api.types.is_bool_dtype(column):
        msg = f"obs[{tissue_key!r}] must be boolean (True on tissue), found {column.dtype}."
        raise ValueError(msg)
    if column.isna().any() or not column.any():
        msg = f"obs[{tissue_key!r}] must be True for some pixels and have no gaps."
        raise ValueError(msg)
    return column.to_numpy(bool)


def total_ion_current(msi: AnnData, tic_key: str) -> NDArray[np.float64]:
    """Total ion current of each pixel, from a column of ``obs``."""
    column = require_obs(msi, tic_key, "It holds the total ion current of each pixel.")
    tic = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(tic).all() or (tic < 0).any():
        msg = f"obs[{tic_key!r}] must hold finite total ion currents of at least 0."
        raise ValueError(msg)
    return tic


def raster_of(msi: AnnData, remedy: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each pixel."""
    row, col = (require_obs(msi, key, remedy).to_numpy(dtype=np.int64) for key in (Key.obs.ROW, Key.obs.COL))
    return row, col


def measured_ions(msi: AnnData, section: str) -> NDArray[np.bool_]:
    """Which ions a section measured: all, unless :func:`stmsi.pp.combine` has recorded otherwise."""
    measured = msi.varm.get(Key.varm.MEASURED)
    known = measured is not None and section in measured
    return measured[section].to_numpy(bool) if known else np.ones(msi.n_vars, bool)
