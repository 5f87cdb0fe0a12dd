"""Ridge regression of many targets on the same features, with one penalty for all of them.

A penalty per target is noise where there are many targets or few spots. The Gram matrix of the features is summed for each
group of spots, so that every fold is the total less the group left out, and one factorisation serves all targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve, eigh

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.metrics.columns import correlation_of_sums, in_pieces

PENALTIES = np.logspace(-3, 3, 13)
"""In units of the mean squared length of a spot's features."""
_START = 6
_MIN_UNIT = 5  # spots below which a correlation inside a unit says nothing
_TOLERANCE, _MOST_STEPS = 1e-3, 40
_SLOPE_SPOTS = 100
_ENTRIES = 2**22  # spots times targets that are solved at once
LEAST_SLOPE, MOST_SLOPE = 0.05, 1.5
"""What is left of a prediction that held-out spots do not bear out: little, yet the order of the spots stays."""


@dataclass(frozen=True)
class SharedRidge:
    """A fitted regression of all targets.

    Attributes
    ----------
    weights, offset
        Shapes (features, targets) and (targets,).
    penalty
        The one chosen, in units of the mean squared length of a spot's features.
    held_out
        Predictions of the training spots by fits without their group, shape (spots, targets); NaN where there was none.
    """

    weights: Floats32
    offset: Floats32
    penalty: float
    held_out: Floats32

    def predict(self, F: AnyFloats) -> Floats32:
        """Predictions, shape (spots, targets)."""
        return np.asarray(F @ self.weights + self.offset, dtype=np.float32)


def fit_shared_ridge(
    F: Floats32, Y: Floats, groups: Ints, units: Ints, apart: Sequence[tuple[Ints, Ints]] = ()
) -> SharedRidge:
    """Fit all targets with the penalty whose held-out predictions follow the truth best.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    Y
        Targets, shape (spots, targets); NaN where not measured.
    groups
        Number of each spot's inner fold, from 0.
    units
        Number of each spot's section (or of its part in a fold), within which patterns are compared.
    apart
        Targets that are known in one group only, as positions, each with groups of their own (-1: not measured).
    """
    moments = GroupMoments.of(F, Y, groups)
    penalty, held_out = choose_penalty(moments, HeldOutTruth.of(Y, groups, units))
    return fit_at(penalty, moments, held_out, apart)


def fit_at(
    penalty: float, moments: GroupMoments, held_out: Floats32 | None = None, apart: Sequence[tuple[Ints, Ints]] = ()
) -> SharedRidge:
    """Fit with a penalty that is known; `held_out` are its held-out predictions where they are known, too."""
    every = [None] if held_out is not None else [*range(len(moments.gram)), None]
    *without, of_all = moments.fits(penalty, every)
    if held_out is None:
        held_out = moments.held_out(penalty, without)
    for columns, own in apart:
        rows = np.flatnonzero(own >= 0)
        alone = moments.some(rows, columns, own[rows])
        held_out[np.ix_(rows, columns)] = alone.held_out(penalty)
    weights = of_all.astype(np.float32)
    return SharedRidge(weights[:-1], weights[-1], penalty, held_out)


def choose_penalty(moments: GroupMoments, truth: HeldOutTruth) -> tuple[float, Floats32]:
    """The penalty whose held-out predictions score best, and these predictions."""
    best: tuple[float, Floats32 | None] = -np.inf, None

    def score(penalty: float) -> float:
        nonlocal best
        held_out = moments.held_out(penalty)
        found = truth.score(held_out)
        # of the predictions, which may be large, only the best are kept
        if found >= best[0]:
            best = found, held_out
        return found

    penalty, held_out = climb(score), best[1]
    assert held_out is not None
    return penalty, held_out


def climb(score: Callable[[float], float]) -> float:
    """The penalty of the best score; of equal ones, the last that was tried."""
    tried: dict[int, float] = {}

    def of(i: int) -> float:
        if i not in tried:
            tried[i] = score(float(PENALTIES[i]))
        return tried[i]

    # the score has one maximum over the penalty but for noise: climb from the middle
    at, step = _START, 1 if of(_START + 1) >= of(_START) else -1
    while 0 <= at + step < len(PENALTIES) and of(at + step) >= of(at):
        at += step
    return float(PENALTIES[at])


