"""Correlations of groups of cells, of which only mean, spread and covariance are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stmsi._core.arrays import Floats
from stmsi._core.metrics.columns import ratio

_ROUNDING = 1e-6
"""Predictions are kept in single precision: their mean over a section is no more exact than this."""


def grouped_correlation(
    group: NDArray[np.integer],
    weight: Floats,
    mean: tuple[Floats, Floats],
    variance: tuple[Floats, Floats] | None = None,
    covariance: Floats | None = None,
    size: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Floats, Floats]:
    r"""Pearson correlation of all values of each group, from the moments of its cells.

    With cells :math:`c` of :math:`n_c` values, the law of total covariance gives

    .. math:: S_{yp} = \sum_c n_c \left(\mathrm{cov}_c(y, p) + (\bar y_c - \bar y)(\bar p_c - \bar p)\right)

    and likewise for both variances, so that the result is that of all values pooled.

    Parameters
    ----------
    group
        Group of each cell, shape (cells,), from 0.
    weight
        Number of values of each cell.
    mean
        Means of truth and prediction, shape (cells,) each, finite.
    variance, covariance
        Within each cell, dividing by the number of values; `None`: each cell is one point.
    size
        Magnitude of both sides in each cell, to which rounding is relative; `None`: that of `mean`.

    Returns
    -------
    Correlation, and the spread of truth and of prediction, shape (groups,) each. A spread that is no more than rounding of
    single precision is 0, and the correlation NaN.
    """
    n = int(group.max(initial=-1)) + 1
    count = np.bincount(group, weight, n)
    within = (0.0, 0.0) if variance is None else variance
    off, spread = [], []
    for values, own, scale in zip(mean, within, mean if size is None else size, strict=True):
        away = values - ratio(np.bincount(group, weight * values, n), count)[group]
        largest = np.zeros(n)
        np.maximum.at(largest, group, np.abs(scale))
        sd = np.sqrt(ratio(np.bincount(group, weight * (own + away**2), n), count))
        off.append(away)
        spread.append(np.where(sd <= _ROUNDING * largest, 0.0, sd))
    shared = (0.0 if covariance is None else covariance) + off[0] * off[1]
    return ratio(ratio(np.bincount(group, weight * shared, n), count), spread[0] * spread[1]), spread[0], spread[1]
