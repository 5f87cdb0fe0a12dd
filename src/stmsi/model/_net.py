"""Two-stage prediction with a neural network: a scvi-tools model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import EarlyStopping
from scipy.special import expit
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.dataloaders import AnnDataLoader
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin

from stmsi._core.expression import column_moments, log_normalize
from stmsi._core.folds import inner_groups
from stmsi._core.graphs import neighbour_rings, relative_positions
from stmsi._core.hurdle import ResidualQuantiles
from stmsi._keys import Key
from stmsi._logging import logger
from stmsi._settings import settings
from stmsi._validate import check_choice, listing, require_anndata, require_sample
from stmsi.model._base import (
    MIN_GENES,
    FittedState,
    HurdleModel,
    Targets,
    drop_unmeasured,
    read_targets,
    signature_of,
    start_state,
    summarise_training,
    training_rows,
)
from stmsi.model._callbacks import KeepBestWeights
from stmsi.model._features import SpotFeatures
from stmsi.model._fields import OptionalObsmField
from stmsi.model._metabolites import Described, gene_prior, training_metabolites
from stmsi.model._presence import platt
from stmsi.model._setup import Setup
from stmsi.model._spots import Spots, read_spots
from stmsi.model.encoders import ENCODERS, MetaboliteEncoder
from stmsi.model.modules import HurdleModule
from stmsi.model.modules._hurdle import CLUSTER_KEY, METABOLITES_KEY, PRESENCE_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

_PREDICT_BATCH = 4096
_MIN_EVIDENCE = 10
"""Held-out spots with, and without, a metabolite that its calibration needs."""
_COMPONENTS = 50
"""Components of the space in which clusters are assigned and out-of-distribution spots found."""
_CONTEXT_COMPONENTS = 128
"""Components in which encoders see a spot's neighbourhood."""
_ROW_KEY = "_indices"
"""Column of ``obs`` with the row of each spot, as scvi-tools calls it."""


