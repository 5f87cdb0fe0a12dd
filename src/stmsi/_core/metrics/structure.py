"""Scores of relations between metabolites, genes and regions: are those of the measurement in the prediction?"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from stmsi._core.arrays import Bools, Floats
from stmsi._core.metrics.columns import number, paired, ranks, ratio
from stmsi._core.metrics.intensity import pearson
from stmsi._core.metrics.score_docs import documented

_LEAST_PAIRS = 3  # a line goes through any two points


@documented("1 where preserved, NaN for constant metabolites and with fewer than three others")
def correlation_preserved(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """How well the correlations of a metabolite with all others are preserved.

    The Pearson correlation, over the other metabolites, of its correlations with them in prediction and measurement, each
    over the spots that both metabolites have.

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import correlation_preserved
    >>> truth = np.random.default_rng(0).normal(size=(50, 5))
    >>> correlation_preserved(truth, 3 * truth + 1).round(6)
    array([1., 1., 1., 1., 1.])
    """
    tables = [correlations(v, v) for v in paired(truth, prediction)]
    for table in tables:
        np.fill_diagonal(table, np.nan)
    return _agreement(*tables)


@documented("1 where preserved, NaN for constant metabolites and with fewer than three genes that vary")
def gene_correlation_preserved(genes: sp.spmatrix | ArrayLike, truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """How well the correlations of a metabolite with genes are preserved.

    The Pearson correlation, over genes, of their correlations with the predicted and with the measured metabolite. A
    prediction is a function of genes and correlates with them more; the score asks whether with the same ones.

    Raises
    ------
    ValueError
        `genes` has another number of spots.

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import gene_correlation_preserved
    >>> genes = np.random.default_rng(0).normal(size=(50, 8))
    >>> truth = genes[:, :2] + genes[:, 2:4]
    >>> gene_correlation_preserved(genes, truth, -truth).round(6)
    array([-1., -1.])
    """
    y, p = paired(truth, prediction)
    x = genes.toarray() if sp.issparse(genes) else np.asarray(genes)  # type: ignore[union-attr]
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(y):
        msg = f"genes must be of shape ({len(y)}, genes), found {x.shape}."
        raise ValueError(msg)
    return _agreement(correlations(x, y), correlations(x, p))


@documented()
def group_means(values: ArrayLike, group: ArrayLike) -> tuple[Floats, NDArray[Any]]:
    """Mean of each metabolite in each group of spots: cluster averages, or pseudo-bulk of sections.

    Returns
    -------
    Means, shape (groups, metabolites), NaN without a value; names of the groups, sorted.

    Examples
    --------
    >>> from stmsi.metrics import group_means
    >>> group_means([1.0, 3.0, 5.0], ["a", "a", "b"])[0]
    array([[2.],
           [5.]])
    """
    x, _ = paired(values, values)
    member, names = _members(group, len(x))
    known = ~np.isnan(x)
    return ratio(member @ np.where(known, x, 0), member @ known.astype(np.float64)), names


@documented("NaN with fewer than three groups, and for constant means")
def group_agreement(truth: ArrayLike, prediction: ArrayLike, group: ArrayLike) -> Floats:
    """Pearson correlation of the groups' means, measured and predicted.

    Groups are clusters, or the sections or patients of pseudo-bulk samples.

    Examples
    --------
    >>> from stmsi.metrics import group_agreement
    >>> group_agreement([1.0, 3.0, 5.0, 7.0], [0.0, 2.0, 3.0, 4.0], ["a", "a", "b", "c"]).round(3)
    array([0.997])
    """
    y, p = paired(truth, prediction)
    return _agreement(group_means(y, group)[0], group_means(p, group)[0])


@documented()
def differential_abundance(values: ArrayLike, group: ArrayLike) -> tuple[Floats, Floats, NDArray[Any]]:
    """Each group of spots against all others: rank-biserial effect and Mann-Whitney p value.

    Neighbouring spots are not independent, so p values are too small, in prediction and measurement alike.

    Returns
    -------
    Effects, shape (groups, metabolites): the chance that a spot of the group has more than another spot, less the chance
    that it has less, NaN where either side is empty. Two-sided p values of the normal approximation with correction for
    ties, likewise. Names of the groups, sorted.

    Examples
    --------
    >>> from stmsi.metrics import differential_abundance
    >>> effect, p, names = differential_abundance([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"])
    >>> effect.round(2).tolist(), names.tolist()
    ([[-1.0], [1.0]], ['a', 'b'])
    """
    x, _ = paired(values, values)
    member, names = _members(group, len(x))
    grouped = np.asarray(member.sum(axis=0)).ravel() > 0
    x = np.where(grouped[:, None], x, np.nan)
    known, rank = ~np.isnan(x), ranks(x)
    total = known.sum(axis=0).astype(np.float64)
    n = member @ known.astype(np.float64)
    u = member @ np.where(known, rank, 0) - n * (n + 1) / 2
    pairs = n * (total - n)
    # ranks with ties spread less, which is the whole correction for ties
    spread = (np.where(known, rank - (total + 1) / 2, 0) ** 2).sum(axis=0) / np.maximum(total - 1, 1)
    sd = np.sqrt(pairs * spread / np.maximum(total, 1))
    z = np.abs(u - pairs / 2) / np.where(sd > 0, sd, np.inf)
    return ratio(2 * u, pairs) - 1, np.where(pairs > 0, 2 * ndtr(-z), np.nan), names


@documented("NaN where the measurement differs in no group")
def differential_agreement(truth: ArrayLike, prediction: ArrayLike, group: ArrayLike, alpha: float = 0.05) -> Floats:
    """Share of the measured differences between regions that the prediction shows too.

    A group counts where its measured abundance differs from the rest (:func:`differential_abundance`,
    Benjamini-Hochberg over groups and metabolites). The prediction must differ there, to the same side.

    Examples
    --------
    >>> import numpy as np
    >>> from stmsi.metrics import differential_agreement
    >>> truth, region = np.arange(40.0), np.repeat(["a", "b"], 20)
    >>> differential_agreement(truth, truth**2, region), differential_agreement(truth, -truth, region)
    (array([1.]), array([0.]))
    """
    if not 0 < alpha < 1:
        msg = f"alpha is a rate between 0 and 1, found {alpha!r}."
        raise ValueError(msg)
    (effect, p, _), (other, other_p, _) = (differential_abundance(v, group) for v in paired(truth, prediction))
    found = _discoveries(p, alpha)
    again = found & _discoveries(other_p, alpha) & (np.sign(effect) == np.sign(other))
    return ratio(again.sum(axis=0), found.sum(axis=0))


def correlations(x: Floats, y: Floats) -> Floats:
    """Correlation of each column of `x` with each of `y`, over the rows that both have; NaN for constant ones."""
    gaps = [np.isnan(v) for v in (x, y)]
    if all((g == g[:, :1]).all() for g in gaps):
        # gaps are those of spots: one product of standardised columns
        rows = ~(gaps[0][:, 0] | gaps[1][:, 0]) if x.shape[1] and y.shape[1] else np.zeros(len(x), bool)
        a = _standard(x[rows])
        return a.T @ (a if y is x else _standard(y[rows]))
    known = [(~g).astype(np.float64) for g in gaps]
    # shifted by the mean of the column, the sums of squares do not cancel
    a, b = (
        np.where(g, 0, v - np.nansum(v, axis=0) / np.maximum(number(v), 1)) for v, g in zip((x, y), gaps, strict=True)
    )
    n = np.maximum(known[0].T @ known[1], 1)
    mean_a, mean_b = a.T @ known[1] / n, known[0].T @ b / n
    square_a, square_b = (a**2).T @ known[1] / n, known[0].T @ b**2 / n
    var_a, var_b = square_a - mean_a**2, square_b - mean_b**2
    flat = (var_a <= 1e-10 * square_a) | (var_b <= 1e-10 * square_b)
    spread = np.sqrt(np.where(flat, 1, var_a * var_b))
    return np.where(flat, np.nan, (a.T @ b / n - mean_a * mean_b) / spread)


def _standard(x: Floats) -> Floats:
    """Columns with mean 0 and length 1; NaN for constant ones."""
    size = np.abs(x).max(axis=0, initial=0)
    z = x - x.mean(axis=0) if len(x) else x
    length = np.sqrt((z**2).sum(axis=0))
    flat = length <= 1e-9 * size * np.sqrt(max(len(x), 1))
    return np.where(flat, np.nan, z / np.where(flat, 1, length))


def _agreement(first: Floats, second: Floats) -> Floats:
    """Pearson correlation of the columns, NaN with too few pairs."""
    return np.where(number(first + second) >= _LEAST_PAIRS, pearson(first, second), np.nan)


def _discoveries(p: Floats, alpha: float) -> Bools:
    """Which p values are below the limit of Benjamini and Hochberg; NaN are none."""
    ordered = np.sort(p[~np.isnan(p)])
    below = np.flatnonzero(ordered <= alpha * np.arange(1, len(ordered) + 1) / max(len(ordered), 1))
    return p <= ordered[below[-1]] if len(below) else np.zeros(p.shape, bool)


def _members(group: ArrayLike, n: int) -> tuple[sp.csr_matrix, NDArray[Any]]:
    """Membership, shape (groups, spots), and names of the groups."""
    import pandas as pd

    label = pd.Series(np.asarray(group, dtype=object).ravel())
    if len(label) != n:
        msg = f"group must name the group of each of the {n} spots, found {len(label)} labels."
        raise ValueError(msg)
    code, names = pd.factorize(label, sort=True)
    own = np.flatnonzero(code >= 0)
    return sp.csr_matrix((np.ones(len(own)), (code[own], own)), shape=(len(names), n)), np.asarray(names)
