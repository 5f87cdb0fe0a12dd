"""Fill in what was missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.spatial.median_filter import adaptive_median, distance_rings
from stmsi._data.checks import check_nonnegative
from stmsi._data.keys import Key
from stmsi._data.tables import imputed, require_mapped, require_positions, sections_of, table_to_change
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def impute_dropout(
    data: SpatialData | AnnData,
    *,
    n_rings: int = 7,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Replace zeros by the median of the surroundings, and remember which values were measured.

    SEPAL's adaptive median filter (Mejia et al. 2023, arXiv:2309.01036): the window around a spot, the spot itself
    included, grows ring by ring until its median is above zero; where that does not happen within `n_rings` rings, the
    median of the section's values above zero is taken. Values above zero stay as they are.

    It takes every zero for a dropout. That suits models of intensity alone; a metabolite that is *absent* from a region
    is filled in as well. Call presence before (:func:`stmsi.pp.call_presence`), so that stage 1 learns what was measured.
    :func:`stmsi.tl.evaluate` and :func:`stmsi.tl.cross_validate` score intensities on measured entries only.

    Parameters
    ----------
    data
        SpatialData after :func:`stmsi.pp.map_to_spots`, or its ST table; positions in ``obsm["spatial"]``.
    n_rings
        How many distinct distances the window may grow to; on a hexagon 7 are 54 neighbours.
    metabolite_key
        Intensities in ``obsm``.
    sample_key, table_key
        Column of ``obs`` with the section name (windows do not cross sections); the ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Replaces ``obsm["msi"]`` (NaN stay NaN) and writes
    ``obsm["msi_observed"]``, boolean: `True` where the intensity was measured, `False` where it was filled in, was left
    at 0 since the whole section is, or is NaN. Records ``uns["msi"]["impute_dropout"]``. Called again it starts from the
    measured values.

    Raises
    ------
    ValueError
        Negative or infinite intensities, positions that are not finite, no intensity at all, intensities that
        :func:`stmsi.pp.correct_batch` has changed.
    KeyError
        Intensities or positions are not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.pp.call_presence(sdata)
    >>> stmsi.pp.impute_dropout(sdata)
    >>> st = sdata.tables["st"]
    >>> bool((st.obsm["msi"].stack() == 0).any()), bool(st.obsm["msi_observed"].all(axis=None))
    (False, False)
    """
    if n_rings < 1:
        msg = f"n_rings must be at least 1, found {n_rings!r}."
        raise ValueError(msg)
    st, changed = table_to_change(data, table_key, copy=copy)
    frame = require_mapped(st, metabolite_key)
    check_nonnegative(frame.to_numpy(), f"obsm[{metabolite_key!r}]", allow_nan=True)
    if Key.uncorrected_of(metabolite_key) in st.obsm:
        msg = (
            f"obsm[{metabolite_key!r}] was corrected for batches. Impute what was measured: undo it with "
            "stmsi.pp.correct_batch(data, method='none'), impute, and correct again."
        )
        raise ValueError(msg)
    sample = sections_of(st, sample_key)
    measured = np.where(imputed(st, metabolite_key, frame), 0.0, frame.to_numpy(np.float64))
    covered = np.isfinite(measured).any(axis=1)
    if not covered.any():
        msg = f"obsm[{metabolite_key!r}] holds nothing but NaN; align and map the MSI first."
        raise ValueError(msg)
    xy = require_positions(st, covered)[:, :2]
    filled = measured.copy()
    for name in dict.fromkeys(sample[covered]):
        rows = np.flatnonzero((sample == name) & covered)
        filled[rows] = adaptive_median(measured[rows], *distance_rings(xy[rows], n_rings))
    observed = measured > 0
    if not observed.any():
        logger.warning("obsm[%r] holds no value above zero; there is nothing to fill in from.", metabolite_key)
    if Key.presence_of(metabolite_key) not in st.obsm:
        logger.warning(
            "Presence was not called: a model would take what is filled in for present. Call stmsi.pp.call_presence, which "
            "counts it as absent, before training."
        )
    st.obsm[metabolite_key] = pd.DataFrame(filled.astype(np.float32), index=frame.index, columns=frame.columns)
    st.obsm[Key.observed_of(metabolite_key)] = pd.DataFrame(observed, index=frame.index, columns=frame.columns)
    share = float(((measured == 0) & (filled > 0)).sum() / np.isfinite(measured).sum())
    st.uns[metabolite_key] = dict(st.uns.get(metabolite_key, {})) | {
        "impute_dropout": {"n_rings": n_rings, "imputed_share": share}
    }
    return changed
