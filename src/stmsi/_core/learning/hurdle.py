"""Both stages together: thresholds and means."""

from __future__ import annotations

import numpy as np

from stmsi._core.arrays import AnyFloats, Floats, Floats32
from stmsi._core.metrics.intensity import pearson
from stmsi._core.metrics.presence import ranked_hits

ALWAYS, NEVER = 0.0, 2.0
"""Thresholds on a probability that every spot, or none, reaches."""
_LADDER = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
"""Shares of the threshold that are tried, until zeros are cheap enough."""


def best_f1_threshold(present: Floats, probability: Floats, tolerance: float = 0.0) -> Floats:
    """Threshold of each metabolite with the best F1 on held-out spots, halfway between neighbouring probabilities.

    `present` (1, 0, NaN) and `probability` are of shape (spots, metabolites). With a tolerance, the lowest threshold is
    taken whose F1 falls short of the best by no more than this share. :data:`ALWAYS` for metabolites that are never
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


def affordable_threshold(
    truth: Floats, expected: Floats, probability: Floats, threshold: Floats, cost: float = 0.002
) -> Floats:
    """Thresholds lowered until exact zeros cost the map no more than `cost` of its correlation with the truth.

    All arrays are of held-out spots, shape (spots, metabolites), `expected` the map without zeros. The best F1 says where a
    metabolite is more likely there than not; below that, the map still tells more from less.
    """
    whole = np.nan_to_num(pearson(truth, expected))
    best, left = np.zeros_like(threshold), (threshold > ALWAYS) & (threshold < NEVER)
    best[~left] = threshold[~left]
    for share in _LADDER:
        if not left.any():
            break
        columns = np.flatnonzero(left)
        zeros = np.where(probability[:, columns] >= share * threshold[columns], expected[:, columns], 0)
        zeros = np.where(np.isnan(expected[:, columns]), np.nan, zeros)
        fine = np.nan_to_num(pearson(truth[:, columns], zeros)) >= whole[columns] - cost
        best[columns[fine]] = share * threshold[columns[fine]]
        left[columns[fine]] = False
    return best


def hurdle_mean(intensity: AnyFloats, probability: AnyFloats, threshold: Floats) -> Floats32:
    """Probability x intensity given presence where the probability reaches the threshold, exactly 0 elsewhere.

    Shape (spots, metabolites); negative intensities count as 0.
    """
    return np.where(probability >= threshold, probability * np.maximum(intensity, 0), 0).astype(np.float32)
