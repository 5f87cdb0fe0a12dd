"""A smooth displacement that brings two modalities together, from their intensities.

scikit-image's optical flow compares images of one contrast; here genes and metabolites are made comparable first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from stmsi._core.registration.agreement import BINS, canonical, held_out_components, mutual_information
from stmsi._core.registration.warps import Field, Floats

_N_COMPONENTS = 4
_STIFFNESS = 0.3
"""Weight of the bending, relative to that of the data."""
_N_OUTER, _N_INNER = 4, 6
"""Rounds of analysis, and Gauss-Newton steps in each."""
_MAX_PIXELS = 6000
"""Pixels that take part: a smooth field needs no more."""
_MIN_KEPT = 0.97
"""Share of the covered spots that must stay covered."""
_MIN_CORRELATION = 0.3
"""Canonical pairs that correlate less are noise."""


@dataclass(frozen=True)
class Flow:
    """A displacement of pixels (`None`: none helped), and the :func:`agreement` before and after."""

    field: Field | None
    before: float
    after: float


@dataclass(frozen=True)
class _Grid:
    """A regular grid over the section."""

    origin: Floats
    spacing: float
    shape: tuple[int, int]

    @classmethod
    def around(cls, points: Floats, margin: float, spacing: float) -> _Grid:
        """A grid over points, with a margin."""
        cols, rows = np.ceil((np.ptp(points, axis=0) + 2 * margin) / spacing).astype(int) + 1
        return cls(points.min(axis=0) - margin, spacing, (int(rows), int(cols)))

    def index(self, xy: Floats) -> Floats:
        """Positions in units of the grid, rows first, shape (2, n)."""
        return ((xy - self.origin) / self.spacing).T[::-1]


def agreement(spots: Floats, st: Floats, pixels: Floats, msi: Floats, reach: float) -> float:
    """Mutual information (nats) of the first canonical pair at the spots, held out by blocks; NaN: too little overlap.

    `reach` is how far a pixel may lie from its spot.
    """
    at_spots, covered = values_at_spots(spots, pixels, msi, reach)
    if covered.sum() < 4 * (st.shape[1] + msi.shape[1]):
        return float("nan")
    return mutual_information(*held_out_components(st[covered], at_spots[covered], spots[covered]))


def estimate_flow(spots: Floats, st: Floats, pixels: Floats, msi: Floats, *, pitch: float, length: float) -> Flow:
    r"""Move pixels smoothly until they say what the spots say.

    The modalities are made comparable by canonical correlation analysis at the spots (sign and scale free). The
    displacement is a cubic B-spline with control points every `length`, found by Gauss-Newton steps on

    .. math:: \sum_{p,k} \frac{(g_k(p + v(p)) - m_k(p))^2}{1 - \rho_k^2} + \alpha\,|\Delta c|^2

    where :math:`g_k, m_k` are canonical components of spots and pixels at one contrast, smoothed over a pitch,
    :math:`\rho_k` their correlation and :math:`\Delta c` second differences of the control points (Huber weights beyond
    1.5 spreads). Analysis and displacement take turns. Only a displacement that raises the held-out :func:`agreement`
    is returned.
    """
    reach = 0.75 * pitch
    before = agreement(spots, st, pixels, msi, reach)
    if not np.isfinite(before):
        return Flow(None, before, before)
    n_covered = int(values_at_spots(spots, pixels, msi, reach)[1].sum())
    image = _Grid.around(spots, 3 * pitch, pitch / 2)
    _, tissue = _splat(image, spots, np.ones((len(spots), 1)))
    used = np.arange(0, len(pixels), max(1, len(pixels) // _MAX_PIXELS))
    low = pixels.min(axis=0)
    basis, shape = _basis(pixels, low, length)
    bending = _bending(shape)
    control = np.zeros((basis.shape[1], 2))
    smooth_msi = _smoothed(pixels, msi, pitch)
    best, best_score = control.copy(), before
    for _ in range(_N_OUTER):
        moved = pixels + basis @ control
        at_spots, covered = values_at_spots(spots, moved, msi, reach)
        if covered.sum() < 4 * (st.shape[1] + msi.shape[1]):
            break
        found = canonical(st[covered], at_spots[covered], _N_COMPONENTS)
        strong = found.correlation > _MIN_CORRELATION
        if not strong.any():
            break
        rho = np.asarray(found.correlation[strong], dtype=np.float64)
        target, _ = _splat(image, spots, found.of_x(st)[:, strong])
        source = found.of_y(smooth_msi)[used][:, strong]
        by_row, by_col = np.gradient(target, image.spacing, axis=(0, 1))
        target_gradient = (np.asarray(by_col), np.asarray(by_row))  # x, y
        for _ in range(_N_INNER):
            place = image.index(pixels[used] + basis[used] @ control)
            seen = map_coordinates(tissue, place, order=1, cval=0.0) > 0.5
            if seen.sum() < 50:
                break
            rows = basis[used][seen]
            normal, right = sp.csr_matrix((2 * len(control), 2 * len(control))), np.zeros(2 * len(control))
            for k in range(source.shape[1]):
                level = map_coordinates(target[..., k], place[:, seen], order=1)
                # both at one contrast: where the images are flatter than the pixels, hills would shrink to explain it
                contrast = source[seen, k].std() / max(level.std(), 1e-300)
                level = (level - level.mean()) * contrast + source[seen, k].mean()
                gradient = [contrast * map_coordinates(g[..., k], place[:, seen], order=1) for g in target_gradient]
                jacobian = sp.hstack([rows.multiply(g[:, None]).tocsr() for g in gradient]).tocsr()
                residual = source[seen, k] - level
                # a few pixels that disagree wildly must not pull the field
                spread = 1.4826 * np.median(np.abs(residual)) + 1e-12
                robust = np.minimum(1.0, 1.5 * spread / np.maximum(np.abs(residual), 1e-300)) / (1 - rho[k] ** 2 + 0.05)
                weighted = jacobian.multiply(robust[:, None]).tocsr()
                normal = normal + weighted.T @ jacobian
                right += weighted.T @ residual
            scale = _STIFFNESS * float(normal.diagonal().mean())
            prior = sp.block_diag([scale * bending] * 2).tocsr()
            system = (normal + prior + 1e-3 * scale * sp.eye(2 * len(control))).toarray()
            change = np.linalg.solve(system, right - prior @ control.T.ravel()).reshape(2, -1).T
            # a step is trusted as far as the images are smooth
            longest = np.hypot(*change.T).max()
            control = control + change * min(1.0, pitch / max(longest, 1e-300))
            if longest < 0.01 * pitch:
                break
        moved = pixels + basis @ control
        # a field that draws the pixels together is judged by fewer spots, and would win by leaving the hard ones out
        if values_at_spots(spots, moved, msi, reach)[1].sum() < _MIN_KEPT * n_covered:
            continue
        score = agreement(spots, st, moved, msi, reach)
        if score > best_score:
            best, best_score = control.copy(), score
    # a gain that the bins alone would make of chance (Miller-Madow) is none
    if best_score <= before + (BINS - 1) ** 2 / (2 * n_covered):
        return Flow(None, before, before)
    return Flow(_as_field(pixels, low, length, shape, best, pitch), before, best_score)


def values_at_spots(spots: Floats, pixels: Floats, values: Floats, reach: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Mean of the pixels around each spot, and whether there are any."""
    near = cKDTree(pixels).sparse_distance_matrix(cKDTree(spots), reach, output_type="coo_matrix")
    weights = sp.csr_matrix((np.ones(len(near.row)), (near.col, near.row)), shape=(len(spots), len(pixels)))
    count = np.asarray(weights.sum(axis=1)).ravel()
    return (weights @ values) / np.maximum(count, 1)[:, None], count > 0


