"""Predictions of a section corrected by what was measured in a part of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stmsi._core.arrays import Floats
from stmsi._core.spatial.kriging import Kriged, krige
from stmsi._core.spatial.morans_i import neighbour_means

_PRIOR_SPOTS = 30
"""The prediction as it is weighs as much as so many measured spots that confirm its scale."""
_PRIOR_SPREAD = 0.5
"""Standard deviation of the slopes a priori. It matters where a prediction that hardly varies could explain large errors."""


class Corrected(NamedTuple):
    """Both stages of a section, each of shape (spots, metabolites); where measured, corrected by all spots but that one."""

    intensity: Floats  # expected intensity, at least 0
    presence: Floats  # probability of presence
    variance: Floats  # of a measurement around the intensity, as a share of that without any measured spot
    slopes: Floats  # scale and smoothing, shape (2, metabolites)
    residuals: Kriged  # what was kriged to correct the intensity


def correct_section(
    prediction: Floats, probability: Floats, measured: Floats, present: Floats, xy: Floats | None
) -> Corrected:
    """Correct the prediction of one section by the spots where it was measured, all of shape (spots, metabolites).

    The intensity is rescaled (:func:`rescale`), then its residuals are kriged (:func:`stmsi._core.spatial.kriging.krige`),
    and so are those of presence.

    Parameters
    ----------
    prediction, probability
        Expected intensity, not cut where presence is called absent, and probability of presence; of a model that has not
        seen the measured spots.
    measured, present
        Intensities and presence (1, 0); NaN where not measured.
    xy
        Positions, shape (spots, 2); `None`: only scale and offset are corrected.
    """
    around = prediction
    if xy is not None and len(xy) > 1:
        around = neighbour_means(xy) @ prediction
    rescaled, slopes = rescale(prediction, around, measured)
    residuals = krige(measured - rescaled, xy)
    intensity = np.maximum(rescaled + residuals.value, 0)
    presence = np.clip(probability + krige(present - probability, xy).value, 0, 1)
    return Corrected(intensity, presence, residuals.variance, slopes, residuals)


def rescale(prediction: Floats, around: Floats, measured: Floats) -> tuple[Floats, Floats]:
    r"""The prediction :math:`p` on the scale of the measured spots, and its slopes :math:`b` and :math:`c`, shape (2, metabolites).

    :math:`p + (b - 1)(p - \bar p) + c (q - \bar q)`, where :math:`q` is the mean of the prediction in the spots around less
    :math:`p`, and means are over the measured spots. Least squares on these, with a penalty that draws
    :math:`b` to 1 and :math:`c` to 0: that of 30 spots, and of a standard deviation of 0.5 of both slopes. All arrays are of shape (spots, metabolites); `measured` is NaN where not measured.
    """
    terms = np.stack([prediction, around - prediction])
    known = ~np.isnan(measured)
    n = np.maximum(known.sum(axis=0), 1)
    centred = terms - (terms * known).sum(axis=1, keepdims=True) / n
    error = np.where(known, measured - prediction, 0.0)
    products = np.einsum("jim,kim->mjk", centred * known, centred)
    variance = (error**2).sum(axis=0) / n - (error.sum(axis=0) / n) ** 2
    # few measured spots may be alike: the first penalty is on the scale of the whole section
    penalty = _PRIOR_SPOTS * terms.var(axis=1) + variance / _PRIOR_SPREAD**2
    products[:, [0, 1], [0, 1]] += penalty.T
    # a prediction without error or variation leaves nothing to solve for
    inverse = np.linalg.pinv(products, hermitian=True)
    change = np.einsum("mjk,kim,im->jm", inverse, centred, error)
    return prediction + np.einsum("jim,jm->im", centred, change), change + np.array([[1.0], [0.0]])
