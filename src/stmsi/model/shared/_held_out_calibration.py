"""Calibration on held-out spots: thresholds, intervals, the evidence, and how residuals hang together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.arrays_on_disk import array_like
from stmsi._core.learning.folds import sections_or_blocks
from stmsi._core.learning.hurdle import affordable_threshold, best_f1_threshold, hurdle_mean
from stmsi._core.metrics.columns import in_pieces, number, pieces_into
from stmsi._core.metrics.presence import prevalence
from stmsi._core.metrics.reliability import auroc_inside, pearson_inside
from stmsi._core.uncertainty.conformal import GroupConformal, doubt_of
from stmsi._core.uncertainty.copula import HurdleCopula
from stmsi._data.checks import listing
from stmsi._data.tables import sections_of
from stmsi._settings import logger
from stmsi.model.shared._targets import Targets
from stmsi.model.shared._trained_model import TrainedModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi.model.shared._training_data import TrainingData

_F1_TOLERANCE = 0.05
"""Share of the best F1 given up for a lower threshold. F1 is flat at its best, and a false zero costs all that the
probability tells there."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions of training spots, what was measured there, and where they lie."""

    targets: Targets
    probability: NDArray[np.float64]
    intensity: NDArray[np.float64]
    sample: NDArray[Any]
    xy: NDArray[np.float64] | None


class HeldOutCalibration(TrainedModel):
    """Learns from held-out spots how far predictions can be trusted."""

    _evidence: HeldOut | None = None  # of the last calibration, from which the copula is fitted

    def _calibrate_after(
        self,
        data: TrainingData,
        probability: NDArray[np.float64],
        intensity: NDArray[np.float64],
        units: NDArray[Any],
        seed: int,
        few: NDArray[np.bool_] | None = None,
        *,
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Calibrate on the validation spots, or else on the predictions of the training spots that inner folds made.

        `groups` were left out together, `units` are the sections (or blocks) among them; `None`: the same.
        """
        features = self.state.features
        if data.validation is None:
            places = (data.sample, data.train.xy)
            distance = features.held_out_ood(data.train, units if groups is None else groups)
            self._calibrate(data.targets, probability, intensity, units, few, places=places, distance=distance)
            return
        judges = data.spots.take(data.validation)
        sample = sections_of(data.adata, self.state.setup.sample_key)[data.validation]
        units = sections_or_blocks(sample, judges.xy, seed=seed)
        targets = data.all_targets.some(data.validation, self.state.metabolites)
        stages, distance = self._stages(judges), features.ood(judges)
        self._calibrate(targets, *stages, units, places=(sample, judges.xy), distance=distance)

    def _calibrate(
        self,
        targets: Targets,
        probability: NDArray[np.float64],
        intensity: NDArray[np.float64],
        groups: NDArray[Any],
        few: NDArray[np.bool_] | None = None,
        *,
        places: tuple[NDArray[Any], NDArray[np.float64] | None],
        distance: NDArray[np.float64],
    ) -> None:
        """Thresholds, intervals and evidence from held-out predictions of training spots.

        `groups` are the sections (or blocks) of the spots, which weigh the same in the intervals. Metabolites in `few`
        have too few held-out spots with or without them to choose a threshold by. `places` are section and position of
        the spots, `distance` their out-of-distribution score, for the spots of the other groups.
        """
        state = self.state
        self._evidence, state.copula = HeldOut(targets, probability, intensity, *places), None
        unseen = in_pieces(lambda p: np.isnan(p).all(axis=0), targets.presence)
        if unseen.any():
            logger.warning(
                "Metabolites not measured in the spots held out for calibration get the threshold 0.5 and no interval: %s",
                listing(state.metabolites[unseen]),
            )
        undecided = unseen if few is None else unseen | few
        presence, truth = targets.presence, targets.intensity
        # some metabolites at a time: what is computed on the way would take several times what is kept of the spots
        threshold = in_pieces(partial(best_f1_threshold, tolerance=_F1_TOLERANCE), presence, probability)
        threshold = in_pieces(_lowered_threshold, truth, intensity, probability, threshold)
        state.threshold = np.where(undecided, 0.5, threshold)
        expected = pieces_into(array_like(intensity, np.float32), _expected, intensity, probability, state.threshold)
        state.residuals = GroupConformal.fit(
            truth, presence, probability, intensity, expected, groups, doubt_of(distance)
        )
        state.spread = in_pieces(_residual_spread, truth, presence, intensity)
        evidence = {
            "prevalence": in_pieces(prevalence, presence),
            "training_mean": in_pieces(_mean, truth),
            "n_spots": in_pieces(number, truth),
        }
        unit = np.unique(groups, return_inverse=True)[1]
        r, r_lower, n_units = in_pieces(partial(pearson_inside, units=unit), truth, expected)
        area, area_lower = in_pieces(partial(auroc_inside, units=unit), presence, probability)
        evidence |= {
            "held_out_pearson": r, "held_out_pearson_lower": r_lower, "held_out_auroc": area, "held_out_auroc_lower": area_lower,
            "held_out_units": n_units,
        } | dict(zip(("held_out_coverage", "held_out_coverage_lowest"), state.residuals.held_out, strict=True))  # fmt: skip
        state.feature_table = state.feature_table.assign(**evidence)

    def _fit_copula(self) -> HurdleCopula | None:
        """Fit how held-out residuals hang together, once; `None` where the model holds none."""
        state, held_out = self.state, self._evidence
        if state.copula is None and held_out is not None:
            state.copula = HurdleCopula.fit(
                held_out.targets.metabolites.to_numpy(dtype=object),
                np.asarray(held_out.targets.intensity),
                np.asarray(held_out.targets.presence),
                np.asarray(held_out.probability),
                np.asarray(held_out.intensity),
                np.unique(held_out.sample.astype(str), return_inverse=True)[1],
                held_out.xy,
            )
        return state.copula

    def _copula(self, metabolites: pd.Index) -> HurdleCopula:
        """How held-out residuals of some metabolites hang together."""
        copula = self._fit_copula()
        at = pd.Index([] if copula is None else copula.names, dtype=object).get_indexer(metabolites)
        if copula is None or (at < 0).any():
            lacking = "" if copula is None else f" of {listing(metabolites[at < 0])}"
            msg = (
                f"The {type(self).__name__} holds no held-out residuals{lacking}, from which draws are made; train it again "
                "with this version of stmsi, or draw spot by spot with model.sample."
            )
            raise ValueError(msg)
        return copula.take(at)


def _lowered_threshold(
    truth: NDArray[np.float64],
    intensity: NDArray[np.float64],
    probability: NDArray[np.float64],
    threshold: NDArray[np.float64],
) -> NDArray[np.float64]:
    return affordable_threshold(truth, probability * np.maximum(intensity, 0), probability, threshold)


def _expected(
    intensity: NDArray[np.float64], probability: NDArray[np.float64], threshold: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """The two stages as one number, NaN where one of them is not known."""
    known = ~np.isnan(probability) & ~np.isnan(intensity)
    return np.where(known, hurdle_mean(np.nan_to_num(intensity), np.nan_to_num(probability), threshold), np.nan)


def _residual_spread(
    truth: NDArray[np.float64], presence: NDArray[np.float64], intensity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Root mean square of the residuals where a metabolite is present."""
    residual = np.where(presence > 0, truth, np.nan) - intensity
    return np.sqrt(np.nansum(residual**2, axis=0) / np.maximum(number(residual), 1))


def _mean(truth: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nansum(truth, axis=0) / np.maximum(number(truth), 1)
