"""Weighted means of what members predict, and what one of them adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.learning.stacking import selected_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._core.learning.shared_ridge import HeldOutTruth

WORTH = 0.002
"""What a costly member must add to the held-out correlation: on the first group of spots to be trained for all, on all to be kept."""


class WeightedMean:
    """Weighted mean of predictions that are added one after the other; members that predict a metabolite not have no say in it.

    Parameters
    ----------
    shape
        Of each prediction: (spots, metabolites).
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._sum, self._share = np.zeros((2, *shape))

    def add(self, prediction: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Add a prediction, NaN where there is none, with a weight for each metabolite."""
        there = ~np.isnan(prediction)
        self._sum += np.where(there, prediction, 0) * weights
        self._share += there * weights

    def value(self) -> NDArray[np.float64]:
        """The mean, NaN where none with weight predicts."""
        some = self._share > 0
        return np.where(some, self._sum / np.where(some, self._share, 1), np.nan)


def weighted_mean(predictions: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of predictions of shape (members, spots, metabolites) by weights of shape (members, metabolites)."""
    mean = WeightedMean(predictions.shape[1:])  # type: ignore[arg-type]
    for prediction, own in zip(predictions, weights, strict=True):
        mean.add(prediction, own)
    return mean.value()


def gain(truth: HeldOutTruth, maps: NDArray[np.float64], predicted: NDArray[np.bool_], member: int) -> float:
    """What a member adds to the held-out correlation of the others; infinite where it alone predicts some metabolite.

    Parameters
    ----------
    truth
        What is measured, and in which groups.
    maps
        Held-out predictions of shape (members, spots, metabolites).
    predicted
        Which metabolites each member predicts, shape (members, metabolites).
    member
        Its position.
    """
    others = np.arange(len(maps)) != member
    if not predicted[others].any(axis=0).all():
        return np.inf

    def score(some: NDArray[np.bool_]) -> float:
        return truth.score(weighted_mean(maps[some], selected_weights(truth, maps[some], predicted[some])))

    return score(np.ones(len(maps), bool)) - score(others)
