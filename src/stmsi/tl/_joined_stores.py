"""Tables of several stores as one, whose expression is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.merge_layers import is_record, stale_marks, why_apart
from stmsi._data.stale import STALE
from stmsi._data.tables import require_frame
from stmsi._settings import logger


def as_keys(named: str | Sequence[str] | None) -> list[str]:
    """Keys of a field that takes one or several."""
    return [named] if isinstance(named, str) else list(named or ())


def of_metabolites(fields: Mapping[str, Any]) -> list[str]:
    """Frames of ``obsm`` with a column for each metabolite."""
    key = fields.get("metabolite_key", Key.obsm.MSI)
    named = [key, fields.get("presence_key"), Key.presence_of(key), Key.obsm.PRESENCE, Key.observed_of(key)]
    return list(dict.fromkeys(name for name in named if name is not None))


def joined_tables(tables: Sequence[AnnData], genes: pd.Index, fields: Mapping[str, Any], layer: str | None) -> AnnData:
    """All that tables hold but the expression, which is empty: what all of them have, and the metabolites that any has."""
    first = tables[0]
    columns = [c for c in first.obs if all(c in t.obs for t in tables)]
    obs = pd.concat(
        [t.obs[columns].astype({c: object for c in columns if t.obs[c].dtype == "category"}) for t in tables]
    )
    obs = obs.astype({c: "category" for c in columns if obs[c].dtype == object})
    if not obs.index.is_unique:  # barcodes
        sections = obs[fields.get("sample_key", Key.obs.SAMPLE)].astype(str)
        obs.index = obs.index.astype(str) + "-" + sections
    n, metabolite_key = len(obs), fields.get("metabolite_key", Key.obsm.MSI)
    union = of_metabolites(fields)
    obsm = {}
    for key in _of_all(tables, "obsm"):
        obsm[key] = _stacked(key, [t.obsm[key] for t in tables], obs.index, any_column=key in union)
    frame = obsm[metabolite_key]
    n_stores = Counter(name for t in tables for name in require_frame(t, metabolite_key).columns)
    if len(tables) > 1 and max(n_stores.values(), default=0) == 1:
        logger.warning(
            "The %d stores share no metabolite: each is trained on one store. Are their metabolites named alike? %s has %s, %s has %s.",
            len(tables), *_named(tables[0], fields), *_named(tables[1], fields),
        )  # fmt: skip
    if lacking := [t for t in tables if len(require_frame(t, metabolite_key).columns) < len(frame.columns)]:
        logger.info(
            "%d of %d stores lack some of the %d metabolites, which are not measured there.",
            len(lacking),
            len(tables),
            len(frame.columns),
        )
    obsp = {}
    for key in _of_all(tables, "obsp"):
        obsp[key] = sp.block_diag([sp.csr_matrix(t.obsp[key]) for t in tables], format="csr")
    uns = dict(first.uns)
    features = [t.uns.get(metabolite_key, {}).get("features") for t in tables]
    if isinstance(uns.get(metabolite_key), Mapping) and all(isinstance(f, pd.DataFrame) for f in features):
        every = pd.concat(features)
        uns[metabolite_key] = {**uns[metabolite_key], "features": every[~every.index.duplicated()]}
    records = [record for t in tables if is_record(record := t.uns.get(metabolite_key))]
    if records and (why := why_apart(records)):
        logger.warning("obsm[%r] of the stores may not go together: %s. Map all of them alike.", metabolite_key, why)
    if stale := stale_marks(records):
        uns[metabolite_key] = {**uns.get(metabolite_key, {}), STALE: stale}
    varm = {}
    for key in _of_all(tables, "varm"):
        priors = [t.varm[key].loc[genes] for t in tables if isinstance(t.varm[key], pd.DataFrame)]
        # a store knows the genes of its own metabolites
        named = dict.fromkeys(m for prior in priors for m in prior)
        known = [prior.reindex(columns=list(named), fill_value=False).to_numpy(bool) for prior in priors]
        if priors:
            varm[key] = pd.DataFrame(np.logical_or.reduce(known), genes, list(named))
    empty = sp.csr_matrix((n, len(genes)), dtype=np.float32)
    layers = {} if layer is None else {layer: empty}
    var = first.var.loc[genes].copy()
    return AnnData(empty, obs, var, uns=uns, obsm=obsm, varm=varm, layers=layers, obsp=obsp)


def _of_all(tables: Sequence[AnnData], name: str) -> list[str]:
    """Keys that all tables have in ``obsm``, ``obsp`` or ``varm``; those that only some have are told."""
    count = Counter(key for t in tables for key in getattr(t, name))
    for key, n in count.items():
        if n < len(tables):
            logger.warning("%s[%r] is in %d of %d stores only, and not used.", name, key, n, len(tables))
    return [key for key, n in count.items() if n == len(tables)]


def _stacked(key: str, parts: Sequence[Any], index: pd.Index, *, any_column: bool) -> Any:
    """Entries of ``obsm`` below each other; of frames the columns that all have, or that any has."""
    if all(isinstance(part, pd.DataFrame) for part in parts):
        return pd.concat(parts, join="outer" if any_column else "inner").set_axis(index)
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1 and key != Key.obsm.SPATIAL:  # of which a third column is not read
        msg = f"obsm[{key!r}] has {listing(sorted(widths))} columns in different stores; features must be the same in all."
        raise ValueError(msg)
    width = min(widths)
    return np.vstack([np.asarray(part.toarray() if sp.issparse(part) else part)[:, :width] for part in parts])


def _named(table: AnnData, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The first section of a store, and a few of its metabolites, as a message names them."""
    section = str(table.obs[fields.get("sample_key", Key.obs.SAMPLE)].iloc[0])
    return repr(section), listing(require_frame(table, fields.get("metabolite_key", Key.obsm.MSI)).columns[:3])
