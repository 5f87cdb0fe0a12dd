"""Scores of intensities, one number per metabolite."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stmsi._core.arrays import Bools, Floats
from stmsi._core.metrics.columns import number, paired, ranks, ratio, total
from stmsi._core.metrics.score_docs import documented

_FLAT = 1e-9  # relative spread under which a column counts as constant


@documented("NaN where no pair is left")
def mse(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Mean squared error of each metabolite.

    Examples
    --------
    >>> from stmsi.metrics import mse
    >>> mse([[1.0], [3.0]], [[1.0], [1.0]])
    array([2.])
    """
    y, p = paired(truth, prediction)
    return ratio(total((y - p) ** 2), number(y))


@documented("NaN where no pair is left")
def mae(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Mean absolute error of each metabolite.

    Examples
    --------
    >>> from stmsi.metrics import mae
    >>> mae([[1.0], [3.0]], [[1.0], [1.0]])
    array([1.])
    """
    y, p = paired(truth, prediction)
    return ratio(total(np.abs(y - p)), number(y))


@documented("NaN where the truth never differs from the reference")
def r2(truth: ArrayLike, prediction: ArrayLike, reference: ArrayLike | None = None) -> Floats:
    r"""Share of the squared error of the *training* mean that the prediction explains.

    .. math:: R^2 = 1 - \sum_i (y_i - \hat y_i)^2 / \sum_i (y_i - \bar y_\text{train})^2

    The mean of a held-out section is not known when predicting. With that mean as reference, a constant shift of the
    section would look like a failure of the model.

    Examples
    --------
    >>> from stmsi.metrics import r2
    >>> r2([[1.0], [3.0]], [[1.0], [2.0]], reference=[2.0])
    array([0.5])
    """
    y, p = paired(truth, prediction)
    mean = ratio(total(y), number(y)) if reference is None else np.asarray(reference, dtype=np.float64).reshape(-1)
    return 1 - ratio(total((y - p) ** 2), total((y - mean) ** 2))


@documented("NaN where truth or prediction is constant")
def pearson(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Pearson correlation of each metabolite.

    Examples
    --------
    >>> from stmsi.metrics import pearson
    >>> pearson([[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]]).round(6)
    array([1.])
    """
    (y, sd_y, flat_y), (p, sd_p, flat_p) = (_centred(v) for v in paired(truth, prediction))
    correlation = ratio(total(y * p) / np.maximum(number(y), 1), sd_y * sd_p)
    return np.where(flat_y | flat_p, np.nan, correlation)


@documented("NaN where truth or prediction is constant")
def spearman(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Spearman rank correlation of each metabolite, ties at their mean rank.

    Examples
    --------
    >>> from stmsi.metrics import spearman
    >>> spearman([[1.0], [2.0], [3.0]], [[1.0], [8.0], [9.0]]).round(6)
    array([1.])
    """
    y, p = paired(truth, prediction)
    return pearson(ranks(y), ranks(p))


def is_constant(values: Floats) -> Bools:
    """Columns for which no correlation exists: constant but for rounding, or without a value."""
    return _centred(values)[2]


def _centred(values: Floats) -> tuple[Floats, Floats, Bools]:
    """Columns less their mean, their standard deviation, and whether they are constant."""
    n = np.maximum(number(values), 1)
    size = np.abs(np.where(np.isnan(values), 0, values)).max(axis=0, initial=0)
    values = values - total(values) / n
    sd = np.sqrt(total(values**2) / n)
    return values, sd, sd <= _FLAT * size
