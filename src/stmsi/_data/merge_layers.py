"""Mapped and predicted metabolites of several objects: what belongs to a layer is put together, or left out with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi._data.feature_table import base_key, written_by
from stmsi._data.keys import Key
from stmsi._data.merge_fields import same
from stmsi._data.stale import STALE
from stmsi._data.tables import sample_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

_SAME_MZ = 20e-6
"""Relative difference up to which the m/z of one id is the same."""
_BY_SECTION = "max_distance"
"""Parameter of a mapping that each section has its own of."""


def join_layers(tables: list[AnnData], renamed: Collection[str]) -> None:
    """Give all tables one record of each layer of metabolites, or take layers that are not comparable out of them.

    `tables` are changed. `renamed` names sections whose ions have new ids: what was mapped from them has the old ones.
    """
    for base in dict.fromkeys(key for t in tables for key, note in t.uns.items() if is_record(note)):
        owners = [t for t in tables if is_record(t.uns.get(base))]
        records = [t.uns[base] for t in owners]
        stale = base == Key.obsm.MSI and any(set(sample_names(t)) & set(renamed) for t in owners)
        joined, reason = (None, "the ions have other ids now") if stale else _join_records(records)
        if joined is None:
            for t in owners:
                for key in [k for k in t.obsm if base_key(k) == base]:
                    del t.obsm[key]
                del t.uns[base]
            logger.warning("obsm[%r] is left out, as %s. %s", base, reason, written_by(base))
            continue
        if any("presence" in r for r in records) and "presence" not in joined:
            key = Key.presence_of(base)
            for t in owners:
                t.obsm.pop(key, None)
            logger.warning("obsm[%r] is left out, as it was called differently. %s", key, written_by(key))
        for t in owners:
            t.uns[base] = joined


def is_record(note: Any) -> bool:
    """Whether an entry of ``uns`` describes a layer of metabolites."""
    return isinstance(note, Mapping) and isinstance(note.get("features"), pd.DataFrame)


def _join_records(records: list[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
    """One record of a layer for all sections, or `None` and why there is none."""
    if len(records) == 1:
        return dict(records[0]), ""
    if reason := why_apart(records):
        return None, reason
    params = [dict(r.get("params", {})) for r in records]
    distances = [p.pop(_BY_SECTION, {}) for p in params]
    features = records[0]["features"]
    for record in records[1:]:
        other = record["features"]
        features = features.combine_first(other).loc[features.index.union(other.index, sort=False)]
    if any(d for d in distances):
        params[0][_BY_SECTION] = {k: v for d in distances for k, v in d.items()}
    out: dict[str, Any] = {"features": features, "params": params[0]}
    tables: tuple[str, ...] = ("detection_limit", Key.varm.SECTION_MZ)
    called = [r.get("presence", {}) for r in records]
    if all(called) and all(same(called[0].get("method"), c.get("method")) for c in called):
        out["presence"] = dict(called[0]) | {"source": {k: v for c in called for k, v in c.get("source", {}).items()}}
    else:
        tables = (Key.varm.SECTION_MZ,)
    for key in tables:
        own = [r[key] for r in records if key in r]
        if own:
            out[key] = pd.concat(own, axis=1).reindex(features.index)
    if marks := stale_marks(records):
        out[STALE] = marks
    skip = {"features", "params", "presence", "detection_limit", Key.varm.SECTION_MZ, STALE}
    for key in dict.fromkeys(k for r in records for k in r if k not in skip):
        if not all(key in r and same(records[0].get(key), r[key]) for r in records):
            return None, f"its {key!r} differs"
        out[key] = records[0][key]
    return out, ""


def why_apart(records: Sequence[Mapping[str, Any]]) -> str:
    """Why records of a layer are not of one thing: other parameters, or ids that mean other metabolites; empty where they are."""
    params = [{k: v for k, v in r.get("params", {}).items() if k != _BY_SECTION} for r in records]
    if not all(same(params[0], p) for p in params):
        keys = sorted({k for p in params for k in p})
        return f"it was made with different parameters ({listing(k for k in keys if _differs(params, k))})"
    features = records[0]["features"]
    for record in records[1:]:
        other = record["features"]
        both = features.index.intersection(other.index)
        if len(apart := both[~_agree(features.loc[both], other.loc[both])]):
            return f"its ids mean different metabolites: {listing(apart)}"
        features = pd.concat([features, other[~other.index.isin(features.index)]])
    return ""


def stale_marks(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What has changed since each layer was mapped, and where; empty where nothing has."""
    marks = [r.get(STALE, {}) for r in records]
    return {c: ", ".join(str(m[c]) for m in marks if c in m) for c in dict.fromkeys(c for m in marks for c in m)}


def _differs(params: list[dict[str, Any]], key: str) -> bool:
    return any(key not in p or not same(params[0].get(key), p[key]) for p in params)


def _agree(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """Which metabolites are the same in both tables, as far as m/z and adduct are known."""
    ok = np.ones(len(a), bool)
    if Key.var.MZ in a and Key.var.MZ in b:
        first, second = a[Key.var.MZ].to_numpy(float), b[Key.var.MZ].to_numpy(float)
        ok &= ~(np.abs(first - second) > _SAME_MZ * first)
    if Key.var.ADDUCT in a and Key.var.ADDUCT in b:
        first, second = (f[Key.var.ADDUCT].astype(str).to_numpy() for f in (a, b))
        ok &= (first == second) | (first == "") | (second == "")
    return ok
