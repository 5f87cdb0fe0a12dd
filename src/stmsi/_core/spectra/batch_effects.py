"""ComBat (Johnson, Li and Rabinovic, Biostatistics 8, 2007) on values that are there.

Own code: :func:`scanpy.pp.combat` and its relatives take complete matrices, in which a zero is a measurement. Of metabolites, a
zero is none: batches that differ in how often a metabolite is found would look as if they differed in how much there is. On
complete values the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CLOSE, _MOST_STEPS = 1e-4, 200


@dataclass(frozen=True)
class BatchEffects:
    """Shift and scale of each metabolite in each batch, relative to all batches.

    Attributes
    ----------
    mean, deviation
        Of each metabolite over all batches, each of which counts by its values; shape (metabolites,).
    shift, scale
        In units of `deviation`, shape (batches, metabolites).
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, batches: list[NDArray[np.float64]]) -> BatchEffects:
        """Empirical Bayes estimates: what the metabolites of a batch have in common steadies those with few values.

        Parameters
        ----------
        batches
            Values of each batch, shape (spots, metabolites), NaN where a metabolite was not found. Every metabolite varies
            inside two batches at least.
        """
        found = [~np.isnan(values) for values in batches]
        n = np.stack([known.sum(axis=0) for known in found]).astype(float)
        many = np.maximum(n, 1)
        filled = [np.where(known, values, 0.0) for values, known in zip(batches, found, strict=True)]
        mean = np.stack([values.sum(axis=0) for values in filled]) / many
        squares = np.stack(
            [
                (np.where(known, values - m, 0.0) ** 2).sum(axis=0)
                for values, known, m in zip(filled, found, mean, strict=True)
            ]
        )
        total = n.sum(axis=0)
        grand, deviation = (n * mean).sum(axis=0) / total, np.sqrt(squares.sum(axis=0) / total)
        raw, spread = (mean - grand) / deviation, squares / deviation**2
        shift, scale = np.zeros_like(raw), np.ones_like(raw)
        for b in range(len(batches)):
            # a single value has a place, and no spread
            judged = n[b] >= 2
            if judged.any():
                of_scale = spread[b, judged] / (n[b, judged] - 1)
                prior = (
                    raw[b, judged].mean(),
                    raw[b, judged].var(),
                    of_scale.mean(),
                    of_scale.var(ddof=min(1, judged.sum() - 1)),
                )
                shift[b], scale[b] = _posterior(n[b], raw[b], spread[b], *prior)
        return cls(grand, deviation, shift, np.sqrt(scale))

    def remove(self, values: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
        """Values of one batch (spots, metabolites) on the scale of all."""
        standard = (values - self.mean) / self.deviation
        return (standard - self.shift[batch]) / self.scale[batch] * self.deviation + self.mean


def _posterior(
    n: NDArray[np.float64],
    raw: NDArray[np.float64],
    spread: NDArray[np.float64],
    level: float,
    level_variance: float,
    scale: float,
    scale_variance: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shift and squared scale of each metabolite of a batch, each given the other until both settle.

    The prior is normal for shifts and inverse gamma for squared scales; `spread` is the sum of squares around the batch's mean.
    """
    # scales that are all alike have a prior that decides
    shape = min((2 * scale_variance + scale**2) / max(scale_variance, 1e-12), 1e6)
    rate = scale * (shape - 1)
    shift, square = raw, np.full(len(raw), max(scale, 1e-12))
    for _ in range(_MOST_STEPS):
        before = shift, square
        shift = (level_variance * n * raw + square * level) / np.maximum(level_variance * n + square, 1e-300)
        square = (0.5 * (spread + n * (raw - shift) ** 2) + rate) / (n / 2 + shape - 1)
        if all(np.allclose(now, old, rtol=_CLOSE, atol=1e-9) for now, old in zip((shift, square), before, strict=True)):
            break
    return shift, square
