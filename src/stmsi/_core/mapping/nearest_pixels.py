"""Pairs of pixels and spots by distance."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree


def lattice_pitch(centres: NDArray[np.float64]) -> float:
    """Distance between neighbours of a lattice: the median distance to the nearest other centre (NaN for one)."""
    if len(centres) < 2:
        return float("nan")
    return float(np.median(cKDTree(centres).query(centres, k=2)[0][:, 1]))


def nearest_spots(pixels: NDArray[np.float64], spots: NDArray[np.float64], max_distance: float) -> NDArray[np.int64]:
    """Number of the nearest spot of each pixel; -1 where none is within `max_distance`."""
    if len(spots) == 0:
        return np.full(len(pixels), -1)
    # cKDTree's own bound excludes the distance itself
    distance, spot = cKDTree(spots).query(pixels)
    return np.where(distance <= max_distance * (1 + 1e-12), spot, -1)


def assignment(spot: NDArray[np.int64], n_spots: int) -> sp.csr_matrix:
    """Weights of 1, shape (spots, pixels), from the spot of each pixel (-1: none)."""
    pixel = np.flatnonzero(spot >= 0)
    return sp.csr_matrix((np.ones(len(pixel)), (spot[pixel], pixel)), shape=(n_spots, len(spot)))
