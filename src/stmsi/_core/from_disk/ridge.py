"""The ridge regression of :mod:`stmsi._core.learning.shared_ridge` where features and targets stay on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.arrays_on_disk import DiskArray, Matrix, new_array, row_pieces
from stmsi._core.learning.shared_ridge import (
    GroupMoments,
    KnownSpots,
    Partial,
    climb,
    scores_of_sums,
    slopes_of_sums,
)


class _Block(NamedTuple):
    """Some spots: which they are, their groups, features with the constant, and targets."""

    rows: slice
    groups: Ints
    F: Floats32
    Y: Floats


class StoredMoments(GroupMoments):
    """As :class:`GroupMoments`; what is read of the spots is read in blocks, and nothing of it kept.

    Parameters
    ----------
    F
        Features, shape (spots, features), without the constant.
    Y
        Targets, shape (spots, targets); NaN where not measured.
    groups
        Number of each spot's inner fold, from 0.
    unit
        Of the penalty; `None`: the mean squared length of a spot's features.
    """

    features: Matrix
    targets: Matrix
    there: Any  # where targets are known, which conjugate gradients read again and again

    def __init__(self, F: Matrix, Y: Matrix, groups: Ints, unit: float | None = None) -> None:
        set_ = object.__setattr__  # the fields of a frozen dataclass
        set_(self, "features", F)
        set_(self, "targets", Y)
        set_(self, "groups", groups)
        n, p, m = int(groups.max()) + 1, F.shape[1] + 1, Y.shape[1]
        set_(self, "there", new_array(getattr(F, "folder", None), Y.shape, bool, by_column=False))
        gram, cross, number, length = np.zeros((n, p, p)), np.zeros((n, p, m)), np.zeros((n, m), np.int64), 0.0
        for block in self.blocks():
            self.there[block.rows] = known = ~np.isnan(block.Y)
            filled = np.where(known, block.Y, 0).astype(np.float32)
            length += float(np.einsum("ij,ij->", block.F[:, :-1], block.F[:, :-1], dtype=np.float64))
            for g in np.unique(block.groups):
                own = block.groups == g
                part = block.F[own]
                gram[g] += part.T @ part
                cross[g] += part.T @ filled[own]
                number[g] += known[own].sum(axis=0)
        set_(self, "gram", gram.astype(np.float32))
        set_(self, "cross", cross.astype(np.float32))
        set_(self, "number", number)
        set_(self, "unit", max(length / len(groups), 1e-12) if unit is None else unit)

    def pieces(self) -> list[slice]:
        """Spots that are read together."""
        return row_pieces(self.features.shape[0], max(self.features.shape[1], self.targets.shape[1]))

    def with_constant(self, rows: slice) -> Floats32:
        """Features of some spots, with the constant."""
        F = self.features[rows]
        return np.hstack([F, np.ones((len(F), 1), np.float32)], dtype=np.float32)

    def blocks(self) -> Iterator[_Block]:
        """All spots, some at a time."""
        for rows in self.pieces():
            yield _Block(rows, self.groups[rows], self.with_constant(rows), self.targets[rows])

    def with_targets(self, Y: Matrix) -> StoredMoments:  # type: ignore[override]
        """The same features and groups with other targets (spots, targets)."""
        return StoredMoments(self.features, Y, self.groups, self.unit)

    def some(self, rows: Ints, columns: Ints, groups: Ints) -> GroupMoments:
        """The moments of some spots and targets in other groups, in memory."""
        return GroupMoments.of(self.features[rows], self.targets[rows][:, columns], groups, self.unit)

    def _at_once(self, n_problems: int) -> int:
        return max(n_problems, 1)

    def _known_spots(self, problems: Sequence[Partial]) -> KnownSpots:
        return _Blocks(self, problems)

    def predicted(self, fits: Sequence[Floats]) -> Iterator[tuple[_Block, Floats32]]:
        """Held-out predictions of some spots at a time by the fits without each group, as :meth:`held_out`."""
        weights, alone = [w.astype(np.float32) for w in fits], [self.only_in(g) for g in range(len(fits))]
        for block in self.blocks():
            out = np.empty(block.Y.shape, np.float32)
            for g in np.unique(block.groups):
                own = block.groups == g
                out[own] = block.F[own] @ weights[g]
                out[np.ix_(own, alone[g])] = np.nan
            yield block, out


class _Blocks:
    """As :class:`KnownSpots`, of spots on disk."""

    def __init__(self, moments: StoredMoments, problems: Sequence[Partial]) -> None:
        self.moments = moments
        self.parts = [(p.columns, p.groups) for p in problems]

    def times(self, B: Floats) -> Floats:
        total, weights = np.zeros(B.shape), B.astype(np.float32)
        ends = np.cumsum([0, *(len(columns) for columns, _ in self.parts)])
        for rows in self.moments.pieces():
            F, there = self.moments.with_constant(rows), self.moments.there[rows]
            predicted = F @ weights
            for first, last, (columns, groups) in zip(ends[:-1], ends[1:], self.parts, strict=True):
                own = predicted[:, first:last]
                own *= there[:, columns]
                own[~groups[self.moments.groups[rows]]] = 0
            total += np.ascontiguousarray(F.T) @ predicted
        return total

    def keep(self, going: Bools) -> None:
        ends = np.cumsum([len(columns) for columns, _ in self.parts])
        kept = np.split(going, ends[:-1])
        self.parts = [(columns[own], groups) for (columns, groups), own in zip(self.parts, kept, strict=True)]


@dataclass(frozen=True)
class StoredTruth:
    """As :class:`stmsi._core.learning.shared_ridge.HeldOutTruth`, of the targets of moments on disk.

    Attributes
    ----------
    base
        Mean of each target in the other groups, shape (groups, targets).
    size
        Largest deviation of each target from it, shape (targets,).
    unit
        Number of each spot's unit.
    mean, constant
        Mean of each target, and whether it has one value, shape (targets,).
    """

    base: Floats
    size: Floats
    unit: Ints
    mean: Floats
    constant: Bools

    @classmethod
    def of(cls, moments: StoredMoments, units: Ints) -> StoredTruth:
        """Go through the targets twice."""
        shape = moments.cross.shape[0], moments.cross.shape[2]
        total, least, most = np.zeros(shape), np.full(shape[1], np.inf), np.full(shape[1], -np.inf)
        for block in moments.blocks():
            known = ~np.isnan(block.Y)
            filled = np.where(known, block.Y, 0)
            for g in np.unique(block.groups):
                total[g] += filled[block.groups == g].sum(axis=0)
            least = np.minimum(least, np.where(known, block.Y, np.inf).min(axis=0))
            most = np.maximum(most, np.where(known, block.Y, -np.inf).max(axis=0))
        count = moments.number.astype(np.float64)
        every, rest = count.sum(axis=0), count.sum(axis=0) - count
        mean = total.sum(axis=0) / np.maximum(every, 1)
        base = np.where(rest > 0, (total.sum(axis=0) - total) / np.maximum(rest, 1), mean)
        size = np.zeros(shape[1])
        for block in moments.blocks():
            size = np.maximum(size, np.abs(_deviation(block, base)).max(axis=0))
        level = np.maximum(np.abs(least), np.abs(most), out=np.zeros(shape[1]), where=every > 0)
        size = np.where(size > 0, size, np.where(level > 0, level, 1))
        return cls(base, size, np.unique(units, return_inverse=True)[1], mean, most <= least)

    def score(self, moments: StoredMoments, penalty: float) -> float:
        """As :meth:`HeldOutTruth.score`, of held-out predictions with a penalty."""
        sums = np.zeros((6, int(self.unit.max()) + 1, len(self.size)))
        fits = moments.fits(penalty, range(len(moments.gram)))
        for block, held_out in moments.predicted(fits):
            y, h, both = self._both(block, held_out)
            there, local = np.unique(self.unit[block.rows], return_inverse=True)
            of_unit = sp.csr_matrix((np.ones(len(local), np.float32), (local, np.arange(len(local)))))
            for total, v in zip(sums, (both.astype(np.float32), y, h, y * y, h * h, y * h), strict=True):
                total[there] += of_unit @ v
        found = [float(np.nanmean(s)) for s in scores_of_sums(sums) if np.isfinite(s).any()]
        return float(np.mean(found)) if found else 0.0

    def slopes(self, moments: StoredMoments, held_out: Matrix) -> Floats:
        """As :meth:`HeldOutTruth.slopes`."""
        sums = np.zeros((4, len(self.size)))
        for block in moments.blocks():
            y, h, both = self._both(block, held_out[block.rows])
            for total, v in zip(sums, (h * y, h * h, y * y, both), strict=True):
                total += v.sum(axis=0, dtype=np.float64)
        return slopes_of_sums(*sums)

    def _both(self, block: _Block, held_out: AnyFloats) -> tuple[Floats32, AnyFloats, Bools]:
        """Truth and predictions less the mean of the other groups, in units of `size`, where both are known."""
        both = ~np.isnan(block.Y) & ~np.isnan(held_out)
        y = (_deviation(block, self.base) / self.size).astype(np.float32)
        h = (held_out - self.base.astype(np.float32)[block.groups]) / self.size.astype(np.float32)
        return np.where(both, y, 0), np.where(both, h, 0), both


def best_penalty(moments: StoredMoments, truth: StoredTruth) -> float:
    """The penalty whose held-out predictions score best."""
    return climb(lambda penalty: truth.score(moments, penalty))


def held_out_at(
    penalty: float, moments: StoredMoments, apart: Sequence[tuple[Ints, Ints]], out: DiskArray
) -> tuple[Floats32, Floats32]:
    """As :func:`stmsi._core.learning.shared_ridge.fit_at`: weights and offsets; held-out predictions go to `out`."""
    *without, of_all = moments.fits(penalty, [*range(len(moments.gram)), None])
    for block, predicted in moments.predicted(without):
        out[block.rows] = predicted
    for columns, own in apart:
        rows = np.flatnonzero(own >= 0)
        out[np.ix_(rows, columns)] = moments.some(rows, columns, own[rows]).held_out(penalty)
    weights = of_all.astype(np.float32)
    return weights[:-1], weights[-1]


def _deviation(block: _Block, base: Floats) -> Floats:
    """Targets less the mean of the other groups, 0 where not known."""
    filled = np.where(np.isnan(block.Y), 0, block.Y)
    y = np.where(np.isnan(block.Y), 0, filled - base[block.groups])
    # of a constant, the mean is off by rounding, which is no pattern
    return np.where(np.abs(y) > 1e-9 * np.abs(filled), y, 0)
