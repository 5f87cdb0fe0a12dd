"""The two stages put together: thresholds, means, intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stmsi._core.metrics import ranked_hits

ALWAYS, NEVER = 0.0, 2.0
"""Thresholds on a probability that every spot, or none, reaches."""


def best_f1_threshold(
    present: NDArray[np.float64], probability: NDArray[np.float64], tolerance: float = 0.0
) -> NDArray[np.float64]:
    """Threshold of each metabolite with the best F1 on held-out spots.

    Parameters
    ----------
    present
        1 present, 0 absent, NaN not covered; shape (spots, metabolites).
    probability
        Held-out probabilities of presence, likewise.
    tolerance
        The lowest threshold is taken whose F1 falls short of the best by no more than this share.

    Returns
    -------
    Shape (metabolites,), halfway between neighbouring probabilities; :data:`ALWAYS` for metabolites that are never
    absent, :data:`NEVER` for those never present.
    """
    hits, called, last, n1, n0 = ranked_hits(present, probability)
    threshold = np.where(n1 == 0, NEVER, ALWAYS)
    usable = (n1 > 0) & (n0 > 0)
    if not usable.any():
        return threshold
    score = np.where(last, 2 * hits / np.maximum(called + n1, 1), -1.0)
    good = score >= (1 - tolerance) * score.max(axis=0) if tolerance > 0 else score == score.max(axis=0)
    # ordered from the most probable: the last good one is the lowest threshold; without tolerance, ties keep the highest
    best = len(score) - 1 - good[::-1].argmax(axis=0) if tolerance > 0 else good.argmax(axis=0)
    ordered = -np.sort(np.where(np.isnan(present) | np.isnan(probability), np.inf, -probability), axis=0)
    column = np.arange(ordered.shape[1])
    at = ordered[best, column]
    below = ordered[np.minimum(best + 1, len(ordered) - 1), column]
    below = np.where(np.isfinite(below) & (below < at), below, 0.0)
    return np.where(usable, (at + below) / 2, threshold)


def hurdle_mean(
    intensity: NDArray[np.floating], probability: NDArray[np.floating], threshold: NDArray[np.float64]
) -> NDArray[np.float32]:
    r"""Mean of the hurdle model where the metabolite is called present, exactly 0 elsewhere.

    .. math:: \hat y = p\,\mu \; [p \ge t]

    Parameters
    ----------
    intensity
        Intensity given presence :math:`\mu`, shape (spots, metabolites); negative values count as 0.
    probability
        Probability of presence :math:`p`, likewise.
    threshold
        :math:`t` of each metabolite.
    """
    return np.where(probability >= threshold, probability * np.maximum(intensity, 0), 0).astype(np.float32)


@dataclass(frozen=True)
class ResidualQuantiles:
    """Quantiles of held-out residuals, per metabolite and by what stage 1 called.

    Attributes
    ----------
    levels
        Levels of the quantiles, shape (levels,).
    values
        Residuals (measured minus predicted), shape (2, levels, metabolites): called absent, called present.
    count
        Residuals behind each, shape (2, metabolites).
    """

    levels: NDArray[np.float64]
    values: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def fit(cls, truth: NDArray[np.float64], prediction: NDArray[np.float64], min_count: int = 20) -> ResidualQuantiles:
        """Quantiles of held-out residuals.

        Parameters
        ----------
        truth, prediction
            Shape (spots, metabolites); pairs with NaN are left out.
        min_count
            A stratum with fewer residuals takes those of both.
        """
        levels = np.linspace(0, 1, 401)
        residual = truth - prediction
        strata = [prediction == 0, prediction > 0]
        count = np.stack([(s & ~np.isnan(residual)).sum(axis=0) for s in strata])
        values = np.zeros((2, len(levels), truth.shape[1]))
        pooled = _nan_quantiles(residual, levels)
        for k, stratum in enumerate(strata):
            own = _nan_quantiles(np.where(stratum, residual, np.nan), levels)
            values[k] = np.where(count[k] >= min_count, own, pooled)
        return cls(levels, values, count)

    def interval(
        self, prediction: NDArray[np.float32], coverage: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lower and upper bound around predictions, not below 0; levels widened for the finite number of residuals."""
        tail = (1 - coverage) / 2
        present = (prediction > 0).astype(int)
        column = np.arange(prediction.shape[1])
        bounds = []
        for side in (-1, 1):
            shift = np.empty((2, prediction.shape[1]))
            for k in range(2):
                n = np.maximum(self.count[k], 1)
                level = np.clip(np.ceil((n + 1) * (1 - tail)) / n, 0, 1)
                level = level if side > 0 else 1 - level
                at = np.rint(level * (len(self.levels) - 1)).astype(int)
                shift[k] = self.values[k][at, column]
            bounds.append(np.maximum(prediction + shift[present, column], 0).astype(np.float32))
        return np.minimum(bounds[0], prediction), np.maximum(bounds[1], prediction)


def _nan_quantiles(values: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of each column without NaN; 0 where a column has none."""
    ordered = np.sort(values, axis=0)  # NaN last
    n = (~np.isnan(values)).sum(axis=0)
    at = levels[:, None] * np.maximum(n - 1, 0)
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    a, b = np.take_along_axis(ordered, low, axis=0), np.take_along_axis(ordered, high, axis=0)
    return np.where(n > 0, a + (at - low) * (b - a), 0.0)
