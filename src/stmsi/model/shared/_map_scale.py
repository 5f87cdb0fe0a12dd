"""From a map, zeros included, to the intensity given presence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.learning.shared_ridge import HeldOutTruth

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_PROBABILITY = 0.1
"""Below it, the intensity given presence is what the map would give at it: a quotient of two small numbers says nothing."""
_RAREST = 1e-3
_MOST = 1.5
"""Times the largest intensity seen: as far as a map may reach."""


@dataclass(frozen=True)
class MapScale:
    """What held-out spots say of a predicted map: how far it may deviate from the mean.

    Attributes
    ----------
    mean, largest
        Mean and largest intensity of each metabolite over the training spots.
    slope
        Factor on the deviation from the mean.
    least
        Probability below which a quotient says nothing: half the share of spots with the metabolite where it is rare.
    """

    mean: NDArray[np.float64]
    largest: NDArray[np.float64]
    slope: NDArray[np.float64]
    least: NDArray[np.float64] | float = LEAST_PROBABILITY

    @classmethod
    def fit(cls, intensity: NDArray[np.float64], held_out: NDArray[Any], truth: HeldOutTruth) -> MapScale:
        """From measured intensities and held-out maps (spots, metabolites)."""
        there = (intensity > 0).sum(axis=0) / np.maximum((~np.isnan(intensity)).sum(axis=0), 1)
        least = np.clip(there / 2, _RAREST, LEAST_PROBABILITY)
        mean, largest = np.nanmean(intensity, axis=0), np.maximum(np.nanmax(intensity, axis=0), 0)
        return cls(mean, largest, truth.slopes(held_out), least)

    def given_presence(
        self, values: NDArray[Any], probability: NDArray[Any], truth: HeldOutTruth | None = None
    ) -> NDArray[np.float64]:
        """Intensity that gives the map when multiplied with the probability of presence.

        Parameters
        ----------
        values, probability
            The map and the probability, shape (spots, metabolites).
        truth
            Of held-out predictions: the mean that their fold knows takes the place of that of all training spots.
        """
        scaled = self.mean + self.slope * (values - self.mean) if truth is None else truth.scaled(values, self.slope)
        return np.clip(scaled, 0, _MOST * self.largest) / np.maximum(probability, self.least)
