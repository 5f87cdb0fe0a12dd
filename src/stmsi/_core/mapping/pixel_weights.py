"""Pixel values of spots from a sparse matrix of weights, with the ions streamed in blocks of bounded size.

spatialdata.aggregate holds all values in memory, and has no medians or variances that are weighted by area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product, starmap
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_BUDGET = 32 * 2**20
"""Bytes of one block of intermediate values; bounds the memory, not the result."""

Block = tuple[slice, slice, Any]


def blocks(values: Any) -> Iterator[Block]:
    """Row slice, column slice and values in memory (dense or CSR) of blocks that tile a matrix.

    Dense and CSR are one block; dask comes by its chunks, what is on disk (h5py, zarr, backed) by rows, CSC by columns.
    """
    n, m = values.shape
    if hasattr(values, "dask"):
        yield from _dask_blocks(values)
    elif isinstance(values, np.ndarray) or (sp.issparse(values) and values.format == "csr"):
        yield slice(0, n), slice(0, m), values
    elif getattr(values, "format", None) == "csc":
        for cols in _ranges(m, 16 * n):
            yield slice(0, n), cols, sp.csr_matrix(values[:, cols])
    elif sp.issparse(values):
        yield slice(0, n), slice(0, m), sp.csr_matrix(values)
    else:
        # whole chunks, where the storage has any: none is read and unpacked twice
        step = chunks[0] if (chunks := getattr(values, "chunks", None)) else 1
        for rows in _ranges(n, 8 * m, step):
            yield rows, slice(0, m), _in_memory(values[rows])


def _dask_blocks(values: Any) -> Iterator[Block]:
    row, col = (list(starmap(slice, pairwise([0, *np.cumsum(sizes).tolist()]))) for sizes in values.chunks)
    for (j, cols), (i, rows) in product(enumerate(col), enumerate(row)):
        yield rows, cols, _in_memory(values.blocks[i, j].compute())


def _in_memory(block: Any) -> Any:
    return sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def _ranges(n: int, bytes_each: int, step: int = 1) -> list[slice]:
    size = max(1, _BUDGET // max(1, bytes_each))
    size = max(step, size // step * step)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def weighted_sums(
    weights: sp.csr_matrix, values: Any, check: Callable[[Any], None] | None = None
) -> NDArray[np.float32]:
    """Product of sparse weights (spots, pixels) and pixel values (pixels, metabolites), read once in blocks.

    `check` is called with every block and raises where its values are not valid.
    """
    out = np.zeros((weights.shape[0], values.shape[1]), dtype=np.float32)

    def add(spots: NDArray[np.int64], cols: slice, w: sp.csr_matrix, x: Any) -> None:
        out[spots, cols] += _dense(w @ x)

    _stream(weights, values, add, check)
    return out


def weighted_variance(
    weights: sp.csr_matrix, values: Any, mean: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    r"""Unbiased weighted variance between the pixels of each spot (NaN below two), and the effective number of them.

    With weights :math:`w` that sum to 1: :math:`\sum_p w_p (x_p - \bar x)^2 / (1 - \sum_p w_p^2)` and :math:`1 / \sum_p
    w_p^2` (Kish, Survey Sampling, Wiley 1965).
    """
    effective = effective_number(weights)
    share = normalised(weights)
    out = np.zeros(mean.shape, dtype=np.float32)

    def add(spots: NDArray[np.int64], cols: slice, w: sp.csr_matrix, x: Any) -> None:
        # around the mean, in double precision within a block: nothing is lost where values vary little
        centre = mean[spots, cols].astype(np.float64)
        square = x.multiply(x).tocsr() if sp.issparse(x) else x * x
        total = np.asarray(w.sum(axis=1)).reshape(-1, 1)
        part = _dense(w @ square) - 2 * centre * _dense(w @ x) + centre**2 * total
        out[spots, cols] += np.maximum(part, 0)

    _stream(share, values, add, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        free = 1 - 1 / effective
        out /= np.where(free > 1e-9, free, np.nan)[:, None].astype(np.float32)
    return out, effective


def _stream(
    weights: sp.csr_matrix,
    values: Any,
    add: Callable[[NDArray[np.int64], slice, sp.csr_matrix, Any], None],
    check: Callable[[Any], None] | None,
) -> None:
    """Call `add` with blocks of weights and of the double-precision values that they multiply."""
    by_pixel = sp.csc_matrix(weights, dtype=np.float64)
    count = np.diff(by_pixel.indptr)
    for rows, cols, block in blocks(values):
        if check is not None:
            check(block)
        used = np.flatnonzero(count[rows])
        # an entry of the weights asks for at most one row of results, a pixel for one row of values
        cost = np.cumsum((1 + count[rows][used]) * (8 * block.shape[1]))
        piece = cost // _BUDGET
        for part in np.split(used, np.flatnonzero(np.diff(piece)) + 1):
            if len(part) == 0:
                continue
            w = by_pixel[:, part + rows.start].tocsr()
            spots = np.flatnonzero(np.diff(w.indptr))
            add(spots, cols, w[spots], block[part].astype(np.float64))


def weighted_median(
    weights: sp.csr_matrix, values: Any, check: Callable[[Any], None] | None = None
) -> NDArray[np.float32]:
    """Weighted median of the pixels in each spot (spots, metabolites); 0 where there is none.

    It is the value at which half of the weight is reached, or the mean of two where that happens between them.
    """
    if check is not None:
        for _, _, block in blocks(values):
            check(block)
    weights = sp.csr_matrix(weights, dtype=np.float64)
    out = np.zeros((weights.shape[0], values.shape[1]), dtype=np.float32)
    by_columns = getattr(values, "format", None) == "csc" or (sp.issparse(values) and values.format != "csr")
    for cols, part in ((c, x) for _, c, x in blocks(values)) if by_columns else ((slice(None), values),):
        _median_of_rows(weights, part, out[:, cols])
    return out


def _median_of_rows(weights: sp.csr_matrix, values: Any, out: NDArray[np.float32]) -> None:
    count = np.diff(weights.indptr)
    filled = np.flatnonzero(count)
    width = 2 ** np.ceil(np.log2(count[filled])).astype(int)
    # spots of like size share a block, so that padding stays small; by pixel within a size, so that reads are few
    order = filled[np.lexsort((weights.indices[weights.indptr[filled]], width))]
    width = np.sort(width)
    cost = np.cumsum(width * (4 * 8 * values.shape[1])) // _BUDGET
    for spots in np.split(order, np.flatnonzero((np.diff(cost) > 0) | (np.diff(width) > 0)) + 1):
        if len(spots) == 0:
            continue
        w = weights[spots]
        pixels, local = np.unique(w.indices, return_inverse=True)
        rows = values[pixels]
        rows = rows.compute() if hasattr(rows, "compute") else rows
        # one more row stands for the padding, beyond all values and of no weight
        x = np.full((len(pixels) + 1, values.shape[1]), np.inf)
        x[:-1] = _dense(rows)
        k = np.diff(w.indptr)
        spot, slot = np.repeat(np.arange(len(spots)), k), np.arange(w.nnz) - np.repeat(w.indptr[:-1], k)
        pixel, weight = np.full((len(spots), k.max()), len(pixels)), np.zeros((len(spots), k.max()))
        pixel[spot, slot], weight[spot, slot] = local, w.data
        stack = x[pixel]  # spots x pixels x metabolites
        rank = np.argsort(stack, axis=1, kind="stable")
        stack = np.take_along_axis(stack, rank, axis=1)
        reached = np.cumsum(np.take_along_axis(weight[:, :, None], rank, axis=1), axis=1)
        half = 0.5 * weight.sum(axis=1)[:, None, None]
        slack = 1e-12 * half
        lower = np.argmax(reached >= half - slack, axis=1)[:, None]
        upper = np.argmax(reached > half + slack, axis=1)[:, None]
        middle = np.take_along_axis(stack, lower, axis=1) + np.take_along_axis(stack, upper, axis=1)
        out[spots] = 0.5 * middle[:, 0]


def normalised(weights: sp.csr_matrix) -> sp.csr_matrix:
    """Weights that sum to 1 in each spot; spots without any stay empty."""
    out = sp.csr_matrix(weights, dtype=np.float64, copy=True)
    out.data /= np.repeat(np.asarray(weights.sum(axis=1)).ravel(), np.diff(out.indptr))
    return out


def effective_number(weights: sp.csr_matrix) -> NDArray[np.float64]:
    """Number of pixels of equal weight that average as well as those of each spot; 0 where there are none."""
    total = np.asarray(weights.sum(axis=1)).ravel()
    square = np.asarray(weights.multiply(weights).sum(axis=1)).ravel()
    return np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)


def dominant(weights: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Column of the largest weight of each row (-1: none; the first among equals) and its share of the row's weight."""
    weights = sp.csr_matrix(weights)
    row = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    order = np.lexsort((-weights.indices, weights.data, row))
    filled = np.diff(weights.indptr) > 0
    last = order[weights.indptr[1:][filled] - 1]
    column, share = np.full(weights.shape[0], -1), np.zeros(weights.shape[0])
    column[filled] = weights.indices[last]
    share[filled] = weights.data[last] / np.asarray(weights.sum(axis=1)).ravel()[filled]
    return column, share


class Spread:
    """Mean and standard deviation of matrices that come one after another (Welford, Technometrics 4, 1962)."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._count = np.zeros(shape[0], dtype=np.int64)
        self._mean = np.zeros(shape, dtype=np.float32)
        self._square = np.zeros(shape, dtype=np.float32)

    def add(self, values: NDArray[np.float32], rows: NDArray[np.bool_]) -> None:
        """Add a matrix; only its `rows` count."""
        self._count += rows
        n = self._count[rows][:, None].astype(np.float32)
        delta = values[rows] - self._mean[rows]
        self._mean[rows] += delta / n
        self._square[rows] += delta * (values[rows] - self._mean[rows])

    def std(self) -> NDArray[np.float32]:
        """Standard deviation, NaN in rows that counted less than twice."""
        free = np.where(self._count > 1, self._count - 1.0, np.nan)[:, None].astype(np.float32)
        return np.sqrt(np.maximum(self._square, 0) / free)


def _dense(x: Any) -> NDArray[Any]:
    return x.toarray() if sp.issparse(x) else np.asarray(x)
