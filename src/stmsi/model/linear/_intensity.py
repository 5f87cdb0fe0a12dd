"""Stage 2: intensity where present, one regression per metabolite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from stmsi._core.learning.shared_ridge import GroupMoments, HeldOutTruth, choose_penalty, fit_at
from stmsi._core.metrics.intensity import pearson
from stmsi.model.linear._count_regression import CountRegression

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.arrays import AnyFloats, Bools, Floats
    from stmsi.model.shared._inner_folds import InnerFolds

IntensityFamily: TypeAlias = Literal[
    "mean", "linear", "ridge", "lasso", "pls", "knn", "poisson", "negative_binomial", "boosting", "mlp"
]

_RIDGE = np.logspace(-1, 6, 15)
_GRID: dict[str, tuple[float, ...]] = {
    "lasso": tuple(np.logspace(-3, 0, 10)),
    "pls": (1, 2, 3, 5, 8, 12, 20),
    "mlp": (0.1, 3.0, 30.0),
    "poisson": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "negative_binomial": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "knn": (5, 10, 20, 50, 100, 200),
}
_BOOSTING_ROUNDS = (10, 25, 50, 100)
_MIN_UNIT = 5
"""Spots below which a correlation says nothing."""
FEWEST = 5
"""Spots with a metabolite below which its mean is all that can be said."""
_LEAST_SLOPE = 0.05
"""What is left of a prediction that held-out spots do not bear out: little, yet the order of the spots stays."""


@dataclass(frozen=True)
class Regression:
    """A fitted regression of one metabolite.

    Attributes
    ----------
    estimator
        Has ``predict``; `None`: the prediction is `mean` everywhere.
    mean
        Mean intensity of the training spots with the metabolite (0 where there are none).
    strength
        Regularisation chosen.
    held_out
        Held-out prediction for every training row, also those without the metabolite (NaN where there was none).
    slope
        Factor on the estimator's deviation from the mean, as held-out spots bear it out.
    """

    estimator: Any
    mean: float
    strength: float
    held_out: NDArray[np.float64]
    slope: float = 1.0

    def predict(self, F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Intensity given presence, shape (spots,)."""
        if self.estimator is None:
            return np.full(len(F), self.mean)
        predicted = np.asarray(self.estimator.predict(F), dtype=np.float64).reshape(-1)
        return self.mean + self.slope * (predicted - self.mean)


@dataclass(frozen=True)
class _Affine:
    weights: NDArray[np.float64]
    offset: float

    def predict(self, F: NDArray[np.float64]) -> NDArray[np.float64]:
        return F @ self.weights + self.offset


