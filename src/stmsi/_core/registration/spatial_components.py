"""Leading spatial components of one modality: patterns over the tissue, whatever molecules make them.

Principal components (scikit-learn) come first; they alone would follow noise and stripes of single pixels.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import eigh

from stmsi._core.registration.warps import Floats
from stmsi._core.spatial.morans_i import neighbour_means

_N_FEATURES = 2000
_N_PRINCIPAL = 20
_WINSOR = 0.01


def summary_channels(X: sp.spmatrix | NDArray[np.floating]) -> Floats:
    """Log of the number of features found and of their sum, for each observation; shape (n, 2)."""
    X = sp.csr_matrix(X)
    count = np.asarray((X > 0).sum(axis=1)).ravel()
    return np.column_stack([np.log1p(count), np.log1p(np.asarray(X.sum(axis=1)).ravel())])


def spatial_components(
    X: sp.spmatrix | NDArray[np.floating], xy: Floats, n_components: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Maximum autocorrelation factors (n, k) of the leading principal components, and their autocorrelation.

    Of profiles scaled to one total and logged, and of :func:`summary_channels`, the combinations are taken whose values
    at neighbouring places are most alike (Switzer and Green, Technical report 6, Statistics, Stanford, 1984).
    """
    from sklearn.decomposition import TruncatedSVD

    X = sp.csr_matrix(X, dtype=np.float64)
    total = np.asarray(X.sum(axis=1)).ravel()
    typical = np.median(total[total > 0]) if (total > 0).any() else 1.0
    profile = sp.diags(np.where(total > 0, typical / np.maximum(total, 1e-300), 0.0)) @ X
    # intensities of MSI have any unit: the logarithm needs a scale, that of the values found
    unit = np.median(profile.data) if profile.nnz else 1.0
    profile.data = np.log1p(profile.data / max(unit, 1e-300))
    mean = np.asarray(profile.mean(axis=0)).ravel()
    variance = np.asarray(profile.multiply(profile).mean(axis=0)).ravel() - mean**2
    chosen = np.sort(np.argsort(-variance, kind="stable")[:_N_FEATURES])
    chosen = chosen[variance[chosen] > 1e-12]
    parts = [summary_channels(X)]
    if len(chosen):
        k = min(_N_PRINCIPAL, len(chosen) - 1, len(xy) - 1)
        if k >= 1:
            # one more, since the first of an uncentred decomposition is mostly the mean
            svd = TruncatedSVD(k, random_state=int(rng.integers(2**31)))
            parts.append(svd.fit_transform(profile[:, chosen]))
        else:
            parts.append(profile[:, chosen].toarray())
    return autocorrelation_factors(np.hstack(parts), xy, n_components)


def autocorrelation_factors(values: Floats, xy: Floats, n_components: int) -> tuple[Floats, Floats]:
    """Combinations of columns whose neighbouring values are most alike; see :func:`spatial_components`."""
    low, high = np.quantile(values, [_WINSOR, 1 - _WINSOR], axis=0)
    values = np.clip(values, low, high)
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0))[:, spread > 1e-9] / spread[spread > 1e-9]
    if values.shape[1] == 0:
        return np.empty((len(xy), 0)), np.empty(0)
    u, s, _ = np.linalg.svd(values, full_matrices=False)
    white = u[:, s > 1e-6 * s[0]] * np.sqrt(len(values))
    around = neighbour_means(xy) @ white
    alike = white.T @ around / len(values)
    _, rotation = eigh((alike + alike.T) / 2)
    factors = white @ rotation[:, ::-1][:, :n_components]
    mean = neighbour_means(xy) @ factors
    smooth = mean.std(axis=0) * factors.std(axis=0)
    correlation = ((mean - mean.mean(axis=0)) * factors).mean(axis=0) / np.maximum(smooth, 1e-12)
    # the sign of a component is arbitrary; fixed, so that results do not depend on the library
    sign = np.where(np.sum(factors**3, axis=0) < 0, -1.0, 1.0)
    return factors * sign, correlation
