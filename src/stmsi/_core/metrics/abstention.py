"""Errors of the spots that are left when uncertain ones are set aside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kept_errors(
    error: NDArray[np.float64], uncertainty: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Mean error of the least uncertain spots.

    Parameters
    ----------
    error, uncertainty
        Shape (spots, metabolites); pairs with NaN are left out. Of equal uncertainty, earlier spots are kept first.
    shares
        Shares of the spots of each metabolite to keep, rounded up to a whole spot, shape (shares,).

    Returns
    -------
    Number of spots kept and their mean error, shape (shares, metabolites); 0 and NaN where there is none.
    """
    known = ~np.isnan(error) & ~np.isnan(uncertainty)
    order = np.argsort(np.where(known, uncertainty, np.inf), axis=0, kind="stable")
    ordered = np.take_along_axis(np.where(known, error, 0.0), order, axis=0)
    total = np.vstack([np.zeros((1, error.shape[1])), np.cumsum(ordered, axis=0)])
    # a product such as 0.1 x 30 lies a last bit above its whole number
    kept = np.ceil(shares[:, None] * known.sum(axis=0) - 1e-9).astype(np.int64)
    mean = np.take_along_axis(total, kept, axis=0) / np.maximum(kept, 1)
    return kept, np.where(kept > 0, mean, np.nan)


def binary_entropy(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of a yes-or-no question in bits: 1 at one half, 0 where the answer is sure."""
    p = np.clip(np.asarray(probability, np.float64), 1e-300, 1 - 1e-16)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
