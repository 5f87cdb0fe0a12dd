"""Levels at which groups that take no part in the quantiles are covered as asked."""

from __future__ import annotations

import numpy as np

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.sections import rows_of_each
from stmsi._core.uncertainty.weighted_quantiles import MIN_COUNT


def raised_levels(needed: Floats, weight: Floats, group: Ints, coverages: Floats) -> Floats:
    """Levels at which groups that took no part in the quantiles are covered as asked, shape (levels,).

    Levels needed (:func:`left_out_levels`) and weights are of shape (spots, metabolites), groups numbers from 0. Levels do not
    fall, are at least `coverages`, which rise from 0 to 1, and equal them with a single group.
    """
    return raised_by(missed_weights(needed, weight, coverages), int(group.max(initial=-1)) + 1, coverages)


def missed_weights(needed: Floats, weight: Floats, coverages: Floats) -> Floats:
    """Weight of the scores that each level, and none, is the first to cover, every metabolite having the weight 1; shape (levels + 1,)."""
    share = np.where(np.isnan(needed), 0, weight)
    share /= np.maximum(share.sum(axis=0), 1e-300)
    kept = share > 0
    # covered by the levels above the one needed
    at = np.searchsorted(coverages, needed[kept], side="right")
    return np.asarray(np.bincount(at, share[kept], minlength=len(coverages) + 1), np.float64)


def raised_by(missed: Floats, n_groups: int, coverages: Floats) -> Floats:
    """:func:`raised_levels` from the sums of :func:`missed_weights`."""
    if not missed.any():
        return coverages.copy()
    covered = np.cumsum(missed[:-1]) / missed.sum()
    raised = np.interp(coverages, np.append(covered, 1.0), np.append(coverages, 1.0))
    return np.maximum.accumulate(coverages + (n_groups - 1) / n_groups * np.maximum(raised - coverages, 0))


def left_out_levels(score: Floats, weight: Floats, group: Ints, *, two_sided: bool) -> Floats:
    """Level above which quantiles of the other groups cover each score, shape (spots, metabolites).

    Infinite past their largest score, NaN where there is no score or the other groups have too few. Scores and weights are of shape
    (spots, metabolites), groups of shape (spots,).
    """
    known = ~np.isnan(score)
    weight = np.where(known, weight, 0)
    needed = np.full(score.shape, np.nan)
    groups = rows_of_each(np.unique(group, return_inverse=True)[1])
    of_group = np.stack([weight[own].sum(axis=0) for own in groups])
    squares = np.stack([(weight[own] ** 2).sum(axis=0) for own in groups])
    number_of = np.stack([known[own].sum(axis=0) for own in groups])
    # a score beyond the prediction (0) can be missed on its own side only
    sides = (score > 0, score < 0) if two_sided else (known,)
    beyond_all = _weights_beyond(score, weight, two_sided)
    for k, own in enumerate(groups):
        of_own = _weights_beyond(score[own], weight[own], two_sided)
        for side, all_groups, own_group in zip(sides, beyond_all, of_own, strict=True):
            below = all_groups[own] - own_group
            number_left = number_of.sum(axis=0) - number_of[k]
            total = np.where(number_left > 0, of_group.sum(axis=0) - of_group[k], 1)
            share = below / total
            level = share / (1 + (squares.sum(axis=0) - squares[k]) / total**2)
            level = np.where(share < 1 - 1e-12, np.maximum(2 * level - 1 if two_sided else level, 0), np.inf)
            judged = known[own] & (number_left >= MIN_COUNT)
            before = needed[own]
            elsewhere = np.where(np.isnan(before), 0, before)
            needed[own] = np.where(judged, np.where(side[own], level, elsewhere), before)
    return needed


def _weights_beyond(values: Floats, weight: Floats, two_sided: bool) -> list[Floats]:
    """Weight of the values of a column that are smaller than each one, and if asked for, of those that are larger.

    Each of shape (spots, metabolites). NaN, which must weigh nothing, is the largest.
    """
    # columns are sorted faster as rows; which of equal values comes first is of no matter here
    values, weight = np.ascontiguousarray(values.T), np.ascontiguousarray(weight.T)
    # places in the flat arrays, in order of the values
    start = np.arange(len(values))[:, None] * values.shape[1]
    order = start + np.argsort(values, axis=1)
    values, weight = values.ravel()[order], weight.ravel()[order]
    out = []
    for step in (1, -1)[: 1 + two_sided]:
        own, at = weight[:, ::step], order[:, ::step]
        before = np.cumsum(own, axis=1) - own
        beyond = np.empty(before.size)
        beyond[at] = before.ravel()[start + _first_of_ties(values[:, ::step])]
        out.append(beyond.reshape(before.shape).T)
    return out


def _first_of_ties(values: Floats) -> Ints:
    """Place of the first of the equal values that each sorted value belongs to, row by row."""
    begins = np.hstack([np.ones_like(values[:, :1], dtype=bool), values[:, 1:] != values[:, :-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(values.shape[1]), 0), axis=1)


def held_out_coverage(covered: Bools, judged: Bools, group: Ints) -> Floats:
    """Share of the judged spots of each group that is covered: mean and lowest of the groups, shape (2, metabolites)."""
    own = rows_of_each(group)
    n = np.stack([judged[rows].sum(axis=0) for rows in own])
    share = np.stack([(covered & judged)[rows].sum(axis=0) for rows in own]) / np.maximum(n, 1)
    some = n.any(axis=0)
    mean = (share * (n > 0)).sum(axis=0) / np.maximum((n > 0).sum(axis=0), 1)
    return np.where(some, np.stack([mean, np.where(n > 0, share, 2).min(axis=0)]), np.nan)
