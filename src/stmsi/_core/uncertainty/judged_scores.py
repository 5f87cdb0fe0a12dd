"""Scores of held-out spots under the hurdle model, and what they say of each level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.metrics.columns import number
from stmsi._core.spatial.sections import rows_of_each
from stmsi._core.uncertainty.hurdle_spread import hurdle_spread, spread_coefficients
from stmsi._core.uncertainty.left_out_groups import held_out_coverage, left_out_levels, missed_weights
from stmsi._core.uncertainty.weighted_quantiles import MIN_COUNT, tail_quantiles, upper_quantiles

_JUDGED = 0.9  # coverage that is shown for left-out groups


@dataclass(frozen=True)
class JudgedScores:
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
    ) -> JudgedScores:
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
        """:func:`missed_weights` of spots called absent and present, shape (2, levels + 1)."""
        return np.stack([missed_weights(own, self.weight, coverages) for own in (self.of_absent, self.of_present)])

    def calibrated(
        self, level: Floats, level_present: Floats, coverages: Floats, group: Ints
    ) -> tuple[Floats, Floats, Bools, Ints, Floats, Floats, Floats]:
        """Quantiles of three tails (:func:`tail_quantiles`), numbers of scores, coverage of left-out groups, spread and signal."""
        tail = (1 + level_present) / 2
        upper = np.column_stack([np.interp(level_present, coverages, share) for share in self.above.T])
        score, absent, present = self.score, self.absent, self.present
        tails = ((absent, score, level), (-present, -score, tail), (present, score, upper))
        own, both, enough = (
            np.stack(of) for of in zip(*(tail_quantiles(o, b, self.weight, at) for o, b, at in tails), strict=True)
        )
        at = round(_JUDGED * (len(coverages) - 1))
        covered = np.where(np.isnan(self.of_absent), self.of_present < level_present[at], self.of_absent < level[at])
        judged = ~np.isnan(self.of_absent) | ~np.isnan(self.of_present)
        count = np.stack([number(absent), number(present)])
        held_out = held_out_coverage(covered, judged, group)
        return own, both, enough, count, held_out, self.spread, self.signal


def _shares_above(score: Floats, weight: Floats, to_zero: Floats, coverages: Floats) -> Floats:
    """Share of the scores of each metabolite that the upper bound must hold, shape (levels, metabolites).

    The lower bound leaves out an equal tail, but nothing of spots whose level `to_zero` is passed (spots, metabolites): no
    intensity lies below 0. The upper bound leaves out the rest. Metabolites that are absent from many of the spots called
    present would else be covered too often.
    """
    shares = np.repeat((1 + coverages[:, None]) / 2, score.shape[1], axis=1)
    for m in np.flatnonzero(number(score) >= MIN_COUNT):
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


def _signal(prediction: Floats) -> Floats:
    """Variance of predictions (spots, metabolites) where there are some, shape (metabolites,); 0 without any."""
    n = np.maximum(number(prediction), 1)
    mean = np.nansum(prediction, axis=0) / n
    return np.nansum((prediction - mean) ** 2, axis=0) / n
