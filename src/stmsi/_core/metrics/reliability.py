"""How far a score can be trusted: errors of replicates, bounds, and errors of the most certain spots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from stmsi._core.arrays import AnyFloats, Floats, Ints
from stmsi._core.metrics.columns import number, ratio, total

CONFIDENCE = 0.9  # one-sided, of the lower bounds


def spearman_brown(r: Floats) -> Floats:
    r"""Reliability of a mean from the correlation of its halves, :math:`2r / (1 + r)`; 0 where `r` is negative.

    Spearman, British Journal of Psychology 3 (1910) 271-295; Brown, ibid. 296-322.
    """
    r = np.asarray(r, dtype=np.float64)
    return np.where(np.isnan(r), np.nan, 2 * np.maximum(r, 0) / (1 + np.maximum(r, 0)))


def fisher_bounds(r: Floats, n: Ints, z: float = 1.96) -> tuple[Floats, ...]:
    """Lower and upper bound of a correlation of n independent pairs, by Fisher's transformation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centre, width = np.arctanh(np.clip(r, -0.999999, 0.999999)), z / np.sqrt(np.maximum(n - 3, 1))
    return np.tanh(centre - width), np.tanh(centre + width)


def mean_and_error(values: Floats) -> tuple[NDArray[Any], ...]:
    """Mean, standard error, number and lower bound (Student's t) of the columns of (replicates, n), NaN left out.

    One replicate alone has no error and no bound.
    """
    k = number(values)
    mean = ratio(total(values), k)
    square = total((values - mean) ** 2)
    error = np.where(k > 1, np.sqrt(square / np.maximum(k - 1, 1) / np.maximum(k, 1)), np.nan)
    return mean, error, k, mean - student.ppf(CONFIDENCE, np.maximum(k - 1, 1)) * error


def kept_errors(error: Floats, uncertainty: Floats, shares: Floats) -> tuple[Ints, Floats]:
    """Number and mean error of the least uncertain spots, shape (shares, metabolites); 0 and NaN where there is none.

    `error` and `uncertainty` are of shape (spots, metabolites); pairs with NaN are left out. Shares are rounded up to a
    whole spot. Of equal uncertainty, earlier spots are kept first.
    """
    known = ~np.isnan(error) & ~np.isnan(uncertainty)
    order = np.argsort(np.where(known, uncertainty, np.inf), axis=0, kind="stable")
    ordered = np.take_along_axis(np.where(known, error, 0.0), order, axis=0)
    sums = np.vstack([np.zeros((1, error.shape[1])), np.cumsum(ordered, axis=0)])
    # a product such as 0.1 x 30 lies a last bit above its whole number
    kept = np.ceil(shares[:, None] * known.sum(axis=0) - 1e-9).astype(np.int64)
    return kept, ratio(np.take_along_axis(sums, kept, axis=0), kept)


def binary_entropy(probability: AnyFloats) -> Floats:
    """Entropy of a yes-or-no question in bits: 1 at one half, 0 where the answer is certain."""
    p = np.clip(np.asarray(probability, np.float64), 1e-300, 1 - 1e-16)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
