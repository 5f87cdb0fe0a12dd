"""How far a score can be trusted, and how high it can be at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

CONFIDENCE = 0.9
"""One-sided, of the lower bounds."""


def spearman_brown(r: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Reliability of a mean from the correlation of its halves, :math:`2r / (1 + r)`; 0 where `r` is negative.

    References
    ----------
    Spearman, British Journal of Psychology 3 (1910) 271-295; Brown, ibid. 296-322.
    """
    r = np.asarray(r, dtype=np.float64)
    return np.where(np.isnan(r), np.nan, 2 * np.maximum(r, 0) / (1 + np.maximum(r, 0)))


def fisher_bounds(r: NDArray[np.float64], n: NDArray[np.int64], z: float = 1.96) -> tuple[NDArray[np.float64], ...]:
    """Lower and upper bound of a correlation of n independent pairs, by Fisher's transformation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centre, width = np.arctanh(np.clip(r, -0.999999, 0.999999)), z / np.sqrt(np.maximum(n - 3, 1))
    return np.tanh(centre - width), np.tanh(centre + width)


def mean_and_error(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Mean, standard error, number and lower bound of the columns of (replicates, n), NaN left out.

    The bound is that of Student's t. One replicate alone has no error and no bound.
    """
    k = (~np.isnan(values)).sum(axis=0)
    mean = np.where(k > 0, np.nansum(values, axis=0) / np.maximum(k, 1), np.nan)
    square = np.nansum((values - mean) ** 2, axis=0)
    error = np.where(k > 1, np.sqrt(square / np.maximum(k - 1, 1) / np.maximum(k, 1)), np.nan)
    lower = mean - student.ppf(CONFIDENCE, np.maximum(k - 1, 1)) * error
    return mean, error, k, lower
