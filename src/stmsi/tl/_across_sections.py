"""Scores of level and pattern over all sections, from the moments in the rows of a table of scores."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stmsi._core.metrics.grouped import grouped_correlation
from stmsi._data.keys import ACROSS_SCORES

_FEWEST = 3
"""Sections whose means can correlate: two always lie on a line."""


def score_across(scores: pd.DataFrame) -> pd.DataFrame:
    """The same table with ``pearson_between`` and ``pearson_pooled`` of each model and metabolite in its intensity rows.

    Each side is taken relative to what its fold knew before the test section came: the mean of the training spots, and the
    model's mean prediction for them (where that is not known, the same training mean). The training mean of a fold is low
    where the section left out is high. Without the first, a model that knows nothing would run against the sections; with
    the training mean on both sides, one that knows nothing and is biased would run with them. Rows of one section (blocks,
    repeated folds) become one mean, weighted by their spots. A score that does not exist is NaN, and ``reason`` says why.
    """
    out = scores.copy()
    before = out["training_mean"].to_numpy(np.float64)
    said = out["training_predicted_mean"].to_numpy(np.float64)
    reference = {"measured": before, "predicted": np.where(np.isnan(said), before, said)}
    mean = {side: out[f"{side}_mean"].to_numpy(np.float64) for side in reference}
    known = np.isfinite(np.stack([mean[side] - reference[side] for side in reference])).all(axis=0)
    rows = np.flatnonzero((out["stage"] == "intensity").to_numpy() & known)
    if len(rows) == 0:
        return out
    part = out.iloc[rows]
    group = part.groupby([*(["model"] if "model" in out else []), "metabolite"], sort=False).ngroup().to_numpy()
    weight, r = part["n"].to_numpy(np.float64), part["pearson"].fillna(0.0).to_numpy(np.float64)
    y, p = (mean[side][rows] - reference[side][rows] for side in reference)
    sd_y, sd_p = (part[f"{side}_sd"].to_numpy(np.float64) for side in reference)
    size_y, size_p = (np.maximum(np.abs(mean[side]), np.abs(reference[side]))[rows] for side in reference)
    # a constant side has no correlation, and its covariance is 0
    covariance = r * sd_y * sd_p
    pooled, *spread = grouped_correlation(group, weight, (y, p), (sd_y**2, sd_p**2), covariance, (size_y, size_p))

    cells = pd.DataFrame({"group": group, "sample": part["sample"].astype(str).to_numpy()})
    cell = cells.groupby(["group", "sample"], sort=False).ngroup().to_numpy()
    own = cells.drop_duplicates()["group"].to_numpy()  # group of each cell, in the same order
    total = np.bincount(cell, weight)
    y, p, size_y, size_p = (np.bincount(cell, weight * v) / total for v in (y, p, size_y, size_p))
    between, *spread_of_means = grouped_correlation(own, np.ones(len(own)), (y, p), size=(size_y, size_p))
    few = np.bincount(own) < _FEWEST
    between[few] = np.nan

    why = {
        f"fewer than {_FEWEST} sections": few,
        "measured means are equal": ~few & (spread_of_means[0] == 0),
        "predicted means are equal": ~few & (spread_of_means[1] == 0),
        "constant measurement in all sections": spread[0] == 0,
        "constant prediction in all sections": spread[1] == 0,
    }
    texts = ["; ".join(text for text, holds in why.items() if holds[g]) for g in range(len(few))]
    for name, values in zip(ACROSS_SCORES, (between, pooled), strict=True):
        column = np.full(len(out), np.nan)
        column[rows] = values[group]
        out[name] = column
    reason = out["reason"].to_numpy(object).copy()
    reason[rows] = ["; ".join(filter(None, (reason[row], texts[g]))) for row, g in zip(rows, group, strict=True)]
    return out.assign(reason=reason)
