"""Conformal quantiles of weighted scores, one metabolite at a time or one factor of the width of intervals."""

from __future__ import annotations

import numpy as np

from stmsi._core.arrays import Bools, Floats, Floats32
from stmsi._core.metrics.columns import number

MIN_COUNT = 20
"""A metabolite with fewer held-out spots of a stratum takes the scores of the others."""


def widening(
    measured: Floats, prediction: Floats32, below: Floats, above: Floats, coverage: float, stratum: Bools
) -> Floats:
    """Factor of the widths of intervals with which they hold a share `coverage` of the measured values, shape (metabolites,).

    Both sides, `below` and `above`, get the same factor. Arrays are of shape (spots, metabolites); `stratum` tells which spots count, NaN
    are left out. A metabolite with fewer than 20 of them takes the scores of all; 1 where these are of fewer than 20 spots.
    """
    width, distance = np.where(measured > prediction, above, below), np.abs(measured - prediction)
    usable = stratum & ~np.isnan(measured) & ((width > 0) | (distance == 0))
    score = np.where(usable, distance / np.where(width > 0, width, 1.0), np.nan)
    enough = number(score) >= MIN_COUNT
    factor = np.ones(measured.shape[1])
    ones, level = np.ones(len(score)), np.array([coverage])
    if usable.any(axis=1).sum() >= MIN_COUNT:
        factor[:] = upper_quantiles(score.ravel(), np.ones(score.size), level)[0]
    for m in np.flatnonzero(enough):
        factor[m] = upper_quantiles(score[:, m], ones, level)[0]
    return factor


def upper_quantiles(score: Floats, weight: Floats, levels: Floats) -> Floats:
    """Smallest scores at or under which a share of the weight lies, shape (levels,); NaN scores (spots,) are left out.

    Levels are widened by :math:`1 + 1/n` as in split-conformal prediction, with the effective number :math:`n` of unequal
    weights (Kish); past 1 the largest score is taken.
    """
    known = ~np.isnan(score)
    score, weight = score[known], weight[known]
    order = np.argsort(score)
    below = np.cumsum(weight[order])
    share = np.minimum(levels * (1 + _inverse_size(weight)), 1) * below[-1]
    # sums of equal weights differ from their multiples in the last bits
    at = np.searchsorted(below, share * (1 - 1e-12), side="left")
    return score[order][np.minimum(at, len(score) - 1)]


def tail_quantiles(own: Floats, both: Floats, weight: Floats, levels: Floats) -> tuple[Floats, Floats, Bools]:
    """Upper quantiles of each metabolite in its stratum, those of both strata together where that is thin, and where it is not.

    Levels are of shape (levels,), or (levels, metabolites); quantiles are of shape (levels, metabolites), 0 where there is no score.
    """
    enough = number(own) >= MIN_COUNT
    some = ~np.isnan(both).all(axis=0)
    of_own, of_both = np.zeros((2, len(levels), own.shape[1]))
    levels = np.broadcast_to(levels.reshape(len(levels), -1), of_own.shape)
    for m in np.flatnonzero(some):
        into, scores = (of_own, own) if enough[m] else (of_both, both)
        into[:, m] = upper_quantiles(scores[:, m], weight[:, m], levels[:, m])
    return of_own, of_both, enough


def of_thin_strata(own: Floats, both: Floats, enough: Bools, some: Bools) -> Floats:
    """Quantiles of all strata from those of :func:`tail_quantiles`, shape (strata, levels, metabolites).

    `some` are the metabolites with any score. Scores have one scale, so a thin stratum takes the mean quantiles of the other metabolites. Where none has enough, it takes the
    metabolite's own of both strata.
    """
    values = own.copy()
    for k, there in enumerate(enough):
        thin = some & ~there
        values[k][:, thin] = values[k][:, there].mean(axis=1)[:, None] if there.any() else both[k][:, thin]
    return values


def _inverse_size(weight: Floats) -> float:
    """One over the effective number of weighted scores."""
    return float((weight**2).sum() / weight.sum() ** 2)
