"""Exact areas in which spots (circles or polygons) and pixels (polygons) overlap.

spatialdata.aggregate turns circles into polygons and intersects pairs one by one; this is exact and all array
operations.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.sparse as sp
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_BLOCK = 500_000
"""Pairs of spot and edge handled at once; bounds the memory, not the result."""
_TOUCH = 1e-12
"""Overlaps below this share of a spot or pixel are rounding where two shapes only touch."""
_ALIKE = 2.0
"""Up to this ratio of the largest to the median box, pairs are found by the distance of their centres."""


class Edges(NamedTuple):
    """Edges of polygons, directed so that the inside lies on their left; `owner` is the polygon of each, sorted."""

    start: Floats
    end: Floats
    owner: Ints
    n_polygons: int

    @property
    def area(self) -> Floats:
        """Area of each polygon."""
        # from a vertex of its own, so that far-off coordinates cost no precision
        base = _first_vertex(self)[self.owner]
        (ax, ay), (bx, by) = (self.start - base).T, (self.end - base).T
        return np.bincount(self.owner, weights=0.5 * (ax * by - ay * bx), minlength=self.n_polygons).astype(np.float64)


def oriented_edges(geometries: NDArray[np.object_]) -> Edges:
    """Edges of polygons and multi-polygons, with or without holes."""
    if (shapely.get_type_id(geometries) == 3).all() and not shapely.get_num_interior_rings(geometries).any():
        vertices, ring = shapely.get_coordinates(geometries, return_index=True)
        return edges_of_rings(vertices, ring, len(geometries))
    parts, part_owner = shapely.get_parts(geometries, return_index=True)
    rings, polygon = shapely.get_rings(parts, return_index=True)
    hole = np.concatenate([[False], polygon[1:] == polygon[:-1]])[: len(rings)]  # the outer ring comes first
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    edges = edges_of_rings(xy, ring, len(rings))
    # the outside of a hole is the inside of its polygon
    inner = hole[edges.owner][:, None]
    start, end = np.where(inner, edges.end, edges.start), np.where(inner, edges.start, edges.end)
    return Edges(start, end, part_owner[polygon][edges.owner], len(geometries))


def edges_of_rings(vertices: Floats, ring: Ints, n_rings: int) -> Edges:
    """Edges of closed rings (first vertex repeated), listed one after another, in either orientation."""
    start = np.flatnonzero(ring[:-1] == ring[1:])
    edges = Edges(vertices[start], vertices[start + 1], ring[start], n_rings)
    clockwise = edges.area < 0
    if not clockwise.any():
        return edges
    # a mirrored raster has clockwise pixels: they are walked backwards
    count, first = _counts(ring, n_rings)
    back = clockwise[ring]
    order = np.arange(len(ring))
    order[back] = (2 * first + count - 1)[ring[back]] - order[back]
    vertices = vertices[order]
    return edges._replace(start=vertices[start], end=vertices[start + 1])


def circle_edge_area(ax: Floats, ay: Floats, bx: Floats, by: Floats, radius: Floats) -> Floats:
    r"""Signed area shared by a circle around the origin and the triangle (origin, a, b).

    The sum over the edges of a polygon is the exact area that both share (Green's theorem): inside the circle an edge
    gives the triangle :math:`(o \times d) / 2`, outside the sector :math:`r^2 \theta / 2`.
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


def circle_polygon_overlap(centres: Floats, radii: Floats, polygons: Edges) -> sp.csr_matrix:
    """Area shared by every circle and every simple polygon, shape (circles, polygons)."""
    low, high, known = _bounds(polygons)
    reach = np.asarray(radii, dtype=np.float64)[:, None]
    spot, pixel = _near_pairs(centres - reach, centres + reach, np.arange(len(centres)), low, high, known)
    middle, half = 0.5 * (low + high), 0.5 * np.hypot(*(high - low).T)
    near = np.hypot(*(centres[spot] - middle[pixel]).T) < radii[spot] + half[pixel]
    spot, pixel = spot[near], pixel[near]
    count, first = _counts(polygons.owner, polygons.n_polygons)
    area = np.zeros(len(spot))
    for block in _blocks(count[pixel]):
        s, p = spot[block], pixel[block]
        pair, edge = _expand(count[p], first[p])
        c = centres[s[pair]]
        a, b = polygons.start[edge] - c, polygons.end[edge] - c
        part = circle_edge_area(a[:, 0], a[:, 1], b[:, 0], b[:, 1], radii[s[pair]])
        area[block] = np.bincount(pair, weights=part, minlength=len(p))
    keep = area > _TOUCH * radii[spot] ** 2
    return sp.csr_matrix((area[keep], (spot[keep], pixel[keep])), shape=(len(centres), polygons.n_polygons))


def polygon_overlap(spots: Edges, pixels: Edges) -> sp.csr_matrix:
    r"""Area shared by every spot polygon (holes allowed) and every pixel polygon (one ring), shape (spots, pixels).

    A pixel that is a parallelogram becomes the unit square by an affine map, and the area that a polygon shares with it
    is, by Green's theorem, :math:`-\oint \min(\max(y, 0), 1) \, dx` over :math:`0 \le x \le 1`. Any other pixel is a
    fan of triangles. No polygon is clipped, and every term is continuous in the vertices: shared edges need no special
    case.
    """
    spot, pixel = _near_pairs(*_bounds(spots), *_bounds(pixels))
    patch = _patches(pixels)
    n_edges, first_edge = _counts(spots.owner, spots.n_polygons)
    n_patches, first_patch = _counts(patch.owner, pixels.n_polygons)
    area = np.zeros(len(spot))
    for block in _blocks(n_edges[spot] * n_patches[pixel]):
        s, p = spot[block], pixel[block]
        pair, k = _expand(n_patches[p], first_patch[p])
        row, edge = _expand(n_edges[s[pair]], first_edge[s[pair]])
        k, pair = k[row], pair[row]
        (ax, ay), (bx, by) = patch.local(spots.start[edge], k), patch.local(spots.end[edge], k)
        part = patch.weight[k] * _clipped_integral(ax, ay, bx, by, patch.slope[k])
        area[block] = np.bincount(pair, weights=part, minlength=len(p))
    keep = area > _TOUCH * np.minimum(spots.area[spot], pixels.area[pixel])
    return sp.csr_matrix((area[keep], (spot[keep], pixel[keep])), shape=(spots.n_polygons, pixels.n_polygons))


class _Patches(NamedTuple):
    """Parallelograms and triangles that pixels consist of, each with the map to its unit shape."""

    origin: Floats
    inverse: Floats  # (n, 2, 2)
    weight: Floats  # area of the unit, with the sign that Green's theorem needs
    slope: Floats  # the unit shape is 0 < x < 1, 0 < y < 1 - slope x
    owner: Ints

    def local(self, xy: Floats, patch: Ints) -> tuple[Floats, Floats]:
        """Points in the frame of the unit shape."""
        x, y = (xy - self.origin[patch]).T
        m = self.inverse[patch]
        return m[:, 0, 0] * x + m[:, 0, 1] * y, m[:, 1, 0] * x + m[:, 1, 1] * y


def _patches(pixels: Edges) -> _Patches:
    count, first = _counts(pixels.owner, pixels.n_polygons)
    quad = np.flatnonzero(count == 4)
    corner = pixels.start[first[quad][:, None] + np.arange(4)]
    size = np.abs(corner - corner[:, :1]).max(axis=(1, 2), initial=0)
    gap = np.abs(corner[:, 0] + corner[:, 2] - corner[:, 1] - corner[:, 3]).max(axis=1, initial=0)
    square = gap <= 1e-13 * np.maximum(size, np.abs(corner).max(axis=(1, 2), initial=0))
    box, corner = quad[square], corner[square]
    fan = np.setdiff1d(np.flatnonzero(count > 2), box)
    triangle, second = _expand(count[fan] - 2, first[fan] + 1)
    owner = np.concatenate([box, fan[triangle]])
    origin = np.concatenate([corner[:, 0], pixels.start[first[fan]][triangle]])
    x_end = np.concatenate([corner[:, 1], pixels.start[second]])
    y_end = np.concatenate([corner[:, 3], pixels.start[second + 1]])
    axes = np.stack([x_end - origin, y_end - origin], axis=2)
    det = axes[:, 0, 0] * axes[:, 1, 1] - axes[:, 0, 1] * axes[:, 1, 0]
    slope = np.concatenate([np.zeros(len(box)), np.ones(len(triangle))])
    flat = np.abs(det) <= 1e-14 * (axes**2).sum(axis=(1, 2))
    order = np.flatnonzero(~flat)[np.argsort(owner[~flat], kind="stable")]
    # both shapes run counter-clockwise; a triangle of a fan that runs clockwise lies outside a concave pixel
    return _Patches(origin[order], np.linalg.inv(axes[order]), -np.abs(det[order]), slope[order], owner[order])


def _clipped_integral(ax: Floats, ay: Floats, bx: Floats, by: Floats, slope: Floats) -> Floats:
    """Integral of ``min(max(y, 0), 1 - slope x)`` over x from 0 to 1 along edges, negative where they run back."""
    dx = bx - ax
    x0, x1 = np.clip(ax, 0.0, 1.0), np.clip(bx, 0.0, 1.0)
    width = np.where(dx == 0, 1.0, dx)
    # shares of the edge, not its slope: an edge that leans by the smallest of numbers has none that can be written down
    y0, y1 = ay + (x0 - ax) / width * (by - ay), by + (x1 - bx) / width * (by - ay)
    above = _mean_positive(y0 - (1 - slope * x0), y1 - (1 - slope * x1))
    return (x1 - x0) * (_mean_positive(y0, y1) - above)


def _mean_positive(u: Floats, v: Floats) -> Floats:
    """Mean of the positive part of a line from u to v."""
    total = np.abs(u) + np.abs(v)
    # with one end below zero, the share v / (v - u) of the width has the mean v / 2
    return 0.5 * (np.maximum(u, 0) + np.maximum(v, 0)) ** 2 / np.where(total > 0, total, 1.0)


def _counts(owner: Ints, n: int) -> tuple[Ints, Ints]:
    """Number of items of each owner and position of its first one; owners are sorted."""
    count = np.bincount(owner, minlength=n)
    return count, np.cumsum(count) - count


def _expand(count: Ints, first: Ints) -> tuple[Ints, Ints]:
    """Runs of `count` numbers that begin at `first`: the run of each, and the number."""
    run = np.repeat(np.arange(len(count)), count)
    return run, np.arange(len(run)) + np.repeat(first - (np.cumsum(count) - count), count)


def _blocks(cost: Ints) -> list[slice]:
    """Consecutive slices of at most about `_BLOCK` in cost."""
    total = np.cumsum(cost)
    block = total // _BLOCK if len(total) else total
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(block)) + 1, [len(cost)]])
    return [slice(int(a), int(b)) for a, b in pairwise(cuts) if b > a]


