"""Make pixels comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.spectra_stats import pixel_factors, section_quantiles
from stmsi._keys import Key
from stmsi._logging import logger
from stmsi._validate import (
    as_csr,
    check_choice,
    check_nonnegative,
    get_table,
    refuse_view,
    require_obs,
    require_rows,
    require_sample,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["tic", "rms", "median", "none"]


def normalize_msi(
    data: SpatialData | AnnData,
    *,
    method: Method = "tic",
    log1p: bool = True,
    winsorize: float | None = None,
    target: float | None = None,
    tic_key: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Normalise the ion intensities of each pixel.

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table. ``X`` sparse or dense.
    method
        What a pixel is divided by: its total ion current (``"tic"``), the root mean square (``"rms"``) or the median
        (``"median"``) of its ions above zero, or nothing (``"none"``).
    log1p
        Whether to take ``log(1 + x)`` afterwards.
    winsorize
        Quantile (for example 0.99) of each ion's values above zero in each section at which hot spots are capped,
        before normalisation.
    target
        What normalised pixels are scaled to; `None`: the mean over sections of the median factor, so that intensities
        keep their order of magnitude and sections share one scale.
    tic_key
        Column of ``obs`` with the total ion current of the *whole* spectrum, for ``method="tic"``; `None`: the sum of
        the ions in the table. Give it where the table holds a few ions only: their sum makes each of them depend on
        all others (closure), so that an ion without any pattern of its own takes on the inverse of theirs.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Replaces ``X`` (float32 CSR), keeps the measured values in
    ``layers["raw"]`` and records ``uns["normalize_msi"]["params"]``. Called again it starts from ``layers["raw"]``.
    Pixels without any signal stay 0.

    Raises
    ------
    ValueError
        Negative, infinite or NaN intensities, or an unknown method.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.normalize_msi(sdata, method="tic")
    >>> sdata.tables["msi"].uns["normalize_msi"]["params"]["method"]
    'tic'
    """
    check_choice(method, get_args(Method), "method")
    if winsorize is not None and not 0 < winsorize <= 1:
        msg = f"winsorize is a quantile in (0, 1], found {winsorize!r}."
        raise ValueError(msg)
    if tic_key is not None and method != "tic":
        msg = f"tic_key goes with method='tic', found method={method!r}."
        raise ValueError(msg)
    if target is not None and not (np.isfinite(target) and target > 0):
        msg = f"target must be a positive number, found {target!r}."
        raise ValueError(msg)
    out = copy_of(data) if copy else data
    msi = get_table(out, table_key)
    refuse_view(msi)
    require_rows(msi, "pixels")
    raw = as_csr(msi.layers.get(Key.layers.RAW, msi.X), np.float32)
    check_nonnegative(raw, "MSI intensities")
    sample = require_sample(msi, sample_key)
    X = raw.astype(np.float64)
    if winsorize is not None:
        names, section = np.unique(sample, return_inverse=True)
        cap = np.stack([section_quantiles(X[sample == name].tocsc(), winsorize) for name in names])
        X.data = np.minimum(X.data, cap[np.repeat(section, np.diff(X.indptr)), X.indices])
    factor = pixel_factors(X, method) if tic_key is None else _whole_spectrum(msi, tic_key)
    silent = factor <= 0
    if method != "none":
        if silent.all():
            msg = "No pixel has any signal."
            raise ValueError(msg)
        if silent.any():
            logger.info("%d pixels have no signal; they stay 0.", int(silent.sum()))
        if target is None:
            medians = [
                np.median(factor[(sample == s) & ~silent])
                for s in dict.fromkeys(sample)
                if ((sample == s) & ~silent).any()
            ]
            target = float(np.mean(medians))
        X = sp.diags(np.where(silent, 0.0, target / np.where(silent, 1.0, factor))) @ X
    if log1p:
        X = X.log1p()
    msi.layers[Key.layers.RAW] = raw
    msi.X = sp.csr_matrix(X, dtype=np.float32)
    params = {"method": method, "log1p": log1p, "winsorize": winsorize, "target": target, "tic_key": tic_key}
    msi.uns[Key.uns.NORMALIZE] = {"params": {k: v for k, v in params.items() if v is not None}}
    return out if copy else None


def _whole_spectrum(msi: AnnData, tic_key: str) -> NDArray[np.float64]:
    """Total ion current of each pixel from ``obs``."""
    column = require_obs(msi, tic_key, "It holds the total ion current of each pixel.")
    tic = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(tic).all() or (tic < 0).any():
        msg = f"obs[{tic_key!r}] must hold finite total ion currents of at least 0."
        raise ValueError(msg)
    return tic


def copy_of(data: SpatialData | AnnData) -> SpatialData | AnnData:
    """A deep copy of either container."""
    from anndata import AnnData

    if isinstance(data, AnnData):
        return data.copy()
    from spatialdata import deepcopy

    return deepcopy(data)
