"""Bring the intensities of sections to one scale by their ranks.

scikit-learn's QuantileTransformer would rank zeros too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

N_QUANTILES = 101
"""Points of a stored distribution."""


def section_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value above zero in its column, as a share in (0, 1); zeros and NaN stay, ties share their mean."""
    above = np.where(values > 0, values, np.nan)
    rank = rankdata(above, axis=0, nan_policy="omit")
    count = (values > 0).sum(axis=0)
    return np.where(values > 0, (rank - 0.5) / np.maximum(count, 1), values)


def distribution(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of the values above zero of each column, shape (`N_QUANTILES`, metabolites); NaN without any."""
    out = np.full((N_QUANTILES, values.shape[1]), np.nan)
    there = np.flatnonzero((values > 0).any(axis=0))
    if len(there):
        above = np.where(values[:, there] > 0, values[:, there], np.nan)
        out[:, there] = np.nanquantile(above, np.linspace(0, 1, N_QUANTILES), axis=0)
    return out


def transfer(
    values: NDArray[np.float64], source: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Map values (spots, metabolites) from one :func:`distribution` to another of equal rank.

    Zeros and NaN stay, and columns without both distributions; ``transfer(v, target, source)`` maps back.
    """
    out = values.copy()
    for j in np.flatnonzero(np.isfinite(source).all(axis=0) & np.isfinite(target).all(axis=0)):
        # where a source is flat, its middle counts, so that ties keep one value
        knots, which = np.unique(source[:, j], return_inverse=True)
        level = np.bincount(which, weights=target[:, j]) / np.bincount(which)
        out[:, j] = np.where(values[:, j] > 0, np.interp(values[:, j], knots, level), values[:, j])
    return out
