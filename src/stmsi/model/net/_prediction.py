"""How the network predicts: spots in batches of tensors, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader

from stmsi._core.arrays_on_disk import array_like, new_array
from stmsi._core.freed_memory import release_freed
from stmsi._core.metrics.columns import pieces_into
from stmsi._core.parallel import ordered_map
from stmsi._data.checks import listing
from stmsi.model.net._context_genes import set_gene_rings
from stmsi.model.net._metabolite_descriptors import Described
from stmsi.model.net._neighbour_context import set_context
from stmsi.model.net._run import Net
from stmsi.model.net._scvi_fields import ROW_KEY, scvi_fields
from stmsi.model.net._surroundings import quiet, seeded, threads
from stmsi.model.net._training_inputs import panel_data
from stmsi.model.net.encoders import ENCODERS, MetaboliteEncoder
from stmsi.model.net.encoders._metabolite_encoder import Queries
from stmsi.model.net.modules import HurdleModule
from stmsi.model.net.modules._expression import SharedExpression
from stmsi.model.net.modules._hurdle import METABOLITES_KEY, PRESENCE_KEY
from stmsi.model.shared._blocks import read_in_blocks
from stmsi.model.shared._hurdle_model import HurdleModel
from stmsi.model.shared._spot_features import STAGES
from stmsi.model.shared._trained_model import CONTEXT_RINGS

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._setup import Setup
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._stored_input import Input

_LEFT_OVER = 1e5
PREDICT_BATCH = 4096
"""Spots that are predicted at once."""
_STREAMED_BATCH = 1024
"""The same where memory is to stay small: the genes of so many are dense together."""
_RINGS_AT_ONCE = 4096
"""Spots whose rings are in memory at once."""


class NetPrediction(HurdleModel):
    """Prediction of :class:`stmsi.model.HurdleNet`, which says what module and data there are."""

    _several: list[Net]
    """Networks of which `module` is the first; empty where it is the only one."""
    module: HurdleModule
    platt_: NDArray[np.float64] | None
    registry_: dict[str, Any]
    _setup: Setup
    _hyper: dict[str, Any]
    _batch_size: int | None = None  # spots that are predicted at once, where the user said so

    def _forget_data(self) -> None:
        self._adata, self._adata_manager = None, None  # scvi-tools takes no other data away than by new ones

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
        parts = []
        with torch.inference_mode(), quiet(), seeded(self._hyper["rng"]):
            for tensors in self._batches(spots, self._predict_batch):
                of_nets = [self._unseen(net.module, tensors, known) for net in self._nets]
                parts.append(torch.stack(of_nets).mean(dim=0).cpu().numpy())
        return pd.DataFrame(np.vstack(parts), index=spots.names, columns=features.index, dtype=np.float32)

    @staticmethod
    def _unseen(module: HurdleModule, tensors: dict[str, torch.Tensor], known: Described) -> torch.Tensor:
        """Standardised intensity of metabolites that training did not have, shape (spots, metabolites)."""
        module.eval()
        encoder = module.encoder
        assert isinstance(encoder, MetaboliteEncoder)
        queries = encoder.ask_unseen(torch.tensor(known.mz), torch.tensor(known.descriptors))
        at = torch.full((len(known.mz),), -1, device=module.device)
        given = module._get_inference_input(tensors)
        inputs = {k: None if v is None else v.to(module.device) for k, v in given.items()}
        x = module.expression(inputs.pop("x"))  # type: ignore[arg-type]
        return module.generative(**module.embed(x, **inputs, metabolites=at, queries=queries))["mean"]

    def _stages(
        self, spots: Spots, at: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if spots.covariates is not None:
            self.state.features.covariates(spots)  # refuses categories that training did not have
        logit, intensity = (np.asarray(of_stage) for of_stage in self._forward(spots, at))
        assert self.platt_ is not None
        return expit(logit * self.platt_[:, 0] + self.platt_[:, 1]), intensity

    def _forward(self, spots: Spots, at: NDArray[np.int64] | None = None) -> tuple[Any, Any]:
        """Log-odds and intensity given presence of the metabolites that the model predicts; means over its networks.

        Of shape (spots, metabolites), on disk where the expression of the spots is; `at` as for :meth:`_stages`.
        """
        size = PREDICT_BATCH if spots.is_streamed else _RINGS_AT_ONCE if self._sees_gene_rings else len(spots)
        if not spots.is_streamed and len(spots) <= size:
            return self._forward_together(spots, at)
        wanted = np.arange(len(spots)) if at is None else at
        folder, shape = spots.folder if spots.is_streamed else None, (len(wanted), len(self.state.metabolites))
        logit, intensity = (new_array(folder, shape, np.float64) for _ in STAGES)
        batch = min(self._predict_batch, _STREAMED_BATCH) if spots.is_streamed else self._batch_size
        with self._in_batches(batch):
            for block, some in read_in_blocks(spots, self._reach, size, at):
                place = np.searchsorted(wanted, block.rows)
                logit[place], intensity[place] = self._forward_together(some, block.at)
                release_freed()
        return logit, intensity

    def _forward_together(
        self, spots: Spots, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same of spots in memory, or of some of them that are surrounded by the others."""
        nets, metabolites = self._nets, self._registered_metabolites()
        parts: list[list[torch.Tensor]] = [[] for _ in STAGES]
        known = torch.stack([torch.as_tensor(metabolites.isin(net.metabolites)) for net in nets])
        # loaders draw from torch's global generator
        with torch.inference_mode(), quiet(), seeded(self._hyper["rng"]), ExitStack() as stack:
            batches = self._batches(spots, self._predict_batch, rows)
            for net in nets:
                net.module.eval()
                stack.enter_context(net.module.sections_summed_up())
            shared = SharedExpression([net.module.gene_index for net in nets], logged=nets[0].module.logged)
            asked = [net.module.queries() for net in nets]
            # a network that was not trained on a metabolite has no say
            share = known / known.sum(dim=0).clamp(min=1)

            def of_batch(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
                with torch.inference_mode():  # which each thread is told
                    of_nets = [
                        self._read_out(net.module, tensors, log, queries)
                        for net, log, queries in zip(nets, shared.of(tensors), asked, strict=True)
                    ]
                    return [
                        torch.stack([value * own for value, own in zip(values, share, strict=True)]).sum(dim=0)
                        for values in zip(*of_nets, strict=True)
                    ]

            # a batch a thread: threads that share each product would wait for one another
            n_threads = min(self._n_threads, max(len(batches), 1))
            stack.enter_context(threads(max(self._n_threads // n_threads, 1)))
            for made in ordered_map(of_batch, batches, n_threads):
                for part, values in zip(parts, made, strict=True):
                    part.append(values)
        take = self._outputs()
        return tuple(torch.cat(v).numpy().astype(np.float64)[:, take] for v in parts)  # type: ignore[return-value]

    @staticmethod
    def _read_out(
        module: HurdleModule, tensors: dict[str, torch.Tensor], log: torch.Tensor, queries: Queries | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds and intensity of a batch, of which the log expression of the genes used is there."""
        given = module._get_inference_input(tensors) | {"x": None}
        inputs = {name: value.to(module.device) for name, value in given.items() if value is not None}
        outputs = module.embed(module.standardise(log.to(module.device)), **inputs, queries=queries)
        heads = module.read_out(**outputs)
        return heads["logit"].cpu(), (heads["mean"] * module.target_scale + module.target_mean).cpu()

    def _rough_map(self, logit: Any, intensity: Any) -> Any:
        """Both stages as one number before they are calibrated, shape (spots, metabolites); on disk where they are."""
        # a class-balanced loss puts log-odds of 0 at the prevalence
        shift = np.log(self._positive_weight())
        return pieces_into(
            array_like(logit, np.float64), lambda o, i, s: expit(o - s) * np.maximum(i, 0), logit, intensity, shift
        )

    def _positive_weight(self) -> NDArray[np.float64]:
        """Weight of spots with each metabolite in the loss of presence, mean over the networks that know it."""
        metabolites, at, weights = self.state.metabolites, self._outputs(), []
        for net in self._nets:
            weight = net.module.positive_weight.cpu().numpy().astype(np.float64)[at]
            weights.append(np.where(metabolites.isin(net.metabolites), np.log(weight), np.nan))
        return np.asarray(np.exp(np.nanmean(weights, axis=0)))

    def _used_genes(self) -> NDArray[np.int64]:
        if not self._several:
            return super()._used_genes()
        # places left over where fewer genes vary than the network has room for have a huge scale
        used = [net.module.gene_index[net.module.gene_scale < _LEFT_OVER].cpu().numpy() for net in self._several]
        return np.unique(np.concatenate(used)).astype(np.int64)

    def _adopt(self, nets: Sequence[Net]) -> None:
        """Be the mean of these networks."""
        self.module = nets[0].module
        self._several = list(nets) if len(nets) > 1 else []

    @property
    def _nets(self) -> list[Net]:
        """The networks, or the only one."""
        return self._several or [Net(self.module, self.state.features, self.state.metabolites)]

    @property
    def _predict_batch(self) -> int:
        if self._batch_size is not None:
            return self._batch_size
        encoders = [net.module.encoder for net in self._nets]
        return min([PREDICT_BATCH, *(e.largest_batch for e in encoders if isinstance(e, MetaboliteEncoder))])

    def _batches(self, spots: Spots, batch_size: int, rows: NDArray[np.int64] | None = None) -> AnnDataLoader:
        """The spots in batches of tensors, without what is measured; `rows`: some of them, which see all others."""
        setup, state = self._setup, self.state
        names = pd.RangeIndex(len(spots)).astype(str)  # names of query spots may repeat
        query = panel_data(spots, setup, state, names, state.features.own.selected)
        query.obs[ROW_KEY] = np.arange(len(spots))
        query = query if rows is None else query[rows].copy()
        if self._sees_gene_rings:  # which are made of these spots alone
            query.obs[ROW_KEY] = np.arange(query.n_obs)
        modules = [net.module for net in self._nets]
        if self._sees_gene_rings:
            assert spots.graph is not None
            set_gene_rings(modules, spots, spots.graph, rows)
        elif self._uses_context:
            for net in self._nets:
                self._set_context(net.module, spots, net.features, [np.arange(len(spots))])
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

    def _set_context(
        self, module: HurdleModule, spots: Spots, features: SpotFeatures, parts: Sequence[NDArray[np.int64]]
    ) -> None:
        """Neighbourhoods or sections of all spots; edges between the parts are cut, as are sections that they share."""
        set_context(module, self._hyper["encoder"], spots, features, parts, self._setup.sample_key)

    @property
    def _uses_context(self) -> bool:
        """Whether the encoder sees other spots."""
        encoder = ENCODERS[self._hyper["encoder"]]
        with_graph = self.registry_["setup_args"].get("graph_key") is not None
        return (encoder.uses_graph and with_graph) or encoder.uses_section

    @property
    def _sees_gene_rings(self) -> bool:
        """Whether the encoder sees the genes of the rings around a spot."""
        return self._uses_context and bool(self.module.encoder.n_rings)

    @property
    def _n_threads(self) -> int:
        return torch.get_num_threads() if self.module.device.type == "cpu" else 1

    @property
    def _reach(self) -> int | None:
        if not self._uses_context:
            return super()._reach
        encoder = ENCODERS[self._hyper["encoder"]]
        return None if encoder.uses_section else max(CONTEXT_RINGS, self.module.encoder.n_hops)

    @property
    def _sees_components(self) -> bool:
        """Whether the encoder sees other spots by their components."""
        encoder = ENCODERS[self._hyper["encoder"]]
        return self._uses_context and not encoder.n_rings and not encoder.sees_genes

    @property
    def _descriptors(self) -> tuple[str, ...]:
        return tuple(self._hyper["encoder_kwargs"].get("descriptors", ()))
