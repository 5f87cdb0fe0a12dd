"""Which metabolites are present in which spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.spectra_stats import section_quantiles
from stmsi._keys import Key
from stmsi._validate import (
    as_csr,
    check_choice,
    check_key,
    check_nonnegative,
    get_table,
    is_spatialdata,
    listing,
    refuse_view,
    require_frame,
    require_rows,
    require_sample,
    require_unique,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["lod", "detected", "otsu"]
_LOD_QUANTILE = 0.01
_DENSE = 0.98
"""Detected share from which an ion has no visible detection limit."""


def call_presence(
    data: SpatialData | AnnData,
    *,
    method: Method = "lod",
    threshold: float | Mapping[str, float] | None = None,
    metabolite_key: str = Key.obsm.MSI,
    key_added: str = Key.obsm.PRESENCE,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
) -> None:
    """Call each metabolite present or absent in each spot.

    Parameters
    ----------
    data
        SpatialData after :func:`stmsi.pp.map_to_spots`, or its ST table.
    method
        How the limit is found, for each metabolite in each section by itself:

        - ``"lod"``: the detection limit seen in the data, the 1 % quantile of the values above zero (of the pixels
          where the MSI table is at hand, else of the spots). A spot of which only a sliver was detected stays under
          it. Metabolites detected nearly everywhere (98 %) have no visible limit: every value above zero counts.
        - ``"detected"``: every value above zero;
        - ``"otsu"``: Otsu's threshold of the spot values.
    threshold
        Limits to use instead, one for all or a mapping from metabolite id.
    metabolite_key
        Intensities in ``obsm``.
    key_added
        Where in ``obsm`` to write.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.
    msi_table_key
        The MSI table.

    Returns
    -------
    `None`. Writes ``obsm["msi_presence"]`` (1 present, 0 absent, NaN not covered; float32) and the limits used,
    ``uns["msi"]["detection_limit"]`` (metabolites x sections; present means strictly above).

    Raises
    ------
    ValueError
        An empty table, negative or infinite intensities, thresholds for unknown metabolites or that are no limit.
    KeyError
        The intensities are not there.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.pp.call_presence(sdata)
    >>> sorted(sdata.tables["st"].obsm["msi_presence"].stack().dropna().unique().tolist())
    [0.0, 1.0]
    """
    from skimage.filters import threshold_otsu

    check_choice(method, get_args(Method), "method")
    check_key(key_added)
    st = get_table(data, table_key)
    refuse_view(st)
    require_rows(st)
    frame = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it.")
    require_unique(frame.columns, "Metabolite names", "Rename the columns.")
    check_nonnegative(frame.to_numpy(), "Metabolite intensities", allow_nan=True)
    sample = require_sample(st, sample_key)
    values = frame.to_numpy(dtype=np.float64)
    limits = pd.DataFrame(0.0, index=frame.columns.astype(str), columns=list(dict.fromkeys(sample)))
    for name in limits.columns:
        own = values[sample == name]
        if threshold is not None:
            limits[name] = _given(threshold, limits.index)
        elif method == "otsu":
            limits[name] = [
                threshold_otsu(v[np.isfinite(v)]) if len(np.unique(v[np.isfinite(v)])) > 1 else 0.0 for v in own.T
            ]
        elif method == "lod":
            limits[name] = _detection_limit(
                _pixels(data, msi_table_key, sample_key, name, frame, st, metabolite_key), own
            )
    above = values > limits[list(sample)].T.to_numpy()
    presence = np.where(np.isnan(values), np.nan, above).astype(np.float32)
    st.obsm[key_added] = pd.DataFrame(presence, index=frame.index, columns=frame.columns)
    st.uns[metabolite_key] = dict(st.uns.get(metabolite_key, {})) | {
        "detection_limit": limits,
        "presence": {"method": "threshold" if threshold is not None else method},
    }


def _given(threshold: float | Mapping[str, float], ids: pd.Index) -> NDArray[np.float64]:
    if not isinstance(threshold, Mapping):
        threshold = dict.fromkeys(ids, threshold)
    unknown, missing = set(threshold) - set(ids), [i for i in ids if i not in threshold]
    if unknown or missing:
        msg = f"Thresholds are needed for each metabolite: unknown {listing(sorted(unknown))}, missing {listing(missing)}."
        raise ValueError(msg)
    limit = np.array([float(threshold[i]) for i in ids])
    if not (np.isfinite(limit) & (limit >= 0)).all():
        msg = f"Thresholds must be finite and not negative: {listing(ids[~(np.isfinite(limit) & (limit >= 0))])}."
        raise ValueError(msg)
    return limit


def _pixels(
    data: SpatialData | AnnData,
    msi_table_key: str,
    sample_key: str,
    name: str,
    frame: pd.DataFrame,
    st: AnnData,
    metabolite_key: str,
) -> sp.csr_matrix | None:
    """Pixel values of a section on the scale of the mapped ones; `None` where they are not at hand."""
    if not is_spatialdata(data) or msi_table_key not in data.tables:  # type: ignore[union-attr]
        return None
    msi = data.tables[msi_table_key]  # type: ignore[union-attr]
    rows = np.flatnonzero(require_sample(msi, sample_key) == name)
    if len(rows) == 0 or not frame.columns.isin(msi.var_names).all():
        return None
    params = st.uns.get(metabolite_key, {}).get("params", {})
    layer = params.get("layer")
    # not written by stmsi.pp.map_to_spots, or a sum or share: on a scale of its own
    if layer is None or params.get("agg", "mean") not in ("mean", "median"):
        return None
    values = msi.X if layer == "X" else msi.layers[layer]
    return as_csr(values)[rows][:, msi.var_names.get_indexer(frame.columns)]


def _detection_limit(pixels: sp.csr_matrix | None, spots: NDArray[np.float64]) -> NDArray[np.float64]:
    values = sp.csr_matrix(np.nan_to_num(spots[np.isfinite(spots).any(axis=1)])) if pixels is None else pixels
    detected = np.asarray((values > 0).mean(axis=0)).ravel() if values.shape[0] else np.zeros(spots.shape[1])
    # strictly above: the smallest of the values that count must not be the limit itself
    limit = np.nextafter(section_quantiles(values.tocsc(), _LOD_QUANTILE), 0)
    return np.where(detected >= _DENSE, 0.0, limit)
