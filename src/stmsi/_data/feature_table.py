"""The metabolites of a measured or predicted layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import get_table

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi._data.checks import Data

_FEATURES = "features"
_SUFFIXES = (
    Key.presence_of(""), *Key.bounds_of(""), Key.variance_of(""), Key.spread_of(""), *Key.halves_of(""),
    Key.observed_of(""), Key.uncorrected_of(""), Key.raw_of(""), Key.width_of(""),
)  # fmt: skip
_NUMBER = re.compile(r"_\d+$")
"""Draws from a model share the feature table of the first."""


def feature_table(data: Data, *, table_key: str = Key.table.ST, metabolite_key: str = Key.obsm.MSI) -> pd.DataFrame:
    """Metabolites of a layer, with their mass, readable name and whatever else is known of them.

    Parameters
    ----------
    data
        SpatialData or AnnData after :func:`stmsi.pp.map_to_spots` or :func:`stmsi.tl.predict_metabolites`.
    table_key
        The ST table of a SpatialData.
    metabolite_key
        A layer in ``obsm``: ``"msi"``, ``"msi_pred"`` or one that belongs to them, such as ``"msi_pred_presence"``.

    Returns
    -------
    One row per metabolite, indexed by its id (the column in ``obsm``). Columns ``name``, ``mz`` (Da) and, where known,
    ``formula``, ``adduct``, ``fdr`` and others. A copy: changes do not reach `data`.

    Raises
    ------
    KeyError
        The table is missing, or nothing was written under `metabolite_key` yet.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.get.feature_table(sdata).loc["simPC_28_0", "name"]
    'simPC(28:0)'
    """
    adata = get_table(data, table_key)
    features = find_features(adata, metabolite_key)
    if features is None:
        held = [k for k, v in adata.uns.items() if isinstance(v, dict) and _FEATURES in v]
        msg = f"No feature table for {metabolite_key!r}; uns holds feature tables for {listing(held)}. {written_by(metabolite_key)}"
        raise KeyError(msg)
    features = features.copy()
    features.index = features.index.astype(str)
    if Key.var.NAME not in features:
        features[Key.var.NAME] = features.index
    first = [c for c in (Key.var.NAME, Key.var.MZ) if c in features]
    return features[[*first, *(c for c in features if c not in first)]]


def find_features(adata: AnnData, key: str) -> pd.DataFrame | None:
    """The feature table stored for a layer of ``obsm``; `None` where there is none."""
    base = base_key(key)
    stored = adata.uns.get(base, adata.uns.get(_NUMBER.sub("", base)))
    features = stored.get(_FEATURES) if isinstance(stored, dict) else None
    return features if isinstance(features, pd.DataFrame) else None


def base_key(key: str) -> str:
    """The layer that `key` belongs to: presence and bounds describe the metabolites of their intensities."""
    if key in (Key.obsm.TRUTH_INTENSITY, Key.obsm.TRUTH_PRESENCE):
        return Key.obsm.MSI
    for suffix in _SUFFIXES:
        if key.endswith(suffix) and key != suffix:
            return key.removesuffix(suffix)
    return key


def written_by(key: str) -> str:
    """Which call writes a layer, for messages."""
    if key == Key.obsm.MSI:
        return "stmsi.pp.map_to_spots writes it."
    if key == Key.obsm.PRESENCE:
        return "stmsi.pp.call_presence writes it."
    if base_key(key) == Key.obsm.PRED:
        return "stmsi.tl.predict_metabolites writes it."
    if _NUMBER.sub("", base_key(key)) == Key.obsm.SAMPLE:
        return "stmsi.tl.sample_metabolites writes it."
    return "stmsi.pp.map_to_spots writes 'msi', stmsi.tl.predict_metabolites 'msi_pred' (or its key_added)."
