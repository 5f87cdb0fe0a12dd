"""What plots of attention and attribution read: maps of genes, known genes, classes of metabolites."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.checks import listing, suggest
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.tables import require_metabolites
from stmsi._messages import only
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

Values = Literal["contributions", "weights"]
_MADE_BY = (
    "stmsi.tl.attention(data, model) writes 'msi_attention' for a HurdleNet with encoder='transformer', "
    "stmsi.tl.attribute(data, model) writes 'attribution' for every model."
)


@dataclass(frozen=True)
class DriverMap:
    """What each metabolite attends to, or what drives it."""

    values: pd.DataFrame  # metabolites (ids) x genes that the model uses
    names: pd.Series  # readable names of the metabolites
    is_attention: bool
    of: Values  # what the values are, where it is attention


def record_of(adata: AnnData, key: str) -> dict[str, Any]:
    """What tl.attention or tl.attribute wrote of its maps."""
    record = adata.uns.get(key)
    if key not in adata.varm or not isinstance(record, dict) or "top_genes" not in record:
        held = [k for k in adata.varm if isinstance(adata.uns.get(k), dict) and "top_genes" in adata.uns[k]]
        msg = f"No attention or attribution {key!r}; there is {listing(held)}. {_MADE_BY}{suggest(key, held)}"
        raise KeyError(msg)
    return record


def is_attention(record: dict[str, Any]) -> bool:
    """Whether a record is of attention: attribution has a method."""
    return "method" not in record.get("params", {})


def control_of(record: dict[str, Any]) -> str:
    """Whether an attention passed its control, in words for a plot."""
    control = record.get("control")
    if not isinstance(control, dict):
        return "attention without a control: write it again with stmsi.tl.attention"
    held_out, uniform = (f"{float(control[k]):.2f}" for k in ("held_out", "uniform"))
    said = "passed its control" if control["passed"] else "did NOT pass its control"
    return f"attention {said} (held out {held_out}, uniform {uniform})"


def driver_map(adata: AnnData, key: str, of: Values, group: str | None, metabolites: list[str] | None) -> DriverMap:
    """The map of all spots or of a group."""
    record = record_of(adata, key)
    where = key if group is None else _group_key(record, key, group)
    if is_attention(record) and of == "contributions":
        effects = Key.effects_of(key)
        where = effects if group is None else Key.group_of(effects, where.removeprefix(f"{key}_"))
        if where not in adata.varm:
            msg = f"No contributions varm[{where!r}] beside the attention; call stmsi.tl.attention again."
            raise KeyError(msg)
    values = adata.varm[where].T
    values = values.loc[:, values.notna().any()]
    names = record["metabolites"][Key.var.NAME].astype(str)
    if metabolites is not None:
        ids = require_metabolites(metabolites, pd.Index(values.index.astype(str)), names)
        values = values.loc[list(dict.fromkeys(ids))]
    return DriverMap(values.astype(np.float64), names, is_attention(record), of)


def _group_key(record: dict[str, Any], key: str, group: str) -> str:
    """Where the map of a group is."""
    groups = record.get("groups")
    if groups is None:
        call = "attention" if is_attention(record) else "attribute"
        msg = f"{key!r} was written without groups; call stmsi.tl.{call}(data, model, groupby=...) with the clusters."
        raise KeyError(msg)
    known = groups.set_index("label")["key"]
    if group not in known.index:
        msg = f"No group {group!r} in {key!r}; groups: {listing(known.index)}.{suggest(group, known.index)}"
        raise KeyError(msg)
    return str(known[group])


def known_genes(
    adata: AnnData, key: str, metabolites: Sequence[str], names: pd.Series
) -> tuple[pd.DataFrame, pd.Series]:
    """Genes known to make, use or carry each metabolite (genes x metabolites), and its class (empty: not known).

    Genes come from the prior in ``varm``, or else from the core metabolites; classes from the feature table or from them.
    """
    from stmsi._core.chemistry.core_metabolites import core_metabolites

    ids = list(metabolites)
    classes = pd.Series("", index=ids, dtype=object)
    features = find_features(adata, Key.obsm.MSI)
    features = find_features(adata, Key.obsm.PRED) if features is None else features
    described = pd.DataFrame(index=pd.Index(ids)) if features is None else features.reindex(ids)
    described = described.assign(**{Key.var.NAME: names.reindex(ids).to_numpy()})
    mask, matches = _match_core(adata, described)
    if Key.var.CLASS in described:
        own = described[Key.var.CLASS].astype(object)
        classes = own.where(own.notna(), "").astype(str)
    if matches is not None:
        table = core_metabolites().drop_duplicates("name").set_index("name")["class"]
        first = matches["entries"].str.split("; ").str[0].map(table).fillna("")
        classes = classes.where(classes != "", first)
    if key in adata.varm:
        prior = adata.varm[key]
        mask = prior.reindex(columns=ids, fill_value=False).astype(bool)
    return mask, classes


def _match_core(adata: AnnData, features: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Core metabolites that fit a feature table, and their genes; nothing where none fits."""
    from stmsi.pp._knowledge_prior import knowledge_prior

    ids = list(features.index)
    obs, var = pd.DataFrame(index=["0"]), pd.DataFrame(index=adata.var_names)
    probe = AnnData(np.zeros((1, adata.n_vars), np.float32), obs=obs, var=var)
    probe.obsm[Key.obsm.MSI] = pd.DataFrame(0.0, index=obs.index, columns=ids)
    probe.uns[Key.uns.MSI] = {"features": features}
    try:
        with only(logging.ERROR, logger.name):
            knowledge_prior(probe)
    except ValueError:  # none of the metabolites or none of their genes: nothing to mark
        return pd.DataFrame(False, index=adata.var_names, columns=ids), None
    return probe.varm[Key.varm.PRIOR], probe.uns[Key.uns.PRIOR]["matches"]
