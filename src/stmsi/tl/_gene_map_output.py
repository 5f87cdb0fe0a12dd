"""What maps of genes x metabolites share: the model they explain, its metabolites and genes, groups of spots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.keys import Key
from stmsi._data.tables import require_metabolites, require_obs
from stmsi.model.shared._hurdle_model import HurdleModel

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._gene_panel import GenePanel

TOP = "top_genes"
_N_TOP = 20


def trained_model(model: HurdleModel | str | Path) -> HurdleModel:
    """The model itself or the one saved in a folder; it must be trained."""
    if isinstance(model, str | Path):
        from stmsi.model import load

        if not Path(model).exists():
            msg = f"model={str(model)!r} is not a folder; pass a trained model or the folder of a saved one."
            raise ValueError(msg)
        model = load(model)
    if not isinstance(model, HurdleModel):
        msg = f"Expected a trained model of stmsi.model or the folder of a saved one, found {type(model).__name__}."
        raise TypeError(msg)
    model.state  # noqa: B018  raises where it is not trained
    return model


def wanted_metabolites(model: HurdleModel, metabolites: str | Sequence[str] | None) -> list[str]:
    """Ids of the metabolites asked for."""
    if metabolites is None:
        return model.metabolites
    asked = [metabolites] if isinstance(metabolites, str) else list(metabolites)
    ids = require_metabolites(asked, model.state.metabolites, model.state.feature_table.get(Key.var.NAME))
    return list(dict.fromkeys(ids))


def readable_names(model: HurdleModel, ids: Sequence[str]) -> pd.DataFrame:
    """Table of metabolites by safe id: ``name``."""
    table = model.state.feature_table.loc[list(ids)]
    names = table[Key.var.NAME] if Key.var.NAME in table else pd.Series(list(ids), index=list(ids))
    return pd.DataFrame({Key.var.NAME: names.astype(str).to_numpy()}, index=safe_ids(list(ids)))


@dataclass(frozen=True)
class GeneFrames:
    """Puts values of the genes of a model where they belong among those of a table."""

    adata: AnnData
    panel: GenePanel

    def frame(self, values: NDArray[Any], columns: Sequence[str]) -> pd.DataFrame:
        """From values of shape (panel genes, columns): genes of the table x columns, NaN for those not in the panel."""
        at = self.panel.locate(self.adata.var)
        full = np.full((self.adata.n_vars, values.shape[1]), np.nan, dtype=np.float32)
        full[at[at >= 0]] = values[at >= 0]
        return pd.DataFrame(full, index=self.adata.var_names, columns=list(columns))


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


def group_table(groups: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Groups and where their maps are, for the record."""
    return pd.DataFrame({"label": groups, "key": keys}, index=pd.RangeIndex(len(keys)).astype(str))


def top_genes(effects: pd.DataFrame, what: str, n: int = _N_TOP) -> pd.DataFrame:
    """The genes with the largest effect on each metabolite, as a tidy table; `what`: the column with the effect."""
    parts = []
    for metabolite, column in effects.items():
        order = column.abs().sort_values(ascending=False, kind="stable", na_position="last").index[:n]
        best = column[order]
        best = best[best.abs() > 0]
        parts.append(
            pd.DataFrame(
                {
                    "metabolite": str(metabolite),
                    "rank": np.arange(1, len(best) + 1),
                    "gene": best.index.astype(str),
                    what: best.to_numpy(),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    table.index = table.index.astype(str)
    return table
