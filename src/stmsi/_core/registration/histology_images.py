"""Registration of two images of one tissue, of whatever contrast: an MSI summary or its histology, and ST histology.

scikit-image has the cross-correlation of the start, but no registration by mutual information.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize

from stmsi._core.registration.agreement import unbiased_information
from stmsi._core.registration.landmarks import apply_affine
from stmsi._core.registration.placements import MIRROR, Adjustment, inverse, sample_images, turn
from stmsi._core.registration.warps import Floats, homogeneous

_CELLS = 64
_N_ANGLES = 36
_N_STARTS = 3
_FINE = 4
_MIN_SHARED = 0.3
_MAX_PIXELS = 5000
_SPREAD = np.array([np.inf, 0.05, 0.03, 0.03, np.inf, np.inf])


@dataclass(frozen=True)
class ImageFit:
    """An image registration: matrix moving -> fixed (um), mutual information (nats) where both show something, lead.

    `lead` is by how much the other best turn or side falls behind, as a share; near 0 it cannot be told.
    """

    matrix: Floats
    information: float
    lead: float


@dataclass(frozen=True)
class _Level:
    image: Floats
    spacing: float

    def positions(self) -> Floats:
        rows, cols = np.indices(self.image.shape)
        return np.asarray(np.column_stack([cols.ravel(), rows.ravel()]) * self.spacing, dtype=np.float64)


def register_images(
    moving: NDArray[np.floating], fixed: NDArray[np.floating], moving_spacing: float, fixed_spacing: float
) -> ImageFit:
    """Affine transformation that lays one image (rows, cols) onto the other; pixel (0, 0) is centred at the origin.

    The edges of the moving image at about 64 cells, in turns of ten degrees, either side up, are shifted onto those of
    the fixed one by cross-correlation; edges have no sign, so dark tissue may meet bright tissue. The best turns are
    refined by mutual information, coarse to fine, with Powell's method (Viola and Wells, Int. J. Comput. Vis. 24, 137,
    1997).
    """
    from skimage.filters import sobel
    from skimage.registration import phase_cross_correlation

    for image, what in ((moving, "moving"), (fixed, "fixed")):
        if image.ndim != 2 or not np.isfinite(image).all() or np.ptp(image) == 0:
            msg = f"The {what} image must be one finite channel of shape (rows, cols) with some contrast; found shape {image.shape}."
            raise ValueError(msg)
    extent = max(max(fixed.shape) * fixed_spacing, max(moving.shape) * moving_spacing)
    given = (moving, moving_spacing), (fixed, fixed_spacing)
    a, b = (_shrink(image, spacing, extent / _CELLS) for image, spacing in given)
    edges = _Level(sobel(a.image), a.spacing)
    # a square frame with room for the moving image at any turn
    side = int(np.hypot(*b.image.shape) + np.hypot(*a.image.shape) * a.spacing / b.spacing) + 1
    target = np.zeros((side, side))
    target[: b.image.shape[0], : b.image.shape[1]] = sobel(b.image)
    middle = np.array(a.image.shape[::-1]) * a.spacing / 2
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * b.spacing - side * b.spacing / 2
    found = []
    for hand in (np.eye(2), MIRROR):
        for angle in np.arange(_N_ANGLES) * 2 * np.pi / _N_ANGLES:
            linear = hand @ turn(angle)
            index = (at @ linear.T + middle) / a.spacing
            seen = ((index >= 0) & (index <= np.array(a.image.shape[::-1]) - 1)).all(axis=1)
            turned = np.where(seen, sample_images(edges.image[None], index)[0][0], 0).reshape(side, side)
            shift, _, _ = phase_cross_correlation(target, turned, normalization=None)
            to_moving = homogeneous(linear, middle - linear @ (shift[::-1] + side / 2) * b.spacing)
            found.append((_information(a, b, to_moving), to_moving, hand[0, 0]))
    found.sort(key=lambda f: -f[0])
    starts = found[:_N_STARTS] + [f for f in found if f[2] != found[0][2]][:1]
    refined = [_refine(a, b, start) for _, start, _ in starts]
    results = sorted(((_information(a, b, m), m) for m in refined), key=lambda r: -r[0])
    best = results[0][1]
    corners = b.positions()[[0, b.image.shape[1] - 1, -1]]
    others = [
        r[0] for r in results if np.abs(apply_affine(r[1], corners) - apply_affine(best, corners)).max() > 0.1 * extent
    ]
    a, b = (_shrink(image, spacing, extent / _CELLS / _FINE) for image, spacing in given)
    matrix = inverse(_refine(a, b, best))
    lead = 1 - max(others, default=0.0) / max(results[0][0], 1e-12)
    return ImageFit(matrix, _information(a, b, inverse(matrix)), float(lead))


def _shrink(image: NDArray[np.floating], spacing: float, wanted: float) -> _Level:
    """Every n-th pixel of the smoothed image, about `wanted` apart; the origin stays."""
    n = max(1, int(wanted / spacing))
    smooth = gaussian_filter(np.asarray(image, dtype=np.float64), 0.5 * n if n > 1 else 0.7)
    return _Level(smooth[::n, ::n], spacing * n)


def _information(moving: _Level, fixed: _Level, to_moving: Floats) -> float:
    """Mutual information at the pixels that both show; 0 where too few are shared."""
    every = max(1, fixed.image.size // _MAX_PIXELS) | 1  # odd, so that no column is left out throughout
    index = apply_affine(to_moving, fixed.positions()[::every]) / moving.spacing
    seen: NDArray[np.bool_] = np.all((index >= 0) & (index <= np.array(moving.image.shape[::-1]) - 1), axis=1)
    shown = min(fixed.image.size, moving.image.size * (moving.spacing / fixed.spacing) ** 2) / every
    if seen.sum() < _MIN_SHARED * shown:
        return 0.0
    value = sample_images(moving.image[None], index[seen])[0][0]
    return float(unbiased_information(value, fixed.image.ravel()[::every][seen]))


def _refine(moving: _Level, fixed: _Level, start: Floats) -> Floats:
    centre = np.array(fixed.image.shape[::-1]) * fixed.spacing / 2
    adjustment = Adjustment(start, centre, float(centre.mean()))
    unit = np.array([0.05, 0.02, 0.02, 0.02, 0.05, 0.05])  # Powell's first steps are of size one

    def cost(q: Floats) -> float:
        p = q * unit
        return 0.01 * float(((p / _SPREAD) ** 2).sum()) - _information(moving, fixed, adjustment.matrix(p))

    found = minimize(cost, np.zeros(6), method="Powell", options={"xtol": 1e-2, "ftol": 1e-4, "maxiter": 4})
    return adjustment.matrix(found.x * unit)
