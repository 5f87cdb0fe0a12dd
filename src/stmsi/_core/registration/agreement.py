"""How well two aligned sections agree: masks, mutual information, canonical components.

scikit-learn's CCA iterates, and has no ridge for ions that correlate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stmsi._core.registration.placements import turn
from stmsi._core.registration.tissue_masks import frame_turn
from stmsi._core.registration.warps import Floats

_HEXAGON = 0.6
"""Reach of a spot in pitches: the corner of a hexagonal cell is at 0.577."""
BINS = 8
"""Of mutual information, along each variable."""
_N_BLOCKS = 4
_LEAST = 20


def points_beside(tissue: Floats, others: Floats, pitch: float) -> Floats:
    """Places off tissue at which masks are compared: the other spots, or a hexagonal lattice in their rectangle.

    The lattice makes pixels beside the ST tissue count where only the spots on tissue are known. The rectangle lies along
    the axes of the spots' own lattice, as the capture frame does.
    """
    if len(others):
        return others
    axes = turn(frame_turn(tissue)) if len(tissue) > 2 else np.eye(2)
    own = tissue @ axes
    low, high = own.min(axis=0), own.max(axis=0)
    step = pitch * np.sqrt(3) / 2
    row, col = np.indices((int((high[1] - low[1]) / step) + 1, int((high[0] - low[0]) / pitch) + 1))
    points = np.column_stack([low[0] + (col + 0.5 * (row % 2)).ravel() * pitch, low[1] + row.ravel() * step]) @ axes.T
    return points[cKDTree(tissue).query(points)[0] > _HEXAGON * pitch]


def mask_iou(tissue_covered: NDArray[np.bool_], others_covered: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, from whether pixels cover the points on and off ST tissue (NaN: no points)."""
    union = len(tissue_covered) + int(others_covered.sum())
    return float(tissue_covered.sum() / union) if union else float("nan")


def mutual_information(x: Floats, y: Floats) -> float:
    """Mutual information of two variables in nats, over bins of equal counts; NaN with fewer values than squared bins."""
    from sklearn.metrics import mutual_info_score

    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < BINS**2:
        return float("nan")
    return float(mutual_info_score(*(_equal_counts(v[known], BINS) for v in (x, y))))


def unbiased_information(x: Floats, y: Floats) -> float:
    """Mutual information of two samples in nats, with the bias of Miller and Madow taken off; NaN with few values.

    G. A. Miller. Note on the bias of information estimates. Information Theory in Psychology, 95-100 (1955).
    """
    if len(x) < _LEAST:
        return float("nan")
    n_bins = int(min(12, np.sqrt(len(x) / 5) + 1))
    a, b = (_equal_counts(v, n_bins) for v in (x, y))
    joint = np.bincount(a * n_bins + b, minlength=n_bins**2).reshape(n_bins, n_bins) / len(x)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    information = float((joint[some] * np.log(joint[some] / product[some])).sum())
    filled = some.sum() - (joint.sum(axis=1) > 0).sum() - (joint.sum(axis=0) > 0).sum() + 1
    return max(0.0, information - float(filled) / (2 * len(x)))


def _equal_counts(values: Floats, bins: int) -> NDArray[np.int64]:
    # by the edges and not by rank, so that equal values share a bin
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


@dataclass(frozen=True)
class Canonical:
    """Linear combinations of two sets of variables that correlate most.

    Centred variables times the weights, shape (variables, components), have unit variance; correlations fall.
    """

    x_mean: Floats
    y_mean: Floats
    x_weights: Floats
    y_weights: Floats
    correlation: Floats

    def of_x(self, x: Floats) -> Floats:
        """Components of the first set."""
        return (x - self.x_mean) @ self.x_weights

    def of_y(self, y: Floats) -> Floats:
        """Components of the second set."""
        return (y - self.y_mean) @ self.y_weights


def canonical(x: Floats, y: Floats, n: int, ridge: float = 1e-3) -> Canonical:
    """Canonical correlation analysis of `n` components, from the singular values of the whitened cross-covariance.

    `ridge` is added to the variances, as a share of their mean.
    """
    mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - mean[0], y - mean[1]
    white = []
    for values in centred:
        covariance = values.T @ values / len(values)
        covariance += ridge * max(np.trace(covariance) / len(covariance), 1e-300) * np.eye(len(covariance))
        size, direction = np.linalg.eigh(covariance)
        white.append(direction / np.sqrt(size))
    u, s, vt = np.linalg.svd((centred[0] @ white[0]).T @ (centred[1] @ white[1]) / len(x))
    n = min(n, len(s))
    return Canonical(*mean, white[0] @ u[:, :n], white[1] @ vt[:n].T, np.minimum(s[:n], 1.0))


def held_out_components(x: Floats, y: Floats, xy: Floats) -> tuple[Floats, Floats]:
    """First canonical pair of each observation, from an analysis that did not see its surroundings.

    The blocks of a chequered grid over `xy` are held out in turn.
    """
    span = np.maximum(np.ptp(xy, axis=0), 1e-300)
    cell = np.minimum(((xy - xy.min(axis=0)) / span * _N_BLOCKS).astype(int), _N_BLOCKS - 1)
    black = cell.sum(axis=1) % 2 == 0
    first, second = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for held in (black, ~black):
        if held.any() and (~held).sum() > 2 * (x.shape[1] + y.shape[1]):
            found = canonical(x[~held], y[~held], 1)
            first[held], second[held] = found.of_x(x[held])[:, 0], found.of_y(y[held])[:, 0]
    return first, second
