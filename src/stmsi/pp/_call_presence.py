"""Which metabolites are present in which spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.mapping.pixel_weights import normalised, weighted_sums
from stmsi._core.spectra.detection_limits import blank_limit, noise_floor, otsu_limit
from stmsi._data.checks import check_choice, check_key, check_nonnegative, is_spatialdata, listing
from stmsi._data.keys import Key
from stmsi._data.tables import (
    as_csr,
    imputed,
    require_frame,
    require_mapped,
    sections_of,
    table_to_change,
    values_of,
)
from stmsi._messages import warns_once
from stmsi.pp._mapping.spot_weights import paired_sections, weigh

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

Method = Literal["lod", "detected", "majority", "otsu"]
_HALF = 0.5 + 1e-6
"""Half of a spot is no majority, whichever way the area of its pixels was rounded."""
_BLANKS = 20
"""Pixels off the tissue that a section needs for limits from them."""


@warns_once
def call_presence(
    data: SpatialData | AnnData,
    *,
    method: Method = "lod",
    threshold: float | Mapping[str, float] | None = None,
    metabolite_key: str = Key.obsm.MSI,
    key_added: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    msi_table_key: str = Key.table.MSI,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Call each metabolite present or absent in each spot.

    Parameters
    ----------
    data
        SpatialData after :func:`stmsi.pp.map_to_spots`, or its ST table.
    method
        How the limit is found, for each metabolite in each section by itself:

        - ``"lod"``: the limit of detection. Where the MSI table knows 20 pixels or more off the tissue
          (``obs["on_tissue"]``): mean and three standard deviations of their measured values, brought to the scale of the
          tissue. Else, and for ions that are nowhere off the tissue: the noise floor, the 1 % quantile of the values above
          zero (of the pixels where the MSI table is at hand, else of the spots). Metabolites detected nearly everywhere
          (98 %) show no noise floor: every value above zero counts;
        - ``"detected"``: every value above zero;
        - ``"majority"``: detected in more than half of the area of the spot that MSI measured. It needs no limit, but the
          pixels: a SpatialData with the MSI table that was mapped, aligned as it was then;
        - ``"otsu"``: Otsu's threshold of the spot values.
    threshold
        Limits to use instead, one for all or a mapping from metabolite id.
    metabolite_key
        Intensities in ``obsm``.
    key_added
        Where in ``obsm`` to write; `None`: ``<metabolite_key>_presence``.
    sample_key
        Column of ``obs`` with the section name.
    table_key, msi_table_key
        The ST and the MSI table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``obsm["msi_presence"]`` (1 present, 0 absent, NaN not covered;
    float32), ``uns["msi"]["detection_limit"]`` (metabolites x sections; present means strictly above; 0 for ``"majority"``) and
    ``uns["msi"]["presence"]`` (``method``, and ``source``: where the limits of each section come from). Intensities that
    :func:`stmsi.pp.impute_dropout` filled in were 0 and count as absent.

    Notes
    -----
    ``"lod"`` reads the MSI table **as it is now**: call presence right after :func:`stmsi.pp.map_to_spots`. If the table
    was normalised anew after mapping, its limits belong to another scale than the spots; if ions were filtered out, the
    limits come from the spots. After :func:`stmsi.pp.correct_batch` presence is called from the intensities before it.

    Raises
    ------
    ValueError
        An empty table, negative or infinite intensities, thresholds for unknown metabolites or that are no limit, or
        ``"majority"`` without the pixels that were mapped.
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
    check_choice(method, get_args(Method), "method")
    key_added = Key.presence_of(metabolite_key) if key_added is None else key_added
    check_key(key_added)
    st, changed = table_to_change(data, table_key, copy=copy)
    frame = require_mapped(st, metabolite_key)
    check_nonnegative(frame.to_numpy(), "Metabolite intensities", allow_nan=True)
    sample = sections_of(st, sample_key)
    filled = imputed(st, metabolite_key, frame)
    if Key.uncorrected_of(metabolite_key) in st.obsm:
        # limits are those of pixels, which no correction has moved
        frame = require_frame(st, Key.uncorrected_of(metabolite_key))[list(frame.columns)]
    values = np.where(filled, 0.0, frame.to_numpy(dtype=np.float64))
    limits = pd.DataFrame(0.0, index=frame.columns.astype(str), columns=list(dict.fromkeys(sample)))
    pixels = _pixels(data, msi_table_key, st, metabolite_key, frame.columns) if method == "lod" else None
    pixel_sample = np.empty(0) if pixels is None else sections_of(pixels[0], sample_key)
    source = {}
    for name in limits.columns:
        own = values[sample == name]
        source[name] = "spots"
        if threshold is not None:
            limits[name], source[name] = _given(threshold, limits.index), "given"
        elif method == "otsu":
            limits[name] = otsu_limit(own)
        elif method == "lod":
            rows = np.flatnonzero(pixel_sample == name)
            if pixels is not None and len(rows):
                limits[name], source[name] = _pixel_limits(*pixels, rows, frame.columns)
            else:
                seen = np.isfinite(own).any(axis=1)
                limits[name] = noise_floor(sp.csr_matrix(np.nan_to_num(own[seen])))
    above = values > limits[list(sample)].T.to_numpy()
    if method == "majority" and threshold is None:
        above &= _detected_share(data, st, metabolite_key, frame.columns, sample_key, msi_table_key) > _HALF
    presence = np.where(np.isnan(values), np.nan, above).astype(np.float32)
    st.obsm[key_added] = pd.DataFrame(presence, index=frame.index, columns=frame.columns)
    st.uns[metabolite_key] = dict(st.uns.get(metabolite_key, {})) | {
        "detection_limit": limits,
        "presence": {"method": "threshold" if threshold is not None else method, "source": source},
    }
    return changed


def _detected_share(
    data: SpatialData | AnnData, st: AnnData, metabolite_key: str, ids: pd.Index, sample_key: str, msi_table_key: str
) -> NDArray[np.float32]:
    """Share of the measured area of each spot in which each metabolite was detected, shape (spots, metabolites)."""
    found = _pixels(data, msi_table_key, st, metabolite_key, ids)
    if found is None:
        msg = (
            "method='majority' looks at the pixels of each spot; pass the SpatialData in which stmsi.pp.map_to_spots made "
            f"obsm[{metabolite_key!r}] (agg='mean' or 'median') with its MSI table {msi_table_key!r}, or use method='detected'."
        )
        raise ValueError(msg)
    msi, layer = found
    params = st.uns[metabolite_key]["params"]
    samples = sections_of(st, sample_key), sections_of(msi, sample_key)
    weights = weigh(
        paired_sections(data, st, msi, *samples),  # type: ignore[arg-type]
        st.n_obs, msi.n_obs, params["method"], params.get("max_distance"),
    )  # fmt: skip
    detected = as_csr(values_of(msi, layer, "MSI"))[:, msi.var_names.get_indexer(ids)] > 0
    return weighted_sums(normalised(weights.used), sp.csr_matrix(detected, dtype=np.float32))


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
    data: SpatialData | AnnData, msi_table_key: str, st: AnnData, metabolite_key: str, ids: pd.Index
) -> tuple[AnnData, str | None] | None:
    """The MSI table and its layer that were mapped; `None` where it is not there or on another scale than the spots."""
    if not is_spatialdata(data) or msi_table_key not in data.tables:  # type: ignore[union-attr]
        return None
    msi = data.tables[msi_table_key]  # type: ignore[union-attr]
    params = st.uns.get(metabolite_key, {}).get("params", {})
    layer = params.get("layer")
    # not written by stmsi.pp.map_to_spots, or a sum or share: on a scale of its own
    if layer is None or params.get("agg", "mean") not in ("mean", "median") or not ids.isin(msi.var_names).all():
        return None
    return msi, None if layer == "X" else layer


def _pixel_limits(
    msi: AnnData, layer: str | None, rows: NDArray[np.int64], ids: pd.Index
) -> tuple[NDArray[np.float64], str]:
    """Limits of detection from the pixels of a section, on the scale of the mapped values, and what they were seen in."""
    columns = msi.var_names.get_indexer(ids)
    floor = noise_floor(as_csr(values_of(msi, layer, "MSI"))[rows][:, columns])
    blank = _blank(msi, layer, rows, columns)
    if blank is None or not (blank > 0).any():
        return floor, "pixels"
    return np.where(blank > 0, blank, floor), "off tissue"


def _blank(
    msi: AnnData, layer: str | None, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Limits of detection from the pixels of a section that are off the tissue; `None` where they are not known.

    Blank pixels have next to no total ion current, so dividing by it would blow their noise up: the limit is found in
    the measured values and then scaled as a typical pixel of the tissue was.
    """
    if Key.obs.TISSUE not in msi.obs or not pd.api.types.is_bool_dtype(msi.obs[Key.obs.TISSUE]):
        return None
    known = msi.obs[Key.obs.TISSUE].iloc[rows]
    if known.isna().any():  # a section that was combined with others of which the tissue is known
        return None
    tissue = known.to_numpy(bool)
    if (~tissue).sum() < _BLANKS or not tissue.any():
        return None
    params = msi.uns.get(Key.uns.NORMALIZE, {}).get("params", {})
    normalised = layer is None and bool(params)
    if normalised and (Key.layers.RAW not in msi.layers or Key.obs.SCALE not in msi.obs):
        return None
    measured = as_csr(values_of(msi, Key.layers.RAW if normalised else layer, "MSI"))
    limit = blank_limit(measured[rows[~tissue]][:, columns])
    if not normalised:
        return limit
    scale = msi.obs[Key.obs.SCALE].to_numpy(np.float64)[rows[tissue]]
    limit = limit * (np.median(scale[scale > 0]) if (scale > 0).any() else 1.0)
    return np.log1p(limit) if params.get("log1p") else limit
