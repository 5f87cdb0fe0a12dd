"""Scores of calls and probabilities of presence, one number per metabolite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stmsi._core.arrays import Floats
from stmsi._core.metrics.columns import number, ordered_quantiles, paired, ranks, ratio, total
from stmsi._core.metrics.score_docs import documented


@documented("NaN where no spot is covered")
def prevalence(present: ArrayLike) -> Floats:
    """Share of covered spots in which each metabolite is present. Compare AUPRC with it.

    Examples
    --------
    >>> from stmsi.metrics import prevalence
    >>> prevalence([[1.0], [0.0], [float("nan")]])
    array([0.5])
    """
    y, _ = paired(present, present)
    return ratio(total(y > 0), number(y))


@documented("NaN where none is called present")
def precision(present: ArrayLike, called: ArrayLike) -> Floats:
    """Share of the spots called present in which a metabolite is present.

    Examples
    --------
    >>> from stmsi.metrics import precision
    >>> precision([[1.0], [0.0]], [[1.0], [1.0]])
    array([0.5])
    """
    hit, false_call, _, _ = _confusion(present, called)
    return ratio(hit, hit + false_call)


@documented("NaN where it is present nowhere")
def recall(present: ArrayLike, called: ArrayLike) -> Floats:
    """Share of the spots with a metabolite that are called present.

    Examples
    --------
    >>> from stmsi.metrics import recall
    >>> recall([[1.0], [1.0]], [[1.0], [0.0]])
    array([0.5])
    """
    hit, _, missed, _ = _confusion(present, called)
    return ratio(hit, hit + missed)


@documented("NaN where a metabolite is neither present nor called anywhere")
def f1(present: ArrayLike, called: ArrayLike) -> Floats:
    """Harmonic mean of precision and recall.

    Examples
    --------
    >>> from stmsi.metrics import f1
    >>> f1([[1.0], [1.0]], [[1.0], [0.0]]).round(3)
    array([0.667])
    """
    hit, false_call, missed, _ = _confusion(present, called)
    return ratio(2 * hit, 2 * hit + false_call + missed)


@documented("NaN where only one class occurs or only one is called")
def mcc(present: ArrayLike, called: ArrayLike) -> Floats:
    r"""Matthews correlation: the correlation of what is called with what is present.

    .. math:: \frac{TP\,TN - FP\,FN}{\sqrt{(TP+FP)(TP+FN)(TN+FP)(TN+FN)}}

    Unlike F1 it is 0 without skill at any prevalence.

    References
    ----------
    Chicco & Jurman, BMC Genomics 21, 2020, https://doi.org/10.1186/s12864-019-6413-7

    Examples
    --------
    >>> from stmsi.metrics import mcc
    >>> mcc([[1.0], [0.0], [0.0]], [[1.0], [1.0], [0.0]])
    array([0.5])
    """
    hit, false_call, missed, rest = _confusion(present, called)
    sides = [np.sqrt(a) for a in (hit + false_call, hit + missed, rest + false_call, rest + missed)]
    return ratio(hit * rest - false_call * missed, np.prod(sides, axis=0))


@documented("NaN where only one class occurs")
def auroc(present: ArrayLike, score: ArrayLike) -> Floats:
    """Area under the ROC curve: the chance that a spot with the metabolite scores above one without; ties half.

    Examples
    --------
    >>> from stmsi.metrics import auroc
    >>> auroc([[0.0], [1.0], [1.0]], [[0.1], [0.7], [0.9]])
    array([1.])
    """
    y, p = paired(present, score)
    n1, n0 = total(y > 0), total(y == 0)
    return ratio(np.where(y > 0, ranks(p), 0).sum(axis=0) - n1 * (n1 + 1) / 2, n1 * n0)


@documented("NaN where only one class occurs")
def auprc(present: ArrayLike, score: ArrayLike) -> Floats:
    r"""Average precision, :math:`\sum_k (R_k - R_{k-1}) P_k` over the distinct scores.

    The value of :func:`sklearn.metrics.average_precision_score`. Compare it with prevalence.

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
    return np.where(n0 > 0, ratio(area, n1), np.nan)


