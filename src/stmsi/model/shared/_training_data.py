"""What every model's training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._data.keys import Key
from stmsi._data.tables import sections_of
from stmsi.model.shared._fitted_state import FittedState
from stmsi.model.shared._gene_names import gene_names
from stmsi.model.shared._gene_panel import GenePanel
from stmsi.model.shared._persistence import training_record
from stmsi.model.shared._spot_input import Spots
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._targets import Targets, drop_unmeasured, read_targets, stored_targets, training_rows
from stmsi.model.shared._training_spots import TrainingSpots

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_features import SpotFeatures


@dataclass(frozen=True)
class TrainingData:
    """What one call of ``train`` works on.

    Attributes
    ----------
    adata
        The data that the model was made with.
    setup
        What was read of them.
    spots, all_targets
        Of all spots.
    rows, validation
        Which of them are trained on, and which calibrate (`None`: held-out predictions of the others do).
    train, targets, sample
        The training spots, what was measured there (without metabolites that were measured nowhere there), and their
        sections.
    marks
        Whether the model is to know its spots again. A fold of a cross-validation, whose model nobody sees, does without.
    folder
        Where to keep on disk what grows with the spots; `None`: in memory.
    """

    adata: AnnData
    setup: Setup
    spots: Spots
    all_targets: Targets
    rows: NDArray[np.int64]
    validation: NDArray[np.int64] | None
    train: Spots
    targets: Targets
    sample: NDArray[Any]
    marks: bool = True
    folder: Path | None = None

    @classmethod
    def read(
        cls,
        adata: AnnData | None,
        setup: Setup,
        train_idx: ArrayLike | None,
        validation_idx: ArrayLike | None,
        spots: Spots | None = None,
        *,
        from_disk: bool = False,
    ) -> TrainingData:
        """Read and check; errors as for ``train``.

        `spots` are those of `adata` where they have been read before. A model that fits `from_disk` gets a folder, and targets
        that it can read a piece of at a time, where the expression of the spots is on disk too.
        """
        adata = require_data(adata)
        spots = SpotReader.open(adata, setup).read() if spots is None else spots
        folder = spots.folder if from_disk else None
        all_targets = read_targets(adata, setup) if folder is None else stored_targets(adata, setup)
        rows, validation = training_rows(all_targets, train_idx, validation_idx)
        targets, train = drop_unmeasured(all_targets, rows), spots.take(rows)
        sample = sections_of(adata, setup.sample_key)[rows]
        return cls(adata, setup, spots, all_targets, rows, validation, train, targets, sample, folder=folder)

    def alone(self, adata: AnnData) -> TrainingData:
        """The training spots as all there is, `adata` holding them and nothing else."""
        rows = np.arange(len(self.rows))
        measured = self.all_targets.some(self.rows, self.all_targets.metabolites)
        return TrainingData(
            adata, self.setup, self.train, measured, rows, None, self.train, self.targets, self.sample, marks=self.marks
        )

    def of_setup(self, setup: Setup) -> TrainingData | None:
        """The same for a model with fewer inputs; `None` where it differs in more than that."""
        fewer = ("graph_key", "prior_key", "covariate_keys", "feature_key", "signature_key", "cluster_key")
        if replace(setup, **{name: getattr(self.setup, name) for name in fewer}) != self.setup:
            return None
        train = replace(
            self.train,
            graph=None if setup.graph_key is None else self.train.graph,
            covariates=self.train.covariates[list(setup.covariate_keys)] if setup.covariate_keys else None,  # type: ignore[index]
            features={key: self.train.features[key] for key in setup.feature_key} or None,  # type: ignore[index]
            cluster=None if setup.cluster_key is None else self.train.cluster,
        )
        return replace(self, setup=setup, spots=train, train=train)

    def start(self, setup: Setup, features: SpotFeatures) -> FittedState:
        """State of a model whose features are fitted, with the summary of the training spots."""
        state = start_state(self.adata, setup, self.targets, features, self.train)
        state.training = summarise_training(self.adata, setup, self.rows)
        state.seen = self._seen() if self.marks else None
        return state

    def _seen(self) -> TrainingSpots:
        """What finds the spots again that were trained or calibrated on."""
        if self.validation is None:  # made once for all members of a stack
            return self.train.once("seen", lambda: TrainingSpots.of(self.train))
        return TrainingSpots.of(self.spots, np.union1d(self.rows, self.validation))


def require_data(adata: AnnData | None) -> AnnData:
    """The data of a model, which one loaded without them lacks."""
    if adata is None:
        msg = "The model was loaded without data and cannot be trained; make a new one from the AnnData."
        raise ValueError(msg)
    return adata


def start_state(adata: AnnData, setup: Setup, targets: Targets, features: SpotFeatures, train: Spots) -> FittedState:
    """State of a model whose features are fitted to its training spots."""
    record = adata.uns.get(setup.metabolite_key)
    table = record.get("features") if isinstance(record, Mapping) else None
    table = (
        table.reindex(targets.metabolites)
        if isinstance(table, pd.DataFrame) and targets.metabolites.isin(table.index).all()
        else pd.DataFrame({Key.var.NAME: targets.metabolites}, index=targets.metabolites)
    )
    panel = GenePanel(gene_names(adata.var), train.gene_moments().mean, train.target_sum, train.gene_shares())
    return FittedState(setup, panel, features, targets.metabolites, table)


def summarise_training(adata: AnnData, setup: Setup, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Plain summary of the training data for the model card; patients are counted, not named."""
    names, size = np.unique(sections_of(adata, setup.sample_key)[rows].astype(str), return_counts=True)
    samples = [str(name) for name in names]
    patients = adata.obs[Key.obs.PATIENT].iloc[rows].nunique() if Key.obs.PATIENT in adata.obs else None
    return {
        "n_spots": len(rows),
        "n_genes": adata.n_vars,
        "samples": samples,
        "spots_per_sample": dict(zip(samples, size.tolist(), strict=True)),
        "n_patients": patients,
    } | training_record(adata, setup.metabolite_key)


def signature_of(adata: AnnData, setup: Setup) -> tuple[NDArray[Any] | None, NDArray[np.bool_] | None]:
    """Cluster labels and their masks (clusters x genes), where the setup names a signature."""
    if setup.signature_key is None:
        return None, None
    signature = adata.varm[setup.signature_key]
    record = adata.uns.get(setup.signature_key, {})
    labels = record.get("clusters", getattr(signature, "columns", None))
    mask = np.asarray(signature, dtype=bool).T
    if labels is None or len(labels) != len(mask):
        msg = f"varm[{setup.signature_key!r}] has no cluster labels; write it with stmsi.pp.gene_signatures."
        raise ValueError(msg)
    return np.asarray([str(c) for c in labels], dtype=object), mask
