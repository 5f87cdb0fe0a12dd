"""Scores of intensities per metabolite: columns of arrays in, one number per column out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FLAT = 1e-9
"""Relative spread under which a column counts as constant."""


def paired(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as (n, m) floats with NaN in the same places."""
    y, p = (np.asarray(v, dtype=np.float64) for v in (truth, prediction))
    if y.ndim == 1:
        y, p = y[:, None], p.reshape(len(p), -1)
    if y.shape != p.shape:
        msg = f"Truth and prediction must have the same shape, found {y.shape} and {p.shape}."
        raise ValueError(msg)
    missing = np.isnan(y) | np.isnan(p)
    return np.where(missing, np.nan, y), np.where(missing, np.nan, p)


def total(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.nansum(values, axis=0)


def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    """`top / bottom`, NaN where `bottom` is 0."""
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def mse(truth: ArrayLike, prediction: ArrayLike) -> NDArray[np.float64]:
    r"""Mean squared error of each metabolite.

    Parameters
    ----------
    truth, prediction
        Intensities, shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where no pair is left.

    Examples
    --------
    >>> from stmsi.metrics import mse
    >>> mse([[1.0], [3.0]], [[1.0], [1.0]])
    array([2.])
    """
    y, p = paired(truth, prediction)
    return ratio(total((y - p) ** 2), total(~np.isnan(y)))


def mae(truth: ArrayLike, prediction: ArrayLike) -> NDArray[np.float64]:
    """Mean absolute error of each metabolite.

    Parameters
    ----------
    truth, prediction
        Intensities, shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where no pair is left.

    Examples
    --------
    >>> from stmsi.metrics import mae
    >>> mae([[1.0], [3.0]], [[1.0], [1.0]])
    array([1.])
    """
    y, p = paired(truth, prediction)
    return ratio(total(np.abs(y - p)), total(~np.isnan(y)))


def r2(truth: ArrayLike, prediction: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float64]:
    r"""Explained share of the squared error that the *training* mean makes.

    .. math:: R^2 = 1 - \sum_i (y_i - \hat y_i)^2 / \sum_i (y_i - \bar y_\text{train})^2

    The mean of the held-out section itself is not known when predicting; measured against it, a constant shift of a
    section would look like a failure of the model.

    Parameters
    ----------
    truth, prediction
        Intensities, shape (spots, metabolites); pairs with NaN are left out.
    reference
        Training mean of each metabolite, shape (metabolites,); `None`: the mean of `truth`.

    Returns
    -------
    Shape (metabolites,); NaN where the truth never differs from the reference.

    Examples
    --------
    >>> from stmsi.metrics import r2
    >>> r2([[1.0], [3.0]], [[1.0], [2.0]], reference=[2.0])
    array([0.5])
    """
    y, p = paired(truth, prediction)
    n = total(~np.isnan(y))
    mean = ratio(total(y), n) if reference is None else np.asarray(reference, dtype=np.float64).reshape(-1)
    return 1 - ratio(total((y - p) ** 2), total((y - mean) ** 2))


def pearson(truth: ArrayLike, prediction: ArrayLike) -> NDArray[np.float64]:
    """Pearson correlation of each metabolite.

    Parameters
    ----------
    truth, prediction
        Intensities, shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where truth or prediction is constant, for which a correlation does not exist.

    Examples
    --------
    >>> from stmsi.metrics import pearson
    >>> pearson([[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]]).round(6)
    array([1.])
    """
    y, p = paired(truth, prediction)
    n = np.maximum(total(~np.isnan(y)), 1)
    size = [np.abs(np.where(np.isnan(v), 0, v)).max(axis=0, initial=0) for v in (y, p)]
    y, p = y - total(y) / n, p - total(p) / n
    spread = [np.sqrt(total(v**2) / n) for v in (y, p)]
    flat = (spread[0] <= _FLAT * size[0]) | (spread[1] <= _FLAT * size[1])
    return np.where(flat, np.nan, ratio(total(y * p) / n, spread[0] * spread[1]))


def is_constant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Columns in which no correlation exists: constant but for rounding, or without a value."""
    known = ~np.isnan(values)
    x = np.where(known, values, 0)
    n = np.maximum(known.sum(axis=0), 1)
    spread = np.sqrt((np.where(known, x - x.sum(axis=0) / n, 0) ** 2).sum(axis=0) / n)
    return spread <= _FLAT * np.abs(x).max(axis=0, initial=0)


def spearman(truth: ArrayLike, prediction: ArrayLike) -> NDArray[np.float64]:
    """Spearman rank correlation of each metabolite, ties at their mean rank.

    Parameters
    ----------
    truth, prediction
        Intensities, shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where truth or prediction is constant.

    Examples
    --------
    >>> from stmsi.metrics import spearman
    >>> spearman([[1.0], [2.0], [3.0]], [[1.0], [8.0], [9.0]]).round(6)
    array([1.])
    """
    y, p = paired(truth, prediction)
    return pearson(ranks(y), ranks(p))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks within each column, ties at their mean rank; those of :func:`scipy.stats.rankdata`, in a third of the time.

    Parameters
    ----------
    values
        Shape (n, m); NaN get none.

    Returns
    -------
    Shape (n, m), from 1.
    """
    rows = np.ascontiguousarray(values.T)  # sorting along rows is several times faster
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    rank = np.empty_like(rows)
    np.put_along_axis(rank, order, _mean_ranks(ordered), axis=1)
    rank[np.isnan(rows)] = np.nan
    return rank.T


def _mean_ranks(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of ordered rows, ties at their mean rank."""
    m, n = ordered.shape
    if n == 0:
        return np.empty((m, 0))
    first = np.ones((m, n), bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = np.flatnonzero(first)  # of runs of ties, in the flattened rows
    length = np.diff(start, append=m * n)
    return np.repeat((start % n) + (length + 1) / 2, length).reshape(m, n)
