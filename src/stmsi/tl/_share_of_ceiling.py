"""Scores as a share of what can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import get_table

if TYPE_CHECKING:
    from stmsi._data.checks import Data


def share_of_ceiling(
    scores: pd.DataFrame, ceiling: pd.DataFrame | Data, *, table_key: str = Key.table.ST
) -> pd.DataFrame:
    """Add the noise ceiling to scores, and how much of it they reach.

    Parameters
    ----------
    scores
        What :func:`stmsi.tl.evaluate` or :func:`stmsi.tl.cross_validate` returns.
    ceiling
        What :func:`stmsi.tl.noise_ceiling` returns, or the data into which it was written.
    table_key
        The ST table of a SpatialData.

    Returns
    -------
    The scores with three columns more, of the intensity stage: ``ceiling`` (of the metabolite in that section; its mean
    over sections where the section has none), ``pearson_share`` (Pearson correlation over the ceiling) and ``r2_share``
    (R2 over the reliability). NaN where there is no ceiling or it is below 0.05. A share above 1 is chance, or a ceiling
    that is too low.

    Raises
    ------
    KeyError
        A column or the ceiling is missing.
    ValueError
        Scores and ceilings share no metabolite.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata, replicates=True)
    >>> ceiling = stmsi.tl.noise_ceiling(sdata)
    >>> scores = stmsi.tl.cross_validate(sdata, "ridge", show_progress_bar=False)
    >>> "pearson_share" in stmsi.tl.share_of_ceiling(scores, ceiling)
    True
    """
    table = read_ceiling(ceiling, table_key)
    for name in ("sample", "metabolite", "stage", "pearson", "r2"):
        if name not in scores:
            msg = (
                f"scores has no column {name!r}; found {listing(scores.columns)}. stmsi.tl.evaluate makes such a table."
            )
            raise KeyError(msg)
    if not set(scores["metabolite"]) & set(table["metabolite"]):
        msg = f"Scores and ceilings share no metabolite: {listing(scores['metabolite'].unique()[:3])}."
        raise ValueError(msg)
    own = table.groupby(["sample", "metabolite"], observed=True)["ceiling"].mean()
    overall = table.groupby("metabolite", observed=True)["ceiling"].mean()
    out = scores.copy()
    key = pd.MultiIndex.from_frame(out[["sample", "metabolite"]].astype(str))
    found = own.reindex(key).to_numpy(np.float64)
    found = np.where(np.isnan(found), overall.reindex(out["metabolite"].astype(str)).to_numpy(np.float64), found)
    out["ceiling"] = np.where(out["stage"].astype(str) == "intensity", found, np.nan)
    usable = out["ceiling"].where(out["ceiling"] >= _LEAST)
    out["pearson_share"] = out["pearson"] / usable
    out["r2_share"] = out["r2"] / usable**2
    return out


_LEAST = 0.05


def read_ceiling(ceiling: pd.DataFrame | Data, table_key: str = Key.table.ST) -> pd.DataFrame:
    """The table of ceilings, from itself or from the data into which it was written."""
    if isinstance(ceiling, pd.DataFrame):
        table = ceiling
    else:
        record = get_table(ceiling, table_key).uns.get(Key.uns.CEILING)
        if not isinstance(record, dict) or "table" not in record:
            msg = f"uns[{Key.uns.CEILING!r}] is not there; call stmsi.tl.noise_ceiling first."
            raise KeyError(msg)
        table = record["table"]
    missing = [c for c in ("sample", "metabolite", "ceiling") if c not in table]
    if missing:
        msg = f"The table of ceilings lacks {listing(missing)}; stmsi.tl.noise_ceiling makes it."
        raise KeyError(msg)
    return table
