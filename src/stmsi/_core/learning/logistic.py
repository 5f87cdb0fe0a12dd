"""Logistic regressions of many targets on the same features, solved together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from stmsi._core.arrays import AnyFloats, Floats
from stmsi._settings import logger

_GRADIENT = 1e-3
"""Largest gradient left, in coordinates with a curvature of about 1: the error of the log-odds is about as large."""
ROUGH = 1e-1
"""The same for a fit whose sigmoid is calibrated afterwards."""
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Logistic:
    """Log-odds as an affine function of the features."""

    weights: Floats
    offset: float

    def decision_function(self, X: Floats) -> Floats:
        """Log-odds, shape (spots,)."""
        return X @ self.weights + self.offset


def balanced_logistic(
    X: AnyFloats, Y: Floats, C: Floats, start: AnyFloats | None = None, gradient: float = _GRADIENT
) -> list[Logistic]:
    r"""Penalised logistic regressions with balanced classes, one for each column of `Y` (1, 0, or NaN: not measured).

    Each minimises the loss of scikit-learn's ``LogisticRegression(class_weight="balanced")``,

    .. math:: \tfrac12 \lVert w \rVert^2 + C \sum_i s_i \log\bigl(1 + e^{-y_i (w^\top x_i + b)}\bigr)

    with :math:`y_i = \pm 1` and the weight :math:`s_i` of a spot half the number of spots over the number in its class.
    Together, all targets take two matrix products for each step of the solver (L-BFGS), instead of one Hessian for each
    target and step. The basis of the features' principal axes, scaled by the curvature that all targets have in common,
    needs few steps. `X` is of shape (spots, features), `Y` (spots, targets), and `C` (targets,). Every target needs both
    classes. `start` are weights to begin with, shape (features, targets), and `gradient` is the largest one left. Features in
    single precision are multiplied in it.
    """
    measured = ~np.isnan(Y).all(axis=1)
    X, Y = X[measured], Y[measured]
    known = ~np.isnan(Y)
    positive = known & (np.nan_to_num(Y) > 0)
    n, n1 = known.sum(axis=0), positive.sum(axis=0)
    if not ((n1 > 0) & (n1 < n)).all():
        msg = "Logistic regression needs positive and negative spots of every target."
        raise ValueError(msg)
    weight = known * np.where(positive, n / (2 * n1), n / (2 * (n - n1)))
    sign = np.where(positive, 1.0, -1.0)

    centre = X.mean(axis=0)
    X = X - centre
    values, axes = np.linalg.eigh(np.asarray(X.T @ X, np.float64))
    # weights sum to the number of spots, and a probability of one half has the curvature one quarter
    scale = np.sqrt(C / (np.maximum(values, 0)[:, None] / 4 * (n / len(X)) * C + 1))
    step = 2 / np.sqrt(n)
    Z = X @ axes.astype(X.dtype)
    penalty = scale**2 / C

    # reused at every step: new memory for arrays of this size would cost more than the arithmetic
    margin, small, pull = (np.empty(Y.shape, Z.dtype) for _ in range(3))
    weight, sign = weight.astype(Z.dtype), sign.astype(Z.dtype)
    signed = sign * weight
    first = np.zeros((len(values) + 1, Y.shape[1]))
    if start is not None:
        first[:-1] = (axes.T @ start) / np.maximum(scale, 1e-300)

    def loss(v: Floats) -> tuple[float, Floats]:
        v = v.reshape(-1, Y.shape[1])
        np.matmul(Z, (scale * v[:-1]).astype(Z.dtype), out=margin)
        np.add(margin, step * v[-1], out=margin)
        np.multiply(margin, sign, out=margin)
        np.abs(margin, out=small)
        np.negative(small, out=small)
        np.exp(small, out=small)
        # log(1 + exp(-m)) = log(1 + exp(-|m|)) - min(m, 0), and the chance of the other class likewise: no overflow
        np.add(small, 1, out=pull)
        np.log(pull, out=pull)
        lost = float(np.vdot(weight, pull) - np.vdot(weight, np.minimum(margin, 0)))
        np.divide(small, 1 + small, out=pull)
        np.subtract(0.5, np.copysign(0.5 - pull, margin), out=pull)
        np.multiply(pull, signed, out=pull)
        slope = np.vstack([penalty * v[:-1] - scale * (Z.T @ pull), -step * pull.sum(axis=0, dtype=np.float64)])
        return lost + 0.5 * float((penalty * v[:-1] ** 2).sum()), slope.ravel()

    solved = minimize(
        loss, first.ravel(), jac=True, method="L-BFGS-B",
        options={"gtol": gradient, "ftol": 0, "maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS},
    )  # fmt: skip
    if not solved.success:
        logger.warning("Logistic regressions of presence have not converged: %s", solved.message)
    v = solved.x.reshape(-1, Y.shape[1])
    weights = (axes @ (scale * v[:-1])).T
    offsets = step * v[-1] - weights @ centre
    return [Logistic(w, float(b)) for w, b in zip(weights, offsets, strict=True)]
