"""The range of spatial correlation, and blocks of spots of that size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.sections import rows_of_each, spot_pitch

_MOST_SPOTS = 1500  # spots that form pairs: a million pairs are enough for the range
_STRUCTURE = 0.1  # share of a target's variance that must be correlated in space for its range to count
_PRACTICAL = 3.0  # an exponential correlation has fallen to 5 % at three times its scale


class Correlogram(NamedTuple):
    """Correlation of targets between spots by their distance; bins without pairs are left out."""

    lag: Floats  # mean distance of the pairs of each bin, shape (bins,)
    rho: Floats  # correlation, shape (bins, targets); NaN without pairs
    pairs: Floats  # pairs with both spots measured, likewise


def correlogram(xy: Floats, targets: Floats, *, n_bins: int = 15, seed: int = 0) -> Correlogram:
    """Empirical correlogram of each target (spots, targets) in one section; NaN are left out.

    Bins reach from the pitch of the spots to half the diagonal of the section. A random part of many spots is used.
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
    longest = max(0.5 * float(np.hypot(*np.ptp(xy, axis=0))) if len(xy) else 0.0, 1.5 * pitch)
    distance = pdist(xy)
    near = (distance > 0) & (distance <= longest)
    distance, first, second = distance[near], *(side[near] for side in np.triu_indices(len(xy), 1))
    code = np.searchsorted(np.linspace(0.5 * pitch, longest, n_bins + 1)[1:-1], distance)
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


def correlation_range(found: Correlogram) -> Floats:
    r"""Distance at which the correlation of each target has fallen to 5 % of what space explains.

    Least squares of :math:`s\, e^{-3 h / r}` with :math:`0 \le s \le 1` over the bins, weighted by their pairs, for
    :math:`r` on a grid. Noise, the difference between nearest neighbours, is in :math:`1 - s`. NaN for targets without a
    pattern in space, infinite where the correlation does not fall.
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
    # a long tail alone does not count: neighbours must be correlated
    at_first = s[best, np.arange(m)] * shape[best, 0]
    found_range = np.where(best == len(grid) - 1, np.inf, grid[best])
    return np.where(at_first > _STRUCTURE, found_range, np.nan)


def grid_blocks(xy: Floats, size: float, unit: Ints | None = None) -> tuple[Ints, tuple[int, int]]:
    """Block of each spot in a regular grid over one section, 0, 1, ... of those with spots; blocks in each direction.

    `size` is the least length of a side: blocks are stretched, so that no slivers are left at the border. Spots of the
    same `unit` stay together, in the block of their mean position.
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


def spread_blocks(section: Ints, block: Ints, n_folds: int, rng: np.random.Generator) -> Ints:
    """Fold of each spot: in every section, blocks go to the smallest fold, the largest first, equals in random order.

    `block` is numbered over all sections; there are at least as many as folds.
    """
    size = np.bincount(block)
    of_section = np.zeros(len(size), np.int64)
    of_section[block] = section
    shuffled = (rng.permutation(own) for own in rows_of_each(of_section))
    order = np.concatenate([own[np.argsort(-size[own], kind="stable")] for own in shuffled])
    return deal_out(size, order, n_folds)[block]


def deal_out(size: Ints, order: Ints, n_groups: int) -> Ints:
    """Group of each thing, which one after the other, in `order`, goes to the group that is the smallest so far."""
    load, group = np.zeros(n_groups), np.empty(len(size), np.int64)
    for one in order:
        group[one] = load.argmin()
        load[group[one]] += size[one]
    return group


def near_any(xy: Floats, section: Ints, mask: Bools, radius: float) -> Bools:
    """Spots within a distance of a spot of `mask` in their section, those of `mask` included."""
    near = mask.copy()
    if radius <= 0:
        return near
    for s in np.unique(section[mask]):
        own = section == s
        distance, _ = KDTree(xy[own & mask]).query(xy[own], distance_upper_bound=radius * (1 + 1e-9))
        near[own] |= np.isfinite(distance)
    return near
