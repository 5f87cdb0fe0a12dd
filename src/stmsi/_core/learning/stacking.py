"""Stacking weights from the held-out predictions of several models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import nnls

from stmsi._core.arrays import Bools, Floats, Ints
from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.spatial.sections import rows_of_each

_SHRINKAGE = (np.inf, 3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0)
"""Strengths of shrinkage, strongest first: the number of spots that the weights of all metabolites count for."""
_CHOICES = 20
_MIN_UNIT = 5
_OWN_SPOTS = 3000
"""Spots of a target at which weights of its own count as much as those of all targets."""
_EQUAL_SPOTS = 20
"""Spots at which equal weights count as much as those that were chosen."""
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


def selected_weights(truth: HeldOutTruth, maps: Floats, eligible: Bools) -> Floats:
    """Weights of several held-out maps for each target, shape (maps, targets), that make the score of their mean large.

    Maps are added one by one, each as often as it helps most, up to 20 times (Caruana et al., ICML 2004): a sum of few
    choices, which cannot fit noise as free weights do. This is done once for all targets together and once for each target.
    The weights of all are pulled half-way to the best map alone, since new sections differ from those that chose, and the
    weights of a target are pulled to those of all, the more the fewer spots it has. Of a few spots (a panel of cell lines)
    neither says much, and the weights are pulled to equal ones. `maps` are of shape (maps, spots,
    targets); only `eligible` ones (maps, targets) have weight. Columns sum to 1, or to 0 where no map is eligible.
    """
    n_maps, _, n_targets = maps.shape
    filled = np.where(np.isnan(maps), _mean_of_known(maps), maps)
    n, variance, along, between = truth.products(filled)
    enough = (n >= _MIN_UNIT) & (variance > 1e-7 * variance.max(axis=0))
    root = np.sqrt(np.where(enough, variance, 1))

    def scores(w: Floats) -> Floats:
        """Of each target: the mean of its correlation inside units and of the pooled one, as far as they exist."""
        size = np.einsum("km,lm,klum->um", w, w, between, optimize=True)
        r = np.einsum("km,kum->um", w, along) / (np.sqrt(np.where(size > 0, size, 1)) * root)
        r = np.where(enough, np.where(size > 0, r, 0), np.nan)
        inside, count = np.nansum(r[:-1], axis=0), np.isfinite(r[:-1]).sum(axis=0)
        return np.nan_to_num(np.where(count > 0, (inside / np.maximum(count, 1) + np.nan_to_num(r[-1])) / 2, r[-1]))

    def climb(total: Callable[[Floats], Floats]) -> Floats:
        """Counts of each map, shape (maps, targets); `total` says what is made large: the mean over targets, or each."""
        count, best = np.zeros((n_maps, n_targets)), np.full(n_targets, -np.inf)
        for _ in range(_CHOICES):
            found = np.stack([total(scores(count + one[:, None])) for one in np.eye(n_maps)])
            better = found.max(axis=0) > best + 1e-5
            if not better.any():
                break
            best = np.where(better, found.max(axis=0), best)
            count[found.argmax(axis=0), np.arange(n_targets)] += better
        return count / count.sum(axis=0)

    together = climb(lambda s: np.full(n_targets, s.mean()))
    alone = np.zeros((n_maps, 1))
    alone[int(np.argmax([scores(np.tile(one[:, None], n_targets)).mean() for one in np.eye(n_maps)]))] = 1
    own = climb(lambda s: s)
    share = n[-1] / (n[-1] + _OWN_SPOTS)
    equal = _EQUAL_SPOTS / (n[-1].max(initial=0) + _EQUAL_SPOTS)
    weights = (1 - equal) * ((1 - share) * (together + alone) / 2 + share * own) * eligible
    weights = weights + equal * eligible / np.maximum(eligible.sum(axis=0), 1)
    total = weights.sum(axis=0)
    # a target that no chosen map has is given the others in equal parts
    return np.where(total > 0, weights / np.where(total > 0, total, 1), eligible / np.maximum(eligible.sum(axis=0), 1))


def _mean_of_known(maps: Floats) -> Floats:
    known = ~np.isnan(maps)
    n = known.sum(axis=0)
    return np.where(n > 0, np.where(known, maps, 0).sum(axis=0) / np.maximum(n, 1), np.nan)


def stacking_weights(truth: Floats, predictions: Floats, groups: Ints, eligible: Bools | None = None) -> Floats:
    """Weights of each metabolite, shape (members, metabolites), shrunk to those of all metabolites.

    They minimise the squared error of the weighted mean of the members. The fewer spots a metabolite has, the more its
    weights are pulled to the best ones for all metabolites together; how strongly is chosen by leaving out one group after
    the other. `predictions` are held-out, shape (members, spots, metabolites), NaN where a member made none. A spot counts
    for a metabolite if all members that predict the metabolite at all predict it there. Only `eligible` members (members,
    metabolites) have weight. Columns sum to 1, or to 0 where no member is eligible. A metabolite without evidence, or with a
    constant truth, has the weights of all metabolites.
    """
    n_members, _, n_metabolites = predictions.shape
    eligible = np.ones((n_members, n_metabolites), bool) if eligible is None else eligible
    made = ~np.isnan(predictions) & ~np.isnan(truth)
    compared = eligible & made.any(axis=1)
    # members without held-out predictions have weight only where there is no other member
    candidates = np.where(compared.any(axis=0), compared, eligible)
    moments, count = _error_moments(truth, predictions, groups, made, candidates)
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
    truth: Floats, predictions: Floats, groups: Ints, made: Bools, candidates: Bools
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
    error = np.where(known & candidates[:, None], (predictions - truth) / np.sqrt(np.where(varies, variance, 1)), 0)
    by_group = rows_of_each(groups)
    moments = [np.einsum("knm,lnm->mkl", error[:, g], error[:, g], optimize=True) for g in by_group]
    return np.stack(moments), np.stack([known[g].sum(axis=0) for g in by_group])


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
