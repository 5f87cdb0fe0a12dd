"""Transformations between the MSI and the ST frame, estimated from landmarks.

The fits are scikit-image's; own code checks the clicks, finds mirrored sections and leaves landmarks out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stmsi._core.registration.landmark_consensus import Rng, RobustMethod, consensus
from stmsi._core.registration.warps import Floats, Homography, Step, ThinPlate, homogeneous, nearest_affine

TransformModel = Literal["rigid", "similarity", "affine", "projective", "thin_plate"]
MODELS: tuple[TransformModel, ...] = get_args(TransformModel)
SMOOTHING = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""From which the smoothing of a thin-plate spline is chosen; the last is all but affine."""
_MIN_LANDMARKS = {"rigid": 2, "similarity": 2, "affine": 3, "projective": 4, "thin_plate": 4}
_PARAMETERS = {"rigid": 3, "similarity": 4, "affine": 6, "projective": 8, "thin_plate": 6}
_MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Fit:
    """A transformation and how well it meets its landmarks.

    matrix: MSI -> ST, shape (3, 3); of models beyond affine the affine part, with the whole map in `steps`.
    residual, tre: distance (um) at each landmark, in the fit and left out of it (NaN: outliers, too few remain).
    outliers: rows taken out as wrong clicks. smoothing: of the spline. sigma: of a landmark along one axis (NaN: none free).
    """

    matrix: Floats
    residual: Floats
    tre: Floats
    mirrored: bool
    outliers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    steps: tuple[Step, ...] = ()
    smoothing: float = np.nan
    sigma: float = np.nan

    @property
    def map(self) -> Step:
        """The map from MSI to ST coordinates."""
        return self.steps[0] if self.steps else Homography(self.matrix)


