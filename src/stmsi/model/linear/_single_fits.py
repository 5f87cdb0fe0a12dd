"""Estimators that are fitted to one metabolite after the other, each with the inner folds of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from stmsi._core.arrays_on_disk import new_array
from stmsi._core.learning.folds import held_out_units
from stmsi._progress import track
from stmsi.model.linear._gene_prior import fit_classifier_with, fit_regression_with
from stmsi.model.linear._intensity import IntensityFamily, Regression, fit_regression
from stmsi.model.linear._presence import Classifier, PresenceFamily, fit_classifiers

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi._core.arrays_on_disk import Matrix
    from stmsi.model.shared._inner_folds import InnerFolds

_NOTHING = np.empty(0)
Fitted = TypeVar("Fitted", Classifier, Regression)


@dataclass(frozen=True)
class Folds:
    """Kinds of inner folds, each the groups and the units within which predictions are compared; that of each metabolite."""

    kinds: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    of: list[int]

    @classmethod
    def of_inner(cls, inner: InnerFolds, n: int, sample: NDArray[Any]) -> Folds:
        """Those of all n metabolites, but for the ones that were measured in one group only."""
        of = np.zeros(n, np.int64)
        for k, (columns, _) in enumerate(inner.apart, start=1):
            of[columns] = k
        own = [(groups, held_out_units(sample, groups + 1)) for _, groups in inner.apart]
        return cls([(inner.groups, inner.units), *own], of.tolist())

    def parts(self, size: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Metabolites whose presence is fitted in one job, `size` at most: a kind of folds, and which of those that have it."""
        kind = np.array(self.of)
        own = [(k, np.flatnonzero(kind == k)) for k in np.unique(kind)]
        return [(int(k), part) for k, of in own for part in np.split(of, range(size, len(of), size))]


def gathered(classifiers: list[Classifier], regressions: list[Regression]) -> NDArray[np.float64]:
    """Held-out values of both stages, shape (2, spots, metabolites), into which those of the estimators become views."""
    out = np.empty((2, len(classifiers[0].held_out), len(classifiers)))
    for m, (classifier, regression) in enumerate(zip(classifiers, regressions, strict=True)):
        out[0, :, m], out[1, :, m] = classifier.held_out, regression.held_out
        classifiers[m] = replace(classifier, held_out=out[0, :, m])
        regressions[m] = replace(regression, held_out=out[1, :, m])
    return out


def fit_presence(
    F: NDArray[np.float64],
    presence: NDArray[np.float64],
    groups: NDArray[np.int64],
    family: PresenceFamily,
    seed: int,
    columns: NDArray[np.float64] | None,
) -> list[tuple[Classifier, float]]:
    """Classifiers of some metabolites, or of one with the `columns` of its prior; and the strength of these."""
    # the fits are small: threads would cost more than they bring, and sums would depend on their number
    with threadpool_limits(1):
        if columns is None:
            return [(c, 0.0) for c in fit_classifiers(F, presence, groups, family, seed)]
        return [fit_classifier_with(F, columns, presence[:, 0], groups, family, seed)]


def fit_intensity(
    F: NDArray[np.float64],
    intensity: NDArray[np.float64],
    groups: NDArray[np.int64],
    units: NDArray[np.int64],
    family: IntensityFamily,
    seed: int,
    columns: NDArray[np.float64] | None,
) -> list[tuple[Regression, float]]:
    """Regression of a metabolite, as the only one of a list, and the strength of the `columns` of its prior."""
    with threadpool_limits(1):
        if columns is None:
            return [(fit_regression(F, intensity, groups, family, seed, units), 0.0)]
        return [fit_regression_with(F, columns, intensity, groups, family, seed, units)]


def fit_presence_to_disk(
    F: Matrix, presence: Matrix, folds: Folds, family: PresenceFamily, seed: int, **options: Any
) -> tuple[list[Classifier], Any]:
    """Classifiers of all metabolites, without their held-out probabilities; and these on disk, shape (spots, metabolites).

    Parameters
    ----------
    F
        Features, shape (spots, features), which are read as a whole.
    presence
        1, 0 or NaN, shape (spots, metabolites), of which one is read after the other.
    folds, family, seed
        As for the estimators in memory.
    **options
        ``folder`` for what is kept on disk, ``n_jobs`` and ``show``, whether there is a progress bar.
    """
    X, parts = np.asarray(F, dtype=np.float64), folds.parts(1)
    jobs = (
        joblib.delayed(fit_presence)(X, presence[:, own], folds.kinds[k][0], family, seed, None) for k, own in parts
    )
    order = [int(m) for _, own in parts for m in own]
    return _each_to_disk(jobs, order, presence.shape, family, **options)


def fit_intensity_to_disk(
    F: Matrix, present: Matrix, folds: Folds, family: IntensityFamily, seed: int, **options: Any
) -> tuple[list[Regression], Any]:
    """As :func:`fit_presence_to_disk`; `present` is the intensity where present, NaN elsewhere."""
    X = np.asarray(F, dtype=np.float64)
    jobs = (
        joblib.delayed(fit_intensity)(X, present[:, m], *folds.kinds[k], family, seed, None)
        for m, k in enumerate(folds.of)
    )
    return _each_to_disk(jobs, range(len(folds.of)), present.shape, family, **options)


def _each_to_disk(
    jobs: Iterator[Any],
    order: Sequence[int],
    shape: tuple[int, int],
    what: str,
    *,
    folder: Path,
    n_jobs: int,
    show: bool | None,
) -> tuple[list[Fitted], Any]:
    """What jobs fit, as a list by metabolite (`order` says which comes when); held-out values on disk."""
    held_out = new_array(folder, shape, np.float64)
    fitted = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(jobs)
    done = (one for part in fitted for one, _ in part)
    found: dict[int, Fitted] = {}
    for m, one in zip(order, track(done, what, total=len(order), show=show), strict=True):
        held_out[:, m] = one.held_out
        found[m] = replace(one, held_out=_NOTHING)
    return [found[m] for m in range(len(order))], held_out
