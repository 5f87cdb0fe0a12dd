"""Spatial structure of many variables at once."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_STEPS = {4: ((0, 1), (1, 0)), 8: ((0, 1), (1, 0), (1, 1), (1, -1))}


def raster_graph(row: NDArray[np.int64], col: NDArray[np.int64], n_neighs: int = 8) -> sp.csr_matrix:
    """Neighbours on a raster, which may have gaps.

    Parameters
    ----------
    row, col
        Position of each pixel, all different.
    n_neighs
        4 (sides) or 8 (corners as well).

    Returns
    -------
    Adjacency, shape (pixels, pixels), symmetric, ones.
    """
    row, col = row - row.min(initial=0), col - col.min(initial=0)
    width = int(col.max(initial=0)) + 3  # a free column on either side, so that no step wraps around
    code = row.astype(np.int64) * width + col + 1
    order = np.argsort(code)
    i, j = [], []
    for down, right in _STEPS[n_neighs]:
        wanted = code + down * width + right
        at = np.minimum(np.searchsorted(code[order], wanted), len(code) - 1)
        hit = np.flatnonzero(code[order[at]] == wanted)
        i.append(hit)
        j.append(order[at[hit]])
    first, second = np.concatenate(i), np.concatenate(j)
    ones = np.ones(2 * len(first))
    pairs = (np.concatenate([first, second]), np.concatenate([second, first]))
    return sp.csr_matrix((ones, pairs), shape=(len(code), len(code)))


def morans_i(graph: sp.csr_matrix, X: sp.spmatrix | NDArray[np.floating]) -> NDArray[np.float64]:
    r"""Moran's I of each column, with the rows of the graph scaled to a sum of 1, as squidpy scales them.

    .. math:: I = \frac{n}{W} \frac{z^\top W z}{z^\top z} \qquad z = x - \bar x

    For all columns it takes one sparse product, since :math:`z^\top W z` is
    :math:`x^\top W x - \bar x (x^\top W 1 + 1^\top W x) + \bar x^2\, 1^\top W 1`: sparse stays sparse.

    Parameters
    ----------
    graph
        Adjacency, shape (n, n), weights of at least 0.
    X
        Values, shape (n, m).

    Returns
    -------
    Shape (m,); NaN where a column is constant or the graph has no edge.
    """
    X = sp.csc_matrix(X, dtype=np.float64)
    n = X.shape[0]
    degree = np.asarray(graph.sum(axis=1), dtype=np.float64).ravel()
    W = sp.diags(1 / np.where(degree > 0, degree, 1.0)) @ sp.csr_matrix(graph, dtype=np.float64)
    out, into = np.asarray(W.sum(axis=1)).ravel(), np.asarray(W.sum(axis=0)).ravel()
    total = out.sum()
    mean = np.asarray(X.sum(axis=0)).ravel() / max(n, 1)
    square = np.asarray(X.multiply(X).sum(axis=0)).ravel()
    cross = np.asarray(X.multiply(W @ X).sum(axis=0)).ravel()
    spread = square - n * mean**2
    cross = cross - mean * (X.T @ (out + into)) + mean**2 * total
    # rounding leaves a constant column a spread of about 1e-16 of its square
    there = (spread > 1e-10 * square) & (total > 0)
    return np.where(there, n / max(total, 1e-300) * cross / np.where(there, spread, 1.0), np.nan)
