"""Statistics of pixels and ions over sparse intensities; scanpy normalises by totals only, and makes no tissue mask."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


def pixel_factors(X: sp.csr_matrix, method: Literal["tic", "rms", "median", "none"]) -> NDArray[np.float64]:
    """Sum, root mean square or median (both of the ions above zero) of each pixel; 0 where it has no signal."""
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
    """Quantile of the values above zero of every column, as numpy.quantile interpolates; 0 where a column has none."""
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


_SEPARABILITY = 0.75
"""Share of the variance between the two classes that a background needs; one normal distribution has 0.64, a uniform
one 0.75."""
_SHARE = 0.02
"""Share of the pixels that a background has at least: fewer are faulty pixels and no background."""
_BINS = 256
_CONTRAST = 2.0
"""How many times brighter than the background the tissue must be."""


def otsu_tissue(total: NDArray[np.float64]) -> tuple[NDArray[np.bool_], bool]:
    """Split pixels into tissue and background by Otsu's threshold on the log of their total ion current.

    The threshold splits anything: the split must explain most of the variance, tissue must be clearly brighter, and the
    background more than a few faulty pixels. Also returned: whether a background was found.
    """
    from skimage.filters import threshold_otsu

    tissue = total > 0
    level = np.log(total[tissue])
    if len(level) > 1 and level.max() - level.min() > np.log(_CONTRAST):
        # scikit-image returns the middle of a bin that belongs to the darker part as a whole
        half_bin = np.ptp(level) / _BINS / 2
        bright = level > threshold_otsu(level, nbins=_BINS) + half_bin
        share, apart = bright.mean(), 0.0
        if 0 < share < 1:
            apart = level[bright].mean() - level[~bright].mean()
        separate = share * (1 - share) * apart**2 >= _SEPARABILITY * level.var() and apart >= np.log(_CONTRAST)
        if separate and (~bright).sum() + (~tissue).sum() >= _SHARE * len(total):
            tissue[tissue] = bright
    return tissue, bool((~tissue).mean() >= _SHARE)
