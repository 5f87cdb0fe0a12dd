"""Logistic regressions of many targets on the same features, solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stmsi._core.arrays import AnyFloats, Floats, Ints
from stmsi._settings import logger

_GRADIENT = 1e-3
"""Largest gradient left, in coordinates with a curvature of about 1: the error of the log-odds is about as large."""
ROUGH = 1e-1
"""The same for a fit whose sigmoid is calibrated afterwards."""
_MAX_ITERATIONS = 1000
_HISTORY, _MOST_HALVINGS = 8, 30
_PIECE = 2**18  # spots times targets at once
_WORTH_LEAVING_OUT = 0.8  # share of targets that go on


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
    Together, all targets take two matrix products for each step of the solver (L-BFGS, each target with its own), instead of one
    Hessian for each target and step. The basis of the features' principal axes, scaled by the curvature that all targets have in common,
    needs few steps. Targets do not depend on each other: but for rounding, each ends where it would alone. `X` is of shape (spots, features), `Y` (spots, targets), and `C` (targets,). Every target needs both
    classes. `start` are weights to begin with, shape (features, targets), and `gradient` is the largest one left. Features in
    single precision are multiplied in it.
    """
    centre = X.mean(axis=0)
    X = X - centre
    # of all spots, also those that no target measured: where a target stops must not hang on those that are solved with it
    gram, n_spots, measured = X.T @ X, len(X), ~np.isnan(Y).all(axis=1)
    if not measured.all():
        X, Y = X[measured], Y[measured]
    known = ~np.isnan(Y)
    positive = known & (np.nan_to_num(Y) > 0)
    n, n1 = known.sum(axis=0), positive.sum(axis=0)
    balanced = Balanced.of(gram, n_spots, n, n1, C)
    weight = (known * np.where(positive, balanced.positive, balanced.negative)).astype(X.dtype)
    truth = positive.astype(X.dtype)
    # products with many spots are faster along rows
    X_T = np.ascontiguousarray(X.T)
    spots = pieces_of(Y.shape[1])
    own = truth, weight  # of the targets asked for last

    def slopes(weights: Floats, offsets: Floats, of: Ints) -> tuple[Floats, Floats]:
        nonlocal own
        if len(of) != own[0].shape[1]:
            own = truth[:, of], weight[:, of]
        weights, offsets = weights.astype(X.dtype), offsets.astype(X.dtype)
        by_axis, by_offset = np.zeros(weights.shape), np.zeros(len(of))
        # in pieces that stay in the cache
        for a in range(0, len(X), spots):
            rows = slice(a, a + spots)
            chance = chances(X[rows] @ weights, offsets)
            chance -= own[0][rows]
            chance *= own[1][rows]
            by_axis += X_T[:, rows] @ chance
            by_offset += chance.sum(axis=0, dtype=np.float64)
        return by_axis, by_offset

    return balanced.solve(slopes, centre, start, gradient)


