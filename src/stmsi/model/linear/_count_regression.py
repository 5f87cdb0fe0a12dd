"""Regression of counts with a log link: Poisson and negative binomial."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CountRegression:
    r"""Generalised linear model with a log link and an L2 penalty.

    .. math::

        \log \mu_i = \beta_0 + x_i \beta, \qquad
        \mathrm{Var}(y_i) \propto \mu_i \;\text{(Poisson)}, \quad \mu_i + \theta \mu_i^2 \;\text{(negative binomial)}

    Intensities need not be integers: only the relation of variance and mean is used (quasi-likelihood). The dispersion
    :math:`\theta` comes from mean and variance of the training intensities.

    Parameters
    ----------
    family
        ``"poisson"`` (scikit-learn) or ``"negative_binomial"`` (statsmodels).
    penalty
        Weight of half the squared length of :math:`\beta` beside the mean loss.
    """

    def __init__(self, family: Literal["poisson", "negative_binomial"], penalty: float) -> None:
        self.family, self.penalty = family, penalty

    def fit(self, X: NDArray[Any], y: NDArray[Any]) -> CountRegression:
        """Fit on intensities of at least 0."""
        mean = float(y.mean())
        # a log link extrapolates exponentially: nothing above what was measured is believed
        self.ceiling = float(y.max())
        if self.family == "poisson":
            # Poisson's loss grows with the unit of y, its penalty does not
            self.weights, offset = _poisson(X, y / mean, self.penalty)
            self.offset = offset + np.log(mean)
        else:
            dispersion = max((float(y.var()) - mean) / mean**2, 1e-3)
            self.weights, self.offset = _negative_binomial(X, y, dispersion, self.penalty)
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Mean intensity, shape (spots,)."""
        return np.exp(np.minimum(X @ self.weights + self.offset, np.log(self.ceiling)))


def _poisson(X: NDArray[Any], y: NDArray[Any], penalty: float) -> tuple[NDArray[np.float64], float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import PoissonRegressor

    with warnings.catch_warnings():
        # stopping early is a form of regularisation here, not a failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = PoissonRegressor(alpha=penalty, solver="newton-cholesky").fit(X, y)
    return fitted.coef_, float(fitted.intercept_)


def _negative_binomial(
    X: NDArray[Any], y: NDArray[Any], dispersion: float, penalty: float
) -> tuple[NDArray[np.float64], float]:
    from statsmodels.genmod.families import NegativeBinomial
    from statsmodels.genmod.generalized_linear_model import GLM

    design = np.column_stack([np.ones(len(X)), X])
    start = np.zeros(design.shape[1])
    start[0] = np.log(y.mean())
    penalties = np.full(design.shape[1], penalty)
    penalties[0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above; statsmodels and NumPy warn in many ways
        model = GLM(y, design, family=NegativeBinomial(alpha=dispersion))
        fitted = np.asarray(model.fit_regularized(alpha=penalties, L1_wt=0, start_params=start).params)
    return (fitted[1:], float(fitted[0])) if np.isfinite(fitted).all() else (start[1:], float(start[0]))
