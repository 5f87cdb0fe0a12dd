"""What a trained model is made of: what training left behind, and what each family does in its own way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stmsi._data.checks import require_spatialdata
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.model.shared._fitted_state import FittedState

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi.model.shared._spot_input import Spots

CONTEXT_RINGS = 2
"""Rings of neighbours that the models on fixed features see: pooled counts one, averages of averages two."""


class TrainedModel:
    """State of a model, and the hooks of the families, which differ in how they train and in `_stages`."""

    state_: FittedState | None = None
    adata: AnnData | None
    _about: Mapping[str, Any] = {}  # what the user says of the model: licence, notes

    @abstractmethod
    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probability of presence and intensity given presence, each of shape (spots, metabolites).

        Parameters
        ----------
        spots
            What is read: the spots to predict, and those around them.
        at
            Where the spots to predict are among these, ascending; `None`: all are predicted.
        """

    def _held_out_stages(self) -> NDArray[np.float64] | None:
        """Both stages for every training spot, predicted without it, where training has left them behind.

        Of shape (2, spots, metabolites), NaN where there was none.
        """
        return None

    @abstractmethod
    def _contains_training_profiles(self) -> bool:
        """Whether a saved model holds training spots as they are."""

    @abstractmethod
    def _write(self, directory: Path) -> None:
        """Write everything but the model card."""

    @classmethod
    @abstractmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> Self:
        """The model that :meth:`_write` wrote."""

    @property
    def _n_threads(self) -> int:
        """Threads that a prediction can use, 0 where it is made by one call after the other."""
        return 0

    @property
    def _reach(self) -> int | None:
        """Rings of neighbours that the prediction of a spot depends on; `None`: all of its section."""
        return 0 if self.state.setup.graph_key is None else CONTEXT_RINGS

    def _replaces(self, before: Mapping[str, Any]) -> bool:
        """Whether a training that failed has left a whole model in the place of the one before, given its attributes."""
        return False

    @contextmanager
    def _in_batches(self, batch_size: int | None) -> Iterator[None]:
        """Predict so many spots at once inside; models without batches have nothing to do."""
        yield

    @classmethod
    def _reads_graph(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003
        """Whether a model with these hyper-parameters can be set up with a neighbourhood graph."""
        return True

    @classmethod
    def _default_fields(cls, adata: AnnData, params: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Fields that are set up where the data have them and nothing else is said."""
        return {}

    @classmethod
    def _reads_prior(cls, params: Mapping[str, Any]) -> bool:  # noqa: ARG003
        """Whether a model with these hyper-parameters can be set up with a knowledge prior."""
        return False

    @classmethod
    @abstractmethod
    def setup_anndata(cls, adata: AnnData, *args: Any, **fields: Any) -> None:
        """Say which fields of an AnnData the model uses."""

    @classmethod
    def setup_spatialdata(cls, sdata: SpatialData, *, table_key: str = Key.table.ST, **fields: Any) -> None:
        """Say which fields of the ST table of a SpatialData the model uses; then pass that table to the model.

        Parameters
        ----------
        sdata
            Sections with MSI mapped to spots.
        table_key
            The ST table; the model is made from ``sdata.tables[table_key]``.
        **fields
            As for :meth:`setup_anndata`.

        Returns
        -------
        `None`. Writes into the table what :meth:`setup_anndata` writes.

        Raises
        ------
        TypeError
            Not a SpatialData.
        KeyError
            No such table, or a field is not there.
        ValueError
            As for :meth:`setup_anndata`.
        """
        require_spatialdata(sdata)
        cls.setup_anndata(get_table(sdata, table_key), **fields)

    @property
    def state(self) -> FittedState:
        """What training left behind."""
        if self.state_ is None:
            msg = f"The {type(self).__name__} is not trained; call .train() first."
            raise RuntimeError(msg)
        return self.state_

    @property
    def metabolites(self) -> list[str]:
        """Ids of the metabolites that the model predicts."""
        return list(self.state.metabolites)

    def _used_genes(self) -> NDArray[np.int64]:
        """Positions in the panel of the genes that predictions depend on."""
        features = self.state.features
        spaces = [features.own] if features.pooled is None else [features.own, features.pooled]
        return np.unique(np.concatenate([space.selected for space in spaces])).astype(np.int64)

    def _gene_weights(self) -> NDArray[np.float64]:
        """Share of each gene of the panel in what predictions depend on: how far they move by one standard deviation of it.

        Shape (panel genes,), adding up to 1; 0 for genes that are not used.
        """
        return self.state.features.gene_weights(len(self.state.panel))

    def __repr__(self) -> str:
        name, params = type(self).__name__, ", ".join(f"{k}={v!r}" for k, v in self._params().items())
        if self.state_ is None:
            return f"{name}({params}), not trained"
        t = self.state_.training
        return (
            f"{name}({params}), trained on {t['n_spots']} spots of {len(t['samples'])} section(s): "
            f"{t['n_genes']} genes -> {len(self.state_.metabolites)} metabolites"
        )

    @abstractmethod
    def _params(self) -> dict[str, Any]:
        """Hyper-parameters as plain values."""