class HurdleNet(HurdleModel, UnsupervisedTrainingMixin, BaseModelClass):
    """Presence and intensity of all metabolites from one network.

    An encoder embeds the spot; one head gives the log-odds of presence (it also sees the signature mask of the spot's
    cluster), another the intensity given presence. The loss is a class-balanced cross-entropy plus the squared error
    of the standardised intensity where present; entries without MSI never count. Training stops early on whole held-out
    sections (spatial blocks where there are fewer than three), keeps the weights that were best there, and calibrates
    probabilities, thresholds and intervals on them.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    registry
        Used by scvi-tools when a model is loaded without data.
    encoder
        What turns a spot into an embedding. ``"mlp"``: the spot by itself. ``"transformer"``: metabolites attend to the
        genes of the spot (see :func:`stmsi.tl.attention`). With the neighbours of ``graph_key``:
        ``"graph"`` (the spot, corrected by graph convolutions over two rings, as SEPAL does), ``"deepset"`` (the spot and
        the maximum over its neighbours, as DeepSpot does), ``"niche"`` (self-attention over the spot and its rings, as
        NicheTrans does).
    n_top_genes
        Most variable genes (over the training spots) that are used.
    intensity_weight
        Weight of the intensity loss beside the presence loss.
    encoder_kwargs
        Options of the encoder. ``"mlp"``: ``n_hidden``, ``n_layers``, ``dropout``, ``input_dropout``; ``"graph"``:
        ``n_hidden``, ``n_graph``, ``n_layers``, ``dropout``, ``input_dropout``; ``"deepset"``: ``n_hidden``, ``dropout``; ``"niche"``: ``n_hidden``, ``n_heads``, ``dropout``, ``neighbour_dropout``.
        ``"transformer"``: ``tokens`` (``"programmes"``: learned groups of genes, or ``"genes"``), ``n_tokens``
        (programmes), ``attention`` (``"softmax"`` or ``"linear"``), ``n_hidden``, ``n_heads``, ``dropout``,
        ``input_dropout``, ``query_dropout`` (share of metabolites that are asked for by m/z and descriptors alone in a
        step) and ``descriptors`` (numeric columns of the feature table beside ``mz``).
    prior_key
        For ``"transformer"``: DataFrame genes x metabolites in ``varm`` (boolean or weights) of genes that are known to
        belong to a metabolite. It attends to them more, how much more is learned. Metabolites that it lacks have none.
    rng
        Seed. On a CPU the same seed gives the same bits.

    Raises
    ------
    ValueError
        Unknown encoder, or an AnnData that is not set up.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> model = stmsi.model.HurdleNet(st, encoder="mlp")
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> model.predict().shape
    (344, 12)
    """

    _module_cls = HurdleModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        encoder: str = "mlp",
        n_top_genes: int = 2000,
        intensity_weight: float = 1.0,
        encoder_kwargs: dict[str, Any] | None = None,
        prior_key: str | None = None,
        rng: int = 0,
    ) -> None:
        check_choice(encoder, ENCODERS, "encoder")
        if prior_key is not None and not issubclass(ENCODERS[encoder], MetaboliteEncoder):
            msg = f'encoder={encoder!r} has no attention that a prior could guide; use encoder="transformer" or no prior_key.'
            raise ValueError(msg)
        if adata is not None:
            self._setup = Setup.read(adata, type(self).__name__)
            if self._setup.graph_key is not None and not ENCODERS[encoder].uses_graph:
                with_graph = listing(name for name, kind in ENCODERS.items() if kind.uses_graph)
                msg = (
                    f"encoder={encoder!r} reads no neighbourhood; set up without graph_key, or use one of {with_graph}."
                )
                raise ValueError(msg)
            if self._setup.graph_key is None and ENCODERS[encoder].uses_graph:
                msg = (
                    f"encoder={encoder!r} reads the neighbourhood: call stmsi.pp.spatial_graph(adata), then "
                    f'setup_anndata(adata, graph_key="{Key.obsp.CONNECTIVITIES}").'
                )
                raise ValueError(msg)
            if self._setup.feature_key:
                msg = (
                    "HurdleNet reads genes and covariates only; set up without feature_key, name single numbers in "
                    "covariate_keys, or use HurdleLinear."
                )
                raise ValueError(msg)
            if issubclass(ENCODERS[encoder], MetaboliteEncoder):  # bad input is refused before training begins
                training_metabolites(adata, self._setup, (encoder_kwargs or {}).get("descriptors", ()))
                if prior_key is not None:
                    gene_prior(adata, self._setup, prior_key)
        BaseModelClass.__init__(self, adata, registry)
        self._hyper: dict[str, Any] = {
            "encoder": encoder,
            "n_top_genes": n_top_genes,
            "intensity_weight": intensity_weight,
            "encoder_kwargs": dict(encoder_kwargs or {}),
            "prior_key": prior_key,
            "rng": rng,
        }
        self.module = self._new_module()
        self.platt_: NDArray[np.float64] | None = None
        self.init_params_ = self._get_init_params(locals())

    def _new_module(self) -> HurdleModule:
        """A module with fresh weights, the same for the same seed."""
        stats = self.summary_stats
        covariates = self.registry_["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        with _seeded(self._hyper["rng"]):
            return self._module_cls(
                n_selected=min(self._hyper["n_top_genes"], stats.n_vars),
                n_metabolites=stats[f"n_{METABOLITES_KEY}"],
                n_clusters=int(stats.get(f"n_{CLUSTER_KEY}", 0)),
                n_cats_per_cov=tuple(int(n) for n in covariates.get("n_cats_per_key", ())),
                n_continuous=int(stats.get("n_extra_continuous_covs", 0)),
                n_components=_CONTEXT_COMPONENTS if self._uses_graph else 0,
                encoder=self._hyper["encoder"],
                intensity_weight=self._hyper["intensity_weight"],
                encoder_kwargs=self._hyper["encoder_kwargs"],
                has_prior=self._hyper["prior_key"] is not None,
            )

    @property
    def _uses_graph(self) -> bool:
        return ENCODERS[self._hyper["encoder"]].uses_graph

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        metabolite_key: str = Key.obsm.MSI,
        presence_key: str | None = None,
        signature_key: str | None = None,
        cluster_key: str | None = None,
        sample_key: str = Key.obs.SAMPLE,
        graph_key: str | None = None,
        covariate_keys: Sequence[str] | None = None,
        feature_key: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say which fields of an AnnData the model uses.

        Parameters
        ----------
        adata
            Spots x genes.
        layer
            Layer with raw counts; `None`: ``X``.
        metabolite_key
            Intensities in ``obsm`` (DataFrame; NaN where not covered).
        presence_key
            Presence in ``obsm``; `None`: present where the intensity is above 0.
        signature_key, cluster_key
            Signature in ``varm`` and clusters in ``obs``, as :func:`stmsi.pp.gene_signatures` writes them. Spots of
            other data are assigned to the nearest training cluster.
        sample_key
            Section of each spot in ``obs``.
        graph_key
            Neighbourhood graph in ``obsp``, for encoders that read it.
        covariate_keys
            Columns of ``obs``: numbers are z-scored, categories become indicators.
        feature_key
            Further features in ``obsm``. No encoder reads them yet: :class:`~stmsi.model.HurdleLinear` does.
        **kwargs
            For scvi-tools, which replays the setup when a model is loaded.

        Returns
        -------
        `None`. Writes the names into ``uns["_stmsi_setup"]`` and, as scvi-tools does, ``uns["_scvi_uuid"]``,
        ``uns["_scvi_manager_uuid"]``, ``_scvi_*`` columns for clusters and covariates and, with a graph, ``obs["_indices"]``.

        Raises
        ------
        KeyError
            A field is not there.
        ValueError
            A view, an empty table, duplicate names, negative or infinite intensities, a dask array of sparse pieces.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        require_anndata(adata)
        counts = adata.X if layer is None else adata.layers.get(layer)
        if sp.issparse(getattr(counts, "_meta", None)):
            name = "X" if layer is None else f"layers[{layer!r}]"
            msg = (
                f"{name} is a dask array of sparse pieces, which cannot be read in batches; load it: "
                f"adata.{name} = adata.{name}.compute()."
            )
            raise ValueError(msg)
        setup = Setup.create(
            adata, layer=layer, metabolite_key=metabolite_key, presence_key=presence_key, signature_key=signature_key,
            cluster_key=cluster_key, sample_key=sample_key, graph_key=graph_key, covariate_keys=covariate_keys,
            feature_key=feature_key,
        )  # fmt: skip
        if setup.graph_key is not None:
            adata.obs[_ROW_KEY] = np.arange(adata.n_obs)
        with _quiet():
            manager = AnnDataManager(fields=_fields(adata, setup), setup_method_args=setup_method_args)
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def train(  # type: ignore[override]
        self,
        train_idx: ArrayLike | None = None,
        validation_idx: ArrayLike | None = None,
        *,
        max_epochs: int = 150,
        early_stopping: bool = True,
        patience: int = 20,
        batch_size: int = 128,
        lr: float = 3e-3,
        weight_decay: float = 1e-3,
        refit: bool = True,
        n_threads: int = 1,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        show_progress_bar: bool | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train both stages together.

        Parameters
        ----------
        train_idx
            Spots to train on (positions or mask); `None`: all with MSI that are not in `validation_idx`.
        validation_idx
            Spots for early stopping, thresholds and intervals; `None`: one group of whole sections (a spatial block of
            each section where there are fewer than three) is taken out of the training spots.
        max_epochs
            Passes over the training spots at most.
        early_stopping
            Stop when the validation loss has not fallen for `patience` epochs.
        patience
            See `early_stopping`.
        batch_size
            Spots in a step.
        lr, weight_decay
            Of AdamW.
        refit
            Where the validation spots were taken out of the training spots: train once more on all of them, from the
            start, for as many epochs as were best. Calibration stays that of the held-out spots.
        n_threads
            CPU threads of torch. The steps are small, so that on a busy machine more threads cost up to ten times
            what they bring; one also makes sums independent of the machine.
        accelerator, devices
            As for Lightning.
        show_progress_bar
            `None` follows ``stmsi.settings.progress_bar``.
        plan_kwargs
            Passed on to :class:`scvi.train.TrainingPlan`.
        **trainer_kwargs
            Passed on to :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            No training spot has MSI, or none is left for validation.
        """
        if self.adata is None:
            msg = "The model was loaded without data and cannot be trained; make a new one from the AnnData."
            raise ValueError(msg)
        setup = self._setup
        spots, targets = read_spots(self.adata, setup), read_targets(self.adata, setup)
        rows, validation = training_rows(targets, train_idx, validation_idx)
        given = validation is not None
        if validation is None:
            sample = require_sample(self.adata, setup.sample_key)[rows]
            xy = None if spots.xy is None else spots.xy[rows]
            held_out = inner_groups(sample, xy, seed=self._hyper["rng"]) == 0
            rows, validation = rows[~held_out], rows[held_out]
        plan_kwargs = {"optimizer": "AdamW", "lr": lr, "weight_decay": weight_decay} | (plan_kwargs or {})
        options = {
            "accelerator": accelerator, "devices": devices, "n_threads": n_threads, "batch_size": batch_size, "plan_kwargs": plan_kwargs,
            "enable_progress_bar": settings.progress_bar if show_progress_bar is None else show_progress_bar,
            **trainer_kwargs,
        }  # fmt: skip
        best = KeepBestWeights()
        callbacks = [best, *options.pop("callbacks", [])]
        # Lightning's own, as that of scvi-tools prints its verdict past every logger
        stop = [EarlyStopping("validation_loss", patience=patience)] if early_stopping else []
        self._fit(
            spots, targets, rows, validation, max_epochs=max_epochs, check_val_every_n_epoch=1,
            callbacks=[*callbacks, *stop], **options,
        )  # fmt: skip
        logger.info(
            "Best validation loss in epoch %d of %d.", best.best_epoch + 1, len(self.history["validation_loss"])
        )
        best.restore(self.module)
        self._fit_calibration(spots.take(validation), targets, rows, validation)
        if not given and refit:
            history, calibrated = self.history, self.state
            rows = np.sort(np.concatenate([rows, validation]))
            self._fit(
                spots, targets, rows, rows[:0], max_epochs=best.best_epoch + 1, callbacks=callbacks[1:], **options
            )
            self._carry_over(calibrated)
            self.history_ = history
        self.module.eval()
        self.state.training = summarise_training(self.adata, setup, rows) | {"epochs": best.best_epoch + 1}

    def _fit(
        self,
        spots: Spots,
        all_targets: Targets,
        rows: NDArray[np.int64],
        validation: NDArray[np.int64],
        *,
        batch_size: int,
        n_threads: int,
        **options: Any,
    ) -> None:
        """Train fresh weights on some spots; sets the module and the state, but nothing that needs calibration."""
        assert self.adata is not None
        setup = self._setup
        targets, train = drop_unmeasured(all_targets, rows), spots.take(rows)
        labels, signature = signature_of(self.adata, setup)
        n_components = _CONTEXT_COMPONENTS if self._uses_graph else _COMPONENTS
        features = SpotFeatures(self._hyper["n_top_genes"], n_components, self._hyper["rng"])
        features.fit(replace(train, graph=None), labels, signature)
        mean_log, _ = column_moments(log_normalize(train.counts))
        self.module = self._new_module()
        self._set_buffers(features, labels, signature, targets, all_targets.metabolites.isin(targets.metabolites))
        rest = np.setdiff1d(np.arange(self.adata.n_obs), np.concatenate([rows, validation]))
        if self._uses_graph:
            self._set_context(spots, features, [rows, validation, rest])
        # one or two spots left over for the last step would make its gradient noise
        while 0 < len(rows) % batch_size < 3 and len(rows) > batch_size:
            batch_size += 1
        with _seeded(self._hyper["rng"]), _quiet(), _threads(n_threads):
            UnsupervisedTrainingMixin.train(
                self,
                batch_size=batch_size,
                datasplitter_kwargs={"external_indexing": [rows, validation, rest]},
                **options,
            )
        self.module.eval()
        self.state_ = start_state(self.adata, setup, targets, features, mean_log)

    def _carry_over(self, calibrated: FittedState) -> None:
        """Calibration of the run with held-out spots for the one on all spots, metabolite by metabolite."""
        state = self.state
        at = calibrated.metabolites.get_indexer(state.metabolites)
        kept = at >= 0
        if not kept.all():  # measured only in the spots that were held out: nothing is known of them
            state.metabolites, state.feature_table = state.metabolites[kept], state.feature_table.loc[kept]
            at = at[kept]
        assert self.platt_ is not None
        assert calibrated.residuals is not None
        self.platt_ = self.platt_[at]
        state.threshold, state.spread = calibrated.threshold[at], calibrated.spread[at]
        old = calibrated.residuals
        state.residuals = ResidualQuantiles(old.levels, old.values[:, :, at], old.count[:, at])
        state.feature_table = calibrated.feature_table.iloc[at]

    def _set_buffers(
        self,
        features: SpotFeatures,
        labels: NDArray[Any] | None,
        signature: NDArray[np.bool_] | None,
        targets: Targets,
        keep: NDArray[np.bool_],
    ) -> None:
        """Statistics of the training spots that the module normalises with."""
        module = self.module
        present = targets.where_present()
        count = np.maximum((~np.isnan(present)).sum(axis=0), 1)
        mean = np.nansum(present, axis=0) / count
        scale = np.sqrt(np.nansum((present - mean) ** 2, axis=0) / count)
        n1, n0 = _counts(targets.presence)
        full = {name: np.full(len(keep), fill) for name, fill in (("mean", 0.0), ("scale", 1.0), ("weight", 1.0))}
        full["mean"][keep] = mean
        full["scale"][keep] = np.where(scale > 1e-6, scale, 1.0)
        full["weight"][keep] = np.where((n1 > 0) & (n0 > 0), np.clip(n0 / np.maximum(n1, 1), 0.05, 20), 1.0)
        index = np.zeros(len(module.gene_index), np.int64)
        gene_mean, gene_scale = np.zeros(len(index)), np.full(len(index), 1e6)  # slots left over stay near 0
        n = len(features.own.selected)
        index[:n], gene_mean[:n], gene_scale[:n] = features.own.selected, features.own.mean, features.own.scale
        values = {
            "gene_index": index, "gene_mean": gene_mean, "gene_scale": gene_scale,
            "target_mean": full["mean"], "target_scale": full["scale"], "positive_weight": full["weight"],
        }  # fmt: skip
        numbers = [v for v in features.categories.values() if isinstance(v, tuple)]
        if numbers:
            values |= {"covariate_mean": np.array([v[0] for v in numbers])}
            values |= {"covariate_scale": np.array([v[1] for v in numbers])}
        if labels is not None and signature is not None:
            order = [list(labels).index(str(c)) for c in self._cluster_categories()]
            mask = signature[order][:, index].astype(np.float32)
            mask[:, n:] = 0
            values["signature"] = mask
        module.set_buffers(**values)
        if isinstance(module.encoder, MetaboliteEncoder):
            self._describe(module.encoder, features)

    def _describe(self, encoder: MetaboliteEncoder, features: SpotFeatures) -> None:
        """What an encoder of one embedding per metabolite starts from."""
        assert self.adata is not None
        known = training_metabolites(self.adata, self._setup, self._descriptors)
        prior = None
        if self._hyper["prior_key"] is not None:
            weight = gene_prior(self.adata, self._setup, self._hyper["prior_key"])[:, features.own.selected]
            prior = torch.zeros(len(weight), len(self.module.gene_index))
            prior[:, : weight.shape[1]] = torch.as_tensor(weight)
        encoder.describe(torch.as_tensor(known.mz), torch.as_tensor(known.descriptors), prior)
        space = features.own
        loadings = space.components * space.deviation[:, None] / space.scale
        with _seeded(self._hyper["rng"]):
            encoder.initialise(torch.as_tensor(loadings), self._hyper["rng"])

    @property
    def _descriptors(self) -> tuple[str, ...]:
        return tuple(self._hyper["encoder_kwargs"].get("descriptors", ()))

    def _set_context(self, spots: Spots, features: SpotFeatures, parts: Sequence[NDArray[np.int64]]) -> None:
        """Neighbourhoods of all spots; edges between the parts are cut."""
        assert spots.graph is not None
        part = np.zeros(len(spots), np.int64)
        for number, rows in enumerate(parts):
            part[rows] = number
        edges = spots.graph.tocoo()
        inside = part[edges.row] == part[edges.col]
        cut = sp.csr_matrix((edges.data[inside], (edges.row[inside], edges.col[inside])), shape=edges.shape)
        index, ring = neighbour_rings(cut)
        if spots.xy is None and ENCODERS[self._hyper["encoder"]].uses_positions:
            msg = f'encoder={self._hyper["encoder"]!r} needs the positions of the spots in obsm["{Key.obsm.SPATIAL}"].'
            raise KeyError(msg)
        offset = np.zeros((*index.shape, 2), np.float32)
        if spots.xy is not None:
            offset = relative_positions(spots.xy, index, ring)
        components = features.components(spots)
        padded = np.zeros((len(spots), _CONTEXT_COMPONENTS), np.float32)  # few training spots have fewer components
        padded[:, : components.shape[1]] = components
        self.module.set_context(padded, index, ring, offset)

    def _cluster_categories(self) -> list[str]:
        state = self.registry_["field_registries"][CLUSTER_KEY]["state_registry"]
        return [str(c) for c in state["categorical_mapping"]]

    def predict_unseen(
        self, features: pd.DataFrame, adata: AnnData | None = None, *, min_genes: float = MIN_GENES
    ) -> pd.DataFrame:
        """Pattern of metabolites that training did not have, from their m/z and descriptors: an experiment.

        For ``encoder="transformer"`` with ``encoder_kwargs={"query_dropout": 0.1}`` or so: without it, training never asks
        for a metabolite by what is known of it alone. Nothing is known of how much of such a metabolite there is, so that it has no
        presence, no unit and no interval: only where there should be more and where less. Whether that can be believed, must be
        tried with metabolites left out; see the page on interpretation in the user guide.

        Parameters
        ----------
        features
            One row per metabolite, its id as index: ``mz`` (Da; NaN where unknown) and the ``descriptors`` of the model.
        adata, min_genes
            As for :meth:`predict_presence`.

        Returns
        -------
        DataFrame spots x metabolites, float32: intensity given presence in standard deviations from its mean, on the scale on
        which the model learns all metabolites.

        Raises
        ------
        ValueError
            Another encoder, no ``query_dropout``, or neither m/z nor descriptors are known of a metabolite.
        KeyError
            A descriptor is not there.
        """
        state, encoder = self.state, self.module.encoder
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
        known = Described.read(features, self._descriptors, "features")
        unknown = np.isnan(known.mz) & np.isnan(known.descriptors).all(axis=1)
        if unknown.any():
            msg = f"Nothing is known of {listing(features.index[unknown])}: give each an 'mz' in Da."
            raise ValueError(msg)
        own = adata is None or adata is self.adata
        if own and self.adata is None:
            msg = "The model was loaded without data; pass the AnnData to predict."
            raise ValueError(msg)
        spots = read_spots(
            self.adata if own else adata, state.setup, state.panel, min_genes=min_genes, with_cluster=own,  # type: ignore[arg-type]
        )  # fmt: skip
        device = self.module.device
        parts = []
        self.module.eval()
        with torch.inference_mode(), _quiet(), _seeded(self._hyper["rng"]):
            queries = encoder.ask_unseen(torch.as_tensor(known.mz), torch.as_tensor(known.descriptors))
            at = torch.full((len(features),), -1, device=device)
            for tensors in self._batches(spots, self._predict_batch):
                given = self.module._get_inference_input(tensors)
                inputs = {k: None if v is None else v.to(device) for k, v in given.items()}
                x = self.module.expression(inputs.pop("x"))  # type: ignore[arg-type]
                embedded = self.module.embed(x, **inputs, metabolites=at, queries=queries)
                parts.append(self.module.generative(**embedded)["mean"].cpu().numpy())
        return pd.DataFrame(np.vstack(parts), index=spots.names, columns=features.index, dtype=np.float32)

    def _fit_calibration(
        self, spots: Spots, all_targets: Targets, rows: NDArray[np.int64], validation: NDArray[np.int64]
    ) -> None:
        """Platt's sigmoid of each metabolite, thresholds and intervals from the validation spots."""
        keep = all_targets.metabolites.isin(self.state.metabolites)
        targets = Targets(
            all_targets.intensity[validation][:, keep],
            all_targets.presence[validation][:, keep],
            self.state.metabolites,
        )
        logit, intensity = self._forward(spots)
        self.platt_ = np.array([platt(s, p) for s, p in zip(logit.T, targets.presence.T, strict=True)])
        # A sigmoid and a threshold fitted to a handful of spots are noise. The logits of a class-balanced loss, shifted
        # by the base rate of the training spots, are the better guess; where training has one class only, so is that.
        n1, n0 = _counts(targets.presence)
        trained1, trained0 = _counts(all_targets.presence[rows][:, keep])
        few = (n1 < _MIN_EVIDENCE) | (n0 < _MIN_EVIDENCE)
        one_class = few & ((trained1 == 0) | (trained0 == 0))
        shift = few & ~one_class
        weight = self.module.positive_weight.cpu().numpy().astype(np.float64)[keep]
        self.platt_[shift] = np.column_stack([np.ones(len(weight)), -np.log(weight)])[shift]
        odds = np.log((trained1 + n1 + 1) / (trained0 + n0 + 1))
        self.platt_[one_class] = np.column_stack([np.full(len(odds), 1e-6), odds])[one_class]
        self._calibrate(targets, expit(logit * self.platt_[:, 0] + self.platt_[:, 1]), intensity, shift)

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
        with (
            torch.inference_mode(),
            _quiet(),
            _seeded(self._hyper["rng"]),
        ):  # loaders draw from torch's global generator
            for tensors in self._batches(spots, self._predict_batch):
                outputs = self.module.inference(**self.module._get_inference_input(tensors))
                heads = self.module.generative(**outputs)
                logits.append(heads["logit"].cpu())
                means.append((heads["mean"] * self.module.target_scale + self.module.target_mean).cpu())
        take = self._outputs()
        return tuple(torch.cat(v).numpy().astype(np.float64)[:, take] for v in (logits, means))  # type: ignore[return-value]

    @property
    def _predict_batch(self) -> int:
        encoder = self.module.encoder
        return min(_PREDICT_BATCH, encoder.largest_batch) if isinstance(encoder, MetaboliteEncoder) else _PREDICT_BATCH

    def _batches(self, spots: Spots, batch_size: int) -> AnnDataLoader:
        """The spots in batches of tensors, without what is measured."""
        setup, state = self._setup, self.state
        index = pd.RangeIndex(len(spots)).astype(str)  # names of query spots may repeat
        obs = pd.DataFrame(index=index) if spots.covariates is None else spots.covariates.set_axis(index)
        if setup.cluster_key is not None:
            clusters = state.features.clusters
            assert clusters is not None
            obs[setup.cluster_key] = clusters.labels[state.features.cluster_codes(spots)]
        if setup.graph_key is not None:
            obs[_ROW_KEY] = np.arange(len(spots))
            self._set_context(spots, state.features, [np.arange(len(spots))])
        query = AnnData(spots.counts, obs=obs)
        query.var_names = [str(n) for n in state.panel.names["var_names"]]
        if setup.layer is not None:
            query.layers[setup.layer] = query.X
        with _quiet():
            manager = AnnDataManager(fields=_fields(query, setup), setup_method_args={})
            manager.register_fields(query, source_registry=self.registry_)
        inputs = [k for k in manager.data_registry if k not in (METABOLITES_KEY, PRESENCE_KEY)]
        return AnnDataLoader(manager, batch_size=batch_size, data_and_attributes=inputs)

    def _outputs(self) -> NDArray[np.int64]:
        """Output of the module that belongs to each metabolite that the model predicts."""
        columns = [
            str(c) for c in self.registry_["field_registries"][METABOLITES_KEY]["state_registry"]["column_names"]
        ]
        return np.asarray(pd.Index(columns).get_indexer(self.state.metabolites))

    def _write(self, directory: Path) -> None:
        BaseModelClass.save(self, str(directory), overwrite=True)

    @classmethod
    def _read(cls, directory: Path, adata: AnnData | None) -> HurdleNet:
        model = BaseModelClass.load.__func__(cls, str(directory), adata=False if adata is None else adata)  # type: ignore[attr-defined]
        model._setup = model.state.setup
        return model

    def _contains_training_profiles(self) -> bool:
        return False

    @classmethod
    def _reads_graph(cls, params: Mapping[str, Any]) -> bool:
        return ENCODERS[params.get("encoder", "mlp")].uses_graph

    def _params(self) -> dict[str, Any]:
        return dict(self._hyper)

    __repr__ = HurdleModel.__repr__


def _fields(adata: AnnData, setup: Setup) -> list[Any]:
    """The fields of the setup, as scvi-tools registers them."""
    fields: list[Any] = [
        LayerField(REGISTRY_KEYS.X_KEY, setup.layer, is_count_data=False),
        OptionalObsmField(METABOLITES_KEY, setup.metabolite_key),
    ]
    if setup.presence_key is not None:
        fields.append(OptionalObsmField(PRESENCE_KEY, setup.presence_key))
    if setup.graph_key is not None:
        fields.append(NumericalObsField(REGISTRY_KEYS.INDICES_KEY, _ROW_KEY))
    if setup.cluster_key is not None:
        fields.append(CategoricalObsField(CLUSTER_KEY, setup.cluster_key))
    numeric = [k for k in setup.covariate_keys if _is_number(adata.obs[k])]
    categorical = [k for k in setup.covariate_keys if k not in numeric]
    if categorical:
        fields.append(CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical))
    if numeric:
        fields.append(NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, numeric))
    return fields


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _counts(presence: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spots with, and without, each metabolite; NaN counts as neither."""
    return (presence > 0).sum(axis=0), (presence == 0).sum(axis=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without scvi-tools' and Lightning's notes on columns, workers and accelerators, which ask nothing of a user."""
    logs = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message="Category .* has fewer than")
            # said of every query that holds few spots of a cluster, which does no harm
            warnings.filterwarnings("ignore", message=".*has fewer than 3 cells")
            # pandas 3 hands out read-only arrays; nothing here writes into a batch
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Torch limited to some threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's generators seeded inside, as they were outside."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
