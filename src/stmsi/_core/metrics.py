"""Scores per metabolite: columns of arrays in, one number per column out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FLAT = 1e-9
"""Relative spread under which a column counts as constant."""


def _paired(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as (n, m) floats with NaN in the same places."""
    y, p = (np.asarray(v, dtype=np.float64) for v in (truth, prediction))
    if y.ndim == 1:
        y, p = y[:, None], p.reshape(len(p), -1)
    if y.shape != p.shape:
        msg = f"Truth and prediction must have the same shape, found {y.shape} and {p.shape}."
        raise ValueError(msg)
    missing = np.isnan(y) | np.isnan(p)
    return np.where(missing, np.nan, y), np.where(missing, np.nan, p)


def _sum(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.nansum(values, axis=0)


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
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
    y, p = _paired(truth, prediction)
    return _ratio(_sum((y - p) ** 2), _sum(~np.isnan(y)))


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
    y, p = _paired(truth, prediction)
    return _ratio(_sum(np.abs(y - p)), _sum(~np.isnan(y)))


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
    y, p = _paired(truth, prediction)
    n = _sum(~np.isnan(y))
    mean = _ratio(_sum(y), n) if reference is None else np.asarray(reference, dtype=np.float64).reshape(-1)
    return 1 - _ratio(_sum((y - p) ** 2), _sum((y - mean) ** 2))


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
    y, p = _paired(truth, prediction)
    n = np.maximum(_sum(~np.isnan(y)), 1)
    size = [np.abs(np.where(np.isnan(v), 0, v)).max(axis=0, initial=0) for v in (y, p)]
    y, p = y - _sum(y) / n, p - _sum(p) / n
    spread = [np.sqrt(_sum(v**2) / n) for v in (y, p)]
    flat = (spread[0] <= _FLAT * size[0]) | (spread[1] <= _FLAT * size[1])
    return np.where(flat, np.nan, _ratio(_sum(y * p) / n, spread[0] * spread[1]))


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
    y, p = _paired(truth, prediction)
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


def prevalence(present: ArrayLike) -> NDArray[np.float64]:
    """Share of covered spots in which each metabolite is present: what AUPRC must be compared with.

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).

    Returns
    -------
    Shape (metabolites,).

    Examples
    --------
    >>> from stmsi.metrics import prevalence
    >>> prevalence([[1.0], [0.0], [float("nan")]])
    array([0.5])
    """
    y, _ = _paired(present, present)
    return _ratio(_sum(y > 0), _sum(~np.isnan(y)))


def _confusion(present: ArrayLike, called: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    y, p = _paired(present, called)
    hit = _sum((y > 0) & (p > 0))
    return hit, _sum((y == 0) & (p > 0)), _sum((y > 0) & (p == 0))


def precision(present: ArrayLike, called: ArrayLike) -> NDArray[np.float64]:
    """Share of the spots called present in which a metabolite is present.

    Parameters
    ----------
    present, called
        1 present, 0 absent; shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where none is called present.

    Examples
    --------
    >>> from stmsi.metrics import precision
    >>> precision([[1.0], [0.0]], [[1.0], [1.0]])
    array([0.5])
    """
    hit, false_call, _ = _confusion(present, called)
    return _ratio(hit, hit + false_call)


def recall(present: ArrayLike, called: ArrayLike) -> NDArray[np.float64]:
    """Share of the spots with a metabolite that are called present.

    Parameters
    ----------
    present, called
        1 present, 0 absent; shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where it is present nowhere.

    Examples
    --------
    >>> from stmsi.metrics import recall
    >>> recall([[1.0], [1.0]], [[1.0], [0.0]])
    array([0.5])
    """
    hit, _, missed = _confusion(present, called)
    return _ratio(hit, hit + missed)


def f1(present: ArrayLike, called: ArrayLike) -> NDArray[np.float64]:
    """Harmonic mean of precision and recall.

    Parameters
    ----------
    present, called
        1 present, 0 absent; shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where a metabolite is neither present nor called anywhere.

    Examples
    --------
    >>> from stmsi.metrics import f1
    >>> f1([[1.0], [1.0]], [[1.0], [0.0]]).round(3)
    array([0.667])
    """
    hit, false_call, missed = _confusion(present, called)
    return _ratio(2 * hit, 2 * hit + false_call + missed)


def mcc(present: ArrayLike, called: ArrayLike) -> NDArray[np.float64]:
    r"""Matthews correlation: the correlation of what is called with what is present.

    .. math:: \frac{TP\,TN - FP\,FN}{\sqrt{(TP+FP)(TP+FN)(TN+FP)(TN+FN)}}

    Unlike F1 it is 0 without skill at any prevalence.

    Parameters
    ----------
    present, called
        1 present, 0 absent; shape (spots, metabolites); pairs with NaN are left out.

    Returns
    -------
    Shape (metabolites,); NaN where only one class occurs or only one is called.

    References
    ----------
    Chicco & Jurman, BMC Genomics 21, 2020, https://doi.org/10.1186/s12864-019-6413-7

    Examples
    --------
    >>> from stmsi.metrics import mcc
    >>> mcc([[1.0], [0.0], [0.0]], [[1.0], [1.0], [0.0]])
    array([0.5])
    """
    y, p = _paired(present, called)
    hit, false_call, missed = _confusion(y, p)
    rest = _sum((y == 0) & (p == 0))
    sides = [np.sqrt(a) for a in (hit + false_call, hit + missed, rest + false_call, rest + missed)]
    return _ratio(hit * rest - false_call * missed, np.prod(sides, axis=0))


def auroc(present: ArrayLike, score: ArrayLike) -> NDArray[np.float64]:
    """Area under the ROC curve: the chance that a spot with the metabolite scores above one without; ties half.

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).
    score
        Anything that rises with the chance of presence, likewise.

    Returns
    -------
    Shape (metabolites,); NaN where only one class occurs.

    Examples
    --------
    >>> from stmsi.metrics import auroc
    >>> auroc([[0.0], [1.0], [1.0]], [[0.1], [0.7], [0.9]])
    array([1.])
    """
    y, p = _paired(present, score)
    n1, n0 = _sum(y > 0), _sum(y == 0)
    return _ratio(np.where(y > 0, ranks(p), 0).sum(axis=0) - n1 * (n1 + 1) / 2, n1 * n0)


def auprc(present: ArrayLike, score: ArrayLike) -> NDArray[np.float64]:
    r"""Average precision, :math:`\sum_k (R_k - R_{k-1}) P_k` over the distinct scores; compare it with prevalence.

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).
    score
        Anything that rises with the chance of presence, likewise.

    Returns
    -------
    Shape (metabolites,), as :func:`sklearn.metrics.average_precision_score`; NaN where only one class occurs.

    Examples
    --------
    >>> from stmsi.metrics import auprc
    >>> auprc([[0.0], [1.0], [1.0]], [[0.1], [0.7], [0.9]])
    array([1.])
    """
    hits, called, last, n1, n0 = (v.T for v in ranked_hits(present, score))
    if hits.shape[1] == 0:
        return np.full(len(hits), np.nan)
    before = np.zeros_like(hits)
    np.maximum.accumulate(np.where(last, hits, 0)[:, :-1], axis=1, out=before[:, 1:])
    area = np.where(last, (hits - before) * hits / np.maximum(called, 1), 0).sum(axis=1)
    return np.where(n0 > 0, _ratio(area, n1), np.nan)


def brier(present: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """Brier score: mean squared difference between the probability and what was found.

    It falls with calibration and with discrimination; the share of spots with the metabolite, predicted everywhere,
    reaches prevalence x (1 - prevalence).

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).
    probability
        Probability of presence, likewise.

    Returns
    -------
    Shape (metabolites,); NaN where no pair is left.

    Raises
    ------
    ValueError
        Probabilities below 0 or above 1.

    Examples
    --------
    >>> from stmsi.metrics import brier
    >>> brier([[0.0], [1.0]], [[0.5], [1.0]])
    array([0.125])
    """
    y, p = _paired(present, probability)
    _check_probability(p)
    return _ratio(_sum((p - (y > 0)) ** 2), _sum(~np.isnan(y)))


def ece(present: ArrayLike, probability: ArrayLike, n_bins: int = 10) -> NDArray[np.float64]:
    r"""Expected calibration error: how far probabilities are from the shares of spots with the metabolite.

    .. math:: \sum_b \frac{n_b}{n} \, \bigl| \bar p_b - \bar y_b \bigr|

    over bins with equally many spots, bounded by quantiles of the probability; equal probabilities share a bin.

    The shares are those of finitely many spots, so that probabilities without fault do not score 0 but about
    :math:`\sqrt{2 \bar p (1 - \bar p) B / (\pi n)}` with :math:`B` bins: 0.03 for 10 bins, 1000 spots and a prevalence
    of one half where the probability varies little. Compare scores of the same number of spots only.

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).
    probability
        Probability of presence, likewise.
    n_bins
        Number of bins at most.

    Returns
    -------
    Shape (metabolites,); NaN where no pair is left.

    Raises
    ------
    ValueError
        Probabilities below 0 or above 1, or no bins.

    Examples
    --------
    >>> from stmsi.metrics import ece
    >>> ece([[0.0], [1.0], [1.0], [1.0]], [[0.5], [0.5], [0.9], [0.9]], n_bins=2).round(3)
    array([0.05])
    """
    y, p = _paired(present, probability)
    _check_probability(p)
    if n_bins < 1:
        msg = f"n_bins must be at least 1, found {n_bins!r}."
        raise ValueError(msg)
    n = (~np.isnan(y)).sum(axis=0)
    if len(y) == 0:
        return np.full(y.shape[1], np.nan)
    rows, there = np.ascontiguousarray(p.T), np.ascontiguousarray((y > 0).T)
    order = np.argsort(rows, axis=1)  # NaN last
    q, hit = np.take_along_axis(rows, order, axis=1), np.take_along_axis(there, order, axis=1)
    gap = np.zeros((len(q), q.shape[1] + 1))
    np.cumsum(np.where(np.isnan(q), 0, q - hit), axis=1, out=gap[:, 1:])
    # numpy's quantiles of the first n of each row
    at = np.maximum(n - 1, 0)[:, None] * (np.arange(1, n_bins) / n_bins)
    low = np.floor(at).astype(np.int64)
    below, above = (np.take_along_axis(q, np.minimum(k, np.maximum(n - 1, 0)[:, None]), axis=1) for k in (low, low + 1))
    edges = below + (above - below) * (at - low)
    bounds = np.stack([(q < edge[:, None]).sum(axis=1) for edge in edges.T], axis=1) if n_bins > 1 else low
    ends = np.hstack([np.zeros((len(q), 1), np.int64), bounds, n[:, None]])
    of_bin = np.diff(np.take_along_axis(gap, ends, axis=1), axis=1)
    return _ratio(np.abs(of_bin).sum(axis=1), n.astype(np.float64))


def _check_probability(p: NDArray[np.float64]) -> None:
    if (p < 0).any() or (p > 1).any():
        msg = f"Probabilities lie between 0 and 1, found {np.nanmin(p):.3g} to {np.nanmax(p):.3g}."
        raise ValueError(msg)


def ranked_hits(present: ArrayLike, score: ArrayLike) -> tuple[NDArray[Any], ...]:
    """Running counts when spots are called from the highest score down.

    Parameters
    ----------
    present, score
        As for :func:`auprc`.

    Returns
    -------
    ``hits`` and ``called`` after each spot, ``last`` (whether the next score is lower, so that a threshold can lie
    there), all of shape (spots, metabolites); numbers of spots with and without the metabolite.
    """
    y, p = _paired(present, score)
    # sorted as contiguous rows, which is several times faster; the order within ties does not show where `last` is true
    y, p = np.ascontiguousarray(y.T), np.ascontiguousarray(-p.T)
    order = np.argsort(p, axis=1)
    y, p = np.take_along_axis(y, order, axis=1), np.take_along_axis(p, order, axis=1)
    known = ~np.isnan(y)
    hits, called = np.cumsum(y > 0, axis=1), np.cumsum(known, axis=1)
    last = known.copy()
    last[:, :-1] &= (p[:, :-1] != p[:, 1:]) | ~known[:, 1:]
    return hits.T, called.T, last.T, (y > 0).sum(axis=1), (y == 0).sum(axis=1)
