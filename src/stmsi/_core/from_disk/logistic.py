"""The logistic regressions of :mod:`stmsi._core.learning.logistic` where features and targets stay on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stmsi._core.arrays import AnyFloats, Bools, Floats, Floats32, Ints
from stmsi._core.arrays_on_disk import DiskArray, Matrix, row_pieces
from stmsi._core.learning.logistic import Balanced, Logistic, chances, pieces_of

_MOST_TARGETS = 1024
"""Regressions that are solved together."""
UNKNOWN = -1
"""Class of a spot where a target is not measured; the others are 0 and 1."""


@dataclass(frozen=True)
class GroupFit:
    """Regressions of some targets to the spots of all groups, or of all but one.

    Attributes
    ----------
    groups
        Group of each spot, -1 for those that are not used.
    without
        The group left out; `None`: all spots are used.
    columns
        Numbers of the targets.
    start
        Weights to begin with, shape (features, columns).
    """

    groups: Ints
    without: int | None
    columns: Ints
    start: AnyFloats

    def used(self, rows: slice) -> Bools:
        """Which of some spots it is fitted to."""
        own = self.groups[rows]
        return np.ones(len(own), bool) if self.without is None else (own >= 0) & (own != self.without)

    def some(self, at: slice) -> GroupFit:
        """Of some of its targets."""
        return replace(self, columns=self.columns[at], start=self.start[:, at])


@dataclass(frozen=True)
class StoredFeatures:
    """Features on disk, and what all regressions read of them: their mean, and products of what is left."""

    F: Matrix
    centre: Floats32
    gram: Floats

    @classmethod
    def of(cls, F: Matrix) -> StoredFeatures:
        """Go through features (spots, features) twice."""
        pieces, p = row_pieces(*F.shape), F.shape[1]
        total = sum((F[rows].sum(axis=0, dtype=np.float64) for rows in pieces), np.zeros(p))
        centre, gram = (total / F.shape[0]).astype(np.float32), np.zeros((p, p))
        for rows in pieces:
            X = F[rows] - centre
            gram += X.T @ X
        return cls(F, centre, gram)


def class_counts(classes: DiskArray, groups: Ints) -> tuple[Ints, Ints]:
    """Spots of each group where each target is measured, and where it is there; each of shape (groups, targets)."""
    n = np.zeros((2, int(groups.max()) + 1, classes.shape[1]), np.int64)
    for rows in row_pieces(*classes.shape):
        own, of = classes[rows], groups[rows]
        for g in np.unique(of[of >= 0]):
            part = own[of == g]
            n[0, g] += (part != UNKNOWN).sum(axis=0)
            n[1, g] += (part == 1).sum(axis=0)
    return n[0], n[1]


def balanced_logistic(
    features: StoredFeatures,
    classes: DiskArray,
    fits: Sequence[GroupFit],
    numbers: Sequence[tuple[Ints, Ints]],
    C: Floats,
    gradient: float,
) -> list[list[Logistic]]:
    """As :func:`stmsi._core.learning.logistic.balanced_logistic`, of several fits together.

    Parameters
    ----------
    features
        Shape (spots, features).
    classes
        1, 0 or :data:`UNKNOWN`, shape (spots, targets).
    fits
        What is fitted to which spots.
    numbers
        For each fit, the spots that measured each of its targets and have it, shape (columns,).
    C
        Of each target.
    gradient
        The largest that is left.

    Returns
    -------
    Of each fit, a regression for each of its columns.
    """
    out: list[list[Logistic]] = [[] for _ in fits]
    for some in _batches(fits):
        own = [fits[k].some(at) for k, at in some]
        n, n1 = (np.concatenate([numbers[k][i][at] for k, at in some]) for i in range(2))
        balanced = Balanced.of(features.gram, features.F.shape[0], n, n1, np.concatenate([C[f.columns] for f in own]))
        slopes = _Slopes(features, classes, own, balanced)
        start = np.hstack([f.start for f in own])
        found = iter(balanced.solve(slopes, features.centre, start, gradient))
        for (k, _), f in zip(some, own, strict=True):
            out[k] += [next(found) for _ in f.columns]
    return out


class _Slopes:
    def __init__(
        self, features: StoredFeatures, classes: DiskArray, fits: Sequence[GroupFit], balanced: Balanced
    ) -> None:
        self.features, self.classes, self.fits = features, classes, fits
        self.ends = np.cumsum([0, *(len(f.columns) for f in fits)])
        self.positive, self.negative = balanced.positive.astype(np.float32), balanced.negative.astype(np.float32)

    def __call__(self, weights: Floats, offsets: Floats, of: Ints) -> tuple[Floats, Floats]:
        W, b = weights.astype(np.float32), offsets.astype(np.float32)
        by_axis, by_offset = np.zeros(W.shape), np.zeros(len(of))
        at = np.searchsorted(of, self.ends)
        parts = [
            (fit, slice(i, j), fit.columns[of[i:j] - first])
            for fit, first, i, j in zip(self.fits, self.ends[:-1], at[:-1], at[1:], strict=True)
            if j > i
        ]
        F, size = self.features.F, pieces_of(len(of))
        for rows in row_pieces(F.shape[0], max(F.shape[1], self.classes.shape[1])):
            X, classes = F[rows] - self.features.centre, self.classes[rows]
            used = [fit.used(rows) for fit, *_ in parts]
            # in pieces that stay in the cache
            for a in range(0, len(X), size):
                piece = slice(a, a + size)
                x, error = X[piece], chances(X[piece] @ W, b)
                for (_, own, columns), inside in zip(parts, used, strict=True):
                    known = classes[piece][:, columns]
                    there = known == 1
                    part, which = error[:, own], of[own]
                    part -= there
                    part *= np.where(there, self.positive[which], self.negative[which])
                    part[known == UNKNOWN] = 0
                    part[~inside[piece]] = 0
                by_axis += x.T @ error
                by_offset += error.sum(axis=0, dtype=np.float64)
        return by_axis, by_offset


def _batches(fits: Sequence[GroupFit]) -> Iterator[list[tuple[int, slice]]]:
    """Numbers of fits, and their columns, that are solved together."""
    parts = [
        (k, slice(a, min(a + _MOST_TARGETS, len(f.columns))))
        for k, f in enumerate(fits)
        for a in range(0, len(f.columns), _MOST_TARGETS)
    ]
    batch: list[tuple[int, slice]] = []
    for k, at in parts:
        if batch and sum(s.stop - s.start for _, s in batch) + at.stop - at.start > _MOST_TARGETS:
            yield batch
            batch = []
        batch.append((k, at))
    yield batch