def _splat(grid: _Grid, xy: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Values at scattered places as smooth images, shape (rows, cols, n), and where there are any (0 to 1)."""
    place = np.round(grid.index(xy)).astype(int)
    inside = ((place >= 0) & (place < np.array(grid.shape)[:, None])).all(axis=0)
    flat = np.ravel_multi_index(tuple(place[:, inside]), grid.shape)
    sigma = 1.6  # in grid steps, of half a pitch: neighbouring spots blend
    size = grid.shape[0] * grid.shape[1]
    weight = gaussian_filter(np.bincount(flat, minlength=size).reshape(grid.shape).astype(float), sigma)
    images = [
        gaussian_filter(np.bincount(flat, weights=v[inside], minlength=size).reshape(grid.shape), sigma)
        for v in values.T
    ]
    level = np.median(weight[weight > 0.05 * weight.max()])
    return np.stack(images, axis=-1) / np.maximum(weight, 1e-3 * level)[..., None], np.minimum(weight / level, 1.0)


def _smoothed(pixels: Floats, values: Floats, pitch: float) -> Floats:
    """Pixel values blended over a pitch, as the spots' image is."""
    grid = _Grid.around(pixels, pitch, pitch / 2)
    image, _ = _splat(grid, pixels, values)
    return np.column_stack(
        [map_coordinates(image[..., k], grid.index(pixels), order=1) for k in range(values.shape[1])]
    )


def _basis(
    xy: Floats, low: Floats, length: float, n: tuple[int, int] | None = None
) -> tuple[sp.csr_matrix, tuple[int, int]]:
    """Cubic B-splines at points, shape (n, control points), and the grid of control points (x, y)."""
    if n is None:
        cells = np.maximum(np.ceil((xy.max(axis=0) - low) / length).astype(int), 1)
        n = (int(cells[0]) + 3, int(cells[1]) + 3)
    parts = []
    for axis in range(2):
        knots = np.arange(-3, n[axis] + 1, dtype=float)
        place = np.clip((xy[:, axis] - low[axis]) / length, 0, n[axis] - 3 - 1e-9)
        parts.append(BSpline.design_matrix(place, knots, 3).tocsr())
    x, y = parts
    # row-wise Kronecker product: every point meets 4 x 4 control points
    rows = np.repeat(np.arange(len(xy)), 16)
    cx = np.repeat(x.indices.reshape(-1, 4), 4, axis=1)
    cy = np.tile(y.indices.reshape(-1, 4), (1, 4))
    data = np.repeat(x.data.reshape(-1, 4), 4, axis=1) * np.tile(y.data.reshape(-1, 4), (1, 4))
    return sp.csr_matrix((data.ravel(), (rows, (cx * n[1] + cy).ravel())), shape=(len(xy), n[0] * n[1])), n


def _bending(n: tuple[int, int]) -> sp.csr_matrix:
    """Sum of squared second differences of the control points."""
    one = [sp.identity(m, format="csr") for m in n]
    two = [sp.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(m - 2, m)).tocsr() for m in n]
    mixed = [sp.diags_array([1.0, -1.0], offsets=[0, 1], shape=(m - 1, m)).tocsr() for m in n]
    parts = [sp.kron(two[0], one[1]), sp.kron(one[0], two[1]), np.sqrt(2) * sp.kron(mixed[0], mixed[1])]
    return sp.csr_matrix(sum(p.T @ p for p in parts))


def _as_field(pixels: Floats, low: Floats, length: float, n: tuple[int, int], control: Floats, pitch: float) -> Field:
    """The displacement on a grid that holds it without loss to speak of."""
    spacing = min(length / 4, pitch)
    grid = _Grid.around(pixels, spacing, spacing)
    y, x = np.indices(grid.shape)
    places = np.column_stack([x.ravel(), y.ravel()]) * spacing + grid.origin
    basis, _ = _basis(places, low, length, n)
    return Field(np.eye(3), grid.origin, float(spacing), (basis @ control).reshape(*grid.shape, 2))
