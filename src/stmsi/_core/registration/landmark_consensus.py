"""Landmarks that agree with one another, among some that do not.

RANSAC is scikit-image's; least median of squares, which needs no limit, is own code, because scikit-image has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stmsi._core.registration.warps import Floats

RobustMethod = Literal["ransac", "lmeds"]
METHODS: tuple[RobustMethod, ...] = get_args(RobustMethod)
_MAX_TRIALS = 1000
_RAYLEIGH_MEDIAN = 1.1774
"""Median length of a normal error in the plane, in standard deviations along one axis."""
_RAYLEIGH_99 = 3.035
"""Length that one error in a hundred exceeds."""
_REFITS = 3

Rng = np.random.Generator | int | None
ErrorsOf = Callable[[NDArray[np.int64]], "Floats | None"]


def consensus(
    errors_of: ErrorsOf, moving: Floats, size: float, *, method: RobustMethod, n_min: int, max_error: float, rng: Rng
) -> NDArray[np.bool_]:
    """Which landmarks are right, shape (n,).

    `errors_of` fits the transformation to some rows and returns the errors of all; `size` is the extent of the section.
    ``"ransac"``: the largest set within `max_error` (Fischler and Bolles 1981, https://doi.org/10.1145/358669.358692).
    ``"lmeds"``: the landmarks within the spread that the least median error implies; half must be right (Rousseeuw
    1984, https://doi.org/10.1080/01621459.1984.10477105).
    """
    n = len(moving)
    if method not in METHODS:
        msg = f"robust={method!r} is not known; choose one of {METHODS}, or None."
        raise ValueError(msg)
    if n < n_min + 2:
        msg = f"robust={method!r} needs {n_min + 2} landmarks with this model (two more than fix it), found {n}."
        raise ValueError(msg)
    if not max_error > 0:
        msg = f"max_error is a positive number of micrometres, found {max_error!r}."
        raise ValueError(msg)
    if method == "ransac":
        kept = _ransac(errors_of, n, n_min, max_error, rng)
    else:
        kept = _lmeds(errors_of, n, n_min, size, rng)
        kept = None if kept is None else _readmit(errors_of, moving, kept)
    if kept is None or kept.sum() < min(n_min + 1, n):
        remedy = "raise max_error, or " if method == "ransac" else ""
        found = 0 if kept is None else int(kept.sum())
        msg = (
            f"No set of landmarks agrees: the largest has {found} of {n}, and {n_min} always agree. "
            f"Check which landmark belongs to which; {remedy}use a model that fits the deformation."
        )
        raise ValueError(msg)
    return kept


def _ransac(errors_of: ErrorsOf, n: int, n_min: int, max_error: float, rng: Rng) -> NDArray[np.bool_] | None:
    from skimage.measure import ransac

    class Candidate:
        """What scikit-image asks of a model; its data are row numbers."""

        def __init__(self) -> None:
            self.errors: Floats | None = None

        def estimate(self, rows: NDArray[np.int64]) -> bool:
            self.errors = errors_of(rows.ravel())
            return self.errors is not None

        @classmethod
        def from_estimate(cls, rows: NDArray[np.int64]) -> Candidate | None:
            out = cls()
            return out if out.estimate(rows) else None

        def residuals(self, rows: NDArray[np.int64]) -> Floats:
            assert self.errors is not None  # scikit-image asks only models that were estimated
            return self.errors[rows.ravel()]

    if not any(errors_of(np.asarray(s)) is not None for s in _samples(n, n_min, rng)):
        return None
    with warnings.catch_warnings():
        # that no sample has inliers is told below
        warnings.filterwarnings("ignore", message="(No inliers found|Estimated model is not valid)")
        _, inliers = ransac(
            np.arange(n)[:, None], Candidate, min_samples=n_min, residual_threshold=max_error,
            max_trials=_MAX_TRIALS, stop_probability=0.9999, rng=np.random.default_rng(rng),
        )  # fmt: skip
    if inliers is None:
        return None
    # the sample that won was random; those near its consensus belong to it too
    for _ in range(_REFITS):
        errors = errors_of(np.flatnonzero(inliers))
        if errors is None:
            break
        inliers = errors < max_error
    return np.asarray(inliers, dtype=bool)


def _lmeds(errors_of: ErrorsOf, n: int, n_min: int, size: float, rng: Rng) -> NDArray[np.bool_] | None:
    # the sample itself fits by construction: the median is that of the whole, less what the sample makes up
    rank = (n + n_min) // 2
    best, best_errors = np.inf, None
    for sample in _samples(n, n_min, rng):
        errors = errors_of(np.asarray(sample))
        if errors is not None and (median := np.partition(errors, rank)[rank]) < best:
            best, best_errors = float(median), errors
    if best_errors is None:
        return None
    # small samples fit themselves too well (Rousseeuw and Leroy 1987, p. 44)
    sigma = (1 + 5 / (n - n_min)) * best / _RAYLEIGH_MEDIAN
    return best_errors <= max(_RAYLEIGH_99 * sigma, 1e-6 * size)


def _readmit(errors_of: ErrorsOf, moving: Floats, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Take landmarks back that the others do not contradict.

    Where tissue is deformed, the best half can agree by chance; the expected error of the others grows with leverage.
    """
    design = np.column_stack([moving - moving.mean(axis=0), np.ones(len(moving))])
    for _ in range(len(moving)):
        errors = errors_of(np.flatnonzero(kept))
        free = 2 * kept.sum() - 6
        if errors is None or free <= 0 or kept.all():
            break
        # the kept ones are the best of all: their spread is that of a normal one cut off at its share
        cut = -np.log(1 - kept.mean())
        share = 1 - cut * np.exp(-cut) / (1 - np.exp(-cut))
        sigma = np.sqrt((errors[kept] ** 2).sum() / free / share)
        leverage = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(design[kept].T @ design[kept]), design)
        fine = ~kept & (errors <= _RAYLEIGH_99 * sigma * np.sqrt(1 + leverage))
        if not fine.any():
            break
        # one at a time, the best first: each changes what the others are judged by
        kept = kept.copy()
        kept[np.flatnonzero(fine)[np.argmin(errors[fine])]] = True
    return kept


def _samples(n: int, size: int, rng: Rng) -> list[tuple[int, ...]]:
    """All samples, or as many random ones as are worth trying."""
    if comb(n, size) <= _MAX_TRIALS:
        return list(combinations(range(n), size))
    random = np.random.default_rng(rng)
    return [tuple(random.choice(n, size, replace=False)) for _ in range(_MAX_TRIALS)]
