"""The best of several models by their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._data.checks import check_choice, listing

if TYPE_CHECKING:
    import pandas as pd

NO_SKILL = {
    "pearson": 0.0,
    "spearman": 0.0,
    "pearson_present": 0.0,
    "mcc": 0.0,
    "f1": 0.0,
    "auroc": 0.5,
    "auprc": None,
    "r2": None,
    "mse": None,
    "mae": None,
    "brier": None,
}
"""Scores to choose by, with what counts where a model has none since its prediction is constant."""
_LOWER_IS_BETTER = ("mse", "mae", "brier")


def choose(scores: pd.DataFrame, *, metric: str = "pearson") -> str:
    """Name the model with the best mean score.

    Scores are averaged over the folds, sections and metabolites where any model has one. A model without a score there,
    as a constant prediction has no correlation, counts with what a prediction without skill reaches (0 for correlations,
    0.5 for AUROC): nobody is chosen for leaving out what is hard.

    The score of the model so chosen is too good, since it was chosen by it: ``inner=`` of
    :func:`stmsi.tl.cross_validate` chooses inside each training fold and scores the choice on spots that had no say.

    Parameters
    ----------
    scores
        What :func:`stmsi.tl.cross_validate` returns.
    metric
        ``"pearson"``, ``"spearman"``, ``"pearson_present"``, ``"r2"``, ``"mse"``, ``"mae"``, ``"mcc"``, ``"f1"``,
        ``"auroc"``, ``"auprc"`` or ``"brier"``.

    Returns
    -------
    The model's name; of equals the one that comes first.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        Unknown metric, or no model has a score.

    Examples
    --------
    >>> import pandas as pd
    >>> from stmsi.model_selection import choose
    >>> scores = pd.DataFrame(
    ...     {
    ...         "model": ["a", "b"],
    ...         "fold": 0,
    ...         "sample": "s",
    ...         "metabolite": "m",
    ...         "stage": "intensity",
    ...         "pearson": [0.1, 0.3],
    ...     }
    ... )
    >>> choose(scores)
    'b'
    """
    check_choice(metric, NO_SKILL, "metric")
    table = paired_scores(scores, metric)
    known = table.notna().any(axis=1)
    if not known.any():
        msg = f"No model has a {metric}; choose by another metric, or on more spots."
        raise ValueError(msg)
    table = table[known]
    floor = NO_SKILL[metric]
    if floor is None:
        table = table.dropna()
        if table.empty:
            msg = f"The models share no fold, section and metabolite with a {metric}; choose by another metric."
            raise ValueError(msg)
    else:
        table = table.fillna(floor)
    mean = table.mean().to_numpy()
    best = np.argmin(mean) if metric in _LOWER_IS_BETTER else np.argmax(mean)
    return str(table.columns[int(best)])


def paired_scores(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One column of `metric` per model, one row per fold x section x metabolite that some model scored."""
    keys = ["fold", "sample", "metabolite"]
    missing = [c for c in ("model", *keys, "stage", metric) if c not in scores]
    if missing:
        msg = (
            f"scores has no column {listing(missing)}; found {listing(scores.columns)}. Pass what stmsi.tl.cross_validate "
            "returns."
        )
        raise KeyError(msg)
    of_stage = scores.groupby("stage", sort=False)[metric].transform(lambda v: v.notna().any()).astype(bool)
    own = scores[of_stage] if of_stage.any() else scores
    if own.duplicated(["model", *keys, "stage"]).any() or own["stage"].nunique() > 1:
        msg = (
            f"scores has several values of {metric!r} for a model, fold, section and metabolite; pass one run's table."
        )
        raise ValueError(msg)
    table = own.set_index([*keys, "model"])[metric].unstack("model")
    rows = own.set_index(keys).index.unique()
    return table.reindex(rows)[list(own["model"].unique())]
