"""What spots have in common with training spots: the inputs of nearest-neighbour regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stmsi._core.arrays import AnyFloats

_NEIGHBOURS = 200
"""Training spots that are looked up for every spot."""
_CHUNK = 1024


def unit_rows(F: AnyFloats, widths: Sequence[int]) -> AnyFloats:
    """Rows with mean 0 and variance 1 within each block, so that a spot's depth does not set its distance to all others.

    Parameters
    ----------
    F
        Features, shape (spots, features).
    widths
        Widths of the leading blocks of components; columns behind them (covariates) stay as they are.
    """
    out = F.copy()
    start = 0
    for width in widths:
        block = out[:, start : start + width]
        block -= block.mean(axis=1, keepdims=True)
        block /= np.maximum(block.std(axis=1, keepdims=True), 1e-12)
        start += width
    return out


@dataclass(frozen=True)
class NeighbourMap:
    """The most similar training spots of each spot, by the correlation of their features.

    Attributes
    ----------
    spots
        Features of the training spots, rows of length 1, shape (training spots, features).
    widths
        See :func:`unit_rows`.
    """

    spots: NDArray[np.float32]
    widths: tuple[int, ...]

    @classmethod
    def fit(cls, F: NDArray[np.float64], widths: Sequence[int]) -> NeighbourMap:
        """Keep the training spots."""
        return cls(_directions(F, widths), tuple(widths))

    def transform(self, F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of the nearest training spots, nearest first, then their similarities; shape (spots, 2 x neighbours)."""
        return _nearest(_directions(F, self.widths), self.spots, np.arange(len(self.spots)))

    def held_out(self, F: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same for the training spots, each with neighbours from other groups only."""
        Z = _directions(F, self.widths)
        n = min(_NEIGHBOURS, *(int((groups != g).sum()) for g in np.unique(groups)))
        out = np.empty((len(F), 2 * n))
        for g in np.unique(groups):
            own = groups == g
            out[own] = _nearest(Z[own], Z[~own], np.flatnonzero(~own), n)
        return out


def _directions(F: NDArray[np.float64], widths: Sequence[int]) -> NDArray[np.float32]:
    Z = unit_rows(F, widths)
    return (Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _nearest(
    query: NDArray[np.float32], known: NDArray[np.float32], number: NDArray[np.int64], n: int = _NEIGHBOURS
) -> NDArray[np.float64]:
    n = min(n, len(known))
    out = np.empty((len(query), 2 * n))
    for start in range(0, len(query), _CHUNK):
        similarity = query[start : start + _CHUNK] @ known.T
        # rounded, so that the order of equally similar spots does not depend on how the product was summed
        order = np.argsort(-similarity.round(5), axis=1, kind="stable")[:, :n]
        rows = slice(start, start + len(similarity))
        out[rows, :n] = number[order]
        out[rows, n:] = np.maximum(np.take_along_axis(similarity, order, axis=1), 0)
    return out
