"""Sections of a table of spots: their rows, and the distance between their spots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from stmsi._core.arrays import Floats, Ints


def rows_of_each(label: NDArray[Any]) -> list[Ints]:
    """Rows of each section (or group), in the order of their names or numbers."""
    return [np.flatnonzero(label == one) for one in np.unique(label)]


def nearest_distances(xy: Floats) -> Floats:
    """Distance of each position to the nearest other one; every position counts once; empty where there is one."""
    own = np.unique(xy, axis=0)
    return KDTree(own).query(own, k=2)[0][:, 1] if len(own) > 1 else np.empty(0)


def spacing(xy: Floats, section: Ints) -> float:
    """Median distance between neighbouring positions of a section; NaN where no section has two."""
    nearest = np.concatenate([np.empty(0), *(nearest_distances(xy[own]) for own in rows_of_each(section))])
    return float(np.median(nearest)) if len(nearest) else np.nan


def spot_pitch(xy: Floats) -> float:
    """Median distance from a position to the nearest other one; 0 for a single position."""
    nearest = nearest_distances(xy)
    return float(np.median(nearest)) if len(nearest) else 0.0