@documented("NaN where no pair is left")
def brier(present: ArrayLike, probability: ArrayLike) -> Floats:
    """Brier score: mean squared difference between the probability and the presence.

    It falls with calibration and with discrimination. The prevalence, predicted everywhere, scores
    prevalence x (1 - prevalence).

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
    y, p = _with_probability(present, probability)
    return ratio(total((p - (y > 0)) ** 2), number(y))


@documented("NaN where no pair is left")
def ece(present: ArrayLike, probability: ArrayLike, n_bins: int = 10) -> Floats:
    r"""Expected calibration error: distance of the probabilities from the shares of spots with the metabolite.

    .. math:: \sum_b \frac{n_b}{n} \, \bigl| \bar p_b - \bar y_b \bigr|

    Bins are bounded by quantiles of the probability; equal probabilities share a bin. Perfect probabilities do not score
    0 on finitely many spots, but about :math:`\sqrt{2 \bar p (1 - \bar p) B / (\pi n)}` with :math:`B` bins: 0.03 for
    10 bins, 1000 spots and a prevalence of one half where the probability varies little. Compare only scores of the same
    number of spots.

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
    y, p = _with_probability(present, probability)
    if n_bins < 1:
        msg = f"n_bins must be at least 1, found {n_bins!r}."
        raise ValueError(msg)
    n = number(y)
    if len(y) == 0:
        return np.full(y.shape[1], np.nan)
    rows, there = np.ascontiguousarray(p.T), np.ascontiguousarray((y > 0).T)
    order = np.argsort(rows, axis=1)  # NaN last
    q, hit = np.take_along_axis(rows, order, axis=1), np.take_along_axis(there, order, axis=1)
    gap = np.zeros((len(q), q.shape[1] + 1))
    np.cumsum(np.where(np.isnan(q), 0, q - hit), axis=1, out=gap[:, 1:])
    edges = ordered_quantiles(q.T, np.arange(1, n_bins) / n_bins)
    ends = np.column_stack([np.zeros_like(n), *((q < edge[:, None]).sum(axis=1) for edge in edges), n])
    of_bin = np.diff(np.take_along_axis(gap, ends, axis=1), axis=1)
    return ratio(np.abs(of_bin).sum(axis=1), n)


def ranked_hits(present: ArrayLike, score: ArrayLike) -> tuple[NDArray[Any], ...]:
    """Running counts when spots are called from the highest score down.

    Returns ``hits``, ``called`` and ``last`` (the next score is lower, so that a threshold can lie there), of shape (spots,
    metabolites), and the numbers of spots with and without the metabolite.
    """
    y, p = paired(present, score)
    # sorted as contiguous rows, which is several times faster; the order within ties does not show where `last` is true
    y, p = np.ascontiguousarray(y.T), np.ascontiguousarray(-p.T)
    order = np.argsort(p, axis=1)
    y, p = np.take_along_axis(y, order, axis=1), np.take_along_axis(p, order, axis=1)
    known = ~np.isnan(y)
    hits, called = np.cumsum(y > 0, axis=1), np.cumsum(known, axis=1)
    last = known.copy()
    last[:, :-1] &= (p[:, :-1] != p[:, 1:]) | ~known[:, 1:]
    return hits.T, called.T, last.T, (y > 0).sum(axis=1), (y == 0).sum(axis=1)


def _confusion(present: ArrayLike, called: ArrayLike) -> tuple[Floats, ...]:
    """Numbers of true positive, false positive, false negative and true negative calls."""
    y, p = paired(present, called)
    sides = ((y > 0, p > 0), (y == 0, p > 0), (y > 0, p == 0), (y == 0, p == 0))
    return tuple(total(of_truth & of_call) for of_truth, of_call in sides)


def _with_probability(present: ArrayLike, probability: ArrayLike) -> tuple[Floats, Floats]:
    y, p = paired(present, probability)
    if (p < 0).any() or (p > 1).any():
        msg = f"Probabilities lie between 0 and 1, found {np.nanmin(p):.3g} to {np.nanmax(p):.3g}."
        raise ValueError(msg)
    return y, p