def predict_intensity(regressions: Sequence[Regression], F: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intensity given presence of all metabolites, shape (spots, metabolites); affine ones by one product."""
    out = np.empty((len(F), len(regressions)))
    affine = np.array([isinstance(r.estimator, _Affine) for r in regressions], dtype=bool)
    for m in np.flatnonzero(~affine).tolist():
        out[:, m] = regressions[m].predict(F)
    own = [r for r, is_affine in zip(regressions, affine, strict=True) if is_affine]
    if own:
        mean, slope, offset = np.array([[r.mean, r.slope, r.estimator.offset] for r in own]).T
        predicted = F @ (np.column_stack([r.estimator.weights for r in own]) * slope)
        predicted += mean + slope * (offset - mean)
        out[:, affine] = predicted
    return out


@dataclass(frozen=True)
class _Retrieval:
    """Similarity-weighted mean of the nearest training spots.

    Attributes
    ----------
    values
        Intensity of the training spots, NaN where absent.
    k
        Spots that are looked at; those without the metabolite are passed over.
    mean
        Given where none of them has it.
    """

    values: NDArray[np.float64]
    k: int
    mean: float

    def predict(self, F: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the output of :class:`stmsi.model.linear._similarity.NeighbourMap`."""
        n = F.shape[1] // 2
        k = min(self.k, n)
        y = self.values[F[:, :k].astype(np.int64)]
        weight = np.where(np.isnan(y), 0, F[:, n : n + k])
        total = weight.sum(axis=1)
        average = (weight * np.nan_to_num(y)).sum(axis=1) / np.where(total > 0, total, 1)
        return np.where(total > 0, average, self.mean)


def fit_regression(
    F: NDArray[np.float64],
    y: NDArray[np.float64],
    groups: NDArray[np.int64],
    family: IntensityFamily,
    seed: int,
    units: NDArray[np.int64] | None = None,
) -> Regression:
    """Fit the regression of one metabolite on the spots that have it.

    Parameters
    ----------
    F
        Features, shape (spots, features); for ``"knn"`` the neighbours of each spot in other groups, see
        :class:`stmsi.model.linear._similarity.NeighbourMap`.
    y
        Intensity where present, NaN elsewhere, shape (spots,).
    groups
        Groups of the inner folds, which choose the regularisation.
    family
        See :class:`stmsi.model.HurdleLinear`.
    seed
        For the solvers that draw.
    units
        Section of each spot, within which held-out predictions are compared with the truth; `None`: `groups`.
    """
    known = ~np.isnan(y)
    mean = float(y[known].mean()) if known.any() else 0.0
    held_out = np.full(len(y), np.nan)
    folds = []
    for g in np.unique(groups):
        test, train = groups == g, (groups != g) & known
        held_out[test] = y[train].mean() if train.any() else mean
        if train.sum() >= 3 and np.ptp(y[train]) > 0:
            folds.append((train, test))
    # held-out spots without a measured intensity cannot choose a penalty
    judged = any((test & known).any() for _, test in folds)
    if family == "mean" or not judged or known.sum() < 5 or np.ptp(y[known]) <= 0:
        return Regression(None, mean, np.nan, held_out)

    strengths = _strengths(family)
    paths = np.full((len(y), len(strengths)), np.nan)
    for train, test in folds:
        if family == "knn":
            fits = [_Retrieval(y, int(k), float(y[train].mean())) for k in strengths]
            paths[test] = np.column_stack([f.predict(F[test]) for f in fits])
        else:
            paths[test] = _path(F[train], y[train], F[test], family, seed)
    units = groups if units is None else units
    best = _best(y, paths, units)
    predicted = ~np.isnan(paths[:, best])
    # least squares are what they are called
    slope = 1.0 if family == "linear" else _slope(y, paths[:, best], units)
    held_out[predicted] = mean + slope * (paths[predicted, best] - mean)
    strength = float(strengths[best])
    estimator = (
        _Retrieval(y, int(strength), mean) if family == "knn" else _fit(F[known], y[known], family, strength, seed)
    )
    return Regression(estimator, mean, strength, held_out, slope)


def fit_ridges(F: AnyFloats, intensity: Floats, presence: Floats, folds: InnerFolds) -> list[Regression]:
    """Ridge regressions of all metabolites where they are present, with one penalty.

    The penalty is the one that follows the whole map best, zeros included: there all spots of a metabolite count, so that one
    factorisation serves all metabolites.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    intensity, presence
        Of the spots, shape (spots, metabolites); NaN where not measured.
    folds
        Groups of the inner folds.
    """
    moments = GroupMoments.of(F.astype(np.float32), intensity, folds.groups)
    penalty, _ = choose_penalty(moments, HeldOutTruth.of(intensity, folds.groups, folds.units))
    y = np.where(presence > 0, intensity, np.nan)
    fitted = fit_at(penalty, moments.with_targets(y), apart=folds.apart)
    n = (~np.isnan(y)).sum(axis=0)
    mean = np.where(n > 0, np.nansum(y, axis=0) / np.maximum(n, 1), 0.0)
    held_out = fitted.held_out.astype(np.float64)
    truth = HeldOutTruth.of(y, folds.groups, folds.units)
    slope = truth.slopes(held_out)
    constant = (n < FEWEST) | (
        np.nanmax(np.where(np.isnan(y), -np.inf, y), axis=0) <= np.nanmin(np.where(np.isnan(y), np.inf, y), axis=0)
    )
    # what a fold does not know of the mean must not be in its predictions, or a mean would seem to have skill
    base = truth.base[folds.groups]
    held_out = np.where(constant | np.isnan(held_out), base, truth.scaled(held_out, slope))
    regressions = affine_regressions(fitted.weights, fitted.offset, mean, slope, constant, penalty)
    return [replace(r, held_out=own) for r, own in zip(regressions, held_out.T, strict=True)]


def affine_regressions(
    weights: AnyFloats, offset: AnyFloats, mean: Floats, slope: Floats, constant: Bools, penalty: float
) -> list[Regression]:
    """Regressions without their held-out predictions, of weights (features, metabolites) and what each metabolite has, shape (metabolites,)."""
    nothing = np.empty(0)
    return [
        Regression(None, float(mean[m]), np.nan, nothing)
        if flat
        else Regression(
            _Affine(weights[:, m].astype(np.float64), float(offset[m])),
            float(mean[m]),
            penalty,
            nothing,
            float(slope[m]),
        )
        for m, flat in enumerate(constant)
    ]


def _slope(y: NDArray[np.float64], predicted: NDArray[np.float64], units: NDArray[np.int64]) -> float:
    """Slope of the truth on held-out predictions within the units, between a little above 0 and 1.

    Penalties are chosen by correlation, which does not see how far predictions spread. Where they spread further than
    the truth bears out, their product with the probability of presence would carry that noise.
    """
    usable = np.flatnonzero(~np.isnan(y) & ~np.isnan(predicted))
    code = np.unique(units[usable], return_inverse=True)[1]
    count = np.bincount(code)

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - (np.bincount(code, values) / count)[code]

    deviation = centred(predicted[usable])
    size = float((deviation**2).sum())
    slope = float(deviation @ centred(y[usable])) / size if size > 0 else 0.0
    return float(np.clip(slope, _LEAST_SLOPE, 1))


def _best(y: NDArray[np.float64], paths: NDArray[np.float64], units: NDArray[np.int64]) -> int:
    """Which column of held-out predictions follows the truth best.

    That is the mean Pearson correlation within the units. Squared error would mostly judge the level of each section,
    which genes tell little about, and choose penalties that are far too strong for the pattern inside it. Where nothing
    correlates, squared error decides, and so leads to the mean.
    """
    score = within_units(y, paths, units)
    if score.max() > 0:
        return int(np.argmax(score))
    usable = ~np.isnan(y) & ~np.isnan(paths[:, 0])
    return int(np.argmin(((paths[usable] - y[usable, None]) ** 2).sum(axis=0)))


def within_units(y: NDArray[np.float64], paths: NDArray[np.float64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean Pearson correlation of each column of held-out predictions with the truth inside the units, by their spots.

    0 where no unit has spots enough.
    """
    usable = ~np.isnan(y) & ~np.isnan(paths[:, 0])
    total, weight = np.zeros(paths.shape[1]), 0
    for unit in np.unique(units[usable]):
        own = usable & (units == unit)
        if own.sum() >= _MIN_UNIT and np.ptp(y[own]) > 0:
            truth = np.broadcast_to(y[own, None], (int(own.sum()), paths.shape[1]))
            total += own.sum() * np.nan_to_num(pearson(truth, paths[own]))
            weight += int(own.sum())
    return total / max(weight, 1)


def _strengths(family: IntensityFamily) -> tuple[float, ...]:
    if family == "linear":
        return (0.0,)
    if family == "ridge":
        return tuple(_RIDGE)
    return tuple(float(r) for r in _BOOSTING_ROUNDS) if family == "boosting" else _GRID[family]


def _path(
    X: NDArray[Any], y: NDArray[Any], X_test: NDArray[Any], family: IntensityFamily, seed: int
) -> NDArray[np.float64]:
    """Predictions for every strength, shape (test spots, strengths)."""
    if family in ("linear", "ridge"):
        weights, offset = _ridge_weights(X, y, np.array(_strengths(family)))
        return X_test @ weights.T + offset
    if family == "boosting":
        stages = list(_boosting(_BOOSTING_ROUNDS[-1], seed).fit(X, y).staged_predict(X_test))
        return np.column_stack([stages[min(r, len(stages)) - 1] for r in _BOOSTING_ROUNDS])
    fits = [_fit(X, y, family, s, seed) for s in _strengths(family)]
    return np.column_stack([np.asarray(f.predict(X_test)).reshape(-1) for f in fits])


def _fit(X: NDArray[Any], y: NDArray[Any], family: IntensityFamily, strength: float, seed: int) -> Any:
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if family in ("linear", "ridge"):
        weights, offset = _ridge_weights(X, y, np.array([strength]))
        return _Affine(weights[0], float(offset[0]))
    if family == "boosting":
        return _boosting(int(strength), seed).fit(X, y)
    if family in ("poisson", "negative_binomial"):
        return CountRegression(family, strength).fit(X, y)
    build: dict[str, Callable[[], Any]] = {
        "lasso": lambda: Lasso(alpha=strength * float(y.std()), max_iter=2000),
        "pls": lambda: PLSRegression(max(1, min(int(strength), X.shape[1], len(y) - 1)), scale=False),
        "mlp": lambda: _Standardised(
            make_pipeline(
                StandardScaler(),
                MLPRegressor(
                    hidden_layer_sizes=(64,), alpha=strength, learning_rate_init=3e-3, batch_size=min(64, len(y)), max_iter=40,
                    random_state=seed,
                ),
            )
        ),
    }  # fmt: skip
    with warnings.catch_warnings():
        # stopping early is a form of regularisation here, not a failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        return build[family]().fit(X, y)


class _Standardised:
    """A regression on the standardised target."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def fit(self, X: NDArray[Any], y: NDArray[Any]) -> _Standardised:
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        self.inner.fit(X, (y - self.mean) / self.scale)
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self.inner.predict(X) * self.scale + self.mean


def _boosting(rounds: int, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=rounds, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=10, l2_regularization=1.0,
        early_stopping=False, random_state=seed,
    )  # fmt: skip


def _ridge_weights(
    X: NDArray[Any], y: NDArray[Any], alphas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ridge solutions for all penalties from one eigendecomposition: weights (alphas, features), offsets (alphas,)."""
    centre, level = X.mean(axis=0), y.mean()
    X, y = X - centre, y - level
    if len(X) >= X.shape[1]:
        values, vectors = np.linalg.eigh(X.T @ X)
        rotated = vectors.T @ (X.T @ y)
    else:
        # fewer spots than features: the same from the smaller Gram matrix
        values, left = np.linalg.eigh(X @ X.T)
        keep = values > 1e-10 * values[-1]
        values, left = values[keep], left[:, keep]
        vectors = X.T @ left / np.sqrt(values)
        rotated = np.sqrt(values) * (left.T @ y)
    values = np.maximum(values, 0)
    floor = 1e-10 * max(float(values.max(initial=0)), 1e-300)
    shrunk = np.where(values > floor, rotated / (np.maximum(values, floor) + alphas[:, None]), 0)
    weights = shrunk @ vectors.T
    return weights, level - weights @ centre
