"""Neighbourhoods as dense arrays, for batched matrix products."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from stmsi._core.arrays import Floats, Floats32, Ints
from stmsi._core.spatial.sections import rows_of_each, spot_pitch

MOST_IN_RING = (8, 16, 24)
"""Neighbours kept of the first three rings: all of them on hexagons (6, 12, 18) and squares (8, 16, 24)."""


def neighbour_rings(graph: sp.csr_matrix, most: tuple[int, ...] = MOST_IN_RING[:2]) -> tuple[Ints, Ints]:
    """Row of each neighbour, shape (n, K), -1 where there is none, and its ring from 1, 0 where there is none.

    Ring 1 are the spots that share an edge with the spot, ring 2 those that share one with ring 1 and are in no earlier
    ring. Of a ring with more than `most` spots, evenly spaced ones in row order are kept. Edge weights do not count.
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


def edge_length(graph: sp.csr_matrix, xy: Floats) -> float:
    """Median distance of spots that share an edge; 1 where none do, or all lie on one place."""
    edges = graph.tocoo()
    rows, columns = edges.row[edges.data != 0], edges.col[edges.data != 0]
    if len(rows) == 0:
        return 1.0
    return float(np.median(np.hypot(*(xy[columns] - xy[rows]).T))) or 1.0


def relative_positions(xy: Floats, index: Ints, step: float) -> Floats32:
    """Position of each neighbour relative to its spot, in units of `step`, the :func:`edge_length`.

    Shape (n, K, 2), 0 where there is none; `index` is that of :func:`neighbour_rings`.
    """
    return (np.where((index >= 0)[..., None], xy[index] - xy[:, None, :], 0.0) / step).astype(np.float32)


def section_positions(xy: Floats, section: Ints) -> Floats32:
    """Position of each spot relative to the middle of its section, in units of the pitch of its spots.

    Shape (n, 2); 0 for a section with one position.
    """
    position = np.zeros(xy.shape, np.float32)
    for rows in rows_of_each(section):
        pitch = spot_pitch(xy[rows])
        if pitch > 0:
            position[rows] = (xy[rows] - xy[rows].mean(axis=0)) / pitch
    return position


def _first(matrix: sp.csr_matrix, limit: int) -> Ints:
    """Columns stored in each row as a dense array padded with -1; of more than `limit`, evenly spaced ones."""
    count = np.diff(matrix.indptr)[:, None]
    width = int(min(count.max(initial=0), limit))
    if width == 0:
        return np.empty((matrix.shape[0], 0), np.int64)
    kept = np.minimum(count, width)
    slot = np.arange(width)
    there = slot < kept
    at = np.where(there, matrix.indptr[:-1, None] + slot * count // np.maximum(kept, 1), 0)
    return np.where(there, matrix.indices[at].astype(np.int64), -1)
