"""How the network predicts: spots in batches of tensors, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader

from stmsi._data.checks import listing
from stmsi.model.net._metabolite_descriptors import Described
from stmsi.model.net._neighbour_context import set_context
from stmsi.model.net._scvi_fields import ROW_KEY, scvi_fields
from stmsi.model.net._surroundings import quiet, seeded
from stmsi.model.net._training_inputs import panel_data
from stmsi.model.net.encoders import ENCODERS, MetaboliteEncoder
from stmsi.model.net.modules import HurdleModule
from stmsi.model.net.modules._hurdle import METABOLITES_KEY, PRESENCE_KEY
from stmsi.model.shared._hurdle_model import HurdleModel

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._stored_input import Input

PREDICT_BATCH = 4096
"""Spots that are predicted at once."""


class NetPrediction(HurdleModel):
    """Prediction of :class:`stmsi.model.HurdleNet`, which says what module and data there are."""

    module: HurdleModule
    platt_: NDArray[np.float64] | None
    registry_: dict[str, Any]
    _setup: Setup
    _hyper: dict[str, Any]
    _batch_size: int | None = None  # spots that are predicted at once, where the user said so

    @contextmanager
    def _in_batches(self, batch_size: int | None) -> Iterator[None]:
        before, self._batch_size = self._batch_size, batch_size
        try:
            yield
        finally:
            self._batch_size = before

    def _predict_unseen(
        self,
        features: pd.DataFrame,
        adata: AnnData | None,
        min_genes: float,
        layer: str | None = None,
        input: Input | None = None,
    ) -> pd.DataFrame:
        """Pattern of metabolites that training did not have; see :func:`stmsi.experimental.predict_unseen`."""
        encoder = self.module.encoder
        if not isinstance(encoder, MetaboliteEncoder):
            msg = (
                f"encoder={self._hyper['encoder']!r} knows metabolites by their place in the output only; "
                'use encoder="transformer", which asks for them by m/z.'
            )
            raise ValueError(msg)
        if not self._hyper["encoder_kwargs"].get("query_dropout"):
            msg = (
                "The model was trained without query_dropout, and never asked for a metabolite by its m/z alone; train it with "
                'encoder_kwargs={"query_dropout": 0.1}.'
            )
            raise ValueError(msg)
        if self._hyper["residual"] is not None:
            msg = "The model corrects ridge regressions, which know no other metabolites; train it with residual=None."
            raise ValueError(msg)
        known = Described.read(features, self._descriptors, "features")
        unknown = np.isnan(known.mz) & np.isnan(known.descriptors).all(axis=1)
        if unknown.any():
            msg = f"Nothing is known of {listing(features.index[unknown])}: give each an 'mz' in Da."
            raise ValueError(msg)
        spots = self._query_spots(adata, min_genes, layer=layer, input=input)
        device = self.module.device
        parts = []
        self.module.eval()
        with torch.inference_mode(), quiet(), seeded(self._hyper["rng"]):
            queries = encoder.ask_unseen(torch.tensor(known.mz), torch.tensor(known.descriptors))
            at = torch.full((len(features),), -1, device=device)
            for tensors in self._batches(spots, self._predict_batch):
                given = self.module._get_inference_input(tensors)
                inputs = {k: None if v is None else v.to(device) for k, v in given.items()}
                x = self.module.expression(inputs.pop("x"))  # type: ignore[arg-type]
                embedded = self.module.embed(x, **inputs, metabolites=at, queries=queries)
                parts.append(self.module.generative(**embedded)["mean"].cpu().numpy())
        return pd.DataFrame(np.vstack(parts), index=spots.names, columns=features.index, dtype=np.float32)

    def _stages(self, spots: Spots) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if spots.covariates is not None:
            self.state.features.covariates(spots)  # refuses categories that training did not have
        logit, intensity = self._forward(spots)
        assert self.platt_ is not None
        return expit(logit * self.platt_[:, 0] + self.platt_[:, 1]), intensity

    def _forward(self, spots: Spots) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-odds and intensity given presence of the metabolites that the model predicts."""
        logits, means = [], []
        self.module.eval()
        # loaders draw from torch's global generator
        with torch.inference_mode(), quiet(), seeded(self._hyper["rng"]):
            batches = self._batches(spots, self._predict_batch)
            with self.module.sections_summed_up():
                for tensors in batches:
                    outputs = self.module.inference(**self.module._get_inference_input(tensors))
                    heads = self.module.read_out(**outputs)
                    logits.append(heads["logit"].cpu())
                    means.append((heads["mean"] * self.module.target_scale + self.module.target_mean).cpu())
        take = self._outputs()
        return tuple(torch.cat(v).numpy().astype(np.float64)[:, take] for v in (logits, means))  # type: ignore[return-value]

    @property
    def _predict_batch(self) -> int:
        if self._batch_size is not None:
            return self._batch_size
        encoder = self.module.encoder
        return min(PREDICT_BATCH, encoder.largest_batch) if isinstance(encoder, MetaboliteEncoder) else PREDICT_BATCH

    def _batches(self, spots: Spots, batch_size: int) -> AnnDataLoader:
        """The spots in batches of tensors, without what is measured."""
        setup, state = self._setup, self.state
        names = pd.RangeIndex(len(spots)).astype(str)  # names of query spots may repeat
        query = panel_data(spots, setup, state, names, state.features.own.selected)
        query.obs[ROW_KEY] = np.arange(len(spots))
        if self._uses_context:
            self._set_context(spots, state.features, [np.arange(len(spots))])
        with quiet():
            manager = AnnDataManager(fields=scvi_fields(query, setup), setup_method_args={})
            manager.register_fields(query, source_registry=self.registry_)
        inputs = [k for k in manager.data_registry if k not in (METABOLITES_KEY, PRESENCE_KEY)]
        return AnnDataLoader(manager, batch_size=batch_size, data_and_attributes=inputs)

    def _outputs(self) -> NDArray[np.int64]:
        """Output of the module that belongs to each metabolite that the model predicts."""
        return np.asarray(self._registered_metabolites().get_indexer(self.state.metabolites))

    def _registered_metabolites(self) -> pd.Index:
        """Ids of the outputs of the module."""
        state = self.registry_["field_registries"][METABOLITES_KEY]["state_registry"]
        return pd.Index([str(c) for c in state["column_names"]])

    def _set_context(self, spots: Spots, features: SpotFeatures, parts: Sequence[NDArray[np.int64]]) -> None:
        """Neighbourhoods or sections of all spots; edges between the parts are cut, as are sections that they share."""
        set_context(self.module, self._hyper["encoder"], spots, features, parts, self._setup.sample_key)

    @property
    def _uses_context(self) -> bool:
        """Whether the encoder sees other spots."""
        encoder = ENCODERS[self._hyper["encoder"]]
        return encoder.uses_graph or encoder.uses_section

    @property
    def _descriptors(self) -> tuple[str, ...]:
        return tuple(self._hyper["encoder_kwargs"].get("descriptors", ()))
