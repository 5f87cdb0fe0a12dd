"""What `attention` and `attribute` share: groups of spots, and maps of genes x metabolites in a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.keys import Key
from stmsi._data.tables import require_obs

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._hurdle_model import HurdleModel

_N_TOP = 20


def read_groups(
    adata: AnnData, groupby: str | None, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[Any] | None, list[str]]:
    """Group of each spot (of some rows), and the groups in order."""
    if groupby is None:
        return None, []
    label = require_obs(adata, groupby, "groupby= names the groups of spots.")
    label = label if rows is None else label.iloc[rows]
    if label.isna().any():
        msg = f"obs[{groupby!r}] has {int(label.isna().sum())} missing values; every spot needs a group."
        raise ValueError(msg)
    group = label.astype(str).to_numpy(dtype=object)
    return group, sorted(set(group))


def write_gene_maps(
    adata: AnnData,
    model: HurdleModel,
    ids: Sequence[str],
    key: str,
    maps: NDArray[Any],
    groups: Mapping[str, NDArray[Any]],
    *,
    effect: str,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """Write maps of shape (panel genes, metabolites), over all spots and by group, into ``varm``, and their record into ``uns``.

    `effect` names the column of the top genes. Returns the record.
    """
    columns = safe_ids(list(ids))
    adata.varm[key] = effects = gene_frame(adata, model, maps, columns)
    features = model.state.feature_table.loc[list(ids)]
    names = features[Key.var.NAME].astype(str).to_numpy() if Key.var.NAME in features else list(ids)
    record: dict[str, Any] = {
        "params": {k: v for k, v in params.items() if v is not None} | {"model": type(model).__name__},
        "metabolites": pd.DataFrame({Key.var.NAME: names}, index=columns),
        "top_genes": _top_genes(effects, effect),
    }
    if groups:
        keys = group_keys(key, groups)
        for of_group, label in zip(keys, groups, strict=True):
            adata.varm[of_group] = gene_frame(adata, model, groups[label], columns)
        index = pd.RangeIndex(len(keys)).astype(str)
        record["groups"] = pd.DataFrame({"label": list(groups), "key": keys}, index=index)
    adata.uns[key] = record
    return record


def group_keys(key: str, groups: Iterable[str]) -> list[str]:
    """Where the map of each group is written."""
    return [Key.group_of(key, g) for g in safe_ids(groups)]


def gene_frame(adata: AnnData, model: HurdleModel, values: NDArray[Any], columns: Sequence[str]) -> pd.DataFrame:
    """From values of shape (panel genes, columns): genes of the table x columns, NaN for those not in the panel."""
    at = model.state.panel.locate(adata.var)
    full = np.full((adata.n_vars, values.shape[1]), np.nan, dtype=np.float32)
    full[at[at >= 0]] = values[at >= 0]
    return pd.DataFrame(full, index=adata.var_names, columns=list(columns))


def _top_genes(effects: pd.DataFrame, effect: str) -> pd.DataFrame:
    """The genes with the largest effect on each metabolite, as a tidy table."""
    parts = []
    for metabolite, column in effects.items():
        order = column.abs().sort_values(ascending=False, kind="stable", na_position="last").index[:_N_TOP]
        best = column[order]
        best = best[best.abs() > 0]
        cells = {"rank": np.arange(1, len(best) + 1), "gene": best.index.astype(str), effect: best.to_numpy()}
        parts.append(pd.DataFrame({"metabolite": str(metabolite), **cells}))
    table = pd.concat(parts, ignore_index=True)
    table.index = table.index.astype(str)
    return table
