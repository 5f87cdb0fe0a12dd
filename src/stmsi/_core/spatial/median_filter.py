"""Replacement of zeros by the median of their surroundings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.spatial import KDTree

from stmsi._core.arrays import Floats, Ints

_SAME = 0.05  # difference of distances, in steps of the grid, that small errors of the positions make
_BLOCK = 4_000_000  # values gathered at once; bounds the memory, not the result


def distance_rings(xy: Floats, n_rings: int) -> tuple[Ints, Ints]:
    """Spots around each spot, nearest first from itself, shape (n, K), padded with -1; how many lie within each ring.

    The rings of a grid are its distinct distances (1, 1.73, 2, 2.65, ... steps on a hexagon). A step is the median distance
    to the nearest spot, and distances closer than 0.05 steps are one. Positions that form no grid have rings of one
    step's width. The numbers, shape (n, `n_rings`), count the spot itself.
    """
    n = len(xy)
    if n < 2:
        return np.arange(n)[:, None], np.ones((n, n_rings), np.int64)
    tree = KDTree(xy)
    nearest = tree.query(xy, k=2)[0][:, 1]
    step = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else 1.0
    reach = step * (n_rings + 0.5)  # the k-th distance of a grid is at most k steps
    pairs = tree.query_pairs(reach, output_type="ndarray")
    steps = np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T) / step
    ring = _rings(steps, n_rings)
    (i, j), ring = pairs[ring < n_rings].T, ring[ring < n_rings]
    own = np.arange(n)
    spot, other = np.concatenate([own, i, j]), np.concatenate([own, j, i])
    ring = np.concatenate([np.full(n, -1), ring, ring])
    order = np.lexsort((other, ring, spot))
    spot, other, ring = spot[order], other[order], ring[order]
    count = np.bincount(spot, minlength=n)
    slot = np.arange(len(spot)) - np.repeat(np.cumsum(count) - count, count)
    index = np.full((n, int(count.max())), -1, np.int64)
    index[spot, slot] = other
    inside = np.bincount(spot * (n_rings + 1) + ring + 1, minlength=n * (n_rings + 1)).reshape(n, n_rings + 1)
    return index, np.cumsum(inside, axis=1)[:, 1:]


def _rings(steps: Floats, n_rings: int) -> Ints:
    """Ring of each distance (in steps), from 0."""
    order = np.argsort(steps)
    ordered = steps[order]
    number = np.cumsum(np.diff(ordered, prepend=ordered[:1]) > _SAME)
    ring = np.empty(len(steps), np.int64)
    ring[order] = number
    edge = np.searchsorted(number, np.arange(n_rings + 1))
    width = [np.ptp(ordered[i:j]) for i, j in pairwise(edge.tolist()) if j > i]
    return np.maximum(np.rint(steps).astype(np.int64) - 1, 0) if max(width, default=0) > 2 * _SAME else ring


def adaptive_median(values: Floats, index: Ints, inside: Ints) -> Floats:
    """Replace zeros of one section (spots, metabolites) by the median of the smallest ring whose median is not zero.

    Where there is none, by the median of the column's values above zero. NaN stay and count in no median. `index` and
    `inside` are those of :func:`distance_rings`.
    """
    filled = values.copy()
    spot, column = np.nonzero(values == 0)
    for ring in range(inside.shape[1]):
        width = int(inside[:, ring].max(initial=0))
        left = []
        per_block = max(1, _BLOCK // max(width, 1))
        for low in range(0, len(spot), per_block):
            s, c = spot[low : low + per_block], column[low : low + per_block]
            near = index[s, :width]
            within = np.arange(width) < inside[s, ring][:, None]
            window = np.where(within & (near >= 0), values[near, c[:, None]], np.nan)
            median = _row_medians(window)
            filled[s, c] = median
            left.append(np.flatnonzero(~(median > 0)) + low)
        again = np.concatenate(left) if left else np.empty(0, np.int64)
        spot, column = spot[again], column[again]
    filled[spot, column] = _row_medians(np.where(values > 0, values, np.nan).T)[column]
    return np.where((values == 0) & np.isnan(filled), 0.0, filled)


def _row_medians(window: Floats) -> Floats:
    """Median of each row without NaN, NaN where there is nothing else; numpy's would warn."""
    ordered = np.sort(window, axis=1)  # NaN last
    count, rows = (~np.isnan(ordered)).sum(axis=1), np.arange(len(ordered))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, ordered.shape[1] - 1)
    return (ordered[rows, low] + ordered[rows, high]) / 2
