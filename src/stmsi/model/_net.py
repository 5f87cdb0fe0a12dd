"""Two-stage prediction with a neural network: a scvi-tools model."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback, EarlyStopping
from scipy.special import expit
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
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
from stmsi._validate import check_choice, listing, require_anndata, require_sample, require_unique
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
from stmsi.model._callbacks import AverageWeights, KeepBestWeights
from stmsi.model._features import SpotFeatures
from stmsi.model._fields import OptionalObsmField
from stmsi.model._net_parts import (
    check_checkpoint,
    linear_path,
    measured_data,
    merge_calibration,
    panel_data,
    section_moments,
    setup_arguments,
    some_metabolites,
    target_moments,
)
from stmsi.model._persist import save_model
from stmsi.model._presence import platt
from stmsi.model._setup import Setup
from stmsi.model._spots import Spots, read_spots
from stmsi.model.encoders import ENCODERS
from stmsi.model.modules import HurdleModule
from stmsi.model.modules._hurdle import CLUSTER_KEY, FEATURES_KEY, METABOLITES_KEY, PRESENCE_KEY, Stage
from stmsi.model.modules._losses import INTENSITY_LOSSES, PRESENCE_LOSSES, IntensityLoss, PresenceLoss

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_PREDICT_BATCH = 4096
_MIN_EVIDENCE = 10
"""Held-out spots with, and without, a metabolite that its calibration needs."""
_COMPONENTS = 50
"""Components of the space in which clusters are assigned and out-of-distribution spots found."""
_CONTEXT_COMPONENTS = 128
"""Components in which encoders see a spot's neighbourhood."""
_DECAY = 0.98
"""Of averaged weights: they reach back some 50 steps."""
_ROW_KEY = "_indices"
"""Column of ``obs`` with the row of each spot, as scvi-tools calls it."""


