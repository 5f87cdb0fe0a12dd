"""Limits between absent and present; Otsu's is that of scikit-image."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from stmsi._core.spectra.pixel_statistics import section_quantiles

_NOISE_QUANTILE = 0.01
_DENSE = 0.98
"""Detected share from which an ion has no visible detection limit."""


def noise_floor(values: sp.csr_matrix) -> NDArray[np.float64]:
    """The 1 % quantile of the values above zero of each column; 0 for columns that are above zero nearly everywhere."""
    detected = np.asarray((values > 0).mean(axis=0)).ravel() if values.shape[0] else np.zeros(values.shape[1])
    # strictly above: the smallest of the values that count must not be the limit itself
    limit = np.nextafter(section_quantiles(values.tocsc(), _NOISE_QUANTILE), 0)
    return np.where(detected >= _DENSE, 0.0, np.maximum(limit, 0.0))


def blank_limit(blank: sp.csr_matrix) -> NDArray[np.float64]:
    """Mean and three standard deviations of each column over pixels without tissue, zeros included."""
    n = max(blank.shape[0], 1)
    blank = sp.csr_matrix(blank, dtype=np.float64)
    mean = np.asarray(blank.sum(axis=0)).ravel() / n
    square = np.asarray(blank.multiply(blank).sum(axis=0)).ravel() / n
    return mean + 3 * np.sqrt(np.maximum(square - mean**2, 0.0))


def otsu_limit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Otsu's threshold of each column without NaN; 0 where a column is constant or empty."""
    from skimage.filters import threshold_otsu

    finite = [v[np.isfinite(v)] for v in values.T]
    return np.array([threshold_otsu(v) if len(v) and v.min() < v.max() else 0.0 for v in finite])
