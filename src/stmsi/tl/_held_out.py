"""Predictions of spots by models that have not seen them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import listing
from stmsi._settings import logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._held_out_calibration import HeldOut
    from stmsi.model.shared._hurdle_model import HurdleModel


def unseen_stages(
    model: HurdleModel,
    stages: NDArray[np.float64],
    measured: NDArray[np.float64],
    sample: NDArray[Any],
    xy: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Both stages of a model, shape (2, spots, metabolites), held-out ones in the place of those of training spots.

    A trained model keeps the held-out predictions of its training spots in memory; a saved one does not. Training spots are
    known by section, position and measured intensities (`measured`, of shape (spots, metabolites), NaN where not measured).
    Says so where sections of the training have measured spots without a held-out prediction.
    """
    covered = np.asarray(~np.isnan(measured).all(axis=1))
    held_out = model._evidence
    rows, at = _training_spots(held_out, sample, xy)
    unseen, known = stages.copy(), np.zeros(len(sample), bool)
    if held_out is not None and len(rows):
        columns = held_out.targets.metabolites.get_indexer(model.state.metabolites)
        there = columns >= 0
        before = np.where(there, held_out.targets.intensity[at][:, columns], np.nan).astype(np.float32)
        now = measured[rows].astype(np.float32)
        same = ((before == now) | np.isnan(before) | np.isnan(now)).all(axis=1) & covered[rows]
        rows, at = rows[same], at[same]
        known[rows] = True
        # held-out intensities are as the regression made them; predictions are at least 0
        predicted = held_out.probability[at], np.maximum(held_out.intensity[at], 0)
        for stage, values in zip(unseen, predicted, strict=True):
            own = values[:, columns]
            stage[rows] = np.where(np.isnan(own) | ~there, stage[rows], own)
    seen = np.unique(sample[covered & ~known].astype(str))
    trained = [name for name in seen if name in set(model.state.training.get("samples", ()))]
    if trained:
        logger.warning(
            "The model was trained on sections with the names %s and has no held-out predictions of their measured spots. If "
            "these are the same spots, its errors there are too small to correct by; use a model that has not seen them.",
            listing(trained),
        )
    return unseen


def _training_spots(
    held_out: HeldOut | None, sample: NDArray[Any], xy: NDArray[np.float64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which spots have section and position of a training spot, and of which one; positions that repeat are left out."""
    nothing = np.empty(0, np.int64)
    if held_out is None or held_out.xy is None or xy is None:
        return nothing, nothing
    names = np.unique(np.concatenate([held_out.sample.astype(str), sample.astype(str)]), return_inverse=True)[1]
    places = np.column_stack([names, np.vstack([held_out.xy, xy])])
    place = np.unique(places, axis=0, return_inverse=True)[1].ravel()
    first, second = place[: len(held_out.sample)], place[len(held_out.sample) :]
    once = [np.bincount(own, minlength=place.max() + 1) == 1 for own in (first, second)]
    common, at, rows = np.intersect1d(first, second, return_indices=True)
    kept = once[0][common] & once[1][common]
    return rows[kept], at[kept]