def pieces_of(n_targets: int) -> int:
    """How many spots are worked on together, so that they stay in the cache."""
    return max(_PIECE // n_targets, 1)


def chances(margin: AnyFloats, offsets: AnyFloats) -> AnyFloats:
    """Probabilities of log-odds less their offsets, which they take the place of."""
    margin += offsets
    # no overflow: beyond, the chance is 0 in any precision
    np.maximum(margin, -80, out=margin)
    np.negative(margin, out=margin)
    np.exp(margin, out=margin)
    margin += 1
    return np.reciprocal(margin, out=margin)


@dataclass(frozen=True)
class Balanced:
    """What :func:`balanced_logistic` knows of its targets beside the spots themselves.

    Attributes
    ----------
    axes
        Principal axes of the features, shape (features, axes).
    scale, step
        Of the coordinates in which all curvatures are about 1, shapes (axes, targets) and (targets,).
    penalty
        In these coordinates, shape (axes, targets).
    positive, negative
        Weight of a spot with and without the target, shape (targets,).
    """

    axes: Floats
    scale: Floats
    step: Floats
    penalty: Floats
    positive: Floats
    negative: Floats

    @classmethod
    def of(cls, gram: AnyFloats, n_spots: int, n: Ints, n1: Ints, C: Floats) -> Balanced:
        """From products of the centred features of all spots, and how many spots measured each target and have it.

        Raises
        ------
        ValueError
            A target without spots of both classes.
        """
        if not ((n1 > 0) & (n1 < n)).all():
            msg = "Logistic regression needs positive and negative spots of every target."
            raise ValueError(msg)
        values, axes = np.linalg.eigh(np.asarray(gram, np.float64))
        # weights sum to the number of spots, and a probability of one half has the curvature one quarter
        scale = np.sqrt(C / (np.maximum(values, 0)[:, None] / 4 * (n / n_spots) * C + 1))
        return cls(axes, scale, 2 / np.sqrt(n), scale**2 / C, n / (2 * n1), n / (2 * (n - n1)))

    def solve(
        self,
        slopes: Callable[[Floats, Floats, Ints], tuple[Floats, Floats]],
        centre: AnyFloats,
        start: AnyFloats | None,
        gradient: float,
    ) -> list[Logistic]:
        """The regressions.

        Parameters
        ----------
        slopes
            Sums over the spots of weighted errors times centred features (features, some targets), and of these errors alone, for
            weights, offsets and numbers of these targets, which are fewer at each change.
        centre
            Of the features.
        start, gradient
            As for :func:`balanced_logistic`.
        """
        axes, scale, step = self.axes, self.scale, self.step
        first = np.zeros((len(axes) + 1, len(step)))
        if start is not None:
            first[:-1] = (axes.T @ start) / np.maximum(scale, 1e-300)

        def of_coordinates(v: Floats, of: Ints) -> Floats:
            by_axis, by_offset = slopes(axes @ (scale[:, of] * v[:-1]), step[of] * v[-1], of)
            return np.vstack([self.penalty[:, of] * v[:-1] + scale[:, of] * (axes.T @ by_axis), step[of] * by_offset])

        v, left = _descend(of_coordinates, first, gradient)
        if left:
            logger.warning(
                "%d of %d logistic regressions of presence have not converged in %d steps.",
                left,
                len(step),
                _MAX_ITERATIONS,
            )
        weights = (axes @ (scale * v[:-1])).T
        offsets = step * v[-1] - weights @ centre
        return [Logistic(w, float(b)) for w, b in zip(weights, offsets, strict=True)]


def _descend(slopes: Callable[[Floats, Ints], Floats], first: Floats, tolerance: float) -> tuple[Floats, int]:
    """Minimise convex functions, one of each column, until no entry of the gradient exceeds the tolerance.

    L-BFGS (Nocedal, Math. Comput. 35, 1980) with a history for each column. A step is taken back while the function rises at
    its end half as steeply as it fell at its start: of a convex function, the slope says enough, and rounding hurts it less.

    Parameters
    ----------
    slopes
        Gradients of some columns at their values (numbers, columns).
    first
        Where to start, shape (numbers, columns); curvatures of about 1 are expected.
    tolerance
        Largest entry of a gradient that is left.

    Returns
    -------
    The minima, and how many columns have not converged.
    """
    out, of = first.copy(), np.arange(first.shape[1])
    v, g = first, slopes(first, of)
    pairs: list[tuple[Floats, Floats, Floats]] = []
    scale, still = np.ones(len(of)), np.ones(len(of), bool)
    for _ in range(_MAX_ITERATIONS):
        ended = still & (np.abs(g).max(axis=0, initial=0) <= tolerance)
        out[:, of[ended]] = v[:, ended]
        still &= ~ended
        if not still.any():
            return out, 0
        if still.mean() < _WORTH_LEAVING_OUT:
            of, v, g, scale = of[still], v[:, still], g[:, still], scale[still]
            pairs = [(s[:, still], y[:, still], rho[still]) for s, y, rho in pairs]
            still = np.ones(len(of), bool)
        d = -_newton(g, pairs, scale)
        down = (g * d).sum(axis=0)
        # what rounding turned uphill
        d = np.where(down < 0, d, -g)
        down = (g * d).sum(axis=0)
        t = np.ones(len(of))
        for _ in range(_MOST_HALVINGS):
            new = slopes(v + t * d, of)
            ahead = (new * d).sum(axis=0)
            far = still & (ahead > -0.5 * down)
            if not far.any():
                break
            t = np.where(far, t * np.clip(down / np.minimum(down - ahead, -1e-300), 0.1, 0.9), t)
        s, y = t * d, new - g
        along, square = (s * y).sum(axis=0), (y * y).sum(axis=0)
        bent = along > 1e-12 * np.maximum((s * s).sum(axis=0), 1e-300)
        scale = np.where(bent, along / np.maximum(square, 1e-300), scale)
        pairs = [*pairs[1 - _HISTORY :], (s, y, np.where(bent, 1 / np.where(bent, along, 1), 0))]
        v, g = v + s, new
    out[:, of[still]] = v[:, still]
    return out, int(still.sum())


def _newton(g: Floats, pairs: list[tuple[Floats, Floats, Floats]], scale: Floats) -> Floats:
    """Product of the gradients with the inverse Hessians that the last steps suggest."""
    q, kept = g.copy(), []
    for s, y, rho in reversed(pairs):
        kept.append(rho * (s * q).sum(axis=0))
        q -= kept[-1] * y
    q *= scale
    for (s, y, rho), a in zip(pairs, reversed(kept), strict=True):
        q += (a - rho * (y * q).sum(axis=0)) * s
    return q
