"""Statistics of pixels and ions over sparse intensities."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


def pixel_factors(X: sp.csr_matrix, method: Literal["tic", "rms", "median", "none"]) -> NDArray[np.float64]:
    """What each pixel is divided by; 0 where it has no signal.

    Parameters
    ----------
    X
        Intensities, shape (pixels, ions).
    method
        ``"tic"``: sum; ``"rms"``: root mean square; ``"median"``: median, both over the ions above zero;
        ``"none"``: 1.

    Returns
    -------
    Shape (pixels,).
    """
    if method == "none":
        return np.ones(X.shape[0])
    if method == "tic":
        return np.asarray(X.sum(axis=1), dtype=np.float64).ravel()
    X = X.copy()
    X.eliminate_zeros()
    count = np.diff(X.indptr)
    if method == "rms":
        total = np.asarray(X.multiply(X).sum(axis=1), dtype=np.float64).ravel()
        return np.sqrt(total / np.maximum(count, 1))
    # columns of the transpose are pixels
    return section_quantiles(X.T.tocsc(), 0.5)


def section_quantiles(X: sp.csc_matrix, q: float) -> NDArray[np.float64]:
    """Quantile of the values above zero of every column; 0 where a column has none.

    Parameters
    ----------
    X
        Shape (rows, columns).
    q
        Quantile, linearly interpolated as in :func:`numpy.quantile`.

    Returns
    -------
    Shape (columns,).
    """
    X = sp.csc_matrix(X, dtype=np.float64, copy=True)
    X.eliminate_zeros()
    count = np.diff(X.indptr)
    column = np.repeat(np.arange(X.shape[1]), count)
    values = X.data[np.lexsort((X.data, column))]
    if len(values) == 0:
        return np.zeros(X.shape[1])
    at = X.indptr[:-1] + q * np.maximum(count - 1, 0)
    low = np.minimum(np.floor(at).astype(np.int64), len(values) - 1)
    high = np.minimum(np.ceil(at).astype(np.int64), len(values) - 1)
    return np.where(count > 0, values[low] + (at - low) * (values[high] - values[low]), 0.0)
