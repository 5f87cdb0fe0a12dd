"""How far targets are correlated in space, and blocks of spots of that size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from stmsi._core.mapping.nearest_pixels import lattice_pitch

_MOST_SPOTS = 1500
"""Spots of which all pairs are formed: a million pairs tell the range."""
_STRUCTURE = 0.1
"""Share of a target's variance that must be correlated in space for its range to count."""
_PRACTICAL = 3.0
"""An exponential correlation has fallen to 5 % at three times its scale."""


class Correlogram(NamedTuple):
    """Correlation of targets between spots by their distance.

    Attributes
    ----------
    lag
        Mean distance of the pairs of each bin, shape (bins,).
    rho
        Correlation, shape (bins, targets); NaN without pairs.
    pairs
        Pairs with both spots measured, likewise.
    """

    lag: NDArray[np.float64]
    rho: NDArray[np.float64]
    pairs: NDArray[np.float64]


def spot_pitch(xy: NDArray[np.float64]) -> float:
    """Median distance from a position to the nearest other one; 0 for a single position."""
    own = np.unique(xy, axis=0)
    return lattice_pitch(own) if len(own) > 1 else 0.0


def correlogram(
    xy: NDArray[np.float64], targets: NDArray[np.float64], *, n_bins: int = 15, seed: int = 0
) -> Correlogram:
    """Empirical correlogram of each target in one section.

    Parameters
    ----------
    xy
        Positions, shape (n, 2).
    targets
        Shape (n, m); NaN are left out.
    n_bins
        Distance bins, from the pitch of the spots to half the diagonal of the section.
    seed
        For the spots that are drawn where there are more than enough.

    Returns
    -------
    Bins without pairs are left out.
    """
    pitch = spot_pitch(xy)
    if len(xy) > _MOST_SPOTS:
        rows = np.sort(np.random.default_rng(seed).choice(len(xy), _MOST_SPOTS, replace=False))
        xy, targets = xy[rows], targets[rows]
    known = np.isfinite(targets)
    n = np.maximum(known.sum(axis=0), 1)
    z = np.where(known, targets, 0.0)
    z = np.where(known, z - z.sum(axis=0) / n, 0.0)
    spread = np.sqrt((z**2).sum(axis=0) / n)
    z = z / np.where(spread > 0, spread, np.inf)
    distance = pdist(xy)
    longest = 0.5 * float(np.hypot(*np.ptp(xy, axis=0))) if len(xy) else 0.0
    first, second = np.triu_indices(len(xy), 1)
    near = (distance > 0) & (distance <= max(longest, 1.5 * pitch))
    distance, first, second = distance[near], first[near], second[near]
    edges = np.linspace(0.5 * pitch, max(longest, 1.5 * pitch), n_bins + 1)[1:-1]
    code = np.searchsorted(edges, distance)
    lag, rho, pairs = [], [], []
    for b in np.unique(code):
        own = code == b
        A = sp.csr_matrix((np.ones(own.sum()), (first[own], second[own])), shape=(len(xy), len(xy)))
        count = (known * (A @ known.astype(np.float64))).sum(axis=0)
        product = (z * (A @ z)).sum(axis=0)
        lag.append(distance[own].mean())
        rho.append(np.where((count > 0) & (spread > 0), product / np.maximum(count, 1), np.nan))
        pairs.append(count)
    m = targets.shape[1]
    return Correlogram(np.array(lag), np.array(rho).reshape(-1, m), np.array(pairs).reshape(-1, m))


def correlation_range(found: Correlogram) -> NDArray[np.float64]:
    r"""Distance at which the correlation has fallen to 5 % of what space explains, for each target.

    Least squares of :math:`s\, e^{-3 h / r}` with :math:`0 \le s \le 1` over the bins, weighted by their pairs, for
    :math:`r` on a grid. What differs between a spot and its nearest neighbour (noise) is in :math:`1 - s`.

    Returns
    -------
    Shape (targets,); NaN for targets without a pattern in space, infinite where the correlation does not fall.
    """
    lag, rho, pairs = found
    m = rho.shape[1]
    if len(lag) < 2:
        return np.full(m, np.nan)
    grid = np.geomspace(0.5 * lag[0], 2 * lag[-1], 60)
    weight = np.where(np.isfinite(rho), pairs, 0.0)
    value = np.where(np.isfinite(rho), rho, 0.0)
    shape = np.exp(-_PRACTICAL * lag[None, :] / grid[:, None])
    cross, square = shape @ (weight * value), (shape**2) @ weight
    s = np.clip(cross / np.where(square > 0, square, np.inf), 0, 1)
    error = (weight * value**2).sum(axis=0) - 2 * s * cross + s**2 * square
    best = error.argmin(axis=0)
    # a long tail alone does not count: what two neighbours share must be there
    at_first = s[best, np.arange(m)] * shape[best, 0]
    found_range = np.where(best == len(grid) - 1, np.inf, grid[best])
    return np.where(at_first > _STRUCTURE, found_range, np.nan)


def grid_blocks(
    xy: NDArray[np.float64], size: float, unit: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Blocks of a regular grid over one section.

    Parameters
    ----------
    xy
        Positions, shape (n, 2).
    size
        Least length of a block's side; blocks are stretched so that no slivers are left at the border.
    unit
        Spots with the same number stay together, in the block of their mean position; `None`: each by itself.

    Returns
    -------
    Block of each spot, numbers 0, 1, ... of those that hold spots; blocks in each direction.
    """
    at = xy
    if unit is not None:
        unit = np.unique(unit, return_inverse=True)[1]
        n = np.bincount(unit)
        at = np.column_stack([np.bincount(unit, axis) / n for axis in xy.T])[unit]
    low, extent = xy.min(axis=0), np.ptp(xy, axis=0)
    number = np.maximum(np.floor(extent / size), 1).astype(np.int64)
    side = np.where(extent > 0, extent / number, 1.0)
    cell = np.minimum(((at - low) / side).astype(np.int64), number - 1)
    block = np.unique(cell[:, 0] * number[1] + cell[:, 1], return_inverse=True)[1]
    return block, (int(number[0]), int(number[1]))


def spread_blocks(
    section: NDArray[np.int64], block: NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Fold of each spot: blocks are dealt out in random order of equals, the largest first, to the smallest fold.

    Parameters
    ----------
    section, block
        Of each spot; blocks are numbered over all sections.
    n_folds
        Number of folds, at most that of blocks.
    rng
        Generator.

    Returns
    -------
    Shape (spots,).
    """
    size = np.bincount(block)
    of_section = np.zeros(len(size), np.int64)
    of_section[block] = section
    load, fold = np.zeros(n_folds), np.empty(len(size), np.int64)
    for s in np.unique(of_section):
        own = rng.permutation(np.flatnonzero(of_section == s))
        for b in own[np.argsort(-size[own], kind="stable")]:
            fold[b] = load.argmin()
            load[fold[b]] += size[b]
    return fold[block]


def near_any(
    xy: NDArray[np.float64], section: NDArray[np.int64], mask: NDArray[np.bool_], radius: float
) -> NDArray[np.bool_]:
    """Which spots lie within a distance of a spot of `mask` in their section (those of `mask` included)."""
    near = mask.copy()
    if radius <= 0:
        return near
    for s in np.unique(section[mask]):
        own = section == s
        distance, _ = KDTree(xy[own & mask]).query(xy[own], distance_upper_bound=radius * (1 + 1e-9))
        near[own] |= np.isfinite(distance)
    return near
