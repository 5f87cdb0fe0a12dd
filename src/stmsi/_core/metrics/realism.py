"""How synthetic values differ from measured ones at the same spots."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stmsi._core.metrics.presence import auroc
from stmsi._core.spatial.coregionalization import _EDGES, _pairs, spacing

LEVELS = tuple(np.linspace(0.05, 0.95, 10).round(3))
"""Quantiles of the intensity where present that are compared."""


def marginals(y: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Mean, standard deviation, prevalence and dynamic range of each column of (spots, metabolites) without NaN.

    The dynamic range is the log10 of the 95th over the 5th percentile where present.
    """
    present = np.where(y > 0, y, np.nan)
    low, high = present_quantiles(present, (0.05, 0.95))
    with np.errstate(invalid="ignore", divide="ignore"):
        dynamic = np.log10(high / low)
    return {
        "mean": y.mean(axis=0),
        "sd": y.std(axis=0),
        "prevalence": (y > 0).mean(axis=0),
        "dynamic_range": dynamic,
    }


def present_quantiles(present: NDArray[np.float64], levels: tuple[float, ...]) -> NDArray[np.float64]:
    """Quantiles of each column without NaN, shape (levels, columns); NaN where there is nothing else."""
    ordered = np.sort(present, axis=0)
    n = (~np.isnan(ordered)).sum(axis=0)
    position = np.asarray(levels)[:, None] * np.maximum(n - 1, 0)
    below = position.astype(np.int64)
    above = np.minimum(below + 1, np.maximum(n - 1, 0))
    column = np.arange(ordered.shape[1])
    low, high = ordered[below, column], ordered[above, column]
    return low + (position - below) * (high - low)


def kolmogorov_smirnov(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest distance between the distribution functions of each column of two arrays without NaN."""
    from scipy.stats import ks_2samp

    return np.asarray(ks_2samp(a, b, axis=0, method="asymp").statistic, dtype=np.float64)


def variogram(
    y: NDArray[np.float64], xy: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    r"""Half the mean squared difference at classes of distance, in units of the variance.

    Returns
    -------
    Distance of each class, and for each array of (spots, metabolites) in `y`, stacked first, the values of shape
    (classes, metabolites); NaN where a column is constant.
    """
    i, j, distance = _pairs(xy, np.zeros(len(xy), np.int64), rng)
    classes = np.digitize(distance / spacing(xy, np.zeros(len(xy), np.int64)), _EDGES[:-1])
    used = [c for c in range(len(_EDGES)) if (classes == c).sum() >= 30]
    at = np.array([distance[classes == c].mean() for c in used])
    out = []
    for values in y:
        variance = values.var(axis=0)
        gamma = np.array([0.5 * ((values[i[classes == c]] - values[j[classes == c]]) ** 2).mean(axis=0) for c in used])
        out.append(gamma.reshape(len(used), -1) / np.where(variance > 0, variance, np.nan))
    return at, out


def two_sample_auc(
    real: NDArray[np.float64],
    fake: NDArray[np.float64],
    means: sp.csr_matrix | None,
    groups: NDArray[np.int64],
    *,
    n_splits: int = 5,
    seed: int = 0,
) -> float:
    """How well a classifier tells synthetic from measured spots that it has not seen: 0.5 not at all, 1 always.

    Gradient-boosted trees see the intensities of a spot and their mean over its neighbours. Spots of a group, measured
    and synthetic, are in one fold.

    Parameters
    ----------
    real, fake
        Shape (spots, metabolites), at the same spots.
    means
        Takes the mean over neighbours, shape (spots, spots); `None`: the spot alone is seen.
    groups
        Group of each spot, at least two.
    n_splits
        Folds, at most as many as groups.
    seed
        Of the classifier.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold

    def features(y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y if means is None else np.hstack([y, means @ y])

    X = np.vstack([features(real), features(fake)])
    label = np.repeat([0, 1], len(real))
    both = np.concatenate([groups, groups])
    score = np.full(len(label), np.nan)
    folds = GroupKFold(min(n_splits, len(np.unique(groups))))
    # ranks within a fold: models of different folds are not on one scale
    found = []
    for train, test in folds.split(X, label, both):
        model: Any = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=15, max_bins=63, l2_regularization=1.0, early_stopping=False, random_state=seed
        )
        # the fits are small: threads would cost more than they bring
        with threadpool_limits(1):
            model.fit(X[train], label[train])
            score[test] = model.predict_proba(X[test])[:, 1]
        found.append(float(auroc(label[test, None].astype(float), score[test, None])[0]))
    return float(np.mean(found))
