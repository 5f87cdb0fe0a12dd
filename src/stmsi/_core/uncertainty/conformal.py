"""Prediction intervals of hurdle models, calibrated on whole groups of held-out spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.metrics.columns import column_pieces, number
from stmsi._core.spatial.sections import rows_of_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = 401
_MIN_COUNT = 20  # a metabolite with fewer held-out spots of a stratum takes the scores of the others
_FLOOR = 0.05  # least spread of a spot, as a share of the root mean squared error of its metabolite
_JUDGED = 0.9  # coverage that is shown for left-out groups
ABSENT, LOWER, UPPER = range(3)
"""Rows of :attr:`GroupConformal.values`."""


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


def doubt_of(distance: AnyFloats, missing: float = 0.0) -> Floats:
    r"""Variance that a spot's prediction may be off by, as a share of the variance of all, :math:`m^2 + \max(d^2 - 1, 0)`.

    Parameters
    ----------
    distance
        Out-of-distribution score :math:`d` of each spot, 1 for the 95 % quantile of the training spots. The variance of what
        is extended past the data grows with the square of the distance.
    missing
        Share :math:`m` of what the model reads that was imputed. Genes at their mean take their part out of the prediction: a
        share :math:`m` of its deviation from the mean where genes stand in for each other.
    """
    return missing**2 + np.maximum(np.asarray(distance, np.float64) ** 2 - 1, 0)


@dataclass(frozen=True)
class GroupConformal:
    r"""Intervals from the errors of held-out groups (sections, or blocks).

    Errors are scores in units of the hurdle model's standard deviation of the spot (:func:`hurdle_spread`), so confident
    spots get narrow intervals, and spots far from the training data, or with imputed genes, wide ones (:func:`doubt_of`).
    For each metabolite, and for spots called absent and present apart, the scores of all groups form one distribution in which
    every group weighs the same. Spots called absent have a lower bound of 0 and one tail of it as upper bound, spots called
    present two equal tails. Where absence is likelier than a tail, the lower bound is 0; what is not missed below is left out above.

    A new section is none of those groups, which costs coverage. So the level is raised until groups that are left out, one
    after the other, are covered as asked over all metabolites, times :math:`(K - 1) / K`, since :math:`K` groups and not
    :math:`K - 1` form the final distribution. The raised level is an estimate and no bound: if sections are exchangeable,
    coverage approaches the one asked for with their number. Pooled distributions are those of Dunn, Wasserman and Ramdas,
    J. Am. Stat. Assoc. 118 (2023); their bound for any number of sections needs at least nine of them for 90 %.
    """

    coverages: Floats  # coverages of the table, shape (levels,)
    values: Floats  # scores at the bounds (absent: upper; present: minus lower, upper), shape (3, levels, metabolites)
    count: Ints  # held-out spots behind them, shape (2, metabolites): called absent, called present
    spread: Floats  # coefficients of the standard deviation, shape (3, metabolites)
    signal: Floats  # variance of the predictions, shape (metabolites,)
    held_out: Floats  # coverage of 90 % intervals in left-out groups, mean and lowest of them, shape (2, metabolites)

    @classmethod
    def fit(
        cls,
        truth: Floats,
        presence: Floats,
        probability: Floats,
        intensity: Floats,
        prediction: Floats,
        groups: Ints,
        doubt: Floats | None = None,
    ) -> GroupConformal:
        """Calibrate on held-out predictions (spots, metabolites), 0 where called absent; pairs with NaN are left out.

        Intensities below 0 count as 0.

        `doubt` is that of each spot (:func:`doubt_of`), for its distance from the spots of the other groups; `None`: 0.
        """
        group = np.unique(groups, return_inverse=True)[1]
        coverages = np.linspace(0, 1, _LEVELS)
        arrays = truth, presence, probability, intensity, prediction
        pieces = column_pieces(*truth.shape)

        def judged(columns: slice) -> _Judged:
            t, present, chance, value, predicted = (a[:, columns] for a in arrays)
            return _Judged.of(t, present, chance, value, predicted, group, doubt, coverages)

        # some metabolites at a time, so that what is computed on the way takes as much memory for few spots as for many
        parts = [judged(columns) for columns in pieces[:1]] if len(pieces) == 1 else (judged(c) for c in pieces)
        missed = np.sum([part.missed(coverages) for part in parts], axis=0)
        n_groups = int(group.max(initial=-1)) + 1
        level, level_present = (_raised(own, n_groups, coverages) for own in missed)
        done = [
            part.calibrated(level, level_present, coverages, group)
            for part in (parts if isinstance(parts, list) else (judged(c) for c in pieces))
        ]
        own, both, enough, count, held_out, spread, signal = (
            np.concatenate(of, axis=-1) for of in zip(*done, strict=True)
        )
        return cls(
            coverages,
            _of_thin_strata(own, both, enough, np.asarray(count.any(axis=0))),
            count,
            spread,
            signal,
            held_out,
        )

    def interval(
        self,
        prediction: Floats32,
        probability: AnyFloats,
        intensity: AnyFloats,
        coverage: float,
        doubt: AnyFloats | None = None,
    ) -> tuple[Floats32, Floats32]:
        """Lower and upper bound, at least 0, with the prediction between them; shape (spots, metabolites).

        The coverage is rounded up to the table's next, a quarter of a per cent at most. `doubt` is that of each spot
        (:func:`doubt_of`), `None`: 0.
        """
        below, above = self.half_widths(prediction, probability, intensity, coverage, doubt)
        return np.maximum(prediction - below, 0).astype(np.float32), (prediction + above).astype(np.float32)

    def half_widths(
        self,
        prediction: Floats32,
        probability: AnyFloats,
        intensity: AnyFloats,
        coverage: float,
        doubt: AnyFloats | None = None,
    ) -> tuple[Floats, Floats]:
        """Distance of either bound to the prediction, before bounds are cut at 0; at least 0, shape (spots, metabolites)."""
        at = min(int(np.ceil(coverage * (len(self.coverages) - 1) - 1e-9)), len(self.coverages) - 1)
        added = 0.0 if doubt is None else np.asarray(doubt, np.float64)[:, None] * self.signal
        spread = hurdle_spread(probability, intensity, self.spread, added)
        called = prediction > 0
        sure = 1 - np.asarray(probability, np.float64) < (1 - self.coverages[at]) / 2
        sure |= self.count.sum(axis=0) == 0  # nothing is known of the metabolite
        below = np.where(sure, np.where(called, self.values[LOWER, at], 0) * spread, prediction)
        above = np.where(called, self.values[UPPER, at], self.values[ABSENT, at]) * spread
        return np.maximum(below, 0), np.maximum(above, 0)

    def take(self, columns: Ints) -> GroupConformal:
        """Calibration of some metabolites."""
        return GroupConformal(
            self.coverages, self.values[..., columns], self.count[:, columns], self.spread[:, columns],
            self.signal[columns], self.held_out[:, columns],
        )  # fmt: skip

    def with_columns(self, columns: NDArray[Any], other: GroupConformal) -> GroupConformal:
        """Calibration with some metabolites (numbers or mask) taken from another one, which has only them, in order."""
        values, count, spread = self.values.copy(), self.count.copy(), self.spread.copy()
        signal, held_out = self.signal.copy(), self.held_out.copy()
        values[:, :, columns], count[:, columns], spread[:, columns] = other.values, other.count, other.spread
        signal[columns], held_out[:, columns] = other.signal, other.held_out
        return GroupConformal(self.coverages, values, count, spread, signal, held_out)


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
    enough = number(score) >= _MIN_COUNT
    factor = np.ones(measured.shape[1])
    ones, level = np.ones(len(score)), np.array([coverage])
    if usable.any(axis=1).sum() >= _MIN_COUNT:
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


def raised_levels(needed: Floats, weight: Floats, group: Ints, coverages: Floats) -> Floats:
    """Levels at which groups that took no part in the quantiles are covered as asked, shape (levels,).

    Levels needed (:func:`left_out_levels`) and weights are of shape (spots, metabolites), groups numbers from 0. Levels do not
    fall, are at least `coverages`, which rise from 0 to 1, and equal them with a single group.
    """
    return _raised(_missed_weights(needed, weight, coverages), int(group.max(initial=-1)) + 1, coverages)


def _missed_weights(needed: Floats, weight: Floats, coverages: Floats) -> Floats:
    """Weight of the scores that each level, and none, is the first to cover, every metabolite having the weight 1; shape (levels + 1,)."""
    share = np.where(np.isnan(needed), 0, weight)
    share /= np.maximum(share.sum(axis=0), 1e-300)
    kept = share > 0
    # covered by the levels above the one needed
    at = np.searchsorted(coverages, needed[kept], side="right")
    return np.asarray(np.bincount(at, share[kept], minlength=len(coverages) + 1), np.float64)


def _raised(missed: Floats, n_groups: int, coverages: Floats) -> Floats:
    """:func:`raised_levels` from the sums of :func:`_missed_weights`."""
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
            judged = known[own] & (number_left >= _MIN_COUNT)
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


def _inverse_size(weight: Floats) -> float:
    """One over the effective number of weighted scores."""
    return float((weight**2).sum() / weight.sum() ** 2)


def _signal(prediction: Floats) -> Floats:
    """Variance of predictions (spots, metabolites) where there are some, shape (metabolites,); 0 without any."""
    n = np.maximum(number(prediction), 1)
    mean = np.nansum(prediction, axis=0) / n
    return np.nansum((prediction - mean) ** 2, axis=0) / n


def _shares_above(score: Floats, weight: Floats, to_zero: Floats, coverages: Floats) -> Floats:
    """Share of the scores of each metabolite that the upper bound must hold, shape (levels, metabolites).

    The lower bound leaves out an equal tail, but nothing of spots whose level `to_zero` is passed (spots, metabolites): no
    intensity lies below 0. The upper bound leaves out the rest. Metabolites that are absent from many of the spots called
    present would else be covered too often.
    """
    shares = np.repeat((1 + coverages[:, None]) / 2, score.shape[1], axis=1)
    for m in np.flatnonzero(number(score) >= _MIN_COUNT):
        known = ~np.isnan(score[:, m])
        below, own = -score[known, m], weight[known, m]
        bound = upper_quantiles(below, own, shares[:, m])
        # a spot is missed below at the levels before its own, up to that of its score
        last = np.minimum(np.searchsorted(bound, below, side="left"), np.searchsorted(coverages, to_zero[known, m]))
        left = np.append(np.cumsum(np.bincount(last, own, len(coverages) + 1)[::-1])[::-1], 0.0)[1:-1] / own.sum()
        shares[:, m] = np.maximum.accumulate(coverages + left)
    return np.clip(shares, 0, 1)


def _levels_of_tails(needed: Floats, above: Bools, shares: Floats, to_zero: Floats, coverages: Floats) -> Floats:
    """Levels needed with equal tails as those needed with the tails of :func:`_shares_above`, shape (spots, metabolites).

    `above` tells which scores lie above the prediction; those below have the same tail, until the bound is 0.
    """
    out = np.where(above, needed, np.minimum(needed, to_zero))
    for m in range(needed.shape[1]):
        rows = above[:, m] & np.isfinite(needed[:, m])
        out[rows, m] = np.interp((1 + needed[rows, m]) / 2, shares[:, m], coverages)
    return out


def _held_out_coverage(covered: Bools, judged: Bools, group: Ints) -> Floats:
    """Share of the judged spots of each group that is covered: mean and lowest of the groups, shape (2, metabolites)."""
    own = rows_of_each(group)
    n = np.stack([judged[rows].sum(axis=0) for rows in own])
    share = np.stack([(covered & judged)[rows].sum(axis=0) for rows in own]) / np.maximum(n, 1)
    some = n.any(axis=0)
    mean = (share * (n > 0)).sum(axis=0) / np.maximum((n > 0).sum(axis=0), 1)
    return np.where(some, np.stack([mean, np.where(n > 0, share, 2).min(axis=0)]), np.nan)


def _tail_quantiles(own: Floats, both: Floats, weight: Floats, levels: Floats) -> tuple[Floats, Floats, Bools]:
    """Upper quantiles of each metabolite in its stratum, those of both strata together where that is thin, and where it is not.

    Levels are of shape (levels,), or (levels, metabolites); quantiles are of shape (levels, metabolites), 0 where there is no score.
    """
    enough = number(own) >= _MIN_COUNT
    some = ~np.isnan(both).all(axis=0)
    of_own, of_both = np.zeros((2, len(levels), own.shape[1]))
    levels = np.broadcast_to(levels.reshape(len(levels), -1), of_own.shape)
    for m in np.flatnonzero(some):
        into, scores = (of_own, own) if enough[m] else (of_both, both)
        into[:, m] = upper_quantiles(scores[:, m], weight[:, m], levels[:, m])
    return of_own, of_both, enough


def _of_thin_strata(own: Floats, both: Floats, enough: Bools, some: Bools) -> Floats:
    """Quantiles of all strata from those of :func:`_tail_quantiles`, shape (strata, levels, metabolites).

    `some` are the metabolites with any score. Scores have one scale, so a thin stratum takes the mean quantiles of the other metabolites. Where none has enough, it takes the
    metabolite's own of both strata.
    """
    values = own.copy()
    for k, there in enumerate(enough):
        thin = some & ~there
        values[k][:, thin] = values[k][:, there].mean(axis=1)[:, None] if there.any() else both[k][:, thin]
    return values


@dataclass(frozen=True)
class _Judged:
    """Scores of some metabolites, and the levels that quantiles of the other groups would need to cover them; (spots, metabolites)."""

    score: Floats
    weight: Floats
    absent: Floats  # scores of spots called absent, NaN elsewhere
    present: Floats
    of_absent: Floats  # levels needed
    of_present: Floats
    above: Floats  # shares that upper bounds must hold, (levels, metabolites)
    spread: Floats
    signal: Floats

    @classmethod
    def of(
        cls,
        truth: Floats,
        presence: Floats,
        probability: Floats,
        intensity: Floats,
        prediction: Floats,
        group: Ints,
        doubt: Floats | None,
        coverages: Floats,
    ) -> _Judged:
        """Arguments as for :meth:`GroupConformal.fit`."""
        intensity = np.maximum(intensity, 0)
        spread, signal = spread_coefficients(truth, presence, intensity, prediction), _signal(probability * intensity)
        added = 0.0 if doubt is None else doubt[:, None] * signal
        score = (truth - prediction) / hurdle_spread(probability, intensity, spread, added)
        size = np.stack([number(score[own]) for own in rows_of_each(group)])
        weight = 1 / np.maximum(size, 1)[group]
        absent, present = (np.where(s, score, np.nan) for s in (prediction == 0, prediction > 0))
        of_absent = left_out_levels(absent, weight, group, two_sided=False)
        # from this level on, the spot may be absent by more than a tail: its lower bound is 0
        to_zero = np.maximum(1 - 2 * (1 - probability), 0)
        above = _shares_above(present, weight, to_zero, coverages)
        of_present = left_out_levels(present, weight, group, two_sided=True)
        of_present = _levels_of_tails(of_present, present > 0, above, to_zero, coverages)
        return cls(score, weight, absent, present, of_absent, of_present, above, spread, signal)

    def missed(self, coverages: Floats) -> Floats:
        """:func:`_missed_weights` of spots called absent and present, shape (2, levels + 1)."""
        return np.stack([_missed_weights(own, self.weight, coverages) for own in (self.of_absent, self.of_present)])

    def calibrated(
        self, level: Floats, level_present: Floats, coverages: Floats, group: Ints
    ) -> tuple[Floats, Floats, Bools, Ints, Floats, Floats, Floats]:
        """Quantiles of three tails (:func:`_tail_quantiles`), numbers of scores, coverage of left-out groups, spread and signal."""
        tail = (1 + level_present) / 2
        upper = np.column_stack([np.interp(level_present, coverages, share) for share in self.above.T])
        score, absent, present = self.score, self.absent, self.present
        tails = ((absent, score, level), (-present, -score, tail), (present, score, upper))
        own, both, enough = (
            np.stack(of) for of in zip(*(_tail_quantiles(o, b, self.weight, at) for o, b, at in tails), strict=True)
        )
        at = round(_JUDGED * (_LEVELS - 1))
        covered = np.where(np.isnan(self.of_absent), self.of_present < level_present[at], self.of_absent < level[at])
        judged = ~np.isnan(self.of_absent) | ~np.isnan(self.of_present)
        count = np.stack([number(absent), number(present)])
        held_out = _held_out_coverage(covered, judged, group)
        return own, both, enough, count, held_out, self.spread, self.signal
