"""Metabolites that are matched to spots already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._data.checks import check_choice, check_key, check_nonnegative, listing, require_unique
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.sections import feature_frame
from stmsi._data.tables import as_csr, require_frame, table_to_change
from stmsi._settings import logger
from stmsi.pp._call_presence import Method, call_presence

if TYPE_CHECKING:
    from spatialdata import SpatialData

Presence: TypeAlias = Method | Literal["none"]
_CHOICES = (*get_args(Method), "none")


def _beside(key: str) -> tuple[str, ...]:
    """What belongs to a layer and is made anew, or goes, with it."""
    return Key.presence_of(key), Key.observed_of(key), Key.uncorrected_of(key), Key.raw_of(key)


def add_metabolites(
    data: SpatialData | AnnData,
    frame: pd.DataFrame | AnnData | str,
    features: pd.DataFrame | None = None,
    *,
    presence: Presence = "detected",
    append: bool = False,
    key_added: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Add metabolites that are matched to spots already, as if :func:`stmsi.pp.map_to_spots` had mapped them.

    The way in for data without pixels: a table of spots x metabolites from another program, a second modality of the same
    spots, or an ``obsm`` of your own. Any name of a metabolite will do, such as ``18:1/16:0``.

    Parameters
    ----------
    data
        AnnData of spots x genes, or a SpatialData with such a table.
    frame
        Intensities at least 0, NaN where a spot was not covered: a DataFrame with the names of the spots as index and one
        column a metabolite, an AnnData of the same spots (``X`` sparse or dense), or the key of an ``obsm`` to take. Spots
        are found by name, in any order; those that `frame` lacks are not covered.
    features
        What is known of the metabolites, one row each, indexed by the columns of `frame`: ``mz`` (Da), ``name``,
        ``formula``, ``adduct`` and others. `None`: ``var`` of an AnnData, else the columns, which are m/z where they are
        numbers.
    presence
        How presence is called, a method of :func:`stmsi.pp.call_presence`; ``"none"``: not at all.
    append
        Keep the metabolites of an earlier call (or mapping) and put these beside them: for several measurements of one
        section, such as both polarities. Otherwise they are replaced.
    key_added
        Where in ``obsm`` to write.
    sample_key, table_key
        Column of ``obs`` with the section name (all is one section where it is missing); the ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``obsm["msi"]`` (float32; columns are safe, unique ids),
    ``obsm["msi_presence"]`` (1, 0 or NaN), ``obs["msi_coverage"]`` (1 where a spot has a value, else 0) and ``uns["msi"]``
    with ``features`` (index: id; ``name``, ``mz`` and whatever else is known), ``params`` and the limits of detection.

    Raises
    ------
    ValueError
        No spot is found by its name, names repeat, or values are text, negative or infinite.
    KeyError
        ``obsm`` has no such key.

    Examples
    --------
    >>> import pandas as pd, stmsi
    >>> st = stmsi.datasets.toy().tables["st"]
    >>> lipids = pd.DataFrame({"18:1/16:0": 1.0, "PC(34:1)": 0.0}, index=st.obs_names[:300])
    >>> stmsi.pp.add_metabolites(st, lipids, features=pd.DataFrame({"mz": [760.585]}, index=["PC(34:1)"]))
    >>> st.obsm["msi"].columns.tolist()
    ['18_1_16_0', 'PC_34_1']
    >>> int(st.obs["msi_coverage"].sum())
    300
    >>> stmsi.get.feature_table(st).loc["PC_34_1", "mz"].item()
    760.585
    """
    check_key(key_added)
    check_choice(presence, _CHOICES, "presence")
    st, changed = table_to_change(data, table_key, copy=copy)
    require_unique(st.obs_names, "Spot names", "Call .obs_names_make_unique() on the table.")
    given, var = _given(st, frame)
    values = _at_spots(st, _numbers(given))
    var = feature_frame(_described(values.columns, var, features))
    values = values.set_axis(var.index, axis=1)
    if not values.notna().any(axis=None):
        msg = "All values are NaN: no spot is covered, and there is nothing to learn from."
        raise ValueError(msg)
    new = _new_layer(st, values.astype(np.float32), var, presence, key_added, sample_key)
    if append and key_added in st.obsm:
        new = _side_by_side(_earlier(st, key_added), new, key_added)
    for key in _beside(key_added):
        st.obsm.pop(key, None)
    for key, value in new.obsm.items():
        st.obsm[key] = value
    st.uns[key_added] = new.uns[key_added]
    st.obs[Key.obs.COVERAGE] = new.obs[Key.obs.COVERAGE].to_numpy()
    covered = int(new.obsm[key_added].notna().any(axis=1).sum())
    logger.info("%d metabolites, %d of %d spots covered.", new.obsm[key_added].shape[1], covered, st.n_obs)
    return changed


