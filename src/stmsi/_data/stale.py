"""Metabolites on spots that were made from pixels as they no longer are: marked, and used with a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stmsi._data.checks import is_spatialdata, listing
from stmsi._data.keys import Key
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

    from stmsi._data.checks import Data

Cause = Literal["alignment", "normalisation", "annotation", "peaks"]
STALE = "stale"
"""Entry of the record of a layer: what changed since it was mapped, and in which sections."""


def mark_stale(data: Data, cause: Cause, sections: Iterable[str], msi: AnnData) -> None:
    """Mark what was mapped from `msi`, where a table of `data` has it, after a new `cause` in some sections.

    The marks stand in ``uns[<metabolite_key>]["stale"]``; :func:`stmsi.pp.map_to_spots` writes that entry anew. A new
    normalisation matters only to what was mapped from ``X``.
    """
    if not is_spatialdata(data):
        return
    for table in data.tables.values():  # type: ignore[union-attr]
        if table is msi or Key.obs.SAMPLE not in table.obs:
            continue
        for key, record in list(table.uns.items()):
            params = record.get("params", {}) if isinstance(record, Mapping) else {}
            if key not in table.obsm or not isinstance(params, Mapping) or "layer" not in params:
                continue  # not written by stmsi.pp.map_to_spots
            if cause == "normalisation" and params["layer"] != "X":
                continue
            names = [name for name in sections if _mapped(table, key, name)]
            if not names:
                continue
            known = dict(record.get(STALE, {}))
            before = [n for n in str(known.get(cause, "")).split(", ") if n]
            table.uns[key] = dict(record) | {STALE: known | {cause: ", ".join(dict.fromkeys([*before, *names]))}}
            logger.warning(
                "obsm[%r] of the ST table was mapped with the earlier %s of %s, and so was what was made from it. Call "
                "stmsi.pp.map_to_spots again.", key, cause, listing(names),
            )  # fmt: skip


def warn_if_stale(st: AnnData, metabolite_key: str) -> None:
    """Warn where a layer was mapped from pixels as they no longer are."""
    record = st.uns.get(metabolite_key)
    marks = record.get(STALE, {}) if isinstance(record, Mapping) else {}
    if marks:
        causes = "; ".join(f"{cause} of {sections}" for cause, sections in marks.items())
        logger.warning(
            "obsm[%r] is from before a new %s. It is used as it is; call stmsi.pp.map_to_spots to map it again.",
            metabolite_key, causes,
        )  # fmt: skip


def forget_stale(st: AnnData, metabolite_key: str) -> None:
    """Take the marks of a layer away, from a copy whose user has been warned."""
    record = st.uns.get(metabolite_key)
    if isinstance(record, Mapping) and STALE in record:
        st.uns[metabolite_key] = {key: value for key, value in record.items() if key != STALE}


def _mapped(table: AnnData, key: str, section: str) -> bool:
    """Whether a section has mapped values in ``obsm[key]``."""
    rows = (table.obs[Key.obs.SAMPLE].astype(str) == section).to_numpy()
    values = table.obsm[key]
    own = values[rows] if isinstance(values, pd.DataFrame) else np.asarray(values)[rows]
    return bool(pd.DataFrame(own).notna().any(axis=None))
