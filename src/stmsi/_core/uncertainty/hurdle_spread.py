"""How far a spot is likely to lie from the prediction of a hurdle model."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from stmsi._core.arrays import AnyFloats, Floats

_FLOOR = 0.05  # least spread of a spot, as a share of the root mean squared error of its metabolite


def spread_coefficients(truth: Floats, presence: Floats, intensity: Floats, prediction: Floats) -> Floats:
    r"""Growth of the error with the intensity: :math:`a`, :math:`b` and the least variance, shape (3, metabolites).

    Where it is present, :math:`\mathrm{E}(y - \mu)^2 = a + b \mu^2` with :math:`a, b \ge 0`, by least squares on
    measurements and held-out predictions (spots, metabolites). Pairs with NaN are left out; 0, 0, 1 without any.
    """
    coefficients = np.tile([[0.0], [0.0], [1.0]], truth.shape[1])
    for m in range(truth.shape[1]):
        known = ~np.isnan(truth[:, m]) & ~np.isnan(prediction[:, m])
        if not known.any():
            continue
        there = known & (presence[:, m] > 0)
        if there.any():
            mu, error = intensity[there, m], (truth[there, m] - intensity[there, m]) ** 2
            size, square = (float(v) if v > 1e-100 else 1.0 for v in (np.abs(mu).max(), error.max()))
            a, b = nnls(np.column_stack([np.ones(len(mu)), (mu / size) ** 2]), error / square)[0] * square
            coefficients[:2, m] = a, b / size**2
        level = (truth[known, m] ** 2).mean() + 1e-24
        coefficients[2, m] = _FLOOR**2 * ((truth[known, m] - prediction[known, m]) ** 2).mean() + 1e-12 * level
    return coefficients


def hurdle_spread(
    probability: AnyFloats, intensity: AnyFloats, coefficients: Floats, added: AnyFloats | float = 0.0
) -> Floats:
    r"""Standard deviation of each spot under the hurdle model, :math:`s^2 = p (1 - p) \mu^2 + p (a + b \mu^2) + \text{floor}`.

    Probability of presence, intensity given presence and further variance (`added`) are of shape (spots, metabolites).
    """
    p, square = np.asarray(probability, np.float64), np.asarray(intensity, np.float64) ** 2
    a, b, floor = coefficients
    return np.sqrt(p * (1 - p) * square + p * (a + b * square) + floor + added)
