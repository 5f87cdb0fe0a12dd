"""How far a score can be trusted: errors of replicates, bounds, and errors of the most certain spots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from stmsi._core.arrays import AnyFloats, Bools, Floats, Ints
from stmsi._core.metrics.columns import number, ratio, total
from stmsi._core.metrics.intensity import pearson
from stmsi._core.metrics.presence import auroc
from stmsi._core.spatial.sections import rows_of_each

CONFIDENCE = 0.9  # one-sided, of the lower bounds
_FEWEST = 5  # spots of a unit below which a score inside it says nothing


def spearman_brown(r: Floats) -> Floats:
    r"""Reliability of a mean from the correlation of its halves, :math:`2r / (1 + r)`; 0 where `r` is negative.

    Spearman, British Journal of Psychology 3 (1910) 271-295; Brown, ibid. 296-322.
    """
    r = np.asarray(r, dtype=np.float64)
    return np.where(np.isnan(r), np.nan, 2 * np.maximum(r, 0) / (1 + np.maximum(r, 0)))


def fisher_bounds(r: Floats, n: Ints, z: float = 1.96) -> tuple[Floats, ...]:
    """Lower and upper bound of a correlation of n independent pairs, by Fisher's transformation."""
    with np.errstate(invalid="ignore", divide="ignore"):
        centre, width = np.arctanh(np.clip(r, -0.999999, 0.999999)), z / np.sqrt(np.maximum(n - 3, 1))
    return np.tanh(centre - width), np.tanh(centre + width)


def mean_and_error(values: Floats) -> tuple[NDArray[Any], ...]:
    """Mean, standard error, number and lower bound (Student's t) of the columns of (replicates, n), NaN left out.

    One replicate alone has no error and no bound.
    """
    k = number(values)
    mean = ratio(total(values), k)
    square = total((values - mean) ** 2)
    error = np.where(k > 1, np.sqrt(square / np.maximum(k - 1, 1) / np.maximum(k, 1)), np.nan)
    return mean, error, k, mean - student.ppf(CONFIDENCE, np.maximum(k - 1, 1)) * error


def pearson_inside(truth: Floats, prediction: Floats, units: Ints) -> tuple[Floats, Floats, Ints]:
    """Correlation inside units (sections), as mean, lower bound and number of units; each of shape (metabolites,).

    Spots of several units pooled would count differences of level between units as skill. Where a prediction is constant in a unit and the
    truth is not, it counts as 0 there; one that is constant in all of them has no score. Where no unit has five spots, as in bulk data, all spots are one sample: correlation and Fisher's bound, 0 units.
    """
    inside = _inside(pearson, truth, prediction, units)
    if inside is None:
        known = ~np.isnan(truth) & ~np.isnan(prediction)
        r = pearson(truth, prediction)
        return (
            r,
            fisher_bounds(r, number(np.where(known, truth, np.nan)), norm.ppf(CONFIDENCE))[0],
            np.zeros(len(r), np.int64),
        )
    mean, _, k, lower = mean_and_error(inside)
    return mean, lower, k.astype(np.int64)


def auroc_inside(present: Floats, score: Floats, units: Ints) -> tuple[Floats, Floats]:
    """Area under the ROC curve inside units, as mean and lower bound; as :func:`pearson_inside`, units of one class left out.

    The bound of a pooled area is that of its normal approximation where there is no skill (Mann and Whitney).
    """
    inside = _inside(auroc, present, score, units)
    if inside is None:
        area = auroc(present, score)
        known = ~np.isnan(present) & ~np.isnan(score)
        n1, n0 = ((known & of).sum(axis=0) for of in (present > 0, present <= 0))
        return area, area - norm.ppf(CONFIDENCE) * np.sqrt((n1 + n0 + 1) / (12 * np.maximum(n1 * n0, 1)))
    mean, _, _, lower = mean_and_error(inside)
    return mean, lower


def _inside(score: Callable[[Floats, Floats], Floats], truth: Floats, prediction: Floats, units: Ints) -> Floats | None:
    """Scores of each unit, shape (units, metabolites); `None` where no unit has spots enough."""
    rows = [own for own in rows_of_each(np.unique(units, return_inverse=True)[1]) if len(own) >= _FEWEST]
    if not rows:
        return None
    out = np.full((len(rows), truth.shape[1]), np.nan)
    flat = np.zeros(out.shape, dtype=bool)
    for k, own in enumerate(rows):
        y, p = truth[own], prediction[own]
        known = ~np.isnan(y) & ~np.isnan(p)
        enough = known.sum(axis=0) >= _FEWEST
        out[k] = np.where(enough, score(y, p), np.nan)
        flat[k] = enough & _varies(y, known) & ~_varies(p, known)
    return np.where(flat & ~np.isnan(out).all(axis=0), 0.0, out) if score is pearson else out


def _varies(values: Floats, known: Bools) -> Bools:
    """Metabolites whose known values are not one number."""
    most, least = (np.where(known, values, fill) for fill in (-np.inf, np.inf))
    return most.max(axis=0, initial=-np.inf) > least.min(axis=0, initial=np.inf)


def kept_errors(error: Floats, uncertainty: Floats, shares: Floats) -> tuple[Ints, Floats]:
    """Number and mean error of the least uncertain spots, shape (shares, metabolites); 0 and NaN where there is none.

    `error` and `uncertainty` are of shape (spots, metabolites); pairs with NaN are left out. Shares are rounded up to a
    whole spot. Of equal uncertainty, earlier spots are kept first.
    """
    known = ~np.isnan(error) & ~np.isnan(uncertainty)
    order = np.argsort(np.where(known, uncertainty, np.inf), axis=0, kind="stable")
    ordered = np.take_along_axis(np.where(known, error, 0.0), order, axis=0)
    sums = np.vstack([np.zeros((1, error.shape[1])), np.cumsum(ordered, axis=0)])
    # a product such as 0.1 x 30 lies a last bit above its whole number
    kept = np.ceil(shares[:, None] * known.sum(axis=0) - 1e-9).astype(np.int64)
    return kept, ratio(np.take_along_axis(sums, kept, axis=0), kept)


def binary_entropy(probability: AnyFloats) -> Floats:
    """Entropy of a yes-or-no question in bits: 1 at one half, 0 where the answer is certain."""
    p = np.clip(np.asarray(probability, np.float64), 1e-300, 1 - 1e-16)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
