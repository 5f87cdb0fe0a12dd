"""Leave out ions that cannot be learnt or are not of the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._keys import Key
from stmsi._logging import logger
from stmsi._validate import as_csr, check_nonnegative, get_table, listing, refuse_view, require_rows, require_sample
from stmsi.pp._normalize_msi import copy_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def filter_metabolites(
    data: SpatialData | AnnData,
    *,
    min_prevalence: float = 0.01,
    min_intensity: float = 0.0,
    min_samples: int = 1,
    exclude_mz: Sequence[float] | None = None,
    ppm: float = 5.0,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Keep ions that are present in enough pixels, intense enough and not excluded.

    Parameters
    ----------
    data
        SpatialData with an MSI table, or that table. ``X`` sparse or dense.
    min_prevalence
        Share of a section's pixels above zero that an ion must reach; ions that are zero everywhere always go.
    min_intensity
        Mean of an ion's values above zero in a section that it must reach.
    min_samples
        In how many sections both must hold.
    exclude_mz
        m/z (Da) of matrix peaks or contaminants to leave out.
    ppm
        Relative window around `exclude_mz`.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Subsets the ions of the table and adds ``var["prevalence"]``, the
    share of pixels above zero in the sections that measured the ion.

    Raises
    ------
    ValueError
        Nothing would be left, parameters are out of range, or intensities are negative, infinite or NaN.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.filter_metabolites(sdata, min_prevalence=0.2)
    >>> sdata.tables["msi"].n_vars
    10
    """
    if not 0 <= min_prevalence <= 1:
        msg = f"min_prevalence is a share between 0 and 1, found {min_prevalence!r}."
        raise ValueError(msg)
    out = copy_of(data) if copy else data
    msi = get_table(out, table_key)
    refuse_view(msi)
    require_rows(msi, "pixels")
    sample = require_sample(msi, sample_key)
    names = list(dict.fromkeys(sample))
    whole = np.ones(msi.n_vars, bool)
    if not 1 <= min_samples <= len(names):
        msg = f"min_samples must lie between 1 and the number of sections ({len(names)}), found {min_samples!r}."
        raise ValueError(msg)
    X = as_csr(msi.X)
    check_nonnegative(X, "MSI intensities")
    indicator = sp.csr_matrix(np.stack([sample == n for n in names]).astype(np.float64))
    detected = (indicator @ (X > 0).astype(np.float64)).toarray()
    total = (indicator @ X).toarray()
    n_pixels = np.array([(sample == n).sum() for n in names])[:, None]
    intense = total / np.maximum(detected, 1) >= min_intensity
    enough = (detected / n_pixels >= min_prevalence) & (detected > 0) & intense
    keep = enough.sum(axis=0) >= min_samples
    if exclude_mz is not None and len(exclude_mz):
        if Key.var.MZ not in msi.var:
            msg = f"exclude_mz needs var[{Key.var.MZ!r}] with the m/z of each ion; found {listing(msi.var.columns)}."
            raise KeyError(msg)
        mz = pd.to_numeric(msi.var[Key.var.MZ]).to_numpy(dtype=float)
        away = np.abs(mz[:, None] - np.asarray(exclude_mz, dtype=float)) > ppm * 1e-6 * np.asarray(exclude_mz)
        keep &= away.all(axis=1) | np.isnan(mz)
    if not keep.any():
        msg = (
            f"No ion passes (largest prevalence {(detected / n_pixels).max():.3g}); lower min_prevalence, "
            "min_intensity or min_samples."
        )
        raise ValueError(msg)
    measured = msi.varm.get(Key.varm.MEASURED)
    known = np.stack([measured[n].to_numpy(bool) if measured is not None and n in measured else whole for n in names])
    msi.var["prevalence"] = detected.sum(axis=0) / np.maximum((n_pixels * known).sum(axis=0), 1)
    logger.info("Keeping %d of %d ions.", int(keep.sum()), len(keep))
    msi._inplace_subset_var(keep)
    return out if copy else None
