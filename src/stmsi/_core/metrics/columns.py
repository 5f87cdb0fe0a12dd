"""Columns of numbers with gaps: pairs of them, sums, ranks and quantiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stmsi._core.arrays import Bools, Floats, Ints

_AT_ONCE = 2**21
"""Numbers that are worked on together, where each column is by itself: 16 MB an array."""


def column_pieces(n_rows: int, n_columns: int) -> list[slice]:
    """Columns that are worked on together, so that memory does not grow with the rows; one piece at least."""
    size = max(_AT_ONCE // max(n_rows, 1), 1)
    return [slice(start, min(start + size, n_columns)) for start in range(0, max(n_columns, 1), size)]


def in_pieces(function: Callable[..., Any], *arrays: Any) -> Any:
    """What a function gives of columns, some of them at a time: an array, or several, whose last axis are the columns.

    `arrays` are of shape (rows, columns), the first one at least, or (columns,); in memory or not.
    """
    pieces = column_pieces(*arrays[0].shape)
    done = [function(*(a[..., piece] for a in arrays)) for piece in pieces]
    if len(done) == 1:
        return done[0]
    if isinstance(done[0], tuple):
        return tuple(np.concatenate(parts, axis=-1) for parts in zip(*done, strict=True))
    return np.concatenate(done, axis=-1)


def pieces_into(out: Any, function: Callable[..., Any], *arrays: Any) -> Any:
    """As :func:`in_pieces`, of a function that gives one array; it is written into `out`, which may be on disk, and returned."""
    for piece in column_pieces(*out.shape):
        out[..., piece] = function(*(a[..., piece] for a in arrays))
    return out


def paired(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Both as (n, m) floats with NaN in the same places."""
    y, p = (np.asarray(v, dtype=np.float64) for v in (truth, prediction))
    if y.ndim == 1:
        y, p = y[:, None], p.reshape(len(p), -1)
    if y.shape != p.shape:
        msg = f"Truth and prediction must have the same shape, found {y.shape} and {p.shape}."
        raise ValueError(msg)
    missing = np.isnan(y) | np.isnan(p)
    return np.where(missing, np.nan, y), np.where(missing, np.nan, p)


def total(values: Floats | Bools) -> Floats:
    """Sum of each column without NaN."""
    return np.nansum(values, axis=0)


def number(values: Floats) -> Ints:
    """How many values of each column are not NaN."""
    return (~np.isnan(values)).sum(axis=0)


def ratio(top: NDArray[np.floating | np.integer], bottom: NDArray[np.floating | np.integer]) -> Floats:
    """`top / bottom`, NaN where `bottom` is 0."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def ranks(values: Floats) -> Floats:
    """Ranks of each column of (n, m) from 1, ties at their mean rank, NaN at none.

    Those of :func:`scipy.stats.rankdata`, in a third of the time.
    """
    rows = np.ascontiguousarray(values.T)  # sorting along rows is several times faster
    m, n = rows.shape
    if n == 0:
        return np.empty((0, m))
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.ones((m, n), bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = np.flatnonzero(first)  # of runs of ties, in the flattened rows
    length = np.diff(start, append=m * n)
    rank = np.empty_like(rows)
    np.put_along_axis(rank, order, np.repeat((start % n) + (length + 1) / 2, length).reshape(m, n), axis=1)
    rank[np.isnan(rows)] = np.nan
    return rank.T


def ordered_quantiles(ordered: Floats, levels: ArrayLike) -> Floats:
    """Quantiles, shape (levels, columns), of columns in rising order with NaN last; NaN without a value."""
    last = np.maximum(number(ordered) - 1, 0)
    position = np.asarray(levels, dtype=np.float64)[:, None] * last
    below = position.astype(np.int64)
    column = np.arange(ordered.shape[1])
    low, high = ordered[below, column], ordered[np.minimum(below + 1, last), column]
    return low + (position - below) * (high - low)


def correlation_of_sums(n: Floats, y: Floats, h: Floats, yy: Floats, hh: Floats, yh: Floats) -> Floats:
    """Pearson correlation from sums; NaN where the truth is constant, 0 where only the prediction is."""
    n = np.maximum(n, 1)
    vy, vh, c = yy - y * y / n, hh - h * h / n, yh - y * h / n
    flat = vy <= 1e-7 * np.maximum(yy, 1e-30)
    still = vh <= 1e-7 * np.maximum(hh, 1e-30)
    r = np.where(still, 0.0, c / np.sqrt(np.where(flat | still, 1.0, vy * vh)))
    return np.where(flat, np.nan, r)
