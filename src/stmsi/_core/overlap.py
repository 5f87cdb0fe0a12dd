"""Exact areas in which circles (spots) and polygons (pixels) overlap."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_BLOCK = 1_000_000
"""Pairs of spot and edge handled at once; bounds the memory, not the result."""


def circle_edge_area(
    ax: NDArray[np.float64],
    ay: NDArray[np.float64],
    bx: NDArray[np.float64],
    by: NDArray[np.float64],
    radius: NDArray[np.float64],
) -> NDArray[np.float64]:
    r"""Signed area shared by a circle around the origin and the triangle (origin, a, b).

    The sum over the edges of a simple polygon, taken counter-clockwise, is the exact area that circle and polygon
    share (Green's theorem): inside the circle an edge contributes the triangle :math:`(o \times d) / 2`, outside
    it the circular sector :math:`r^2 \theta / 2`.

    Parameters
    ----------
    ax, ay, bx, by
        Ends of the edges, relative to the centre of the circle.
    radius
        Radius of each circle.

    Returns
    -------
    Signed areas, one per edge.
    """
    dx, dy = bx - ax, by - ay
    length2 = dx * dx + dy * dy
    safe = np.where(length2 > 0, length2, 1.0)
    # where the line meets the circle: |a + t d| = r, with t clipped to the edge
    middle = -(ax * dx + ay * dy) / safe
    distance2 = (ax * dy - ay * dx) ** 2 / safe
    half = np.sqrt(np.maximum(radius * radius - distance2, 0.0) / safe)
    t0, t1 = np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)
    px, py, qx, qy = ax + t0 * dx, ay + t0 * dy, ax + t1 * dx, ay + t1 * dy
    triangle = px * qy - py * qx
    # an end inside the circle has no sector; asked for, the angle of a vertex that lies on the centre would be noise
    sector_a = np.where(t0 > 0, np.arctan2(ax * py - ay * px, ax * px + ay * py), 0.0)
    sector_b = np.where(t1 < 1, np.arctan2(qx * by - qy * bx, qx * bx + qy * by), 0.0)
    return np.where(length2 > 0, 0.5 * (triangle + radius * radius * (sector_a + sector_b)), 0.0)


def circle_polygon_overlap(
    centres: NDArray[np.float64],
    radii: NDArray[np.float64],
    vertices: NDArray[np.float64],
    polygon: NDArray[np.int64],
    n_polygons: int,
) -> sp.csr_matrix:
    """Area shared by every circle and every polygon.

    Parameters
    ----------
    centres
        Centres of the circles, shape (n, 2).
    radii
        Their radii, shape (n,), in the same unit.
    vertices
        Vertices of all polygons one after another, each ring closed (first vertex repeated), either orientation.
    polygon
        Polygon of each vertex, sorted.
    n_polygons
        Number of polygons.

    Returns
    -------
    Areas, shape (n, n_polygons), in the square of the unit; only overlapping pairs are stored.
    """
    same = polygon[:-1] == polygon[1:]
    start = np.flatnonzero(same)
    owner = polygon[start]
    a, b = vertices[start], vertices[start + 1]
    # orientation: a mirrored raster has clockwise pixels
    signed = np.bincount(owner, weights=0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), minlength=n_polygons)
    sign = np.where(signed < 0, -1.0, 1.0)
    n_edges = np.bincount(owner, minlength=n_polygons)
    middle = np.column_stack(
        [np.bincount(owner, weights=a[:, k], minlength=n_polygons) / np.maximum(n_edges, 1) for k in range(2)]
    )
    reach = np.zeros(n_polygons)
    np.maximum.at(reach, owner, np.hypot(*(a - middle[owner]).T))
    first_edge = np.concatenate([[0], np.cumsum(n_edges)])

    spot, pixel = _near_pairs(centres, radii, middle, reach)
    area = np.zeros(len(spot))
    per_block = max(1, _BLOCK // max(1, int(n_edges.max(initial=1))))
    for low in range(0, len(spot), per_block):
        s, p = spot[low : low + per_block], pixel[low : low + per_block]
        count = n_edges[p]
        pair = np.repeat(np.arange(len(p)), count)
        edge = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first_edge[p][pair]
        cx, cy = centres[s[pair]].T
        part = circle_edge_area(a[edge, 0] - cx, a[edge, 1] - cy, b[edge, 0] - cx, b[edge, 1] - cy, radii[s[pair]])
        area[low : low + per_block] = np.bincount(pair, weights=part, minlength=len(p)) * sign[p]
    # rounding leaves areas of about 1e-16 r^2 where two shapes only touch
    keep = area > 1e-12 * radii[spot] ** 2
    shape = (len(centres), n_polygons)
    return sp.csr_matrix((area[keep], (spot[keep], pixel[keep])), shape=shape)


def _near_pairs(
    centres: NDArray[np.float64], radii: NDArray[np.float64], middle: NDArray[np.float64], reach: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of circle and polygon whose bounding circles meet."""
    if len(centres) == 0 or len(middle) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = cKDTree(middle).query_ball_point(centres, radii + reach.max())
    count = np.fromiter((len(f) for f in found), np.int64, len(found))
    spot = np.repeat(np.arange(len(centres)), count)
    pixel = np.concatenate([np.asarray(f, np.int64) for f in found]) if count.sum() else np.empty(0, np.int64)
    near = np.hypot(*(centres[spot] - middle[pixel]).T) < radii[spot] + reach[pixel]
    return spot[near], pixel[near]


def weighted_mean(
    overlap: sp.csr_matrix, values: sp.spmatrix | NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Area-weighted mean of pixel values in each spot, and the area that counted.

    Parameters
    ----------
    overlap
        Areas, shape (spots, pixels).
    values
        Pixel values, shape (pixels, metabolites), dense or sparse.

    Returns
    -------
    Means, shape (spots, metabolites), NaN where a spot meets no pixel; covered area, shape (spots,).
    """
    covered = np.asarray(overlap.sum(axis=1)).ravel()
    weights = sp.diags(1.0 / np.where(covered > 0, covered, np.nan)) @ overlap
    mean = weights @ values
    mean = mean.toarray() if sp.issparse(mean) else np.asarray(mean)
    mean = mean.astype(np.float32)
    mean[covered == 0] = np.nan
    return mean, covered
