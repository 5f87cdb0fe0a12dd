"""Is one model better than another, or was it luck? And which one is best."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, check_share, listing, suggest
from stmsi._data.constant_predictions import missing_counts_as_no_skill
from stmsi._data.keys import ACROSS_SCORES, LOWER_IS_BETTER

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST = 6
"""Units from which the signed-rank test can go below 0.05 at all."""
TO_CHOOSE_BY = (
    "pearson", "spearman", "pearson_present", "mcc", "f1", "auroc", "auprc", "r2", "mse", "mae", "brier",
)  # fmt: skip
"""Scores to choose a model by."""
_COLUMNS = ("mean", "se", "other_mean", "other_se", "difference", "difference_se", "lower", "upper", "p_value")


def compare_models(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    reference: str | None = None,
    unit: Literal["sample", "fold", "metabolite"] = "sample",
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Compare models on the same folds, sections and metabolites.

    Scores are paired: a fold, section and metabolite counts where a model of the table has the score. Where another has none, since its
    prediction is constant there (as that of ``"mean"`` always is), it counts as one without skill: 0 for correlations, 0.5 for
    the AUROC. For scores without such a value (``"mse"``, ``"r2"``), places that one of both lacks are left out. They are averaged to one
    value per `unit`. Standard errors and the interval come from a bootstrap over units; the p value from the Wilcoxon
    signed-rank test of the differences, corrected for the number of pairs of models after Holm.

    Sections (or folds, if a fold is a patient) tell about new sections; with few of them nothing is significant. Metabolites
    of the same sections tell about other metabolites in these sections.

    Parameters
    ----------
    scores
        Table of :func:`stmsi.tl.cross_validate`, with two models or more.
    metric
        Column to compare. ``"pearson_between"`` and ``"pearson_pooled"`` have one value per metabolite and go with
        ``unit="metabolite"``.
    reference
        Model to compare all others with; `None`: all pairs.
    unit
        ``"sample"``, ``"fold"`` or ``"metabolite"``.
    confidence, n_bootstrap, rng
        Of the interval; draws of the bootstrap; its seed or generator.

    Returns
    -------
    One row per pair: ``model``, ``other``, ``metric``, ``unit``; ``mean`` and ``se`` of the model, ``other_mean`` and
    ``other_se``; ``difference`` (model less other) with ``difference_se``, ``lower``, ``upper``; ``p_value`` and
    ``p_adjusted``; ``n_units``, ``n_pairs``, ``n_without_skill`` (pairs in which one of both counts so), ``n_left_out`` (only one of both
    has the score) and ``reason``: why a number is NaN, or that the units are too few to be significant.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        One model only, an unknown model, several scores of a pair, a metric that no model has, or a score across sections
        with another `unit` than metabolites.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> scores = stmsi.tl.cross_validate(sdata, ["ridge", "mean"], show_progress_bar=False)
    >>> found = stmsi.tl.compare_models(scores, metric="mse", unit="metabolite")
    >>> found[["model", "other", "n_units"]].values.tolist()
    [['ridge', 'mean', 12]]
    """
    from statsmodels.stats.multitest import multipletests

    check_choice(unit, ("sample", "fold", "metabolite"), "unit")
    check_share(confidence, "confidence")
    if n_bootstrap < 1:
        msg = f"n_bootstrap must be at least 1, found {n_bootstrap!r}."
        raise ValueError(msg)
    if metric in ACROSS_SCORES and unit != "metabolite":
        msg = f"{metric!r} is one number for all sections, so unit={unit!r} has no replicates; pass unit='metabolite'."
        raise ValueError(msg)
    table = paired_scores(scores, metric)
    models = [str(m) for m in table.columns]
    table.columns = pd.Index(models)
    if metric in ACROSS_SCORES:  # each row of a metabolite repeats it
        table = table.groupby(level=unit, sort=False, observed=True).first()
    if len(models) < 2:
        msg = f"Two models or more are needed to compare; scores has {listing(models)}."
        raise ValueError(msg)
    if not table.notna().to_numpy().any():
        msg = f"No model has a {metric!r}; compare another metric."
        raise ValueError(msg)
    scored = table.notna()
    table = missing_counts_as_no_skill(table, metric)
    if reference is not None and reference not in models:
        msg = f"reference={reference!r} is not among the models {listing(models)}.{suggest(reference, models)}"
        raise ValueError(msg)
    pairs = list(combinations(models, 2)) if reference is None else [(m, reference) for m in models if m != reference]
    random = np.random.default_rng(rng)
    rows = []
    for model, other in pairs:
        both = table[[model, other]]
        kept = both.dropna()
        values = kept.groupby(level=unit, sort=False, observed=True).mean().to_numpy(np.float64)
        row: dict[str, float | str] = {"model": model, "other": other, "metric": metric, "unit": unit}
        row |= _pair(values, confidence, n_bootstrap, random)
        left_out = int((both.isna().sum(axis=1) == 1).sum())
        filled = int((scored[[model, other]].sum(axis=1) == 1).sum()) - left_out
        rows.append(
            row | {"n_units": len(values), "n_pairs": len(kept), "n_without_skill": filled, "n_left_out": left_out}
        )
    found = pd.DataFrame(rows)
    known = found["p_value"].notna().to_numpy()
    adjusted = np.full(len(found), np.nan)
    if known.any():
        adjusted[known] = multipletests(found.loc[known, "p_value"], method="holm")[1]
    found.insert(list(found).index("p_value") + 1, "p_adjusted", adjusted)
    found["reason"] = found.pop("reason")
    return found


