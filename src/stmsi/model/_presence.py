"""Stage 1: one calibrated classifier per metabolite."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from scipy.special import expit

from stmsi._core.metrics import auroc

if TYPE_CHECKING:
    from numpy.typing import NDArray

PresenceFamily: TypeAlias = Literal["prior", "logistic", "svm", "mlp"]

_STRENGTHS = {"logistic": (1e-3, 1e-2, 1e-1), "svm": (1e-4, 1e-3, 1e-2), "mlp": (1.0, 10.0)}
"""Regularisation to choose from: C of logistic regression and SVM, alpha of the network."""


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier of one metabolite, or a constant.

    Attributes
    ----------
    estimator
        Fitted scikit-learn classifier; `None`: the probability is `prior` everywhere.
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


def fit_classifier(
    F: NDArray[np.float64], present: NDArray[np.float64], groups: NDArray[np.int64], family: PresenceFamily, seed: int
) -> Classifier:
    """Fit the classifier of one metabolite.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    present
        1, 0 or NaN, shape (spots,).
    groups
        Groups of the inner folds, which choose the regularisation and calibrate.
    family
        See :class:`stmsi.model.HurdleLinear`.
    seed
        For the solvers that draw.
    """
    known = np.flatnonzero(~np.isnan(present))
    y, own = present[known] > 0, groups[known]
    prior = float(y.mean()) if len(y) else 0.0
    held_out = np.full(len(present), np.nan)
    folds = [(own != g, own == g) for g in np.unique(own)]
    folds = [(train, test) for train, test in folds if 0 < y[train].sum() < train.sum()]
    if family == "prior" or not 0 < y.sum() < len(y) or not folds:
        for g in np.unique(own):
            rest = y[own != g]
            held_out[known[own == g]] = rest.mean() if len(rest) else prior
        return Classifier(None, prior, 1.0, 0.0, np.nan, held_out)

    X = F[known]
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for strength in _STRENGTHS[family]:
        score = np.full(len(y), np.nan)
        for train, test in folds:
            score[test] = _score(_fit(X[train], y[train], family, strength, seed), X[test])
        quality = float(np.nan_to_num(auroc(y[:, None].astype(float), score[:, None])[0], nan=0.0))
        # strengths rise from the strongest penalty (network: from the weakest); a tie keeps the simpler model
        better = best is None or quality > best[0] + 1e-3 or (family == "mlp" and quality >= best[0])
        if better:
            best = quality, strength, score
    assert best is not None
    _, strength, score = best
    slope, offset = platt(score, y.astype(np.float64))
    held_out[known] = np.where(np.isnan(score), prior, expit(slope * np.nan_to_num(score) + offset))
    return Classifier(_fit(X, y, family, strength, seed), prior, slope, offset, strength, held_out)


def _fit(X: NDArray[Any], y: NDArray[np.bool_], family: PresenceFamily, strength: float, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        # stopping early is a form of regularisation here, not a failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        if family == "logistic":
            model = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cholesky", max_iter=50)
            return model.fit(X, y)
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
    """Slope and offset of Platt's sigmoid on held-out scores, with his smoothed targets; never a falling sigmoid.

    Parameters
    ----------
    score
        Log-odds or margins, shape (spots,); NaN is left out.
    present
        1, 0 or NaN, likewise.
    """
    known = ~np.isnan(score) & ~np.isnan(present)
    s, t = score[known], present[known] > 0
    n1, n0 = int(t.sum()), int((~t).sum())
    base_rate = (1e-6, float(np.log((n1 + 1) / (n0 + 1))))
    if n1 == 0 or n0 == 0:
        return base_rate
    target = np.where(t, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    slope, offset = 1.0 / max(float(s.std()), 1e-9), 0.0
    for _ in range(100):
        p = expit(slope * s + offset)
        gradient = np.array([((p - target) * s).sum(), (p - target).sum()])
        w = np.maximum(p * (1 - p), 1e-10)
        hessian = np.array([[(w * s * s).sum(), (w * s).sum()], [(w * s).sum(), w.sum()]]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        slope, offset = slope - step[0], offset - step[1]
        if np.abs(step).max() < 1e-8:
            break
    if not np.isfinite([slope, offset]).all() or slope <= 0:
        # held-out scores that rank the wrong way carry no information
        return base_rate
    return float(slope), float(offset)
