"""How synthetic values differ from measured ones at the same spots."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from stmsi._core.arrays import Floats, Ints
from stmsi._core.metrics.columns import ordered_quantiles
from stmsi._core.metrics.presence import auroc
from stmsi._core.spatial.coregionalization import distance_classes

LEVELS = tuple(np.linspace(0.05, 0.95, 10).round(3))
"""Quantiles of the intensity where present that are compared."""


def marginals(y: Floats) -> dict[str, Floats]:
    """Mean, standard deviation, prevalence and dynamic range of each column of (spots, metabolites) without NaN.

    The dynamic range is the log10 of the 95th over the 5th percentile where present.
    """
    low, high = present_quantiles(np.where(y > 0, y, np.nan), (0.05, 0.95))
    with np.errstate(invalid="ignore", divide="ignore"):
        dynamic = np.log10(high / low)
    return {"mean": y.mean(axis=0), "sd": y.std(axis=0), "prevalence": (y > 0).mean(axis=0), "dynamic_range": dynamic}


def present_quantiles(present: Floats, levels: tuple[float, ...]) -> Floats:
    """Quantiles of each column without NaN, shape (levels, columns); NaN where there is nothing else."""
    return ordered_quantiles(np.sort(present, axis=0), levels)


def kolmogorov_smirnov(a: Floats, b: Floats) -> Floats:
    """Largest distance between the distribution functions of each column of two arrays without NaN."""
    from scipy.stats import ks_2samp

    return np.asarray(ks_2samp(a, b, axis=0, method="asymp").statistic, dtype=np.float64)


def variogram(y: Floats, xy: Floats, rng: np.random.Generator) -> tuple[Floats, list[Floats]]:
    """Half the mean squared difference by class of distance, in units of the variance.

    Returns the mean distance of each class, and for each array of (spots, metabolites) in `y`, stacked first, the values
    of shape (classes, metabolites); NaN where a column is constant.
    """
    classes = list(distance_classes(xy, np.zeros(len(xy), np.int64), rng))
    out = []
    for values in y:
        variance = values.var(axis=0)
        gamma = np.array([0.5 * ((values[i] - values[j]) ** 2).mean(axis=0) for i, j, _ in classes])
        out.append(gamma.reshape(len(classes), -1) / np.where(variance > 0, variance, np.nan))
    return np.array([distance.mean() for _, _, distance in classes]), out


def two_sample_auc(
    real: Floats, fake: Floats, means: sp.csr_matrix | None, groups: Ints, *, n_splits: int = 5, seed: int = 0
) -> float:
    """How well gradient-boosted trees tell synthetic from measured held-out spots: 0.5 not at all, 1 always.

    They see the intensities of a spot, shape (spots, metabolites), and their mean over its neighbours, which `means` of
    shape (spots, spots) takes. Both versions of a spot, and all spots of a group, are in one fold.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold

    X = np.vstack([y if means is None else np.hstack([y, means @ y]) for y in (real, fake)])
    label = np.repeat([0, 1], len(real))
    folds = GroupKFold(min(n_splits, len(np.unique(groups))))
    # ranks within a fold: models of different folds are not on one scale
    found = []
    for train, test in folds.split(X, label, np.concatenate([groups, groups])):
        model: Any = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=15, max_bins=63, l2_regularization=1.0, early_stopping=False, random_state=seed
        )
        # the fits are small: threads would cost more than they bring
        with threadpool_limits(1):
            score = model.fit(X[train], label[train]).predict_proba(X[test])[:, 1:]
        found.append(float(auroc(label[test, None].astype(float), score)[0]))
    return float(np.mean(found))
