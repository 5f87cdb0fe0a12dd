"""The linear path of a network: ridge regressions of both stages as weights on genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.arrays_on_disk import DiskArray, new_array, row_pieces, some_of
from stmsi._core.from_disk.ridge import StoredMoments, StoredTruth, best_penalty, held_out_at
from stmsi._core.learning.shared_ridge import HeldOutTruth, fit_shared_ridge
from stmsi._core.metrics.columns import in_pieces, number
from stmsi.model.net._training_inputs import MIN_SCALE, known_moments
from stmsi.model.shared._spot_features import root_mean_square

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stmsi._core.arrays_on_disk import Matrix
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots

_FEWEST = 5
"""Spots with a metabolite that a regression needs."""
_LOGIT_SLOPE = 4.0
"""Log-odds over probability where this is one half."""


def linear_path(
    features: SpotFeatures,
    train: Spots,
    presence: Matrix,
    intensity: Matrix,
    groups: NDArray[np.int64],
    units: NDArray[np.int64],
    n_slots: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Any]]:
    """Ridge regressions of both stages as weights on standardised genes and further features.

    Of spots whose expression is on disk, features and held-out values are there too.

    Parameters
    ----------
    features
        Fitted to the training spots.
    train
        The training spots.
    presence
        1, 0 or NaN, shape (spots, metabolites).
    intensity
        Standardised intensity where present, NaN elsewhere, likewise.
    groups, units
        Groups of the inner folds and sections, as for :func:`stmsi._core.learning.shared_ridge.fit_shared_ridge`.
    n_slots
        Genes of the module; those beyond the genes used have the weight 0.

    Returns
    -------
    Weights, shape (slots + features, 2 x metabolites), and offsets, shape (2 x metabolites,): log-odds of presence, intensity. And what
    regressions without their group say of the spots, of either stage, shape (spots, metabolites); NaN where there was none.
    """
    F, n_components = _features(features, train), len(features.own.components)
    to_genes = (
        features.own.components.T.astype(np.float64) / root_mean_square(features.own) * features.own.scale[:, None]
    )
    n = len(features.own.selected)
    weight, bias, held_out = [], [], list[Any]()
    # a regression of 0 and 1 rises as the probability does; class balance puts log-odds of 0 at the prevalence
    for y, rise in ((presence, _LOGIT_SLOPE), (intensity, 1.0)):
        weights, offset, mean, apart = _shared_ridge(F, y, groups, units, train.folder)
        own = np.zeros((n_slots + F.shape[1] - n_components, y.shape[1]))
        own[:n] = rise * (to_genes @ weights[:n_components])
        own[n_slots:] = rise * weights[n_components:]
        weight.append(own)
        zero = mean if rise == _LOGIT_SLOPE else 0.0
        bias.append(rise * (offset - zero))
        for rows in row_pieces(*apart.shape):
            apart[rows] = rise * (apart[rows] - zero)
        held_out.append(apart)
    return np.hstack(weight), np.concatenate(bias), held_out


def _features(features: SpotFeatures, train: Spots) -> Any:
    """Components and further features of spots in single precision, shape (spots, features)."""
    further = [e.transform(train.features, key) for key, e in features.extra.items()]
    if train.folder is None or not train.is_streamed:
        return np.hstack([features.components(train), *further])
    beside = np.hstack([*further, np.empty((len(train), 0), np.float32)])
    k = len(features.own.components)
    F = DiskArray(train.folder, (len(train), k + beside.shape[1]), np.float32)
    for rows in row_pieces(*F.shape):
        own = train.some_components(features.own, rows) / np.float32(root_mean_square(features.own))
        F[rows] = np.hstack([own, beside[rows]])
    return F


def _shared_ridge(
    F: Any, y: Matrix, groups: NDArray[np.int64], units: NDArray[np.int64], folder: Path | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], Any]:
    """Ridge regressions with one penalty, drawn in as held-out spots bear out: weights (features, targets), offsets, means, held-out values.

    Weights of targets that do not vary, or are known in few spots, are 0, and so is their offset less their mean.
    """
    mean, spread = in_pieces(known_moments, y)
    varies = np.flatnonzero((in_pieces(number, y) >= _FEWEST) & (spread > MIN_SCALE))
    weights, offset = np.zeros((F.shape[1], y.shape[1])), mean.copy()
    on_disk = isinstance(F, DiskArray)
    held_out = new_array(folder if on_disk else None, y.shape, np.float64)
    for rows in row_pieces(*y.shape):
        held_out[rows] = mean
    if len(varies):
        fit = _fit_from_disk if on_disk else _fit
        of_varying, own_offset, slope = fit(F, some_of(y, columns=varies), groups, units, held_out, varies)
        weights[:, varies] = slope * of_varying
        offset[varies] = mean[varies] + slope * (own_offset - mean[varies])
    return weights, offset, mean, held_out


def _fit(
    F: NDArray[np.float32],
    y: NDArray[np.float64],
    groups: NDArray[np.int64],
    units: NDArray[np.int64],
    held_out: NDArray[np.float64],
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Weights, offsets and slopes; held-out values, drawn in by these, are written into some columns of `held_out`."""
    truth, fitted = HeldOutTruth.of(y, groups, units), fit_shared_ridge(F, y, groups, units)
    slope = truth.slopes(fitted.held_out)
    held_out[:, columns] = truth.scaled(fitted.held_out, slope)
    return fitted.weights, fitted.offset, slope


def _fit_from_disk(
    F: DiskArray,
    y: Matrix,
    groups: NDArray[np.int64],
    units: NDArray[np.int64],
    held_out: DiskArray,
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """As :func:`_fit`, a block of spots at a time."""
    moments = StoredMoments(F, y, groups)
    truth = StoredTruth.of(moments, units)
    without = new_array(F.folder, y.shape, np.float32)
    weights, offset = held_out_at(best_penalty(moments, truth), moments, [], without)
    slope = truth.slopes(moments, without)
    for rows in row_pieces(*y.shape):
        base = truth.base.astype(np.float32)[groups[rows]]
        held_out[rows, columns] = base + slope * (without[rows] - base)
    return weights, offset, slope
