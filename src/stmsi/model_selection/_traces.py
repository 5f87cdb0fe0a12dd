"""Traces that steps fitted on all spots leave in numbers: arrays in, yes or no out."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtri
from scipy.stats import rankdata

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.metrics.columns import ranks
from stmsi._core.spatial.sections import rows_of_each

_LEAST_LEVELS = 20  # a column of fewer different values is in the order of its ranks by chance
_LEAST_ROWS = 20  # fewer spots have any mean or rank by chance
_RANK_METHODS = ("min", "max")
_OPEN = 0.999
"""Share of the values above zero that lie in whole patches; simulated tissue has 0.91 at most."""
_SCALES = (np.nanmean, np.nanstd, np.nanmax)
_TOLERANCE = 1e-4


def scaled(values: Floats, section: Ints) -> bool:
    """Whether columns were scaled over all sections, and not in each: by mean and deviation, quartiles, or least and largest.

    Parameters
    ----------
    values
        Numbers, (n, p), without NaN.
    section
        Number of each row's section, (n,).
    """
    own = values[:, values.std(axis=0) > 0]
    sections = rows_of_each(section)
    if len(own) < _LEAST_ROWS or not own.shape[1]:
        return False
    for scale in (_standardised, _robust):
        hit = scale(own)
        if hit.any() and not all(scale(own[rows, :][:, hit]).all() for rows in sections):
            return True
    return len(sections) > 1 and _within_one(own) and not all(_within_one(own[rows]) for rows in sections)


def _standardised(values: Floats) -> Bools:
    """Which columns have mean 0 and deviation 1."""
    n = len(values)
    return (np.abs(values.mean(axis=0)) < _TOLERANCE) & (np.abs(values.std(axis=0) - 1) < _TOLERANCE + 1 / n)


def _robust(values: Floats) -> Bools:
    """Which columns have median 0 and quartiles that are 1 apart."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    return (np.abs(middle) < _TOLERANCE) & (np.abs(high - low - 1) < _TOLERANCE)


def _within_one(values: Floats) -> bool:
    """Whether all columns have 0 as least and 1 as largest value, reached once, as shares and yes-or-no columns have not."""
    low, high = values.min(axis=0), values.max(axis=0)
    once = (values == high).sum(axis=0) == 1
    return bool(((np.abs(low) < 1e-7) & (np.abs(high - 1) < 1e-6) & once).all())


def orthogonal(values: Floats) -> bool:
    """Whether three columns at least are uncorrelated beyond chance: of mean 0, or about the origin, as components are."""
    own = values[:, values.std(axis=0) > 0]
    size = np.sqrt((own**2).sum(axis=0))
    centred = np.abs(own.mean(axis=0)) < _TOLERANCE * own.std(axis=0)
    for columns in (own[:, centred], own):
        if columns.shape[1] < 3 or len(columns) <= columns.shape[1]:
            continue
        norm = size[centred] if columns.shape[1] == centred.sum() else size
        table = np.abs(columns.T @ columns) / np.outer(norm, norm)
        np.fill_diagonal(table, 0)
        # columns that share no row (clusters, domains) are no components
        if table.max() < 1e-3 and (columns != 0).all(axis=0).mean() > 0.5:
            return True
    return False


def unit_genes(matrix: sp.csr_matrix) -> bool:
    """Whether most genes have deviation 1 over all spots."""
    n = matrix.shape[0]
    if n < _LEAST_ROWS:
        return False
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    spread = spread[spread > 0]
    return bool(len(spread) > 2 and (np.abs(spread - 1) < 1e-3 + 1 / n).mean() > 0.8)


def equal_scales(values: Floats, section: Ints) -> bool:
    """Whether all metabolites have one mean, deviation or largest value over all sections, and not in each.

    `values` may hold NaN. Three metabolites at least must vary.
    """
    sections = [rows for rows in rows_of_each(section) if np.isfinite(values[rows]).any(axis=0).all()]
    own = values[:, np.nanstd(values, axis=0) > 0] if np.isfinite(values).any(axis=0).all() else values[:, :0]
    if own.shape[1] < 3 or len(sections) < 2 or len(own) < _LEAST_ROWS:
        return False
    over = [_equal(statistic(own, axis=0)) for statistic in _SCALES]
    within = [all(_equal(statistic(own[rows], axis=0)) for rows in sections) for statistic in _SCALES]
    if any(within):
        return False
    if any(over):
        return True
    standardised = bool(_standardised(own[np.isfinite(own).all(axis=1)]).all())
    return standardised and not all(
        _standardised(own[rows][np.isfinite(own[rows]).all(axis=1)]).all() for rows in sections
    )


def _equal(statistic: Floats) -> bool:
    """Whether numbers other than 0 are the same up to rounding."""
    middle = float(np.abs(np.mean(statistic)))
    return (
        middle > 0
        and float(np.ptp(statistic)) < 10 * _TOLERANCE * middle
        and middle > 1e-3 * float(np.abs(statistic).max())
    )


def ranked(values: Floats, section: Ints) -> bool:
    """Whether most metabolites are ranks over all sections, or normal scores of them, and not of each section.

    `values` may hold NaN.
    """
    sections = rows_of_each(section)
    if len(sections) < 2:
        return False
    return _are_ranks(values) and not all(_are_ranks(values[rows]) for rows in sections)


def _are_ranks(values: Floats) -> bool:
    """Whether most columns with many levels lie on a line with their ranks, or on the normal curve of them."""
    found = []
    for column in values.T:
        own = column[np.isfinite(column)]
        if len(own) < _LEAST_ROWS or len(np.unique(own)) < min(_LEAST_LEVELS, len(own)):
            continue
        rank = ranks(own[:, None])[:, 0]
        curves = [(rank, 1e-8), (ndtri((rank - 0.5) / len(own)), 1e-4)]
        curves += [(rankdata(own, method), 1e-8) for method in _RANK_METHODS]
        found.append(any(_on_line(own, curve) > 1 - limit for curve, limit in curves))
    return len(found) > 2 and float(np.mean(found)) > 0.75


def _on_line(a: Floats, b: Floats) -> float:
    """Correlation of two columns that vary."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-300)


def opened(values: Floats, means: sp.csr_matrix) -> bool:
    """Whether every metabolite is above zero only where a spot and all its neighbours are, as after a mean over neighbours.

    A mean over neighbours makes a patch of each spot above zero. A spot above zero that lies in no whole patch shows that no mean
    was taken. `values` are 0 and more, without NaN; `means` are the weights of
    neighbours.
    """
    above = values > 0
    rate = above.mean(axis=0)
    above = above[:, (rate > 0.02) & (rate < 0.95)]
    if above.shape[1] < 3:
        return False
    number = np.diff(means.indptr)[:, None]
    neighbours = sp.csr_matrix((np.ones(means.nnz), means.indices, means.indptr), shape=means.shape)
    core = above & (neighbours @ above == number) & (number > 0)
    patch = core | (neighbours @ core > 0)
    share = (patch & above).sum() / above.sum()
    return bool(share > _OPEN)


def few_components(values: Floats) -> bool:
    """Whether metabolites, six at least, are sums of fewer than half as many patterns, as rebuilt from components."""
    own = values[np.isfinite(values).all(axis=1)]
    own = own[:, own.std(axis=0) > 0]
    m = own.shape[1]
    if m < 6 or len(own) < 3 * m:
        return False
    own = (own - own.mean(axis=0)) / own.std(axis=0)
    strength = np.linalg.eigvalsh(own.T @ own)
    return int((strength > 1e-6 * strength[-1]).sum()) <= m // 2
