"""Correlations of predictions that are constant: there is none, and means must not leave them out for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

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
        holds = np.array([why in found and not found & unless for found in reasons], dtype=bool)
        zero[name] = scores[name].mask(scores[name].isna() & holds[codes], 0.0)
    return scores.assign(**zero)
