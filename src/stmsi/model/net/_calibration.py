"""What the network learns from held-out spots beside its weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import expit

from stmsi._core.arrays_on_disk import array_like, derived
from stmsi._core.learning.folds import sections_or_blocks
from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._core.metrics.columns import in_pieces, pieces_into
from stmsi._data.checks import listing
from stmsi._data.tables import sections_of
from stmsi._settings import logger
from stmsi.model.linear._presence import platts
from stmsi.model.net._prediction import PREDICT_BATCH, NetPrediction
from stmsi.model.net._surroundings import quiet, seeded
from stmsi.model.net._training_inputs import presence_counts
from stmsi.model.net.encoders import MetaboliteEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stmsi._core.arrays_on_disk import Matrix
    from stmsi.model.shared._fitted_state import FittedState
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._targets import Targets

_MIN_EVIDENCE = 10
"""Held-out spots with, and without, a metabolite that its calibration needs."""


class NetCalibration(NetPrediction):
    """Calibration of :class:`stmsi.model.HurdleNet`."""

    _make_data_loader: Callable[..., Any]  # of scvi-tools

    def _fit_calibration(
        self, spots: Spots, all_targets: Targets, rows: NDArray[np.int64], validation: NDArray[np.int64]
    ) -> None:
        """Platt's sigmoid of each metabolite, thresholds and intervals from the validation spots."""
        self._remember(rows)
        assert self.adata is not None
        sample = sections_of(self.adata, self._setup.sample_key)[validation]
        units = sections_or_blocks(sample, spots.xy, seed=self._hyper["rng"])
        targets = all_targets.some(validation, self.state.metabolites)
        trained = presence_counts(all_targets.some(rows, self.state.metabolites).presence)
        logit, intensity = self._forward(spots)
        distance = self.state.features.ood(spots)
        places = (sample, spots.xy)
        self._calibrate_by(targets, logit, intensity, trained, units, places=places, distance=distance)
        uniform = self._uniform_map(spots)
        if uniform is not None:
            self._note_control(targets, self._rough_map(logit, intensity), uniform, units)

    def _calibrate_by(
        self,
        targets: Targets,
        logit: Matrix,
        intensity: Matrix,
        trained: tuple[NDArray[np.int64], NDArray[np.int64]],
        units: NDArray[Any],
        *,
        places: tuple[NDArray[Any], NDArray[np.float64] | None],
        distance: NDArray[np.float64],
    ) -> Any:
        """Calibrate by predictions of held-out spots.

        Parameters
        ----------
        targets
            Of these spots, with the metabolites of the model.
        logit, intensity
            Log-odds and intensity given presence, likewise; NaN where there was no prediction. In memory or on disk.
        trained
            Training spots with, and without, each metabolite.
        units, places, distance
            As for :meth:`stmsi.model.shared._held_out_calibration.HeldOutCalibration._calibrate`.

        Returns
        -------
        The calibrated probability of presence, shape (spots, metabolites); on disk where the log-odds are.
        """
        presence = derived(lambda o, p: np.where(np.isnan(o), np.nan, p), logit, targets.presence)
        # some metabolites at a time, each of which is by itself
        self.platt_ = np.column_stack(in_pieces(platts, logit, presence))
        # A sigmoid and a threshold fitted to a handful of spots are noise. The logits of a class-balanced loss, shifted
        # by the base rate of the training spots, are the better guess; where training has one class only, so is that.
        n1, n0 = presence_counts(presence)
        trained1, trained0 = trained
        few = (n1 < _MIN_EVIDENCE) | (n0 < _MIN_EVIDENCE)
        one_class = few & ((trained1 == 0) | (trained0 == 0))
        shift = few & ~one_class
        weight = self._positive_weight()
        self.platt_[shift] = np.column_stack([np.ones(len(weight)), -np.log(weight)])[shift]
        odds = np.log((trained1 + n1 + 1) / (trained0 + n0 + 1))
        self.platt_[one_class] = np.column_stack([np.full(len(odds), 1e-6), odds])[one_class]
        probability = pieces_into(
            array_like(logit, np.float64), lambda o, slope, offset: expit(o * slope + offset), logit, *self.platt_.T
        )
        held_out: list[Any] = [probability, intensity]  # on disk or in memory
        self._calibrate(targets, held_out[0], held_out[1], units, shift, places=places, distance=distance)
        return probability

    def _note_control(self, targets: Targets, attended: Matrix, uniform: Matrix, units: NDArray[Any]) -> None:
        """Write into the feature table how well held-out spots are predicted, and how well with attention made uniform.

        Mean correlation inside held-out sections of each metabolite: ``held_out_attention`` and ``held_out_uniform``.

        Parameters
        ----------
        targets
            Of the held-out spots.
        attended, uniform
            Maps as the model predicts them, and with uniform attention, shape (spots, metabolites).
        units
            Section of each spot.
        """

        def scores(intensity: NDArray[np.float64], *maps: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
            truth = HeldOutTruth.of(intensity, np.zeros(len(units), np.int64), units)
            return tuple(truth.scores(m)[0] for m in maps)

        found = in_pieces(scores, targets.intensity, attended, uniform)
        names = "held_out_attention", "held_out_uniform"
        self.state.feature_table = self.state.feature_table.assign(**dict(zip(names, found, strict=True)))

    def _uniform_map(self, spots: Spots) -> Any:
        """The map before calibration with attention made uniform; `None` where metabolites do not attend to genes."""
        if not isinstance(self.module.encoder, MetaboliteEncoder):
            return None
        with ExitStack() as stack:
            for net in self._nets:
                stack.enter_context(net.module.encoder.made_uniform())  # type: ignore[operator, arg-type]
            return self._rough_map(*self._forward(spots))

    def _remember(self, rows: NDArray[np.int64]) -> None:
        """Put training spots into the bank of an encoder that has one."""
        module, parts = self.module, []
        if module.encoder.bank is None:
            return
        training = module.training
        module.eval()
        with torch.no_grad(), quiet(), seeded(self._hyper["rng"]):
            for tensors in self._make_data_loader(adata=self.adata, indices=rows, batch_size=PREDICT_BATCH):
                given = {k: v.to(module.device) for k, v in tensors.items()}
                embedding = module.inference(**module._get_inference_input(given))["embedding"]
                parts.append((embedding, *module.targets(given)))
            of_section = module.in_section[torch.as_tensor(rows)] if len(module.in_section) else None
            embedding, target, present = (torch.cat(values) for values in zip(*parts, strict=True))
            module.encoder.remember(embedding, target, present, of_section)
        module.train(training)

    def _carry_over(self, calibrated: FittedState) -> None:
        """Calibration of the run with held-out spots for the one on all spots, metabolite by metabolite."""
        state = self.state
        at = calibrated.metabolites.get_indexer(state.metabolites)
        kept = at >= 0
        if not kept.all():
            logger.warning(
                "Metabolites measured only in the spots held out for calibration are left out: %s",
                listing(state.metabolites[~kept]),
            )
            state.metabolites = state.metabolites[kept]
            at = at[kept]
        assert self.platt_ is not None
        assert calibrated.residuals is not None
        self.platt_ = self.platt_[at]
        state.threshold, state.spread = calibrated.threshold[at], calibrated.spread[at]
        state.residuals = calibrated.residuals.take(at)
        state.feature_table = calibrated.feature_table.iloc[at]
