"""Spots whose counts were made of those of another spot: arrays in, pairs out."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from stmsi._core.arrays import Floats, Floats32, Ints

_LEAST_GENES = 10  # spots with fewer genes than this can be equal by chance
_MOST_GENES = 400  # the genes with most counts hold nearly all that tells spots apart
_MOST_PAIRS = 20_000_000
_CHUNK = 256
_LOG_CHANCE = -32.0  # of one pair; among 20 million pairs one in four million sets of data has such a pair
_CANDIDATES = 5
_LEAST_COUNTS = 5  # of a gene in both spots, from which its scatter is near enough normal
_ALIKE = 0.5
"""Spread of the fifth most similar pair, relative to independent counts, below which the counts of all spots are that alike."""
_ANGLE = 1e-4
"""Squared distance, relative to the length, of copies where expression is not counts."""


def near_copies(matrix: sp.csr_matrix, *, counts: bool) -> Ints:
    """Number of the group of copies that each spot is in, -1 for spots without a copy; shape (n,).

    Counts `y` that were drawn from the `p` of the counts `x` of another spot, or copied and changed a little, scatter less about
    `p x` than those of two spots of the same tissue do: their mean squared distance is ``(1 - p) / (1 + p)`` of theirs. A
    pair is reported where that is beyond chance. Of many spots, some are compared with all.

    Parameters
    ----------
    matrix
        Expression, spots x genes.
    counts
        Whether these are whole numbers. Otherwise copies must point in the same direction.
    """
    n = matrix.shape[0]
    genes = np.argsort(-np.asarray(abs(matrix).sum(axis=0)).ravel(), kind="stable")[:_MOST_GENES]
    X = matrix[:, np.sort(genes)].astype(np.float32)
    enough = np.flatnonzero(X.getnnz(axis=1) >= _LEAST_GENES)
    code = np.full(n, -1, np.int64)
    if len(enough) < 2:
        return code
    X = X[enough]
    most = max(_MOST_PAIRS // len(enough), 1)
    rows = np.arange(len(enough))
    if most < len(enough):
        rows = np.sort(np.random.default_rng(0).choice(len(enough), most, replace=False))
    D = X.toarray()
    squares = (D**2).sum(axis=1, dtype=np.float64)
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(rows), _CHUNK):
        own = rows[start : start + _CHUNK]
        product = (D[own] @ D.T).astype(np.float64)
        i, j = (_of_counts if counts else _of_directions)(product, own, D, squares)
        first.append(own[i])
        second.append(j)
    a, b = np.concatenate(first), np.concatenate(second)
    group = connected_components(sp.csr_matrix((np.ones(len(a)), (a, b)), shape=(len(enough),) * 2), directed=False)[1]
    paired = np.union1d(a, b)
    code[enough[paired]] = group[paired]
    return code


def _nearest(distance: Floats, own: Ints) -> tuple[Ints, Ints]:
    """The few nearest others of each row, (rows, k), by rising distance, and the row numbers, (rows, 1)."""
    i = np.arange(len(own))
    distance[i, own] = np.inf
    k = min(_CANDIDATES, distance.shape[1] - 1)
    near = np.argpartition(distance, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(distance, near, axis=1), axis=1)
    return np.take_along_axis(near, order, axis=1), i[:, None]


def _of_counts(product: Floats, own: Ints, D: Floats32, squares: Floats) -> tuple[Ints, Ints]:
    """Pairs that scatter less than independent counts may: row of `product`, and spot."""
    total = D.sum(axis=1, dtype=np.float64)
    swap = total[own][:, None] < total[None, :]  # the spot with more counts is x
    q = total[own][:, None] / total[None, :]
    p = np.where(swap, q, 1 / q)
    sx = np.where(swap, squares[None, :], squares[own][:, None])
    sy = np.where(swap, squares[own][:, None], squares[None, :])
    expected = (1 + p) * np.where(swap, total[own][:, None], total[None, :])
    spread = np.maximum(sy - 2 * p * product + p**2 * sx, 0) / expected
    # squared deviation of the spread of Poisson counts: 2 E^2 + E of each gene
    variance = (2 * (p * (1 + p)) ** 2 * sx + expected) / expected**2
    near, i = _nearest(spread, own)
    d, v, p = spread[i, near], variance[i, near], p[i, near]
    chance = _log_chance(d, 2 / v)
    # each gene in units of its own scatter says more where there are counts enough
    one, other = D[own][:, None, :], D[near]
    x, y = np.where(swap[i, near][..., None], other, one), np.where(swap[i, near][..., None], one, other)
    told = x + y >= _LEAST_COUNTS
    number = told.sum(axis=-1)
    share = p[..., None].astype(np.float32)
    parts = np.where(told, (y - share * x) ** 2 / (share * np.maximum(x + y, 1)), 0).sum(axis=-1)
    each = parts / np.maximum(number, 1)
    chance = np.minimum(chance, np.where(number >= _LEAST_GENES, _log_chance(each, number), 0))
    usual = each[number[:, -1] >= _LEAST_GENES, -1]
    if np.median(d[:, -1]) < _ALIKE or (len(usual) and np.median(usual) < _ALIKE):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    hit, k = np.nonzero(chance < _LOG_CHANCE)
    return hit, near[hit, k]


def _log_chance(spread: Floats, freedom: Floats) -> Floats:
    """Bound of the logarithm of the chance that a mean of `freedom` squared normal numbers is as small as `spread`."""
    d = np.clip(spread, 0.02, 1.0)
    return freedom / 2 * (1 - d + np.log(d))


def _of_directions(product: Floats, own: Ints, _: Floats32, squares: Floats) -> tuple[Ints, Ints]:
    """Pairs that point in the same direction, where spots in general do not."""
    distance = 1 - product / np.sqrt(np.maximum(squares[own][:, None] * squares[None, :], 1e-12))
    near, i = _nearest(distance, own)
    if np.median(distance[i, near][:, -1]) < 10 * _ANGLE:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    hit, k = np.nonzero(distance[i, near] < _ANGLE)
    return hit, near[hit, k]
