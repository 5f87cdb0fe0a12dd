"""Limits between absent and present; Otsu and the mixture are those of scikit-image and scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from stmsi._core.spectra.pixel_statistics import section_quantiles

_NOISE_QUANTILE = 0.01
_DENSE = 0.98
"""Detected share from which an ion has no visible detection limit."""
_ASHMAN = 2.0
"""Distance of two components, in their standard deviations, from which they are two (Ashman et al. 1994)."""
_LEAST = 10
_GRID = 512


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


def mixture_limit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where noise and signal are equally likely, in two normal components of log values (spots, metabolites) above 0.

    It is 0 with fewer than 10 values above zero, or where the components lie closer than Ashman's distance of 2.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    limits = np.zeros(values.shape[1])
    for j, column in enumerate(values.T):
        level = np.log(column[column > 0])  # NaN is not above zero
        if len(level) < _LEAST or np.ptp(level) < 1e-6:
            continue
        start = np.quantile(level, [0.1, 0.9])[:, None]
        variance = max(float(level.var()), 1e-12)
        # given starts: no k-means, and no random numbers
        model = GaussianMixture(
            2, means_init=start, weights_init=[0.5, 0.5], precisions_init=np.full((2, 1, 1), 4 / variance),
            reg_covar=1e-6 * variance,
        )  # fmt: skip
        with warnings.catch_warnings():
            # what has not settled has no two components, which the distance below finds
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(level[:, None])
        mean, spread = model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0])
        low, high = np.argsort(mean)
        if np.sqrt(2) * (mean[high] - mean[low]) < _ASHMAN * np.hypot(*spread):
            continue
        grid = np.linspace(mean[low], mean[high], _GRID)
        limits[j] = np.exp(grid[np.argmax(model.predict(grid[:, None]) == high)])
    return limits