def apply_affine(matrix: Floats, xy: Floats) -> Floats:
    """Transform points, shape (n, 2), with a homogeneous matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def fit_landmarks(
    moving: Floats,
    fixed: Floats,
    model: TransformModel = "similarity",
    *,
    robust: RobustMethod | None = None,
    max_error: float = 250.0,
    smoothing: float | None = None,
    rng: Rng = 0,
) -> Fit:
    """Transformation that maps the moving onto the fixed landmarks, shape (n, 2), with leave-one-out errors.

    Both handednesses are fitted and the better one is kept; a tie (landmarks on a line) goes to the unmirrored fit.
    `robust` leaves wrong landmarks out. Without `smoothing`, the spline takes the one of :data:`SMOOTHING` with the
    smallest leave-one-out error.
    """
    moving, fixed = _check_landmarks(moving, fixed, model)
    if smoothing is not None and not (np.isfinite(smoothing) and smoothing >= 0):
        msg = f"smoothing is a number of at least 0, found {smoothing!r}."
        raise ValueError(msg)
    kept = np.ones(len(moving), dtype=bool)
    if robust is not None:
        # a thin-plate spline bends to any click: wrong ones are those that an affine map does not explain
        rough: TransformModel = "affine" if model == "thin_plate" else model

        def errors_of(rows: NDArray[np.int64]) -> Floats | None:
            found = _estimate_or_none(moving[rows], fixed[rows], rough, 0.0)
            return None if found is None else np.hypot(*(found(moving) - fixed).T)

        kept = consensus(
            errors_of, moving, float(np.ptp(fixed, axis=0).max()),
            method=robust, n_min=max(3, _MIN_LANDMARKS[rough]), max_error=max_error, rng=rng,
        )  # fmt: skip
        try:
            _check_landmarks(moving[kept], fixed[kept], model)
        except ValueError as error:
            msg = f"Of {len(kept)} landmarks only {int(kept.sum())} agree with one another: {error}"
            raise ValueError(msg) from error
    if model == "thin_plate" and smoothing is None:
        smoothing = _choose_smoothing(moving[kept], fixed[kept])
    chosen = 0.0 if smoothing is None else float(smoothing)
    found = _estimate(moving[kept], fixed[kept], model, chosen)
    moved = found(moving)
    residual = np.hypot(*(moved - fixed).T)
    tre = np.full(len(moving), np.nan)
    tre[kept] = _leave_one_out(moving[kept], fixed[kept], model, chosen)
    steps: tuple[Step, ...] = ()
    if isinstance(found, Homography) and model != "projective":
        matrix = found.matrix
    else:
        matrix, steps = nearest_affine(moved[kept], moving[kept]), (found,)
    free = 2 * int(kept.sum()) - _PARAMETERS[model]
    # of a spline the left-out landmarks tell the error, for it has no fixed number of parameters
    errors = tre[np.isfinite(tre)] if model == "thin_plate" else residual[kept]
    sigma = np.nan
    if free > 0 and len(errors):
        sigma = float(np.sqrt((errors**2).sum() / (2 * len(errors) if model == "thin_plate" else free)))
    mirrored, smoothed = bool(np.linalg.det(matrix[:2, :2]) < 0), chosen if model == "thin_plate" else np.nan
    return Fit(matrix, residual, tre, mirrored, np.flatnonzero(~kept), steps, smoothed, sigma)


def perturbations(
    points: Floats, sigma: float, n: int, rng: np.random.Generator, model: TransformModel = "similarity"
) -> Floats:
    """Matrices ST -> ST, shape (n, 3, 3), by which an alignment may be off: a parametric bootstrap of its landmarks.

    Each landmark (where the alignment puts it) is moved by normal noise and the model is fitted again; of models beyond
    affine the affine part is perturbed.
    """
    linear: TransformModel = "affine" if model in ("projective", "thin_plate") else model
    # around the middle, so that far-off coordinates cost no precision
    centre = points.mean(axis=0)
    own = points - centre
    there, back = (homogeneous(np.eye(2), shift) for shift in (-centre, centre))
    out = np.empty((n, 3, 3))
    for i in range(n):
        noisy = own + rng.normal(0, sigma, own.shape)
        found = nearest_affine(noisy, own) if linear == "affine" else _matrix(own, noisy, linear, (np.eye(3),))
        out[i] = back @ found @ there
    return out


def _choose_smoothing(moving: Floats, fixed: Floats) -> float:
    errors = [_leave_one_out(moving, fixed, "thin_plate", s) for s in SMOOTHING]
    score = [np.sqrt(np.nanmean(e**2)) if np.isfinite(e).any() else np.inf for e in errors]
    # with too few landmarks to leave one out, the smoothest
    return SMOOTHING[int(np.argmin(score))] if np.isfinite(score).any() else SMOOTHING[-1]


def _leave_one_out(moving: Floats, fixed: Floats, model: TransformModel, smoothing: float) -> Floats:
    tre = np.full(len(moving), np.nan)
    if len(moving) <= max(3, _MIN_LANDMARKS[model]):
        return tre
    for i in range(len(moving)):
        rest = np.arange(len(moving)) != i
        found = _estimate_or_none(moving[rest], fixed[rest], model, smoothing)
        if found is not None:
            tre[i] = np.hypot(*(found(moving[i : i + 1]) - fixed[i]).T)[0]
    return tre


def _estimate_or_none(
    moving: Floats, fixed: Floats, model: TransformModel, smoothing: float
) -> Homography | ThinPlate | None:
    """The fit, or none where the landmarks are degenerate."""
    if _collinear(moving) or _collinear(fixed):
        return None
    try:
        return _estimate(moving, fixed, model, smoothing)
    except ValueError:
        return None


def _estimate(moving: Floats, fixed: Floats, model: TransformModel, smoothing: float) -> Homography | ThinPlate:
    if model == "thin_plate":
        return ThinPlate(moving, fixed, smoothing)
    starts = (np.eye(3),) if model in ("affine", "projective") else (np.eye(3), _MIRROR)
    return Homography(_matrix(moving, fixed, model, starts))


def _matrix(moving: Floats, fixed: Floats, model: TransformModel, starts: tuple[Floats, ...]) -> Floats:
    from skimage.transform import estimate_transform

    kind = "euclidean" if model == "rigid" else model
    best, best_error = None, np.inf
    for start in starts:
        found = estimate_transform(kind, apply_affine(start, moving), fixed)
        if not found:
            continue
        matrix = np.asarray(found.params) @ start
        weight = moving @ matrix[2, :2] + matrix[2, 2]
        if not np.isfinite(matrix).all() or (np.sign(weight) != np.sign(weight[0])).any():
            continue  # a horizon runs through the section
        error = float(((Homography(matrix)(moving) - fixed) ** 2).sum())
        # the margin keeps rounding from choosing the mirrored fit where both are exact
        if error < best_error * (1 - 1e-9) - 1e-12:
            best, best_error = matrix, error
    if best is None or not abs(np.linalg.det(best[:2, :2])) > 0:
        msg = "No transformation fits the landmarks: they are degenerate. Spread them over the section."
        raise ValueError(msg)
    return best


def _collinear(points: Floats) -> bool:
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(len(points) < 3 or spread[1] < 1e-6 * max(spread[0], 1e-300))


def _check_landmarks(moving: Floats, fixed: Floats, model: TransformModel) -> tuple[Floats, Floats]:
    moving, fixed = np.asarray(moving, dtype=float), np.asarray(fixed, dtype=float)
    if model not in MODELS:
        msg = f"model={model!r} is not known; choose one of {MODELS}."
        raise ValueError(msg)
    for points, name in ((moving, "MSI"), (fixed, "ST")):
        if points.ndim != 2 or points.shape[1] != 2:
            msg = f"{name} landmarks must have shape (n, 2), found {points.shape}."
            raise ValueError(msg)
        if not np.isfinite(points).all():
            msg = f"{name} landmarks contain NaN or infinite coordinates; remove those rows from both sides."
            raise ValueError(msg)
    if len(moving) != len(fixed):
        msg = f"Landmarks come in pairs: found {len(moving)} in the MSI and {len(fixed)} in the ST frame."
        raise ValueError(msg)
    # two points fix a similarity but not its handedness: a third must tell whether the section is mirrored
    need = max(3, _MIN_LANDMARKS[model])
    if len(moving) < need:
        msg = f"A {model} alignment that can tell a mirrored section needs {need} landmarks, found {len(moving)}."
        raise ValueError(msg)
    for points, name in ((moving, "MSI"), (fixed, "ST")):
        if len(np.unique(points, axis=0)) < len(points):
            msg = f"Some {name} landmarks are the same point twice; every landmark must be its own point."
            raise ValueError(msg)
        if _collinear(points):
            msg = f"The {name} landmarks lie on one line, which leaves the handedness open; add one beside the line."
            raise ValueError(msg)
    return moving, fixed
