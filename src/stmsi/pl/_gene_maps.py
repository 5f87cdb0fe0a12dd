"""What plots of attention and attribution read: maps of genes or programmes, known genes, classes of metabolites."""

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
from stmsi._settings import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

Tokens = Literal["genes", "programmes"]
_MADE_BY = (
    "stmsi.tl.attention(data, model) writes 'msi_attention' for a HurdleNet with encoder='transformer', "
    "stmsi.tl.attribute(data, model) writes 'attribution' for every model."
)
_PROGRAMMES = "programmes"
_NAMED = 3
"""Genes that stand for a programme."""


@dataclass(frozen=True)
class DriverMap:
    """What each metabolite attends to, or what drives it."""

    values: pd.DataFrame  # metabolites (ids) x genes or programmes that the model uses
    names: pd.Series  # readable names of the metabolites
    labels: pd.Series  # of the columns
    is_attention: bool
    tokens: Tokens


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


def driver_map(
    adata: AnnData, key: str, tokens: Tokens, group: str | None, metabolites: Sequence[str] | None
) -> DriverMap:
    """The map of all spots or of a group."""
    record = record_of(adata, key)
    if tokens == _PROGRAMMES and _PROGRAMMES not in record:
        why = "the tokens of this model are genes"
        if not is_attention(record):
            why = "an attribution has no programmes, those come from stmsi.tl.attention"
        msg = f"uns[{key!r}] has no programmes: {why}. Use tokens='genes'."
        raise ValueError(msg)
    where = key if group is None else _group_key(record, key, group)
    if tokens == _PROGRAMMES:
        suffix = where.removeprefix(f"{key}_")
        values = record[_PROGRAMMES if group is None else Key.group_of(_PROGRAMMES, suffix)]
        labels = programme_labels(adata, key)
    else:
        values = adata.varm[where].T
        values = values.loc[:, values.notna().any()]
        labels = pd.Series(values.columns.astype(str), index=values.columns.astype(str))
    names = record["metabolites"][Key.var.NAME].astype(str)
    if metabolites is not None:
        ids = require_metabolites(metabolites, pd.Index(values.index.astype(str)), names)
        values = values.loc[list(dict.fromkeys(ids))]
    return DriverMap(values.astype(np.float64), names, labels, is_attention(record), tokens)


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


def programme_labels(adata: AnnData, key: str) -> pd.Series:
    """Name of each programme with the genes that have the largest shares of it."""
    shares = adata.varm[Key.programmes_of(key)]
    best = [", ".join(shares[p].nlargest(_NAMED).index.astype(str)) for p in shares.columns]
    number = [str(p).removeprefix("programme") for p in shares.columns]
    return pd.Series([f"{n}: {genes}" for n, genes in zip(number, best, strict=True)], index=shares.columns.astype(str))


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
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        knowledge_prior(probe)
    except ValueError:  # none of the metabolites or none of their genes: nothing to mark
        return pd.DataFrame(False, index=adata.var_names, columns=ids), None
    finally:
        logger.setLevel(level)
    return probe.varm[Key.varm.PRIOR], probe.uns[Key.uns.PRIOR]["matches"]
