"""Both stages of the ridge family, fitted to features that stay on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.arrays_on_disk import Derived, DiskArray, Matrix, row_pieces
from stmsi._core.from_disk.logistic import UNKNOWN, GroupFit, StoredFeatures, balanced_logistic, class_counts
from stmsi._core.from_disk.ridge import StoredMoments, StoredTruth, best_penalty, held_out_at
from stmsi._core.learning.logistic import ROUGH
from stmsi._core.metrics.columns import column_pieces
from stmsi.model.linear._intensity import FEWEST, Regression, affine_regressions
from stmsi.model.linear._presence import Classifier, by_groups, calibrated, constant_classifiers, strength_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi._core.learning.logistic import Logistic
    from stmsi.model.shared._inner_folds import InnerFolds

_NOTHING = np.empty(0)


def fit_classifiers_from_disk(
    F: Matrix, present: Matrix, folds: InnerFolds, folder: Path
) -> tuple[list[Classifier], DiskArray]:
    """As :func:`stmsi.model.linear._presence.fit_shared_classifiers`.

    Parameters
    ----------
    F
        Features, shape (spots, features), in single precision.
    present
        1, 0 or NaN, shape (spots, metabolites).
    folds
        Groups of the inner folds.
    folder
        For what is kept on disk.

    Returns
    -------
    Classifiers without their held-out probabilities, and these, shape (spots, metabolites).
    """
    classes = DiskArray(folder, present.shape, np.int8)
    for rows in row_pieces(*present.shape):
        own = present[rows]
        classes[rows] = np.where(np.isnan(own), UNKNOWN, own > 0)
    probability = DiskArray(folder, present.shape, np.float64, by_column=True)
    classifiers: list[Classifier] = []
    for piece in column_pieces(*present.shape):
        classifiers += _written(constant_classifiers(present[:, piece], folds.groups), probability, piece)
    known, there = class_counts(classes, folds.groups)
    n, n1 = known.sum(axis=0), there.sum(axis=0)
    usable = np.flatnonzero((n1 > 0) & (n1 < n)) if F.shape[1] else np.empty(0, np.int64)
    if len(usable) == 0:
        return classifiers, probability
    y = Derived((present.shape[0], len(usable)), lambda rows, columns: present[rows, usable[columns]])
    moments = StoredMoments(F, y, folds.groups)
    penalty = best_penalty(moments, StoredTruth.of(moments, folds.units))
    C = strength_of(penalty * moments.unit, present.shape[1])

    *without, of_all = moments.fits(penalty, [*range(len(moments.gram)), None])
    place = {m: i for i, m in enumerate(usable)}
    single = {place[m]: own for of, own in folds.apart for m in of if m in place}
    fits = [GroupFit(folds.groups, None, usable, of_all[:-1])]
    numbers = [(n[usable], n1[usable])]
    for groups, columns in by_groups(folds.groups, single, len(usable)):
        counts = (known, there) if groups is folds.groups else class_counts(classes, groups)
        for g in np.unique(groups[groups >= 0]):
            left, left1 = (c.sum(axis=0)[usable] - c[g][usable] for c in counts)
            possible = columns[(left1 > 0)[columns] & (left1 < left)[columns]]
            if len(possible):
                start = without[int(g)] if groups is folds.groups else of_all
                fits.append(GroupFit(groups, int(g), usable[possible], start[:-1, possible]))
                numbers.append((left[possible], left1[possible]))
    fits = [replace(f, start=4 * f.start) for f in fits]
    lines, *of_folds = balanced_logistic(StoredFeatures.of(F), classes, fits, numbers, C, ROUGH)
    _score(F, classes, fits[1:], of_folds, usable, probability)
    for groups, columns in by_groups(folds.groups, single, len(usable)):
        for piece in column_pieces(len(folds.groups), len(columns)):
            at = columns[piece]
            some = usable[at]
            done = calibrated([lines[i] for i in at], present[:, some], probability[:, some], groups, C[some])
            for m, classifier in zip(some, _written(done, probability, some), strict=True):
                classifiers[m] = classifier
    return classifiers, probability


def _score(
    F: Matrix,
    classes: DiskArray,
    fits: list[GroupFit],
    lines: list[list[Logistic]],
    usable: NDArray[np.int64],
    out: DiskArray,
) -> None:
    """Log-odds of held-out spots; NaN where there are none."""
    lines_of = [(np.column_stack([own.weights for own in of]), np.array([own.offset for own in of])) for of in lines]
    for rows in row_pieces(F.shape[0], max(F.shape[1], out.shape[1])):
        X, score = F[rows], out[rows]
        score[:, usable] = np.nan
        for fit, (weights, offsets) in zip(fits, lines_of, strict=True):
            test = np.flatnonzero(fit.groups[rows] == fit.without)
            if len(test):
                score[np.ix_(test, fit.columns)] = X[test] @ weights + offsets
        out[rows] = np.where(classes[rows] == UNKNOWN, np.nan, score)


def _written(classifiers: list[Classifier], out: DiskArray, columns: Any) -> list[Classifier]:
    """Classifiers whose held-out probabilities are on disk."""
    out[:, columns] = np.column_stack([c.held_out for c in classifiers])
    return [replace(c, held_out=_NOTHING) for c in classifiers]


def fit_ridges_from_disk(
    F: Matrix, intensity: Matrix, presence: Matrix, folds: InnerFolds, folder: Path
) -> tuple[list[Regression], DiskArray]:
    """As :func:`stmsi.model.linear._intensity.fit_ridges`; arguments and result as for :func:`fit_classifiers_from_disk`."""
    moments = StoredMoments(F, intensity, folds.groups)
    penalty = best_penalty(moments, StoredTruth.of(moments, folds.units))

    def where_present(rows: Any, columns: Any) -> NDArray[np.float64]:
        return np.where(presence[rows, columns] > 0, intensity[rows, columns], np.nan)

    moments = moments.with_targets(Derived(intensity.shape, where_present))
    held_out = DiskArray(folder, intensity.shape, np.float64, by_column=True)
    weights, offset = held_out_at(penalty, moments, folds.apart, held_out)
    truth = StoredTruth.of(moments, folds.units)
    slope = truth.slopes(moments, held_out)
    constant = (moments.number.sum(axis=0) < FEWEST) | truth.constant
    for rows in row_pieces(*intensity.shape):
        # what a fold does not know of the mean must not be in its predictions, or a mean would seem to have skill
        own, base = held_out[rows], truth.base.astype(np.float32)[folds.groups[rows]]
        held_out[rows] = np.where(constant | np.isnan(own), base, base + slope * (own - base))
    regressions = affine_regressions(weights, offset, truth.mean, slope, constant, penalty)
    return regressions, held_out
