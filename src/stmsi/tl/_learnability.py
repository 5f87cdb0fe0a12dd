"""What makes a metabolite predictable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.metrics.realism import marginals
from stmsi._core.spatial.morans_i import morans_i, neighbour_means
from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame, require_sample
from stmsi.tl._share_of_ceiling import read_ceiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

PROPERTIES = ("morans_i", "prevalence", "dynamic_range", "ceiling")


def learnability(
    data: Data,
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    ceiling: pd.DataFrame | None = None,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Put the score of each metabolite beside what is known to limit it.

    Parameters
    ----------
    data
        SpatialData or its ST table, with measured metabolites.
    scores
        What :func:`stmsi.tl.cross_validate` or :func:`stmsi.tl.evaluate` returns.
    metric
        Column of the scores.
    ceiling
        What :func:`stmsi.tl.noise_ceiling` returns; `None`: the one written into the data, if any.
    metabolite_key
        Measured intensities in ``obsm``.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.

    Returns
    -------
    One row per metabolite (and model): ``model``, ``metabolite``, ``metric``, ``score`` (mean over sections and folds),
    ``morans_i`` (six nearest neighbours), ``prevalence`` (1 minus the sparsity), ``dynamic_range`` (log10 of the 95th over
    the 5th percentile where present) and ``ceiling``, each the mean over the sections that measured the metabolite; NaN
    where it does not exist. :func:`stmsi.pl.learnability` draws it.

    Raises
    ------
    KeyError
        A column or layer is not there.
    ValueError
        Scores and measurement share no metabolite.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata, replicates=True)
    >>> ceiling = stmsi.tl.noise_ceiling(sdata)
    >>> scores = stmsi.tl.cross_validate(sdata, "ridge", show_progress_bar=False)
    >>> stmsi.tl.learnability(sdata, scores).shape
    (12, 8)
    """
    st = get_table(data, table_key)
    measured = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it.")
    for name in ("metabolite", metric):
        if name not in scores:
            msg = f"scores has no column {name!r}; found {listing(scores.columns)}."
            raise KeyError(msg)
    if ceiling is None and st.uns.get(Key.uns.CEILING, {}).get("params", {}).get("metabolite_key") == metabolite_key:
        ceiling = read_ceiling(st)
    sample = require_sample(st, sample_key)
    by = ["model", "metabolite"] if "model" in scores else ["metabolite"]
    rows = scores[np.isfinite(scores[metric].to_numpy(np.float64))]
    out = rows.groupby(by, observed=True, sort=False)[metric].mean().rename("score").reset_index()
    out = out[out["metabolite"].isin(measured.columns)]
    if len(out) == 0:
        msg = f"No scored metabolite is in obsm[{metabolite_key!r}], or none has a finite {metric!r}."
        raise ValueError(msg)
    if "model" not in out:
        out.insert(0, "model", "")
    out.insert(2, "metric", metric)
    xy = st.obsm.get(Key.obsm.SPATIAL)
    parts = []
    for name in dict.fromkeys(sample):
        section = measured[sample == name]
        place = None if xy is None else np.asarray(xy, dtype=np.float64)[sample == name, :2]
        parts += _properties(section, place)
    properties = pd.concat(parts).groupby("metabolite").mean() if parts else pd.DataFrame()
    if ceiling is not None:
        properties["ceiling"] = read_ceiling(ceiling).groupby("metabolite")["ceiling"].mean()
    properties = properties.reindex(columns=list(PROPERTIES))
    return out.join(properties, on="metabolite").reset_index(drop=True)


def _properties(section: pd.DataFrame, xy: NDArray[np.float64] | None) -> list[pd.DataFrame]:
    """Properties of the metabolites of a section, those measured in the same spots together."""
    parts = []
    measured = section.notna().to_numpy()
    patterns, of = np.unique(measured, axis=1, return_inverse=True)
    for k, rows in enumerate(patterns.T):
        if rows.sum() < 3:
            continue
        own = section.loc[:, of.ravel() == k]
        y = own.to_numpy(np.float64)[rows]
        found = {name: v for name, v in marginals(y).items() if name in PROPERTIES}
        if xy is not None:
            found["morans_i"] = morans_i(neighbour_means(xy[rows]), y)
        parts.append(pd.DataFrame({"metabolite": own.columns.astype(str), **found}))
    return parts
