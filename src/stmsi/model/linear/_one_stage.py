"""Models that predict the map itself, zeros included, by one regression; presence stands beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._data.checks import check_choice, check_count, check_seed, listing
from stmsi._settings import logger
from stmsi.model.linear._presence import Classifier, fit_shared_classifiers
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._map_scale import MapScale
from stmsi.model.shared._plain_files import read_payload, write_payload
from stmsi.model.shared._setup import Setup, graph_where_there, prior_where_there
from stmsi.model.shared._spot_features import SpotFeatures
from stmsi.model.shared._spot_model import SpotModel
from stmsi.model.shared._training_data import TrainingData, signature_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._spot_input import Spots

MapPresence: TypeAlias = Literal["ridge", "prior"]


class OneStage(SpotModel):
    """What one-stage models share. The map :math:`E` and the probability :math:`p` give the intensity given presence, E / p."""

    def __init__(self, adata: AnnData, *, presence: MapPresence, n_folds: int, rng: int) -> None:
        check_choice(presence, get_args(MapPresence), "presence")
        check_count(n_folds, "n_folds", 2)
        check_seed(rng)
        self.presence, self.n_folds, self.rng = presence, n_folds, rng
        self.adata: AnnData | None = adata
        self._setup = Setup.read(adata, type(self).__name__)
        self.classifiers_: list[Classifier] = []
        self.scale_: MapScale | None = None
        self.held_out_: NDArray[np.float64] | None = None

    def _fit(self, data: TrainingData, show_progress_bar: bool | None) -> None:
        eligible = self._eligible(data)
        if not eligible.any():
            msg = "The prior names no gene that is seen in 3 % of the training spots, for any metabolite."
            raise ValueError(msg)
        if not eligible.all():
            left_out = data.targets.metabolites[~eligible]
            logger.warning(
                "Metabolites for which the prior names no gene of the data are left out: %s", listing(left_out)
            )
            data = replace(
                data, targets=data.targets.some(np.arange(len(data.rows)), data.targets.metabolites[eligible])
            )
        targets = data.targets
        features = SpotFeatures(seed=self.rng, context="diffused", signature_stages=("presence",)).fit(
            data.train, *signature_of(data.adata, self._setup)
        )
        state = data.start(self._setup, features)
        folds = InnerFolds.of(data, n_folds=self.n_folds, seed=self.rng)
        held_out = np.asarray(self._fit_map(data, folds, features), dtype=np.float64)
        truth = HeldOutTruth.of(targets.intensity, folds.groups, folds.units)
        self.scale_ = MapScale.fit(targets.intensity, held_out, truth)
        F = features.transform(data.train)[1] if self.presence == "ridge" else np.empty((len(data.train), 0))
        self.classifiers_ = fit_shared_classifiers(F, targets.presence, folds)
        probability = np.column_stack([c.held_out for c in self.classifiers_])
        intensity = self.scale_.given_presence(held_out, probability, truth)
        self.state_ = state
        self.held_out_ = np.stack([probability, intensity])
        self._calibrate_after(data, probability, intensity, folds.units, self.rng, groups=folds.groups)

    def _eligible(self, data: TrainingData) -> NDArray[np.bool_]:
        """Metabolites that can be predicted."""
        return np.ones(len(data.targets.metabolites), dtype=bool)

    @abstractmethod
    def _fit_map(self, data: TrainingData, folds: InnerFolds, features: SpotFeatures) -> NDArray[np.float32]:
        """Fit the map on the training spots; held-out predictions of it, shape (spots, metabolites)."""

    @abstractmethod
    def _map(self, spots: Spots, at: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """The map of spots as the regression gives it, shape (spots, metabolites); `at` as for :meth:`_stages`."""

    @abstractmethod
    def _map_weights(self) -> NDArray[np.float64]:
        """Share of each gene of the panel in the map, as for :meth:`_gene_weights`."""

    def _gene_weights(self) -> NDArray[np.float64]:
        of_map = self._map_weights()
        # presence has a regression of its own on components
        return (super()._gene_weights() + of_map) / 2 if self.presence == "ridge" else of_map

    def _effects(self, genes: NDArray[np.int64], squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of genes by their weight times their standard deviation."""
        variance = self.state.features.gene_variance
        effect = np.bincount(genes, squared, minlength=len(self.state.panel))
        effect = np.sqrt(effect * variance if len(variance) else effect)
        return effect / max(float(effect.sum()), 1e-300)

    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n = len(spots) if at is None else len(at)
        F = self.state.features.transform(spots, at)[1] if self.presence == "ridge" else np.empty((n, 0))
        probability = np.column_stack([c.predict(F) for c in self.classifiers_])
        assert self.scale_ is not None
        return probability, self.scale_.given_presence(self._map(spots, at), probability)

    def _held_out_stages(self) -> NDArray[np.float64] | None:
        return self.held_out_

    def _write(self, directory: Path) -> None:
        fitted = {name: value for name, value in vars(self).items() if name.endswith("_") and name not in _TRANSIENT}
        write_payload(directory, {"params": self._params(), "state": self.state, "fitted": fitted})

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> OneStage:
        payload = read_payload(directory)
        model = cls.__new__(cls)
        for name, value in {**payload["params"], **payload["fitted"]}.items():
            setattr(model, name, value)
        model.adata, model.state_, model._setup = adata, payload["state"], payload["state"].setup
        model.held_out_ = None
        return model

    @classmethod
    def _default_fields(cls, adata: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:
        fields = graph_where_there(adata)
        return fields | prior_where_there(adata) if cls._reads_prior(params) else fields

    def _contains_training_profiles(self) -> bool:
        return False


_TRANSIENT = ("state_", "held_out_")
