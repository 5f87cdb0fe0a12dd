"""How strongly features go with targets when the correlation among the features is taken out."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from stmsi._core.arrays import AnyFloats, Floats, Floats32, Ints
from stmsi._core.spatial.sections import rows_of_each

_FLAT = 1e-6


def decorrelated_scores(X: AnyFloats, Y: Floats, section: Ints, shrinkage: float = 0.3) -> Floats32:
    r"""Correlation-adjusted scores inside sections (CAR scores; Zuber and Strimmer 2011).

    With :math:`P` the correlation of the features, shrunk to the unit matrix, and :math:`r` their correlations with a target,
    both inside sections, the score is :math:`\sqrt n P^{-1/2} r`. Many genes of a programme correlate with what one of them
    drives; the score stands out at the one. Where nothing goes with anything, scores have variance 1 if spots are independent.

    Parameters
    ----------
    X
        Features, shape (spots, features).
    Y
        Targets, shape (spots, targets), NaN where not measured, which counts as the mean of the section.
    section
        Number of each spot's section.
    shrinkage
        Weight of the unit matrix, above 0 and at most 1; 1 gives plain correlations.

    Returns
    -------
    Shape (features, targets).
    """
    X, filled = np.array(X, np.float32), np.zeros(Y.shape, np.float32)
    for own in rows_of_each(section):
        X[own] = _standardised(X[own])
        filled[own] = _standardised(Y[own])
    return scores_of_products(X.T @ X, X.T @ filled, len(X), shrinkage)


def section_products(X: AnyFloats, Y: Floats) -> tuple[AnyFloats, AnyFloats]:
    """What a section adds to the sums of :func:`scores_of_products`: products of its features, and with its targets."""
    inside, filled = _standardised(X), _standardised(Y)
    return inside.T @ inside, inside.T @ filled


def scores_of_products(P: AnyFloats, r: AnyFloats, n_spots: int, shrinkage: float = 0.3) -> Floats32:
    """:func:`decorrelated_scores` from the sums of :func:`section_products` over all sections.

    Parameters
    ----------
    P, r
        Shapes (features, features) and (features, targets).
    n_spots
        Of all sections.
    shrinkage
        As there.
    """
    n = max(n_spots, 1)
    P, r = P / n, r / n
    P *= 1 - shrinkage
    # a feature that is constant everywhere has a row of zeros
    P[np.diag_indices_from(P)] = 1
    values, axes = eigh(P, overwrite_a=True, check_finite=False)
    root = 1 / np.sqrt(np.maximum(values, shrinkage))
    return np.asarray((axes * root) @ (axes.T @ r) * np.sqrt(n), dtype=np.float32)


def _standardised(values: AnyFloats) -> Floats32:
    """Columns of mean 0 and variance 1 over the known entries; 0 where not known, and for those that do not vary."""
    known = ~np.isnan(values)
    n = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - np.where(known, values, 0).sum(axis=0) / n, 0)
    deviation = np.sqrt((centred**2).sum(axis=0) / n)
    return np.where(deviation > _FLAT, centred / np.where(deviation > _FLAT, deviation, 1), 0).astype(np.float32)