def _new_layer(
    st: AnnData, values: pd.DataFrame, var: pd.DataFrame, presence: Presence, key: str, sample_key: str
) -> AnnData:
    """All that is written of the metabolites, on the same spots."""
    obs = st.obs[[sample_key]].copy() if sample_key in st.obs else pd.DataFrame(index=st.obs_names)
    layer = AnnData(values.to_numpy(), obs=obs)
    layer.obsm[key] = values
    layer.uns[key] = {"features": var, "params": {"method": "given"}}
    layer.obs[Key.obs.COVERAGE] = values.notna().any(axis=1).to_numpy(np.float64)
    if presence != "none":
        call_presence(layer, method=presence, metabolite_key=key, sample_key=sample_key)
    return layer


def _given(st: AnnData, frame: pd.DataFrame | AnnData | str) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Intensities as a frame, and what comes along of the metabolites."""
    if isinstance(frame, str):
        return require_frame(st, frame), None
    if isinstance(frame, AnnData):
        return pd.DataFrame(as_csr(frame.X).toarray(), index=frame.obs_names, columns=frame.var_names), frame.var
    if not isinstance(frame, pd.DataFrame):
        msg = (
            "Expected a DataFrame of spots x metabolites, an AnnData or the key of an obsm, found "
            f"{type(frame).__name__}. Wrap an array: pd.DataFrame(array, index=st.obs_names, columns=names)."
        )
        raise TypeError(msg)
    return frame, None


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Intensities as numbers."""
    if frame.shape[1] == 0:
        msg = "The frame has no columns; expected one a metabolite."
        raise ValueError(msg)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    require_unique(frame.columns, "Metabolite names", "Rename the columns.")
    text = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c]) and not frame[c].isna().all()]
    if text:
        msg = (
            f"Metabolite intensities must be numbers; found other values in the columns {listing(text)}. Leave columns that "
            "are no metabolites out (frame.drop(columns=...))."
        )
        raise ValueError(msg)
    frame = frame.astype(np.float64)
    check_nonnegative(
        frame.to_numpy(), "Metabolite intensities (as measured or log1p, no z-scores or residuals)", allow_nan=True
    )
    return frame


