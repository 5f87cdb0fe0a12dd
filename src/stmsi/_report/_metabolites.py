"""The metabolites of a report: their labels, and how far each can be trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData

from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import label

if TYPE_CHECKING:
    from stmsi._report._table import Table

_TRUST = (
    "trust: tier of stmsi.tl.reliability, high, medium, low or none; without scores of cross-validation, from training "
    "spots that the model left out, and medium at most."
)


def features_with_tiers(adata: AnnData, pred_key: str) -> pd.DataFrame | None:
    """The feature table of a prediction with the column ``tier``, from what the model brings along where none is stored.

    `adata` is not changed. `None` where there is no feature table; without the column where nothing is known of the model's scores.
    """
    from stmsi.tl import reliability

    features = find_features(adata, pred_key)
    if features is None:
        return find_features(adata, Key.obsm.MSI)
    if Key.var.TIER in features:
        return features
    record = dict(adata.uns[pred_key])
    shell = AnnData(obs=adata.obs, obsm=dict(adata.obsm), uns={**adata.uns, pred_key: record})
    try:
        reliability(shell, pred_key=pred_key)
    except (KeyError, ValueError):  # scores that no model came with
        return features
    return record["features"]


def with_labels(table: Table, features: pd.DataFrame | None) -> Table:
    """A table whose rows begin with the ids of metabolites, with labels in their place and, where they are known, tiers beside."""
    # an m/z is not torn from its number
    names = [str(label(features, row[0])).replace("m/z ", "m/z\N{NO-BREAK SPACE}") for row in table.rows]
    rows = [[name, *row[1:]] for name, row in zip(names, table.rows, strict=True)]
    if features is None or Key.var.TIER not in features:
        return replace(table, rows=rows, sortable=True)
    tiers = features[Key.var.TIER].set_axis(features.index.astype(str)).reindex([str(row[0]) for row in table.rows])
    rows = [[row[0], "–" if pd.isna(tier) else str(tier), *row[1:]] for row, tier in zip(rows, tiers, strict=True)]
    columns, note = [table.columns[0], "trust", *table.columns[1:]], f"{table.note} {_TRUST}"
    return replace(table, columns=columns, rows=rows, labels=2, note=note, sortable=True)
