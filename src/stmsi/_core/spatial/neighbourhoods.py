"""Neighbourhoods as dense arrays, which batched matrix products take without a graph library."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import KDTree

MOST_IN_RING = (8, 16)
"""Neighbours kept of the first and of the second ring: all of them on hexagons (6, 12) and squares (8, 16)."""


def neighbour_rings(
    graph: sp.csr_matrix, most: tuple[int, ...] = MOST_IN_RING
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neighbours of each spot, ring by ring.

    Ring 1 are the spots that share an edge with it, ring 2 those that share one with ring 1 and are in no earlier ring.

    Parameters
    ----------
    graph
        Adjacency, shape (n, n); what is not 0 is an edge, its weight does not count.
    most
        Neighbours kept of each ring, evenly spaced over those in row order where there are more.

    Returns
    -------
    Row of each neighbour, shape (n, K), -1 where there is none; its ring from 1, likewise, 0 where there is none. K is
    as small as these data allow.
    """
    edges = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    edges.eliminate_zeros()
    edges.data[:] = 1
    front = seen = sp.identity(graph.shape[0], format="csr")
    index, ring = [], []
    for number, limit in enumerate(most, start=1):
        reached = sp.csr_matrix(front @ edges)
        reached.data[:] = 1
        front = sp.csr_matrix(reached - reached.multiply(seen))
        front.eliminate_zeros()
        front.sort_indices()
        seen = seen + front
        columns = _first(front, limit)
        index.append(columns)
        ring.append(np.where(columns >= 0, number, 0))
    return np.hstack(index), np.hstack(ring)


def relative_positions(
    xy: NDArray[np.float64], index: NDArray[np.int64], ring: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Position of each neighbour relative to its spot, in units of the median distance of ring 1.

    Parameters
    ----------
    xy
        Positions, shape (n, 2).
    index, ring
        As :func:`neighbour_rings` returns them.

    Returns
    -------
    Shape (n, K, 2); 0 where there is no neighbour.
    """
    offset = np.where((index >= 0)[..., None], xy[index] - xy[:, None, :], 0.0)
    length = np.hypot(*np.moveaxis(offset, -1, 0))[ring == 1]
    step = float(np.median(length)) if len(length) else 1.0
    return (offset / (step or 1.0)).astype(np.float32)


def section_positions(xy: NDArray[np.float64], section: NDArray[np.int64]) -> NDArray[np.float32]:
    """Position of each spot relative to the middle of its section, in units of the median distance to the nearest spot.

    Parameters
    ----------
    xy
        Positions, shape (n, 2).
    section
        Section of each spot.

    Returns
    -------
    Shape (n, 2); 0 for a section with one position.
    """
    position = np.zeros(xy.shape, np.float32)
    for number in np.unique(section):
        rows = np.flatnonzero(section == number)
        own = np.unique(xy[rows], axis=0)
        if len(own) > 1:
            step = np.median(KDTree(own).query(own, k=2)[0][:, 1])
            position[rows] = (xy[rows] - xy[rows].mean(axis=0)) / step
    return position


def _first(matrix: sp.csr_matrix, limit: int) -> NDArray[np.int64]:
    """Columns stored in each row as a dense array padded with -1, at most `limit` of each row."""
    count = np.diff(matrix.indptr)
    width = int(min(count.max(initial=0), limit))
    if width == 0:
        return np.empty((matrix.shape[0], 0), np.int64)
    kept = np.minimum(count, width)
    slot = np.arange(width)[None, :]
    # position in the row of the kept ones: all of a short row, evenly spaced ones of a long row
    position = np.where(kept[:, None] > 0, slot * count[:, None] // np.maximum(kept[:, None], 1), 0)
    there = slot < kept[:, None]
    flat = np.where(there, matrix.indptr[:-1, None] + position, 0)
    return np.where(there, matrix.indices[np.minimum(flat, max(matrix.nnz - 1, 0))].astype(np.int64), -1)
