"""Prediction intervals of hurdle models, calibrated on whole groups of held-out spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.arrays import AnyFloats, Floats, Floats32, Ints
from stmsi._core.metrics.columns import column_pieces
from stmsi._core.uncertainty.hurdle_spread import hurdle_spread
from stmsi._core.uncertainty.judged_scores import JudgedScores
from stmsi._core.uncertainty.left_out_groups import raised_by
from stmsi._core.uncertainty.weighted_quantiles import of_thin_strata

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS = 401
ABSENT, LOWER, UPPER = range(3)
"""Rows of :attr:`GroupConformal.values`."""


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

        def judged(columns: slice) -> JudgedScores:
            t, present, chance, value, predicted = (a[:, columns] for a in arrays)
            return JudgedScores.of(t, present, chance, value, predicted, group, doubt, coverages)

        # some metabolites at a time, so that what is computed on the way takes as much memory for few spots as for many
        parts = [judged(columns) for columns in pieces[:1]] if len(pieces) == 1 else (judged(c) for c in pieces)
        missed = np.sum([part.missed(coverages) for part in parts], axis=0)
        n_groups = int(group.max(initial=-1)) + 1
        level, level_present = (raised_by(own, n_groups, coverages) for own in missed)
        done = [
            part.calibrated(level, level_present, coverages, group)
            for part in (parts if isinstance(parts, list) else (judged(c) for c in pieces))
        ]
        own, both, enough, count, held_out, spread, signal = (
            np.concatenate(of, axis=-1) for of in zip(*done, strict=True)
        )
        return cls(
            coverages,
            of_thin_strata(own, both, enough, np.asarray(count.any(axis=0))),
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