def _at_spots(st: AnnData, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the spots, by name; NaN where a spot has none."""
    index = frame.index.astype(str)
    require_unique(index, "Spot names of the metabolites", "Take one row a spot, such as their mean.")
    frame = frame.set_axis(index, axis=0)
    known = index.isin(st.obs_names)
    if not known.any():
        same = " If the rows are in the order of the spots, call frame.set_index(st.obs_names)."
        msg = (
            f"No row of the metabolites is named like a spot: {listing(index[:3])} against {listing(st.obs_names[:3])}."
            f"{same if len(frame) == st.n_obs else ''}"
        )
        raise ValueError(msg)
    if (~known).any():
        logger.warning(
            "%d of %d rows are no spots and are left out: %s.", (~known).sum(), len(known), listing(index[~known])
        )
    return frame.reindex(st.obs_names)


def _described(columns: pd.Index, var: pd.DataFrame | None, features: pd.DataFrame | None) -> pd.DataFrame:
    """What is known of the metabolites, in the order of the columns."""
    known = var if features is None else features
    if known is None:
        mz = pd.to_numeric(pd.Series(columns, index=columns), errors="coerce")
        return pd.DataFrame({Key.var.MZ: mz}, index=columns)
    known = known.set_axis(known.index.astype(str), axis=0)
    require_unique(known.index, "Rows of features", "Index it by the columns of the metabolites, each once.")
    if not known.index.isin(columns).any():
        msg = f"features names none of the metabolites: {listing(known.index[:3])} against {listing(columns[:3])}."
        raise ValueError(msg)
    if len(extra := known.index.difference(columns, sort=False)):
        logger.info("features has rows without a metabolite, which are left out: %s.", listing(extra))
    out = known.reindex(columns)
    if Key.var.NAME in out:
        out[Key.var.NAME] = out[Key.var.NAME].astype(object).where(out[Key.var.NAME].notna(), columns)
    return out


def _earlier(st: AnnData, key: str) -> AnnData:
    """All that is there of the metabolites of an earlier call or mapping."""
    layer = AnnData(obs=pd.DataFrame(index=st.obs_names))
    for one in (key, *_beside(key)):
        if one in st.obsm:
            layer.obsm[one] = require_frame(st, one)
    frame, features = layer.obsm[key], find_features(st, key)
    var = pd.DataFrame(index=frame.columns) if features is None else features.reindex(frame.columns)
    layer.uns[key] = dict(st.uns.get(key, {})) | {"features": feature_frame(var)}
    known = st.obs[Key.obs.COVERAGE].to_numpy(np.float64) if Key.obs.COVERAGE in st.obs else np.nan
    layer.obs[Key.obs.COVERAGE] = np.where(np.isnan(known), frame.notna().any(axis=1), known)
    return layer


def _side_by_side(earlier: AnnData, new: AnnData, key: str) -> AnnData:
    """The metabolites of two measurements, with ids that do not clash: both may use one name."""
    n = earlier.obsm[key].shape[1]
    ids = safe_ids([*earlier.obsm[key].columns, *new.obsm[key].columns])
    both = new.copy()
    for one in (key, *_beside(key)):
        there = [layer.obsm.get(one) for layer in (earlier, new)]
        if there[0] is None and one != Key.presence_of(key):
            continue  # nothing was filled in, corrected or normalised on the spots
        if there[1] is None and one != Key.presence_of(key):
            there[1] = new.obsm[key].notna() if one == Key.observed_of(key) else new.obsm[key]
        if any(frame is None for frame in there):  # of which presence was not called
            both.obsm.pop(one, None)
            continue
        parts = [frame.set_axis(own, axis=1) for frame, own in zip(there, (ids[:n], ids[n:]), strict=True)]
        both.obsm[one] = pd.concat(parts, axis=1)
    records = [layer.uns[key] for layer in (earlier, new)]
    tables = [r["features"].set_axis(own, axis=0) for r, own in zip(records, (ids[:n], ids[n:]), strict=True)]
    names = [name for table in tables for name in table[Key.var.NAME]]
    record = {k: v for k, v in records[0].items() if k not in ("detection_limit", "presence")}
    record["features"] = feature_frame(pd.concat(tables).assign(**{Key.var.NAME: names}))
    if all("detection_limit" in r for r in records):
        limits = [
            r["detection_limit"].set_axis(own, axis=0) for r, own in zip(records, (ids[:n], ids[n:]), strict=True)
        ]
        record |= {"detection_limit": pd.concat(limits), "presence": records[0]["presence"]}
    record["params"] = dict(record.get("params", {})) | {"appended": len(ids) - n}
    both.uns[key] = record
    coverage = [layer.obs[Key.obs.COVERAGE].to_numpy(np.float64) for layer in (earlier, new)]
    both.obs[Key.obs.COVERAGE] = np.maximum(*coverage)
    return both
