"""Stacking weights from the held-out predictions of several models."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import nnls

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.spatial.sections import rows_of_each

_SHRINKAGE = (np.inf, 3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0)
"""Strengths of shrinkage, strongest first: the number of spots that the weights of all metabolites count for."""
_TO_EQUAL = 1e-4  # pull towards equal weights, so that members that agree share their weight


def simplex_weights(moments: Floats, prior: Floats, strength: Floats) -> Floats:
    r"""Non-negative weights with sum 1, shape (problems, members), that make the error of a weighted mean small.

    .. math:: \min_w \; w^\top E w + \lambda \lVert w - w_0 \rVert^2 \quad\text{with } w \ge 0,\; 1^\top w = 1

    :math:`E` are the moments of the members' errors, shape (problems, members, members), :math:`w_0` the prior (members,),
    and :math:`\lambda` the strength (problems,); an infinite one gives the prior. With weights that sum to 1 the second
    term is :math:`\lambda \lVert (I - w_0 1^\top) w \rVert^2`, so the whole is one quadratic form :math:`Q`. The minimum
    of :math:`u^\top Q u + (1^\top u - 1)^2` over :math:`u \ge 0`, a non-negative least-squares problem, is a multiple of
    the solution.
    """
    k = len(prior)
    finite = np.isfinite(strength)
    pull = np.eye(k) - np.outer(prior, np.ones(k))
    Q = moments + np.where(finite, strength, 0)[:, None, None] * (pull.T @ pull)
    size = np.trace(Q, axis1=1, axis2=2)
    solvable = finite & (size > 0)
    values, vectors = np.linalg.eigh(Q / np.where(size > 0, size, 1)[:, None, None])
    roots = np.sqrt(np.maximum(values, 0))[:, :, None] * vectors.transpose(0, 2, 1)
    weights = np.tile(prior, (len(Q), 1))
    target = np.zeros(k + 1)
    target[-1] = 1
    for i in np.flatnonzero(solvable):
        weights[i] = nnls(np.vstack([roots[i], np.ones(k)]), target)[0]
    return weights / weights.sum(axis=1, keepdims=True)


def stacking_weights(
    truth: Floats, predictions: Floats, groups: Ints, eligible: Bools | None = None, units: Ints | None = None
) -> Floats:
    """Weights of each metabolite, shape (members, metabolites), shrunk to those of all metabolites.

    They minimise the squared error of the weighted mean of the members. The fewer spots a metabolite has, the more its
    weights are pulled to the best ones for all metabolites together; how strongly is chosen by leaving out one group after
    the other. `predictions` are held-out, shape (members, spots, metabolites), NaN where a member made none. A spot counts
    for a metabolite if all members that predict the metabolite at all predict it there. Only `eligible` members (members,
    metabolites) have weight. With `units` (sections), only the pattern inside units counts, and as much in each. Columns
    sum to 1, or to 0 where no member is eligible. A metabolite without evidence, or with a constant truth, has the weights
    of all metabolites.
    """
    n_members, _, n_metabolites = predictions.shape
    eligible = np.ones((n_members, n_metabolites), bool) if eligible is None else eligible
    made = ~np.isnan(predictions) & ~np.isnan(truth)
    compared = eligible & made.any(axis=1)
    # members without held-out predictions have weight only where there is no other member
    candidates = np.where(compared.any(axis=0), compared, eligible)
    moments, count = _error_moments(truth, predictions, groups, made, candidates, None)
    if units is not None:
        moments = moments + _error_moments(truth, predictions, groups, made, candidates, units)[0]
    total, n = moments.sum(axis=0), count.sum(axis=0)
    best = 0
    if len(moments) > 1:
        # the error of each strength on groups that were left out, every metabolite counting the same
        error = np.zeros(len(_SHRINKAGE))
        for own, own_n in zip(moments, count, strict=True):
            for i, w in enumerate(_weights(total - own, n - own_n, candidates)):
                error[i] += (np.einsum("mk,mkl,ml->m", w, own, w) / np.maximum(n, 1)).sum()
        best = int(error.argmin())
    return _weights(total, n, candidates, _SHRINKAGE[best : best + 1])[0].T


def _error_moments(
    truth: Floats, predictions: Floats, groups: Ints, made: Bools, candidates: Bools, units: Ints | None
) -> tuple[Floats, Ints]:
    """Products of errors, summed over the spots of each group, in units of the truth's variance; number of spots.

    Shapes (groups, metabolites, members, members) and (groups, metabolites).
    """
    known = (made | ~candidates[:, None]).all(axis=0) & candidates.any(axis=0) & ~np.isnan(truth)
    n = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, truth, 0).sum(axis=0) / n
    variance = np.where(known, (truth - mean) ** 2, 0).sum(axis=0) / n
    varies = variance > 1e-12 * mean**2
    known &= varies
    if units is None:
        error = np.where(known & candidates[:, None], (predictions - truth) / np.sqrt(np.where(varies, variance, 1)), 0)
    else:
        error = _errors_within(truth, predictions, known, candidates, units)
    by_group = rows_of_each(groups)
    moments = [np.einsum("knm,lnm->mkl", error[:, g], error[:, g], optimize=True) for g in by_group]
    return np.stack(moments), np.stack([known[g].sum(axis=0) for g in by_group])


def _errors_within(truth: Floats, predictions: Floats, known: Bools, candidates: Bools, units: Ints) -> Floats:
    """Errors of the pattern inside each unit, shape (members, spots, metabolites); 0 where they do not count.

    Units differ in level and spread, and one of another batch would have most of the squared error. So the truth has the
    same variance in each unit. Where the members' mean prediction spreads more or less in a unit than everywhere, all
    members are scaled by the same factor.
    """
    code = np.unique(units, return_inverse=True)[1]
    of_unit = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
    n = np.maximum(of_unit @ known.astype(float), 1)

    def centred(values: Floats, where: Bools) -> Floats:
        values = np.where(where, values, 0)
        return np.where(where, values - ((of_unit @ values) / n)[code], 0)

    y = centred(truth, known)
    h = np.stack([centred(p, known & c) for p, c in zip(predictions, candidates, strict=True)])
    together = h.sum(axis=0) / np.maximum(candidates.sum(axis=0), 1)
    agreement, size = of_unit @ (y * together), of_unit @ together**2
    everywhere = _ratio(agreement.sum(axis=0), size.sum(axis=0), 0.0)
    factor = np.where(everywhere > 0, np.maximum(_ratio(_ratio(agreement, size, 0.0), everywhere, 1.0), 0), 1)
    spread = np.sqrt((of_unit @ y**2) / n)
    return (factor[code] * h - y) * (known & candidates[:, None]) / np.where(spread > 0, spread, 1)[code]


def _ratio(a: Floats, b: Floats, otherwise: float) -> Floats:
    return np.where(b != 0, a / np.where(b != 0, b, 1), otherwise)


def _weights(moments: Floats, n: Ints, candidates: Bools, strengths: tuple[float, ...] = _SHRINKAGE) -> list[Floats]:
    """Weights for each strength of shrinkage, shape (metabolites, members)."""
    k = len(candidates)
    prior = np.full(k, 1 / k)
    common = candidates.all(axis=0) & (n > 0)
    if common.any():
        mean = (moments[common] / n[common, None, None]).mean(axis=0)
        prior = simplex_weights(mean[None], prior, np.array([_TO_EQUAL * np.trace(mean) / k]))[0]
    patterns, pattern_of = np.unique(candidates, axis=1, return_inverse=True)
    weights = [np.zeros((len(moments), k)) for _ in strengths]
    for p, pattern in enumerate(patterns.T):
        own, members = np.flatnonzero(pattern_of.ravel() == p), np.flatnonzero(pattern)
        if len(members) == 0:
            continue
        share = prior[members]
        share = share / share.sum() if share.sum() > 0 else np.full(len(members), 1 / len(members))
        block = moments[np.ix_(own, members, members)]
        for w, strength in zip(weights, strengths, strict=True):
            w[np.ix_(own, members)] = simplex_weights(block, share, np.full(len(own), strength))
    return weights
