"""Missing scores: where a measurement allows a score and the prediction has none, the prediction counts as one without skill."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    Table = TypeVar("Table", "pd.Series", "pd.DataFrame")

NO_SKILL: dict[str, float] = {
    "pearson": 0.0, "spearman": 0.0, "pearson_present": 0.0, "pearson_between": 0.0, "pearson_pooled": 0.0,
    "mcc": 0.0, "f1": 0.0, "auroc": 0.5,
}  # fmt: skip
"""What a prediction without skill reaches; other scores, such as errors, have no such value."""
_WHY = {
    "pearson": ("constant prediction", {"constant measurement"}),
    "spearman": ("constant prediction", {"constant measurement"}),
    "pearson_present": ("constant prediction", {"constant measurement", "present in fewer than 2 spots"}),
    "pearson_between": ("predicted means are equal", {"measured means are equal"}),
    "pearson_pooled": ("constant prediction in all sections", {"constant measurement in all sections"}),
}
"""Of each correlation: the reason that it does not exist, and what would take it from any prediction."""


def constant_counts_as_zero(scores: pd.DataFrame) -> pd.DataFrame:
    """The same table of scores, for means over its rows: correlations that lack because the prediction is constant are 0.

    They are NaN in the tables of :func:`stmsi.tl.evaluate` and :func:`stmsi.tl.cross_validate`. Left out of a mean, a model that can
    predict one metabolite and gives up the others would look better than one that tries. Where the measurement is constant or has
    too few spots, no prediction has a correlation: these stay NaN, as do all in tables without the column ``reason``.
    """
    there = [name for name in _WHY if name in scores]
    if "reason" not in scores or not there:
        return scores
    codes, texts = scores["reason"].astype(str).factorize()
    reasons = [set(text.split("; ")) for text in texts]
    zero = {}
    for name in there:
        why, unless = _WHY[name]
        allowed = np.array([why in found and not found & unless for found in reasons], dtype=bool)
        zero[name] = _filled(scores[name], allowed[codes], name)
    return scores.assign(**zero)


def missing_counts_as_no_skill(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The same for scores `metric` with one column per model: where one model has a score, the measurement allows it to all.

    Scores without a value in :data:`NO_SKILL`, and rows in which no model has one, stay as they are.
    """
    return _filled(table, table.notna().any(axis=1).to_numpy()[:, None], metric) if metric in NO_SKILL else table


def _filled(values: Table, allowed: np.ndarray, metric: str) -> Table:
    """Values in which those that are missing, and that the measurement allows, are as without skill."""
    return values.mask(values.isna() & allowed, NO_SKILL[metric])
