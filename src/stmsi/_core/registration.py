"""Transformations between the MSI and the ST frame, estimated from landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

TransformModel = Literal["rigid", "similarity", "affine"]
MODELS: tuple[TransformModel, ...] = get_args(TransformModel)
_MIN_LANDMARKS = {"rigid": 2, "similarity": 2, "affine": 3}
_MIRROR = np.diag([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Fit:
    """A transformation and how well it meets its landmarks.

    Attributes
    ----------
    matrix
        Homogeneous matrix, shape (3, 3), that maps MSI to ST coordinates.
    residual
        Distance that remains at each landmark, in micrometres.
    tre
        Target registration error of each landmark when it is left out of the fit, in micrometres (NaN where too few
        landmarks remain).
    mirrored
        Whether the section is mirrored.
    """

    matrix: NDArray[np.float64]
    residual: NDArray[np.float64]
    tre: NDArray[np.float64]
    mirrored: bool


def apply_affine(matrix: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform points, shape (n, 2), with a homogeneous matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def fit_landmarks(moving: NDArray[np.float64], fixed: NDArray[np.float64], model: TransformModel = "similarity") -> Fit:
    """Transformation that maps the moving onto the fixed landmarks.

    Mirrored sections are found by fitting both handednesses and keeping the better one; a tie (landmarks that lie on
    a line) goes to the unmirrored fit. The affine model is scikit-image's normalised total least squares.

    Parameters
    ----------
    moving, fixed
        Landmarks, shape (n, 2), in micrometres, row by row.
    model
        ``"rigid"`` (rotation, shift), ``"similarity"`` (and scale) or ``"affine"``.

    Returns
    -------
    The fit, with leave-one-landmark-out errors.

    Raises
    ------
    ValueError
        Too few, unequal, duplicate or collinear landmarks, or NaN coordinates.
    """
    moving, fixed = _check_landmarks(moving, fixed, model)
    matrix = _estimate(moving, fixed, model)
    residual = np.hypot(*(apply_affine(matrix, moving) - fixed).T)
    tre = np.full(len(moving), np.nan)
    if len(moving) > _MIN_LANDMARKS[model]:
        for i in range(len(moving)):
            rest = np.arange(len(moving)) != i
            if not _collinear(moving[rest]) and not _collinear(fixed[rest]):
                left_out = apply_affine(_estimate(moving[rest], fixed[rest], model), moving[i : i + 1])
                tre[i] = np.hypot(*(left_out - fixed[i]).T)[0]
    return Fit(matrix, residual, tre, bool(np.linalg.det(matrix[:2, :2]) < 0))


def _estimate(moving: NDArray[np.float64], fixed: NDArray[np.float64], model: TransformModel) -> NDArray[np.float64]:
    from skimage.transform import AffineTransform, EuclideanTransform, SimilarityTransform, estimate_transform

    kind = {"rigid": "euclidean", "similarity": "similarity", "affine": "affine"}[model]
    best, best_error = None, np.inf
    for start in (np.eye(3), _MIRROR) if model != "affine" else (np.eye(3),):
        found: AffineTransform | EuclideanTransform | SimilarityTransform = estimate_transform(
            kind, apply_affine(start, moving), fixed
        )
        if not found:
            continue
        matrix = np.asarray(found.params) @ start
        error = float(((apply_affine(matrix, moving) - fixed) ** 2).sum())
        # the margin keeps rounding from choosing the mirrored fit where both are exact
        if error < best_error * (1 - 1e-9) - 1e-12:
            best, best_error = matrix, error
    if best is None or not np.isfinite(best).all():
        msg = "No transformation fits the landmarks: they are degenerate. Spread them over the section."
        raise ValueError(msg)
    return best


def _collinear(points: NDArray[np.float64]) -> bool:
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(len(points) < 3 or spread[1] < 1e-6 * max(spread[0], 1e-300))


def _check_landmarks(
    moving: NDArray[np.float64], fixed: NDArray[np.float64], model: TransformModel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