def _pair(
    values: NDArray[np.float64], confidence: float, n_bootstrap: int, rng: np.random.Generator
) -> dict[str, float | str]:
    """Statistics of one pair from its units, shape (units, 2)."""
    from scipy.stats import wilcoxon

    n = len(values)
    row = dict.fromkeys(_COLUMNS, np.nan)
    if n == 0:
        return row | {"reason": "the models share no score"}
    row["mean"], row["other_mean"] = values.mean(axis=0)
    difference = values[:, 0] - values[:, 1]
    row["difference"] = difference.mean()
    if n == 1:
        return row | {"reason": "one unit only"}
    weight = rng.multinomial(n, np.full(n, 1 / n), n_bootstrap) / n
    means = weight @ np.column_stack([values, difference])
    row["se"], row["other_se"], row["difference_se"] = means.std(axis=0, ddof=1) if n_bootstrap > 1 else [np.nan] * 3
    row["lower"], row["upper"] = np.quantile(means[:, 2], [(1 - confidence) / 2, (1 + confidence) / 2])
    # rounding alone is no difference
    if (np.abs(difference) <= 1e-12 * np.abs(values).max(initial=0)).all():
        return row | {"reason": "no difference in any unit"}
    row["p_value"] = float(wilcoxon(difference, method="exact" if _untied(difference) else "asymptotic").pvalue)
    return row | {"reason": "" if n >= _FEWEST else f"{n} units cannot be significant"}


def _untied(difference: NDArray[np.float64]) -> bool:
    """Whether the exact distribution holds: few units, no ties, no zeros."""
    size = np.abs(difference)
    return len(size) <= 50 and bool((size > 0).all()) and len(np.unique(size)) == len(size)


def best_model(scores: pd.DataFrame, *, metric: str = "pearson") -> str:
    """The model with the best mean score over the folds, sections and metabolites in which any model has one; of equals the first.

    Without a score there, as a constant prediction has no correlation, a model counts as one without skill, or else the place
    counts for no model: nobody is chosen for leaving out what is hard.
    """
    check_choice(metric, TO_CHOOSE_BY, "metric")
    table = paired_scores(scores, metric)
    table = table[table.notna().any(axis=1)]
    if table.empty:
        msg = f"No model has a {metric}; choose by another metric, or on more spots."
        raise ValueError(msg)
    table = missing_counts_as_no_skill(table, metric).dropna()
    if table.empty:
        msg = f"The models share no fold, section and metabolite with a {metric}; choose by another metric."
        raise ValueError(msg)
    mean = table.mean().to_numpy()
    best = np.argmin(mean) if metric in LOWER_IS_BETTER else np.argmax(mean)
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