@dataclass(frozen=True)
class GroupMoments:
    """Second moments of the features, with a constant appended, in each group of spots."""

    F: Floats32  # features with the constant, shape (spots, features + 1)
    Y: Floats32  # targets, 0 where not measured
    known: Bools  # whether measured, shape (spots, targets)
    groups: Ints
    gram: Floats32  # of each group, shape (groups, features + 1, features + 1)
    cross: Floats32  # features x targets of each group
    unit: float  # of the penalty: mean squared length of a spot's features
    number: Ints  # spots of each group where a target is measured, shape (groups, targets)

    @classmethod
    def of(cls, F: Floats32, Y: Floats, groups: Ints, unit: float | None = None) -> GroupMoments:
        """Sum them up; arguments as for :func:`fit_shared_ridge`."""
        known = ~np.isnan(Y)
        F1 = np.ones((len(F), F.shape[1] + 1), np.float32)
        F1[:, :-1] = F
        filled = np.where(known, Y, 0).astype(np.float32)
        n, p = int(groups.max()) + 1, F1.shape[1]
        gram, cross = np.empty((n, p, p), np.float32), np.empty((n, p, Y.shape[1]), np.float32)
        for g in range(n):
            own = groups == g
            part = F1[own]
            gram[g], cross[g] = part.T @ part, part.T @ filled[own]
        if unit is None:
            unit = max(float(np.einsum("ij,ij->", F1[:, :-1], F1[:, :-1], dtype=np.float64)) / max(len(F1), 1), 1e-12)
        return cls(F1, filled, known, groups, gram, cross, unit, _number(known, groups, n))

    def some(self, rows: Ints, columns: Ints, groups: Ints) -> GroupMoments:
        """The moments of some spots and targets in other groups."""
        known = self.known[np.ix_(rows, columns)]
        Y = np.where(known, self.Y[np.ix_(rows, columns)], np.nan)
        return GroupMoments.of(self.F[rows, :-1], Y, groups, self.unit)

    def with_targets(self, Y: Floats) -> GroupMoments:
        """The same features and groups with other targets (spots, targets)."""
        known = ~np.isnan(Y)
        filled = np.where(known, Y, 0).astype(np.float32)
        cross = np.stack([self.F[self.groups == g].T @ filled[self.groups == g] for g in range(len(self.gram))])
        return replace(self, Y=filled, known=known, cross=cross, number=_number(known, self.groups, len(self.gram)))

    def fit(self, penalty: float, without: int | None = None) -> Floats:
        """Weights, the constant's last, of all groups or of all but one; shape (features + 1, targets)."""
        return self.fits(penalty, [without])[0]

    def fits(self, penalty: float, without: Sequence[int | None]) -> list[Floats]:
        """As :meth:`fit`, without one group after the other."""
        shrink = np.full(self.gram.shape[1], penalty * self.unit)
        # the constant is not shrunk, but for what keeps the matrix regular
        shrink[-1] = 1e-6
        fitted, unsolved = [], []
        whole_in = self.number == np.bincount(self.groups, minlength=len(self.gram))[:, None]
        for left_out in without:
            used = np.arange(len(self.gram)) != (-1 if left_out is None else left_out)
            gram = self.gram[used].sum(axis=0, dtype=np.float64)
            cross = self.cross[used].sum(axis=0, dtype=np.float64)
            whole = whole_in[used].all(axis=0)
            weights = np.empty(cross.shape)
            fitted.append(weights)
            if not whole.all():
                part = np.flatnonzero(~whole)
                unsolved.append((weights, Partial(part, used, cross[:, part], *_axes(gram, shrink))))
            if whole.any():
                gram[np.diag_indices_from(gram)] += shrink
                factor = cho_factor(gram, overwrite_a=True, check_finite=False)
                weights[:, whole] = cho_solve(factor, cross[:, whole], check_finite=False)
        # together, as long as what the iteration holds stays small
        many = self._at_once(len(unsolved))
        for start in range(0, len(unsolved), many):
            some = unsolved[start : start + many]
            solved = self._where_known([problem for _, problem in some], shrink)
            for (weights, problem), B in zip(some, solved, strict=True):
                weights[:, problem.columns] = B
        return fitted

    def _at_once(self, n_problems: int) -> int:  # noqa: ARG002
        """How many fits are solved together."""
        return max(_ENTRIES // max(self.known.size, 1), 1)

    def _known_spots(self, problems: Sequence[Partial]) -> KnownSpots:
        """The spots where the targets of some fits are known."""
        return _InMemory(self, problems)

    def _where_known(self, problems: Sequence[Partial], shrink: Floats) -> list[Floats]:
        """Targets that some spots lack: conjugate gradients, all together, with the matrix of all spots by their share as preconditioner."""
        spots, size = self._known_spots(problems), np.bincount(self.groups, minlength=len(self.gram))
        inverse = shrink[:, None]
        of = np.repeat(np.arange(len(problems)), [len(p.columns) for p in problems])
        known = np.concatenate([self.number[p.groups][:, p.columns].sum(axis=0) for p in problems])
        share = np.maximum(known / np.array([size[p.groups].sum() for p in problems])[of], 1e-3)
        damp = np.hstack([1 / (p.values[:, None] * share[of == k] + 1) for k, p in enumerate(problems)])

        def times(B: Floats) -> Floats:
            return spots.times(B) + inverse * B

        def solve(R: Floats) -> Floats:
            out = np.empty_like(R)
            for k in np.unique(of):
                own, axes = of == k, problems[k].axes
                out[:, own] = axes @ (damp[:, own] * (axes.T @ R[:, own]))
            return out

        cross = np.hstack([p.cross for p in problems])
        total, left = solve(cross), np.arange(len(of))
        limit = _TOLERANCE**2 * np.maximum((cross * total).sum(axis=0), 1e-30)
        R = cross - times(total)
        D = Z = solve(R)
        size, owner = (R * Z).sum(axis=0), of
        for _ in range(_MOST_STEPS):
            # most targets need a few steps, and are left out of the others
            going = size > limit[left]
            if not going.any():
                break
            if not going.all():
                spots.keep(going)
                left, size, of = left[going], size[going], of[going]
                R, D, damp = R[:, going], D[:, going], damp[:, going]
            AD = times(D)
            step = size / np.maximum((D * AD).sum(axis=0), 1e-30)
            total[:, left] += step * D
            R = R - step * AD
            Z = solve(R)
            new = (R * Z).sum(axis=0)
            D = Z + new / np.maximum(size, 1e-30) * D
            size = new
        return [total[:, owner == k] for k in range(len(problems))]

    def held_out(self, penalty: float, fits: Sequence[Floats] | None = None) -> Floats32:
        """Predictions of every spot by the fit without its group (`fits`, one for each); NaN where a target is not measured in the others."""
        out = np.empty(self.Y.shape, np.float32)
        fits = self.fits(penalty, range(len(self.gram))) if fits is None else fits
        for g, weights in enumerate(fits):
            own = np.flatnonzero(self.groups == g)
            predicted = self.F[own] @ weights.astype(np.float32)
            predicted[:, self.only_in(g)] = np.nan
            out[own] = predicted
        return out

    def only_in(self, group: int) -> Bools:
        """Targets that no other group has measured, shape (targets,)."""
        return np.asarray(~np.delete(self.number, group, axis=0).any(axis=0))


@dataclass(frozen=True)
class Partial:
    """A fit of the targets that some of its spots lack."""

    columns: Ints
    groups: Bools  # that are fitted to
    cross: Floats
    values: Floats  # of the Gram matrix of these spots, in units of the penalty
    axes: Floats


class KnownSpots(Protocol):
    """The spots where the targets of several fits are known, side by side."""

    def times(self, B: Floats) -> Floats:
        """The Gram matrix of the spots of each column of weights, times this column."""

    def keep(self, going: Bools) -> None:
        """Leave out columns that are solved."""


class _InMemory:
    def __init__(self, moments: GroupMoments, problems: Sequence[Partial]) -> None:
        used = np.logical_or.reduce([p.groups for p in problems])[moments.groups]
        self.F = moments.F if used.all() else moments.F[used]
        # products with many spots are faster along rows
        self.F_T = np.ascontiguousarray(self.F.T)
        known = [(moments.known[:, p.columns] & p.groups[moments.groups][:, None])[used] for p in problems]
        self.known = np.hstack(known).astype(np.float32)

    def times(self, B: Floats) -> Floats:
        predicted = self.F @ B.astype(np.float32)
        predicted *= self.known
        return np.asarray(self.F_T @ predicted, dtype=np.float64)

    def keep(self, going: Bools) -> None:
        self.known = self.known[:, going]


def _number(known: Bools, groups: Ints, n_groups: int) -> Ints:
    return np.stack([known[groups == g].sum(axis=0) for g in range(n_groups)])


def _axes(gram: Floats, shrink: Floats) -> tuple[Floats, Floats]:
    """Decomposition in units in which the penalty is 1: one serves every share of the spots."""
    root = np.sqrt(shrink)
    values, axes = eigh(gram / np.outer(root, root), overwrite_a=True, check_finite=False)
    return np.maximum(values, 0), axes / root[:, None]


@dataclass(frozen=True)
class HeldOutTruth:
    """What held-out predictions are judged by: the pattern inside units, and the level between them.

    All values are taken relative to the mean of the other groups, which is what a fold knows of the level, and in units of the
    target's largest deviation from it, so that single precision holds intensities of any scale.
    """

    y: Floats32  # truth less the mean of the other groups, 0 where not known
    size: Floats32  # largest of these deviations, in the unit of the target, shape (targets,)
    known: Bools
    base: Floats32  # the mean of the other groups, shape (groups, targets)
    groups: Ints
    of_unit: sp.csr_matrix  # spots of each unit, shape (units, spots)

    @classmethod
    def of(cls, Y: Floats, groups: Ints, units: Ints) -> HeldOutTruth:
        """Arguments as for :func:`fit_shared_ridge`."""
        of_group, of_unit = _membership(groups), _membership(np.unique(units, return_inverse=True)[1])
        y, size, known, base = in_pieces(partial(_deviations, groups=groups, of_group=of_group), Y)
        return cls(y, size, known, base, groups, of_unit)

    def of_columns(self, columns: Ints) -> HeldOutTruth:
        """Of some targets."""
        of_spots = {name: getattr(self, name)[:, columns] for name in ("y", "known", "base")}
        return replace(self, size=self.size[columns], **of_spots)

    def deviation(self, held_out: AnyFloats) -> tuple[AnyFloats, Bools]:
        """Predictions less the mean of the other groups, in units of `size`, 0 where one side is not known; whether both are."""
        both = self.known & ~np.isnan(held_out)
        return np.where(both, (held_out - self.base[self.groups]) / self.size, 0), both

    def score(self, held_out: AnyFloats) -> float:
        """Mean over targets of the correlation inside units and of the pooled one, as far as they exist; 0 without any."""
        inside, pooled = self.scores(held_out)
        found = [float(np.nanmean(s)) for s in (inside, pooled) if np.isfinite(s).any()]
        return float(np.mean(found)) if found else 0.0

    def scores(self, held_out: AnyFloats) -> tuple[Floats, Floats]:
        """Of each target, the mean correlation inside units with five spots at least, and the correlation of all spots."""
        h, both = self.deviation(held_out)
        y = np.where(both, self.y, 0)
        sums = [
            np.asarray(self.of_unit @ v, dtype=np.float64) for v in (both.astype(np.float32), y, h, y * y, h * h, y * h)
        ]
        return scores_of_sums(np.stack(sums))

    def products(self, maps: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """What the scores of every weighted mean of several maps follow from.

        `maps` are of shape (maps, spots, targets); where one is not known, nothing counts. Sums over the spots of each unit,
        and of all spots last, in units of `size`: number (units + 1, targets), variance of the truth, its products with the maps
        (maps, units + 1, targets), and theirs with each other (maps, maps, units + 1, targets). All but the last unit are centred in the unit.
        """
        both = self.known & ~np.isnan(maps).any(axis=0)
        y = np.where(both, self.y, 0)
        h = [np.where(both, self.deviation(m)[0], 0).astype(np.float32) for m in maps]

        def summed(values: AnyFloats) -> Floats:
            sums = np.asarray(self.of_unit @ values, dtype=np.float64)
            return np.vstack([sums, sums.sum(axis=0)])

        n = summed(both.astype(np.float32))
        many = np.maximum(n, 1)
        first, level = summed(y), [summed(v) for v in h]
        variance = summed(y * y) - first**2 / many
        along = np.stack([summed(y * v) - first * s / many for v, s in zip(h, level, strict=True)])
        between = np.empty((len(h), len(h), *n.shape))
        for a, b in zip(*np.triu_indices(len(h)), strict=True):
            between[a, b] = between[b, a] = summed(h[a] * h[b]) - level[a] * level[b] / many
        return n, variance, along, between

    def slopes(self, held_out: AnyFloats) -> Floats:
        """Factor on each target's deviation from its mean that held-out spots bear out, shrunk to that of all targets."""
        h, both = self.deviation(held_out)
        y = np.where(both, self.y, 0)
        along, size = (h * y).sum(axis=0, dtype=np.float64), (h * h).sum(axis=0, dtype=np.float64)
        return slopes_of_sums(along, size, (y * y).sum(axis=0, dtype=np.float64), both.sum(axis=0))

    def scaled(self, held_out: AnyFloats, slope: Floats) -> Floats:
        """Held-out predictions with so much of their deviation from what their fold knows of the mean."""
        base = self.base[self.groups]
        return np.asarray(base + slope * (held_out - base), dtype=np.float64)


def _deviations(Y: Floats, groups: Ints, of_group: sp.csr_matrix) -> tuple[Floats32, Floats32, Bools, Floats32]:
    """The first four fields of :class:`HeldOutTruth`."""
    known = ~np.isnan(Y)
    filled = np.where(known, Y, 0)
    total, count = of_group @ filled, of_group @ known.astype(np.float64)
    rest = count.sum(axis=0) - count
    base = np.where(
        rest > 0,
        (total.sum(axis=0) - total) / np.maximum(rest, 1),
        total.sum(axis=0) / np.maximum(count.sum(axis=0), 1),
    )
    y = np.where(known, filled - base[groups], 0)
    # of a constant, the mean is off by rounding, which is no pattern
    y = np.where(np.abs(y) > 1e-9 * np.abs(filled), y, 0)
    size, level = (np.abs(v).max(axis=0, initial=0) for v in (y, filled))
    size = np.where(size > 0, size, np.where(level > 0, level, 1))
    return (y / size).astype(np.float32), size.astype(np.float32), known, base.astype(np.float32)


def scores_of_sums(sums: Floats) -> tuple[Floats, Floats]:
    """:meth:`HeldOutTruth.scores` from the sums of each unit, shape (6, units, targets)."""
    n, *rest = sums
    each = correlation_of_sums(n, *rest)
    each[n < _MIN_UNIT] = np.nan
    enough = np.isfinite(each)
    inside = np.where(enough.any(axis=0), np.nansum(each, axis=0) / np.maximum(enough.sum(axis=0), 1), np.nan)
    return inside, correlation_of_sums(*(s.sum(axis=0) for s in sums))


def slopes_of_sums(along: Floats, size: Floats, scale: Floats, number: AnyFloats | Ints) -> Floats:
    """:meth:`HeldOutTruth.slopes` from sums of products over the spots, each of shape (targets,)."""
    # a constant says nothing of the slope of the others
    varies, scale = scale > 0, np.maximum(scale, 1e-30)
    everywhere = float((along / scale).sum() / max(float((size / scale)[varies].sum()), 1e-30))
    # the slope of all targets counts as so many spots
    prior = scale * _SLOPE_SPOTS / np.maximum(number, 1)
    return np.clip((along + prior * everywhere) / (size + prior), LEAST_SLOPE, MOST_SLOPE)


def _membership(label: Ints) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(label), np.float32), (label, np.arange(len(label)))))