class HurdleNet(HurdleModel, UnsupervisedTrainingMixin, BaseModelClass):
    """Presence and intensity of all metabolites from one network.

    An encoder embeds the spot; one head gives the log-odds of presence (it also sees the signature mask of the spot's
    cluster), another the intensity given presence. The loss is a class-balanced cross-entropy plus the squared error
    of the standardised intensity where present (or others, see below); entries without MSI never count. Training stops early on whole held-out
    sections (spatial blocks where there are fewer than three), keeps the weights that were best there, and calibrates
    probabilities, thresholds and intervals on them.

    Parameters
    ----------
    adata
        Spots x genes after :meth:`setup_anndata`.
    registry
        Used by scvi-tools when a model is loaded without data.
    encoder
        What turns a spot into an embedding. ``"mlp"``: the spot by itself. With the neighbours of ``graph_key``:
        ``"graph"`` (the spot, corrected by graph convolutions over two rings, as SEPAL does), ``"deepset"`` (the spot and
        the maximum over its neighbours, as DeepSpot does), ``"niche"`` (self-attention over the spot and its rings, as
        NicheTrans does).
    n_top_genes
        Most variable genes (over the training spots) that are used.
    intensity_weight
        Weight of the intensity loss beside the presence loss.
    presence_loss
        ``"bce"`` (cross-entropy) or ``"focal"`` (the same with less weight on what is right for sure, exponent 2). Both
        balance the classes.
    intensity_loss
        Over the spots that have the metabolite: ``"mse"``, ``"huber"``, or one less the ``"pearson"`` correlation or
        ``"cosine"`` of each metabolite within a batch. The last two know no level, and have a tenth of the squared error
        added.
    standardise
        Intensities are learnt as differences to the training mean over its standard deviation: of each ``"metabolite"``,
        or of each metabolite in each section (``"sample"``). With the latter the differences between sections are not
        learnt; every prediction, also of a training section, is put on the mean scale of the training sections.
    training
        ``"joint"``: both stages at once; ``"two_stage"``: first encoder and presence, then, with these fixed, the
        intensity with an encoder of its own that starts from the other.
    residual
        ``"ridge"``: both heads correct ridge regressions on the principal components of the genes, fitted beforehand.
    encoder_kwargs
        Options of the encoder. ``"mlp"``: ``n_hidden``, ``n_layers``, ``dropout``, ``input_dropout``, ``per_metabolite`` (one
        small network for each metabolite); ``"graph"``:
        ``n_hidden``, ``n_graph``, ``n_layers``, ``dropout``, ``input_dropout``; ``"deepset"``: ``n_hidden``, ``dropout``; ``"niche"``: ``n_hidden``, ``n_heads``, ``dropout``, ``neighbour_dropout``.
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
        presence_loss: PresenceLoss = "bce",
        intensity_loss: IntensityLoss = "mse",
        standardise: Literal["metabolite", "sample"] = "metabolite",
        training: Literal["joint", "two_stage"] = "joint",
        residual: Literal["ridge"] | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        rng: int = 0,
    ) -> None:
        check_choice(encoder, ENCODERS, "encoder")
        check_choice(presence_loss, PRESENCE_LOSSES, "presence_loss")
        check_choice(intensity_loss, INTENSITY_LOSSES, "intensity_loss")
        check_choice(standardise, ("metabolite", "sample"), "standardise")
        check_choice(training, ("joint", "two_stage"), "training")
        if residual is not None:
            check_choice(residual, ("ridge",), "residual")
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
        BaseModelClass.__init__(self, adata, registry)
        self._hyper: dict[str, Any] = {
            "encoder": encoder,
            "n_top_genes": n_top_genes,
            "intensity_weight": intensity_weight,
            "presence_loss": presence_loss,
            "intensity_loss": intensity_loss,
            "standardise": standardise,
            "training": training,
            "residual": residual,
            "encoder_kwargs": dict(encoder_kwargs or {}),
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
                n_features=self._feature_widths(),
                presence_loss=self._hyper["presence_loss"],
                intensity_loss=self._hyper["intensity_loss"],
                two_stage=self._hyper["training"] == "two_stage",
                linear_path=self._hyper["residual"] is not None,
            )

    def _feature_widths(self) -> tuple[int, ...]:
        """Columns of each further set of features."""
        names = (f"n_{FEATURES_KEY}_{i}" for i in range(len(self.registry_["field_registries"])))
        return tuple(int(self.summary_stats[n]) for n in names if n in self.summary_stats)

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
            Further features in ``obsm`` (arrays or DataFrames), such as those of the histology image; z-scored on the
            training spots and appended to the genes. Several keys are allowed.
        **kwargs
            For scvi-tools, which replays the setup when a model is loaded.

        Returns
        -------
        `None`. Writes the names into ``uns["_stmsi_setup"]`` and, as scvi-tools does, ``uns["_scvi_uuid"]``,
        ``uns["_scvi_manager_uuid"]``, ``_scvi_*`` columns for clusters and covariates and ``obs["_indices"]``.

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
        weight_averaging: bool = False,
        refit: bool = True,
        warm_start: bool = False,
        checkpoint_dir: str | Path | None = None,
        n_threads: int = 1,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        precision: str = "32-true",
        compile: bool = False,
        show_progress_bar: bool | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        train_idx
            Spots to train on (positions or mask); `None`: all with MSI that are not in `validation_idx`.
        validation_idx
            Spots for early stopping, thresholds and intervals; `None`: one group of whole sections (a spatial block of
            each section where there are fewer than three) is taken out of the training spots.
        max_epochs
            Passes over the training spots at most; with ``training="two_stage"`` of each stage.
        early_stopping
            Stop when the validation loss has not fallen for `patience` epochs.
        patience
            See `early_stopping`.
        batch_size
            Spots in a step.
        lr, weight_decay
            Of AdamW.
        weight_averaging
            Validate and keep an exponential moving average of the weights (over some 50 steps).
        refit
            Where the validation spots were taken out of the training spots: train once more on all of them, from the
            start, for as many epochs as were best. Calibration stays that of the held-out spots.
        warm_start
            Go on from the weights that the model has, with its genes and scaling, after an interrupted training or from a
            checkpoint. The optimizer begins anew. Pass the same `train_idx` and `validation_idx`.
        checkpoint_dir
            Folder into which the model is saved, calibrated, whenever the validation loss has fallen (with
            ``training="two_stage"`` in the second stage); it replaces the one before, whole or not at all.
            :func:`stmsi.model.load` reads it. It is not the refitted model: save that one yourself.
        n_threads
            CPU threads of torch. The steps are small, so that on a busy machine more threads cost up to ten times
            what they bring; one also makes sums independent of the machine.
        accelerator, devices
            As for Lightning.
        precision
            As for Lightning, such as ``"bf16-mixed"`` or ``"16-mixed"`` on a GPU. Losses and predictions are always computed
            in 32 bits.
        compile
            Compile the module with :func:`torch.compile`, which takes a C++ compiler and a minute, and pays off on a GPU only.
        show_progress_bar
            `None` follows ``stmsi.settings.progress_bar``.
        plan_kwargs
            Passed on to :class:`scvi.train.TrainingPlan`.
        **trainer_kwargs
            Passed on to :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            No training spot has MSI, or none is left for validation; `warm_start` where no held-out spots are left.
        RuntimeError
            The validation loss was never finite, or `warm_start` without a trained model.
        FileExistsError
            `checkpoint_dir` holds something else.

        Notes
        -----
        When an interrupt (Ctrl+C, the stop button of a notebook) or an error ends training early, the model keeps the
        weights that were best so far and is calibrated on the held-out spots, as with ``refit=False``; then the exception
        is raised. It can predict, be saved, or go on with ``train(warm_start=True)``. Only if no epoch was validated before (with
        ``training="two_stage"`` none of the second stage) is it left untrained. Interrupted while it is refitted, it is the
        model before that.
        """
        if self.adata is None:
            msg = "The model was loaded without data and cannot be trained; make a new one from the AnnData."
            raise ValueError(msg)
        if max_epochs < 1:
            msg = f"max_epochs must be at least 1, found {max_epochs!r}."
            raise ValueError(msg)
        directory = check_checkpoint(checkpoint_dir)
        if warm_start and self.state.training.get("refit", True):
            msg = (
                "The model was refitted on all its spots (refit=True), so that none are left which decide when to stop and "
                "calibrate. Go on from an interrupted training, a checkpoint or train(refit=False), or use fine_tune for new data."
            )
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
        plan_kwargs = {"optimizer": "AdamW", "lr": lr, "weight_decay": weight_decay, "compile": compile} | (
            plan_kwargs or {}
        )
        options = {
            "accelerator": accelerator, "devices": devices, "n_threads": n_threads, "batch_size": batch_size, "plan_kwargs": plan_kwargs,
            "enable_progress_bar": settings.progress_bar if show_progress_bar is None else show_progress_bar,
            "precision": precision, "decay": _DECAY if weight_averaging else None, **trainer_kwargs,
        }  # fmt: skip
        start = _Start(deepcopy(self.module.state_dict()), self.state, self.platt_) if warm_start else None
        run = _Run(spots, targets, rows, validation, start, directory)
        best_epochs = self._learn(run, max_epochs=max_epochs, patience=patience if early_stopping else None, **options)
        # a linear path wants all spots even where no epoch beat it
        if not given and refit and (start is None or max(best_epochs)):
            self._refit(run, best_epochs, **options)

    def fine_tune(
        self,
        adata: AnnData,
        train_idx: ArrayLike | None = None,
        validation_idx: ArrayLike | None = None,
        *,
        lr: float = 3e-4,
        max_epochs: int = 50,
        patience: int = 10,
        min_genes: float = MIN_GENES,
        **train_kwargs: Any,
    ) -> HurdleNet:
        """Go on training on new sections that have MSI, as a new model; this one stays as it is.

        The new model has the genes, scaling and metabolites of this one, and begins with its weights. It is trained and
        calibrated on the new spots alone: early stopping, thresholds and intervals come from held-out sections or blocks of
        them. If no step makes the held-out loss lower, the weights stay. Metabolites that the new sections lack are
        still predicted, with the calibration that they had; those that this model does not know are left out.

        Parameters
        ----------
        adata
            Spots x genes with the fields that the model was set up with (signatures and clusters are those of this model).
            Genes and metabolites are found by name; missing genes are imputed, missing metabolites do not count. It is
            not changed, and the new model keeps a copy of what it needs.
        train_idx, validation_idx
            As for :meth:`train`.
        lr, max_epochs, patience
            As for :meth:`train`, with smaller steps and fewer of them.
        min_genes
            Share of the training genes that must be there.
        **train_kwargs
            Further arguments of :meth:`train`.

        Returns
        -------
        The new model. Its model card says from how many spots and which sections it started (``fine_tuned_from``).

        Raises
        ------
        RuntimeError
            This model is not trained.
        ValueError
            No metabolite or too few genes in common, repeated spot names, or no spot with MSI.
        KeyError
            A field of the setup is not there.

        Examples
        --------
        >>> import stmsi
        >>> sdata = stmsi.datasets.toy()
        >>> stmsi.pp.align(sdata)
        >>> stmsi.pp.map_to_spots(sdata)
        >>> st = sdata.tables["st"]
        >>> old, new = st[st.obs["sample"] != "P3S1"].copy(), st[st.obs["sample"] == "P3S1"].copy()
        >>> stmsi.model.HurdleNet.setup_anndata(old)
        >>> model = stmsi.model.HurdleNet(old)
        >>> model.train(max_epochs=2, show_progress_bar=False)
        >>> tuned = model.fine_tune(new, max_epochs=2, show_progress_bar=False)
        >>> tuned.state.training["fine_tuned_from"]["samples"]
        ['P1S1', 'P2S1']
        """
        state, setup = self.state, self._setup
        spots = read_spots(adata, setup, state.panel, min_genes=min_genes, with_cluster=False)
        require_unique(spots.names, "Names of spots", "Call adata.obs_names_make_unique().")
        if spots.missing > 0:
            logger.warning("%.1f %% of the training genes are missing and were imputed.", 100 * spots.missing)
        replace(setup, signature_key=None, cluster_key=None)._check(adata)
        targets = read_targets(adata, setup)
        known = targets.metabolites.isin(state.metabolites)
        if not known.any():
            msg = (
                f"The data share no metabolite with the model. It predicts {listing(state.metabolites)}; "
                f"obsm[{setup.metabolite_key!r}] has {listing(targets.metabolites)}. Ids must be the same."
            )
            raise ValueError(msg)
        if not known.all():
            logger.warning(
                "Metabolites that the model does not know are left out: %s", listing(targets.metabolites[~known])
            )
        columns = self._registered_metabolites()
        at = targets.metabolites.get_indexer(columns)
        at[~columns.isin(state.metabolites)] = -1
        intensity, presence = (
            pd.DataFrame(np.where(at >= 0, values[:, at], np.nan).astype(np.float32), columns=columns)
            for values in (targets.intensity, targets.presence)
        )
        data = panel_data(spots, setup, state, spots.names)
        measured_data(
            data,
            spots,
            setup,
            state,
            sample=require_sample(adata, setup.sample_key),
            intensity=intensity,
            presence=presence,
        )
        type(self).setup_anndata(data, **setup_arguments(setup), source_registry=self.registry_)
        with _quiet():
            model = type(self)(data, **self._hyper)
        model.module.load_state_dict(self.module.state_dict())
        origin = {k: state.training[k] for k in ("n_spots", "samples")}
        model.state_ = replace(state, training={**state.training, "refit": False, "fine_tuned_from": origin})
        model.platt_ = self.platt_
        model.train(
            train_idx, validation_idx, lr=lr, max_epochs=max_epochs, patience=patience, warm_start=True, **train_kwargs
        )
        return model

    def _learn(self, run: _Run, *, max_epochs: int, patience: int | None, **options: Any) -> list[int]:
        """Train, stop early, keep the best weights, calibrate; the number of epochs that was best for each stage."""
        self._prepare(run, run.rows, run.validation)
        callbacks = options.pop("callbacks", [])
        stages, epochs = self._passes(run), list[int]()
        # a correction, or better weights, must first beat what training begins with
        has_start = run.start is not None or self._hyper["residual"] is not None
        for stage in stages:
            last = stage == stages[-1]
            best = KeepBestWeights(on_better=self._checkpointer(run, sum(epochs)) if last else None)
            # Lightning's own, as that of scvi-tools prints its verdict past every logger
            stop = [] if patience is None else [EarlyStopping("validation_loss", patience=patience)]
            try:
                self._fit(
                    stage, run.rows, run.validation, best, max_epochs=max_epochs, callbacks=[*callbacks, *stop],
                    check_val_every_n_epoch=1, num_sanity_val_steps=-1 if has_start and stage != "presence" else 0, **options,
                )  # fmt: skip
            except BaseException:
                if last and best.found:
                    best.restore(self.module)
                    self._settle(run, sum(epochs) + best.best_epoch + 1)
                    logger.warning(
                        "Training ended early; the model keeps the weights of epoch %d and is calibrated.",
                        best.best_epoch + 1,
                    )
                else:
                    self.state_, self.platt_, self.is_trained_ = None, None, False
                raise
            best.restore(self.module)
            if not best.found or not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
                self.state_, self.platt_, self.is_trained_ = None, None, False
                msg = "The validation loss was never finite; lower lr, and look for extreme intensities."
                raise RuntimeError(msg)
            epochs.append(best.best_epoch + 1)
            n_epochs = len(self.history["validation_loss"]) if epochs[-1] or stage == stages[0] else 0
            logger.info("Best validation loss in epoch %d of %d.", epochs[-1], n_epochs)
        self._settle(run, sum(epochs))
        return epochs

    def _refit(self, run: _Run, epochs: list[int], **options: Any) -> None:
        """Train once more on all spots, from the start; calibration stays."""
        module, state, platt, history = self.module, self.state, self.platt_, self.history
        try:
            rows = np.sort(np.concatenate([run.rows, run.validation]))
            self._prepare(run, rows, rows[:0])
            for stage, n in zip(self._passes(run), epochs, strict=True):
                if n:
                    self._fit(stage, rows, rows[:0], KeepBestWeights(), max_epochs=n, **options)
            self.platt_ = platt
            self._carry_over(state)
            if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
                msg = "The weights left all bounds when training once more on all spots; lower lr, or pass refit=False."
                raise RuntimeError(msg)
            assert self.adata is not None
            self.state.training = state.training | summarise_training(self.adata, self._setup, rows) | {"refit": True}
        except BaseException:
            self.module, self.state_, self.platt_ = module, state, platt
            logger.warning("Training on all spots did not end; the model is the one before that.")
            raise
        finally:
            self.history_, self.is_trained_ = history, True
            self.module.eval()

    def _passes(self, run: _Run) -> tuple[Stage, ...]:
        """What is trained, one after the other."""
        # trained once, the two encoders no longer depend on each other
        two = self._hyper["training"] == "two_stage" and run.start is None
        return ("presence", "intensity") if two else ("joint",)

    def _checkpointer(self, run: _Run, epochs: int) -> Callable[[int], None] | None:
        """Function that writes the model as it is."""
        if run.directory is None:
            return None

        def write(n: int) -> None:
            trained = self.is_trained_
            with self.module.kept_rows():
                self._settle(run, epochs + n)
                assert run.directory is not None
                save_model(self, run.directory, overwrite=True)
            self.is_trained_ = trained

        return write

    def _settle(self, run: _Run, epochs: int) -> None:
        """Calibrate the weights as they are, and say what they were trained on."""
        assert self.adata is not None
        self.module.eval()
        validation = run.spots.take(run.validation)
        earlier: dict[str, Any] = {}
        if run.start is None:
            self._fit_calibration(validation, run.targets, run.rows, run.validation)
        else:
            old, platt = run.start.state, run.start.platt
            assert platt is not None
            columns = run.targets.metabolites.get_indexer(old.metabolites)
            at = np.asarray(~np.isnan(run.targets.presence[run.validation][:, columns]).all(axis=0))
            self.state_ = some_metabolites(old, at)
            self._fit_calibration(validation, run.targets, run.rows, run.validation)
            self.state_, fitted, self.platt_ = merge_calibration(old, self.state, at), self.platt_, platt.copy()
            self.platt_[at] = fitted
            earlier = {k: v for k, v in old.training.items() if k == "fine_tuned_from"}
        summary = summarise_training(self.adata, self._setup, run.rows)
        self.state.training = summary | {"epochs": epochs, "refit": False} | earlier
        self.is_trained_ = True

    def _prepare(self, run: _Run, rows: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
        """Module and state before the first step: fitted to the training spots, or those that training starts from."""
        assert self.adata is not None
        setup, start, all_targets = self._setup, run.start, run.targets
        sample = require_sample(self.adata, setup.sample_key)
        if start is None:
            targets, train = drop_unmeasured(all_targets, rows), run.spots.take(rows)
            labels, signature = signature_of(self.adata, setup)
            many = self._uses_graph or self._hyper["residual"] is not None
            n_components = _CONTEXT_COMPONENTS if many else _COMPONENTS
            features = SpotFeatures(self._hyper["n_top_genes"], n_components, self._hyper["rng"])
            features.fit(replace(train, graph=None), labels, signature)
            mean_log, _ = column_moments(log_normalize(train.counts))
            self.module = self._new_module()
            self._set_buffers(features, labels, signature, targets, all_targets.metabolites.isin(targets.metabolites))
            self.state_ = start_state(self.adata, setup, targets, features, mean_log)
        else:
            self.module = self._new_module()
            self.module.load_state_dict(start.weights)
            self.state_ = start.state
        present = all_targets.where_present()
        if self._hyper["standardise"] == "sample":
            code, mean, scale, trained = section_moments(present, sample, rows, validation)
            self.module.set_sections(code, mean, scale)
            self._set_target_moments(mean[trained], scale[trained], present[rows], fresh=start is None)
        else:
            code = np.zeros(len(present), np.int64)
            mean, scale = (b.numpy()[None] for b in (self.module.target_mean, self.module.target_scale))
        if self._hyper["residual"] is not None and start is None:
            standardised = ((present - mean[code]) / scale[code])[rows]
            groups = inner_groups(sample[rows], train.xy, seed=self._hyper["rng"])
            units = np.unique(sample[rows], return_inverse=True)[1]
            weight, bias = linear_path(
                self.state.features,
                train,
                all_targets.presence[rows],
                standardised,
                groups,
                units,
                len(self.module.gene_index),
            )
            self.module.set_linear_path(weight, bias)
        if self._uses_graph:
            rest = np.setdiff1d(np.arange(self.adata.n_obs), np.concatenate([rows, validation]))
            self._set_context(run.spots, self.state.features, [rows, validation, rest])
        self.is_trained_, self.history_ = False, None

    def _set_target_moments(
        self, mean: NDArray[np.float64], scale: NDArray[np.float64], present: NDArray[np.float64], *, fresh: bool
    ) -> None:
        """The scale of predictions: the mean over the training sections, where these have the metabolite."""
        module, known = self.module, ~np.isnan(present).all(axis=0)
        if fresh:
            module.set_buffers(target_mean=mean.mean(axis=0), target_scale=scale.mean(axis=0))
            return
        module.set_buffers(
            target_mean=np.where(known, mean.mean(axis=0), module.target_mean.numpy()),
            target_scale=np.where(known, scale.mean(axis=0), module.target_scale.numpy()),
        )

    def _fit(
        self,
        stage: Stage,
        rows: NDArray[np.int64],
        validation: NDArray[np.int64],
        best: KeepBestWeights,
        *,
        batch_size: int,
        n_threads: int,
        decay: float | None,
        callbacks: Sequence[Callback] = (),
        **options: Any,
    ) -> None:
        """Gradient steps on the module as it is."""
        assert self.adata is not None
        rest = np.setdiff1d(np.arange(self.adata.n_obs), np.concatenate([rows, validation]))
        # one or two spots left over for the last step would make its gradient noise
        while 0 < len(rows) % batch_size < 3 and len(rows) > batch_size:
            batch_size += 1
        # the average must still be in place when the best weights are looked for
        average = [] if decay is None else [AverageWeights(decay)]
        self.module.begin(stage)
        try:
            with _seeded(self._hyper["rng"]), _quiet(), _threads(n_threads), _plain_interrupts():
                UnsupervisedTrainingMixin.train(
                    self,
                    batch_size=batch_size,
                    datasplitter_kwargs={"external_indexing": [rows, validation, rest]},
                    callbacks=[best, *average, *callbacks],
                    **options,
                )
            if best.exception is not None:  # some versions of Lightning keep an interrupt to themselves
                raise best.exception
        finally:
            self.module.begin("joint")
            self.module.eval()

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
        mean, scale = target_moments(targets.where_present())
        n1, n0 = _counts(targets.presence)
        full = {name: np.full(len(keep), fill) for name, fill in (("mean", 0.0), ("scale", 1.0), ("weight", 1.0))}
        full["mean"][keep], full["scale"][keep] = mean, scale
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
        if features.extra:
            values |= {"feature_mean": np.concatenate([e.mean for e in features.extra.values()])}
            values |= {"feature_scale": np.concatenate([e.scale for e in features.extra.values()])}
        if labels is not None and signature is not None:
            order = [list(labels).index(str(c)) for c in self._cluster_categories()]
            mask = signature[order][:, index].astype(np.float32)
            mask[:, n:] = 0
            values["signature"] = mask
        module.set_buffers(**values)

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
            for tensors in self._batches(spots, _PREDICT_BATCH):
                outputs = self.module.inference(**self.module._get_inference_input(tensors))
                heads = self.module.generative(**outputs)
                logits.append(heads["logit"].cpu())
                means.append((heads["mean"] * self.module.target_scale + self.module.target_mean).cpu())
        take = self._outputs()
        return tuple(torch.cat(v).numpy().astype(np.float64)[:, take] for v in (logits, means))  # type: ignore[return-value]

    def _batches(self, spots: Spots, batch_size: int) -> AnnDataLoader:
        """The spots in batches of tensors, without what is measured."""
        setup, state = self._setup, self.state
        names = pd.RangeIndex(len(spots)).astype(str)  # names of query spots may repeat
        query = panel_data(spots, setup, state, names)
        query.obs[_ROW_KEY] = np.arange(len(spots))
        if setup.graph_key is not None:
            self._set_context(spots, state.features, [np.arange(len(spots))])
        with _quiet():
            manager = AnnDataManager(fields=_fields(query, setup), setup_method_args={})
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


@dataclass(frozen=True)
class _Start:
    """Where a warm start begins."""

    weights: dict[str, Any]
    state: FittedState
    platt: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Run:
    """What one call of ``train`` works on: all spots and targets, the rows used, the start, the folder for checkpoints."""

    spots: Spots
    targets: Targets
    rows: NDArray[np.int64]
    validation: NDArray[np.int64]
    start: _Start | None
    directory: Path | None


def _fields(adata: AnnData, setup: Setup) -> list[Any]:
    """The fields of the setup, as scvi-tools registers them."""
    fields: list[Any] = [
        LayerField(REGISTRY_KEYS.X_KEY, setup.layer, is_count_data=False),
        OptionalObsmField(METABOLITES_KEY, setup.metabolite_key),
    ]
    if setup.presence_key is not None:
        fields.append(OptionalObsmField(PRESENCE_KEY, setup.presence_key))
    fields.append(NumericalObsField(REGISTRY_KEYS.INDICES_KEY, _ROW_KEY))
    fields += [ObsmField(f"{FEATURES_KEY}_{i}", key) for i, key in enumerate(setup.feature_key)]
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
def _plain_interrupts() -> Iterator[None]:
    """An interrupt stays a `KeyboardInterrupt`; Lightning ignores all further ones and leaves Python."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


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