def _first_vertex(edges: Edges) -> Floats:
    count, first = _counts(edges.owner, edges.n_polygons)
    base = np.zeros((edges.n_polygons, 2))
    base[count > 0] = edges.start[first[count > 0]]
    return base


def _bounds(edges: Edges) -> tuple[Floats, Floats, Ints]:
    """Lower and upper corner of each polygon's box, and which polygons have any edge."""
    count, first = _counts(edges.owner, edges.n_polygons)
    known = np.flatnonzero(count)
    low = np.full((edges.n_polygons, 2), np.nan)
    high = low.copy()
    if len(known):
        low[known] = np.minimum.reduceat(edges.start, first[known])
        high[known] = np.maximum.reduceat(edges.start, first[known])
    return low, high, known


def _near_pairs(
    low: Floats, high: Floats, known: Ints, other_low: Floats, other_high: Floats, other_known: Ints
) -> tuple[Ints, Ints]:
    """Pairs whose bounding boxes meet."""
    if len(known) == 0 or len(other_known) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    low, high, other_low, other_high = low[known], high[known], other_low[other_known], other_high[other_known]
    reach, other_reach = (high - low).max(axis=1), (other_high - other_low).max(axis=1)
    if max(reach.max() / np.median(reach), other_reach.max() / np.median(other_reach)) < _ALIKE:
        # of one size: centres near each other, without a geometry for each box
        tree, other_tree = cKDTree(0.5 * (low + high)), cKDTree(0.5 * (other_low + other_high))
        limit = 0.5 * (reach.max() + other_reach.max()) * (1 + 1e-9)
        pairs = tree.sparse_distance_matrix(other_tree, limit, p=np.inf, output_type="ndarray")
        one, other = pairs["i"], pairs["j"]
        meet = ((low[one] <= other_high[other]) & (other_low[other] <= high[one])).all(axis=1)
        one, other = one[meet], other[meet]
    else:
        boxes = shapely.STRtree(shapely.box(*other_low.T, *other_high.T))
        one, other = boxes.query(shapely.box(*low.T, *high.T))
    return known[one], other_known[other]
