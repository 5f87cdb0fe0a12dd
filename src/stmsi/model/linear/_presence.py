"""Stage 1: one calibrated classifier per metabolite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from scipy.special import expit

from stmsi._core.learning.logistic import ROUGH, Logistic, balanced_logistic
from stmsi._core.learning.shared_ridge import GroupMoments, HeldOutTruth, choose_penalty
from stmsi._core.metrics.columns import column_pieces
from stmsi._core.metrics.presence import auroc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.arrays import AnyFloats
    from stmsi.model.shared._inner_folds import InnerFolds

PresenceFamily: TypeAlias = Literal["prior", "logistic", "svm", "mlp"]

_STRENGTHS = {"logistic": (1e-3, 1e-2, 1e-1), "svm": (1e-4, 1e-3, 1e-2), "mlp": (1.0, 10.0)}
"""Regularisation to choose from: C of logistic regression and SVM, alpha of the network."""

_ENTRIES = 2**22
"""Spots times metabolites that are solved at once."""
_FEW = 300
"""Spots below which the sigmoid of held-out probabilities is fitted without their group."""


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier of one metabolite, or a constant.

    Attributes
    ----------
    estimator
        Fitted classifier, of scikit-learn or :class:`stmsi._core.learning.logistic.Logistic`; `None`: the probability is `prior`
        everywhere.
    prior
        Share of training spots with the metabolite.
    slope, offset
        Platt calibration of the classifier's score, fitted on held-out scores.
    strength
        Regularisation chosen.
    held_out
        Calibrated held-out probability of each training row (NaN where there was none).
    """

    estimator: Any
    prior: float
    slope: float
    offset: float
    strength: float
    held_out: NDArray[np.float64]

    def predict(self, F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of presence, shape (spots,)."""
        if self.estimator is None:
            return np.full(len(F), self.prior)
        return expit(self.slope * _score(self.estimator, F) + self.offset)


def predict_presence(classifiers: Sequence[Classifier], F: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of presence of all metabolites, shape (spots, metabolites); logistic regressions by one product."""
    out = np.empty((len(F), len(classifiers)))
    logistic = np.array([isinstance(c.estimator, Logistic) for c in classifiers], dtype=bool)
    for m in np.flatnonzero(~logistic).tolist():
        out[:, m] = classifiers[m].predict(F)
    own = [c for c, is_logistic in zip(classifiers, logistic, strict=True) if is_logistic]
    if own:
        slope, offset, own_offset = np.array([[c.slope, c.offset, c.estimator.offset] for c in own]).T
        score = F @ (np.column_stack([c.estimator.weights for c in own]) * slope)
        score += slope * own_offset + offset
        out[:, logistic] = expit(score, out=score)
    return out


def fit_classifier(
    F: NDArray[np.float64], present: NDArray[np.float64], groups: NDArray[np.int64], family: PresenceFamily, seed: int
) -> Classifier:
    """Fit the classifier of one metabolite, `present` having shape (spots,); see :func:`fit_classifiers`."""
    return fit_classifiers(F, present[:, None], groups, family, seed)[0]


def fit_classifiers(
    F: NDArray[np.float64], present: NDArray[np.float64], groups: NDArray[np.int64], family: PresenceFamily, seed: int
) -> list[Classifier]:
    """Fit the classifiers of several metabolites.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    present
        1, 0 or NaN, shape (spots, metabolites).
    groups
        Groups of the inner folds, which choose the regularisation and calibrate.
    family
        See :class:`stmsi.model.HurdleLinear`.
    seed
        For the solvers that draw.
    """
    usable = np.zeros(present.shape[1], dtype=bool)
    if family != "prior":
        usable = _varies(present) & np.logical_or.reduce([fit for *_, fit in _folds(present, groups)])
    fitted = iter(_fit_usable(F, present[:, usable], groups, family, seed) if usable.any() else ())
    constants = constant_classifiers(present, groups)
    return [next(fitted) if use else constant for use, constant in zip(usable, constants, strict=True)]


def fit_shared_classifiers(F: AnyFloats, present: NDArray[np.float64], folds: InnerFolds) -> list[Classifier]:
    """Logistic regressions of all metabolites with one penalty, each with Platt's sigmoid on held-out scores.

    The penalty is that of the ridge regression of presence whose held-out predictions are best: the same features and spots
    for a fraction of the cost, and a place for the logistic regression to start from. A metabolite that is always or never
    present, or any without features, has its share of the spots everywhere.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    present
        1, 0 or NaN, shape (spots, metabolites).
    folds
        Groups of the inner folds.
    """
    classifiers = constant_classifiers(present, folds.groups)
    usable = np.flatnonzero(_varies(present)) if F.shape[1] else np.empty(0, np.int64)
    if len(usable) == 0:
        return classifiers
    F, y = F.astype(np.float32), present[:, usable]
    moments = GroupMoments.of(F, y, folds.groups)
    penalty, _ = choose_penalty(moments, HeldOutTruth.of(y, folds.groups, folds.units))
    C = strength_of(penalty * moments.unit, len(usable))

    score = np.full(y.shape, np.nan)
    place = {m: i for i, m in enumerate(usable)}
    single = {place[m]: own for of, own in folds.apart for m in of if m in place}
    n_groups = len(moments.gram)
    *without, of_all = moments.fits(penalty, [*range(n_groups), None])
    fits = [_Fit(np.ones(len(F), bool), np.arange(len(usable)), of_all, None)]
    for groups, columns in by_groups(folds.groups, single, len(usable)):
        for g in np.unique(groups[groups >= 0]):
            rows = (groups != g) & (groups >= 0)
            possible = columns[_varies(y[np.ix_(rows, columns)])]
            if len(possible):
                start = without[int(g)] if groups is folds.groups else of_all
                fits.append(_Fit(rows, possible, start, groups == g))
    lines: list[Logistic] = []
    for some in _batches(fits, len(F)):
        # spots that a fit must not see are not measured there
        Y = np.hstack([np.where(f.rows[:, None], y[:, f.columns], np.nan) for f in some])
        every = np.concatenate([f.columns for f in some])
        start = np.hstack([f.start[:-1, f.columns] for f in some])
        found = iter(balanced_logistic(F, Y, C[every], 4 * start, ROUGH))
        for f in some:
            own = [next(found) for _ in f.columns]
            if f.test is None:
                lines += own
                continue
            weights, offsets = np.column_stack([line.weights for line in own]), np.array([line.offset for line in own])
            score[np.ix_(f.test, f.columns)] = F[f.test] @ weights + offsets
    score[np.isnan(y)] = np.nan
    for groups, columns in by_groups(folds.groups, single, len(usable)):
        for part in (columns[piece] for piece in column_pieces(len(F), len(columns))):
            own = [lines[i] for i in part]
            done = calibrated(own, y[:, part], score[:, part], groups, C[part])
            for i, classifier in zip(part, done, strict=True):
                classifiers[usable[i]] = classifier
    return classifiers


def strength_of(penalty: float, n: int) -> NDArray[np.float64]:
    """C of n logistic regressions where this is the penalty of the ridge regression."""
    # log-odds have four times the slope of a probability around one half, and a quarter of its curvature
    return np.full(n, 4 / penalty)


@dataclass(frozen=True)
class _Fit:
    """Logistic regressions of some metabolites to some spots, where to start, and the spots to score (`None`: fitted to all)."""

    rows: NDArray[np.bool_]
    columns: NDArray[np.int64]
    start: NDArray[np.float64]
    test: NDArray[np.bool_] | None


def _batches(fits: Sequence[_Fit], n_spots: int) -> Iterator[list[_Fit]]:
    """Fits that are solved together: products of many columns are cheaper than many products of few."""
    most = max(_ENTRIES // max(n_spots, 1), 1)
    parts = [replace(f, columns=f.columns[i : i + most]) for f in fits for i in range(0, len(f.columns), most)]
    batch: list[_Fit] = []
    for fit in parts:
        if batch and n_spots * (sum(len(f.columns) for f in batch) + len(fit.columns)) > _ENTRIES:
            yield batch
            batch = []
        batch.append(fit)
    yield batch


def by_groups(
    groups: NDArray[np.int64], single: dict[int, NDArray[np.int64]], n: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Groups, and the metabolites that have them: those of all, and of each metabolite measured in one group only."""
    yield groups, np.setdiff1d(np.arange(n), list(single))
    for column, own in single.items():
        yield own, np.array([column])


def _varies(present: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Metabolites that are present in some of the spots and absent in others."""
    return np.asarray((present > 0).any(axis=0) & (present <= 0).any(axis=0))


def _folds(
    present: NDArray[np.float64], groups: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Training and test spots of each inner fold, and the metabolites that can be fitted and judged there."""
    for g in np.unique(groups):
        train, test = groups != g, groups == g
        yield train, test, _varies(present[train]) & ~np.isnan(present[test]).all(axis=0)


def constant_classifiers(present: NDArray[np.float64], groups: NDArray[np.int64]) -> list[Classifier]:
    """Of each metabolite, the share of spots with it, everywhere; of held-out spots, that of the other groups."""
    known, there = ~np.isnan(present), present > 0
    code = np.unique(groups, return_inverse=True)[1]
    of_group = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
    n, n1 = of_group @ known.astype(np.float64), of_group @ there.astype(np.float64)
    every, with_it = n.sum(axis=0), n1.sum(axis=0)
    prior = with_it / np.maximum(every, 1)
    rest = every - n
    held_out = np.where(known, np.where(rest > 0, (with_it - n1) / np.maximum(rest, 1), prior)[code], np.nan)
    return [Classifier(None, float(p), 1.0, 0.0, np.nan, h) for p, h in zip(prior, held_out.T, strict=True)]


def _fit_usable(
    F: NDArray[np.float64], present: NDArray[np.float64], groups: NDArray[np.int64], family: PresenceFamily, seed: int
) -> list[Classifier]:
    """Classifiers of metabolites whose regularisation held-out groups can choose."""
    strengths = np.array(_STRENGTHS[family])
    scores = np.full((len(strengths), *present.shape), np.nan)
    for train, test, possible in _folds(present, groups):
        fit = np.flatnonzero(possible)
        if len(fit) == 0:
            continue
        # all strengths at once
        own = np.tile(present[np.ix_(train, fit)], len(strengths))
        estimators = _fit_columns(F[train], own, family, np.repeat(strengths, len(fit)), seed)
        held_out = np.column_stack([_score(e, F[test]) for e in estimators]).reshape(-1, len(strengths), len(fit))
        scores[:, np.flatnonzero(test)[:, None], fit] = held_out.swapaxes(0, 1)
    scores[:, np.isnan(present)] = np.nan
    quality = np.nan_to_num([auroc(present, score) for score in scores])
    best = np.zeros(present.shape[1], dtype=np.int64)
    column = np.arange(present.shape[1])
    for i in range(1, len(strengths)):
        # strengths rise from the strongest penalty (network: from the weakest); a tie keeps the simpler model
        least = quality[best, column] + (0 if family == "mlp" else 1e-3)
        best = np.where(quality[i] >= least if family == "mlp" else quality[i] > least, i, best)
    score = scores[best, :, column].T
    estimators = _fit_columns(F, present, family, strengths[best], seed)
    return calibrated(estimators, present, score, groups, strengths[best])


def calibrated(
    estimators: Sequence[Any],
    present: NDArray[np.float64],
    score: NDArray[np.float64],
    groups: NDArray[np.int64],
    strength: NDArray[np.float64],
) -> list[Classifier]:
    """Estimators of several metabolites with the sigmoids that fit their held-out scores, shape (spots, metabolites)."""
    slope, offset = platts(score, present)
    held_out = expit(slope * np.nan_to_num(score) + offset)
    few = np.flatnonzero((~np.isnan(present)).sum(axis=0) < _FEW)
    for g in np.unique(groups) if len(few) else ():
        # two numbers that have seen the spot tell something of it where there are few
        own = groups == g
        a, b = platts(score[np.ix_(~own, few)], present[np.ix_(~own, few)])
        held_out[np.ix_(own, few)] = expit(a * np.nan_to_num(score[np.ix_(own, few)]) + b)
    without = constant_classifiers(present, groups)
    # where the other groups are all of one class, their share is what can be said
    held_out = np.where(np.isnan(score), np.column_stack([c.held_out for c in without]), held_out)
    return [
        Classifier(estimator, c.prior, float(a), float(b), float(s), h)
        for estimator, c, a, b, s, h in zip(estimators, without, slope, offset, strength, held_out.T, strict=True)
    ]


def _fit_columns(
    X: NDArray[np.float64],
    present: NDArray[np.float64],
    family: PresenceFamily,
    strengths: NDArray[np.float64],
    seed: int,
) -> list[Any]:
    """One estimator for each column of `present`, on the spots where it is not NaN."""
    known = ~np.isnan(present)
    if family == "logistic":
        measured = known.any(axis=1)  # the others must not count for where the solver stops
        return list(balanced_logistic(X[measured], present[measured], strengths))
    return [
        _fit(X[k], y[k] > 0, family, float(strength), seed)
        for k, y, strength in zip(known.T, present.T, strengths, strict=True)
    ]


def _fit(X: NDArray[Any], y: NDArray[np.bool_], family: PresenceFamily, strength: float, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        # stopping early is a form of regularisation here, not a failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        if family == "svm":
            return LinearSVC(C=strength, class_weight="balanced", dual="auto", random_state=seed).fit(X, y)
        network = MLPClassifier(
            hidden_layer_sizes=(64,), alpha=strength, learning_rate_init=3e-3, batch_size=min(128, len(y)), max_iter=30,
            random_state=seed,
        )  # fmt: skip
        balanced = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        return network.fit(X, y, sample_weight=balanced)


def _score(estimator: Any, X: NDArray[Any]) -> NDArray[np.float64]:
    """Log-odds or margin."""
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X), dtype=np.float64)
    p = np.clip(estimator.predict_proba(X)[:, 1], 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def platt(score: NDArray[np.float64], present: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of Platt's sigmoid for one metabolite, arrays of shape (spots,); see :func:`platts`."""
    slope, offset = platts(score[:, None], present[:, None])
    return float(slope[0]), float(offset[0])


def platts(score: NDArray[np.float64], present: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes and offsets of Platt's sigmoids on held-out scores, with his smoothed targets; never a falling sigmoid.

    Parameters
    ----------
    score
        Log-odds or margins, shape (spots, metabolites); NaN is left out.
    present
        1, 0 or NaN, likewise.
    """
    known = ~np.isnan(score) & ~np.isnan(present)
    s, there = np.where(known, score, 0), known & (np.nan_to_num(present) > 0)
    n, n1 = known.sum(axis=0), there.sum(axis=0)
    n0 = n - n1
    target = np.where(there, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    mean = s.sum(axis=0) / np.maximum(n, 1)
    spread = np.sqrt((known * (s - mean) ** 2).sum(axis=0) / np.maximum(n, 1))
    slope, offset = 1.0 / np.maximum(spread, 1e-9), np.zeros(s.shape[1])
    left = np.flatnonzero((n1 > 0) & (n0 > 0))
    own, inside, aim = s[:, left], known[:, left].astype(np.float64), target[:, left]
    for _ in range(100):
        if len(left) == 0:
            break
        p = expit(slope[left] * own + offset[left])
        error = inside * (p - aim)
        w = inside * np.maximum(p * (1 - p), 1e-10)
        along = w * own
        a, b, c = (along * own).sum(axis=0) + 1e-9, along.sum(axis=0), w.sum(axis=0) + 1e-9
        first, second = (error * own).sum(axis=0), error.sum(axis=0)
        determinant = a * c - b * b
        determinant = np.where(np.abs(determinant) > 1e-300, determinant, np.nan)
        step = np.stack([(c * first - b * second) / determinant, (a * second - b * first) / determinant])
        slope[left] -= step[0]
        offset[left] -= step[1]
        # what is lost is lost: a sigmoid that ran away ends below as the share of the spots
        going = np.isfinite(step).all(axis=0) & (np.abs(step).max(axis=0) >= 1e-8)
        if not going.all():
            left, own, inside, aim = left[going], own[:, going], inside[:, going], aim[:, going]
    # held-out scores that rank the wrong way carry no information
    wrong = ~np.isfinite(slope) | ~np.isfinite(offset) | (slope <= 0) | (n1 == 0) | (n0 == 0)
    return np.where(wrong, 1e-6, slope), np.where(wrong, np.log((n1 + 1) / (n0 + 1)), offset)
