"""How the network is trained: passes, early stopping, refit, interrupts, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from stmsi._core.arrays_on_disk import row_pieces, some_of
from stmsi._core.learning.folds import held_out_group
from stmsi._core.metrics.columns import in_pieces
from stmsi._data.checks import check_count, check_positive, check_weight
from stmsi._data.tables import sections_of
from stmsi._messages import warns_once
from stmsi._settings import logger, settings
from stmsi.model.net._callbacks import (
    HELD_OUT_DISTANCE,
    KeepBestWeights,
)
from stmsi.model.net._run import Run, Start
from stmsi.model.net._several_nets import SeveralNets
from stmsi.model.net._train_options import (
    check_callbacks,
    check_loader_options,
    check_loggers,
    check_plan_options,
    check_trainer_options,
    probe_trainer,
)
from stmsi.model.net._training_inputs import (
    check_checkpoint,
    merge_calibration,
    some_metabolites,
)
from stmsi.model.net.encoders import ENCODERS
from stmsi.model.shared._inner_folds import InnerFolds
from stmsi.model.shared._persistence import save_model
from stmsi.model.shared._spot_reader import SpotReader
from stmsi.model.shared._targets import drop_unmeasured, read_targets, stored_targets, training_rows
from stmsi.model.shared._training_data import (
    TrainingData,
    require_data,
    summarise_training,
)
from stmsi.model.shared._whole_training import whole_or_as_before

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from numpy.typing import ArrayLike, NDArray

_DECAY = 0.98
"""Of averaged weights: they reach back some 50 steps."""


class NetTraining(SeveralNets):
    """Training of :class:`stmsi.model.HurdleNet`, which says what module and data there are."""

    def _replaces(self, before: Mapping[str, Any]) -> bool:
        # a training that ended before a first better epoch is no reason to give a trained model up
        return self._whole and (before.get("state_") is None or bool(self.state.training.get("epochs")))

    @warns_once
    @whole_or_as_before
    def train(  # type: ignore[override]
        self,
        train_idx: ArrayLike | None = None,
        validation_idx: ArrayLike | None = None,
        *,
        max_epochs: int | None = None,
        early_stopping: bool = True,
        patience: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
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
        plan_kwargs: Mapping[str, Any] | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        logger: Logger | Sequence[Logger] | bool | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        train_idx
            Spots to train on (positions or mask); `None`: all with MSI that are not in `validation_idx`.
        validation_idx
            Spots for early stopping, thresholds and intervals; `None`: one group of whole sections (a spatial block of
            each section where there are fewer than three) is taken out of the training spots; with several networks (`n_nets`
            of the model), the default, one group for each. With `validation_idx` there is one network.
        max_epochs
            Passes over the training spots at most (`None`: 150, of the transformer 100); with ``training="two_stage"`` of each stage,
            with ``encoder="graph"`` for spots by themselves and for their correction.
        early_stopping
            Stop when the validation loss has not fallen for `patience` epochs; the transformer, when the correlation inside
            held-out sections has not risen.
        patience
            See `early_stopping` (`None`: 20, of the transformer 8). scvi-tools' name for it, ``early_stopping_patience``, is taken too, and
            ``early_stopping_min_delta``: how far the loss must fall to count.
        batch_size
            Spots in a step (`None`: 128, of the transformer 256).
        lr, weight_decay
            Of AdamW (`None`: 3e-3, of the transformer 1e-2, of graphs 1e-3).
        weight_averaging
            Validate and keep an exponential moving average of the weights (over some 50 steps).
        refit
            Where one network has taken the validation spots out of the training spots: train once more on all of them, from
            the start, for as many epochs as were best. Calibration stays that of the held-out spots. Without it, ``n_nets="auto"``
            is one network (of the transformer still several), which keeps its held-out spots: `warm_start` can go on with it.
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
            Optimizer and learning rate, passed on to :class:`scvi.train.TrainingPlan`. ``reduce_lr_on_plateau=True`` follows the
            validation loss, and takes ``refit=False`` or `validation_idx`.
        datasplitter_kwargs
            How batches are loaded, passed on to :class:`scvi.dataloaders.DataSplitter`, such as ``num_workers``. Which spots are
            held out, `validation_idx` says.
        logger
            Lightning loggers that get the losses too, such as ``CSVLogger(folder)``. ``model.history`` has them anyway. The
            training on all spots at the end (`refit`) is not logged.
        callbacks
            Lightning callbacks. They see every pass over the epochs, also that of `refit`, but for those that follow a loss of
            the held-out spots, which it lacks. To keep weights, see `checkpoint_dir` and `weight_averaging`.
        **trainer_kwargs
            Passed on to :class:`scvi.train.Trainer` and Lightning's: ``gradient_clip_val``, ``accumulate_grad_batches``,
            ``max_time`` and the like. What would be without effect here, such as ``train_size``, is refused by name.

        Raises
        ------
        ValueError
            No training spot has MSI, or none is left for validation; `warm_start` where no held-out spots are left; a number
            out of range, an option that is unknown or makes no sense here, or a device that is not there.
        RuntimeError
            The validation loss was never finite, or `warm_start` without a trained model.
        FileExistsError
            `checkpoint_dir` holds something else.

        Notes
        -----
        When an interrupt (Ctrl+C, the stop button of a notebook) or an error ends training early, the model keeps the
        weights that were best so far and is calibrated on the held-out spots, as with ``refit=False``; then the exception
        is raised. It can predict, be saved, or go on with ``train(warm_start=True)``. Only if no epoch was validated before (with
        ``training="two_stage"`` none of the second stage) is it what it was before the call: untrained, or the model of an
        earlier training. So it is, too, where an option is refused. Interrupted while it is refitted, it is the model before
        that.
        """
        adata = require_data(self.adata)
        patience = trainer_kwargs.pop("early_stopping_patience", patience)
        stopping = {"patience": patience, "min_delta": trainer_kwargs.pop("early_stopping_min_delta", 0.0)}
        usual = ENCODERS[self._hyper["encoder"]].usual
        max_epochs, stopping["patience"] = usual.fill("max_epochs", max_epochs), usual.fill("patience", patience)
        batch_size, lr = usual.fill("batch_size", batch_size), usual.fill("lr", lr)
        check_count(max_epochs, "max_epochs")
        check_count(batch_size, "batch_size")
        check_count(n_threads, "n_threads")
        check_count(stopping["patience"], "patience", 0)
        check_weight(stopping["min_delta"], "early_stopping_min_delta")
        check_positive(lr, "lr", optional=False)
        check_weight(weight_decay, "weight_decay")
        # those of numpy are integers too, but not for torch
        max_epochs, batch_size, n_threads = int(max_epochs), int(batch_size), int(n_threads)
        plan = check_plan_options(plan_kwargs, has_validation=validation_idx is not None or not refit)
        passed_on = check_trainer_options(trainer_kwargs, signature(NetTraining.train).parameters)
        own = {"optimizer": "AdamW", "lr": lr, "weight_decay": weight_decay, "eps": usual.eps, "compile": compile}
        if usual.cosine and not plan.get("reduce_lr_on_plateau"):
            own["cosine_epochs"] = max_epochs
        options = {
            "plan_kwargs": own | plan,
            "loader": check_loader_options(datasplitter_kwargs), "loggers": check_loggers(logger),
            "callbacks": check_callbacks(callbacks), "accelerator": accelerator, "devices": devices, "precision": precision,
            "n_threads": n_threads, "batch_size": batch_size, "decay": _DECAY if weight_averaging else None, **passed_on,
            "enable_progress_bar": settings.progress_bar if show_progress_bar is None else show_progress_bar,
        }  # fmt: skip
        probe_trainer(accelerator, devices, precision=precision, **passed_on)
        directory = check_checkpoint(checkpoint_dir)
        if warm_start and self.state.training.get("refit", True):
            msg = (
                "The model was refitted on all its spots (refit=True), so that none are left which decide when to stop and "
                "calibrate. Go on from an interrupted training, a checkpoint or train(refit=False), or use fine_tune for new data."
            )
            raise ValueError(msg)
        if warm_start and self._several and "fine_tuned_from" not in self.state.training:
            msg = (
                "The model is the mean of several networks, each trained without another group of spots, so that none are left "
                "which decide when to stop. Train it anew, with n_nets=1, or use fine_tune for new data."
            )
            raise ValueError(msg)
        setup = self._setup
        spots = SpotReader.open(adata, setup).read() if self._stored is None else self._stored.spots(setup, [])
        targets = (read_targets if self._stored is None else stored_targets)(adata, setup)
        rows, validation = training_rows(targets, train_idx, validation_idx)
        given = validation is not None
        n_nets = self._n_nets(refit=refit)
        if validation is None and (warm_start or n_nets == 1):
            sample = sections_of(adata, setup.sample_key)[rows]
            xy = None if spots.xy is None else spots.xy[rows]
            measured = np.vstack(
                [~np.isnan(targets.intensity[rows[some]]) for some in row_pieces(len(rows), len(targets.metabolites))]
            )
            held_out = held_out_group(sample, xy, measured, seed=self._hyper["rng"])
            rows, validation = rows[~held_out], rows[held_out]
        validation = rows[:0] if validation is None else validation
        start = Start(deepcopy(self._nets), self.state, self.platt_) if warm_start else None
        run = Run(spots, targets, rows, validation, start, directory)
        self._whole = False
        learning = {"max_epochs": max_epochs, "stopping": stopping if early_stopping else None, **options}
        groups = None if given or start is not None else self._groups(run, n_nets)
        if self._stored is not None:
            every = np.union1d(rows, validation)
            parts = [validation] if groups is None else [rows[groups.groups == g] for g in np.unique(groups.groups)]
            folds = [every, rows, *(np.setdiff1d(every, part) for part in parts)]
            run = replace(run, spots=self._stored.spots(setup, folds))
        if groups is not None:
            self._learn_nets(run, groups, **learning)
            return
        if start is not None and len(start.nets) > 1:
            self._tune_nets(run, **learning)
            return
        best_epochs = self._learn(run, **learning)
        # a linear path wants all spots even where no epoch beat it
        if not given and refit and (start is None or max(best_epochs)):
            self._refit(run, best_epochs, **options)

    def _learn(  # type: ignore[override]
        self,
        run: Run,
        *,
        settle: bool = True,
        rescue: bool = True,
        max_epochs: int,
        stopping: dict[str, Any] | None,
        **options: Any,
    ) -> list[int]:
        """Train, stop early, keep the best weights, calibrate; the number of epochs that was best for each stage."""
        self._prepare(run, run.rows, run.validation)
        callbacks = options.pop("callbacks")
        stages, epochs = self._passes(run), list[int]()
        # a correction, or better weights, must first beat what training begins with
        has_start = run.start is not None or self._hyper["residual"] is not None
        for stage in stages:
            last = stage == stages[-1]
            whole = last or stage == "local"  # without a correction yet
            compared = stage == "correction" or (has_start and stage != "presence")
            on_better = self._checkpointer(run, sum(epochs)) if last else None
            best = self._judge(run, stopping) or KeepBestWeights(on_better=on_better)
            best.on_better = on_better
            # Lightning's own, as that of scvi-tools prints its verdict past every logger
            judged = best.monitor == HELD_OUT_DISTANCE
            stop = [] if stopping is None or judged else [EarlyStopping("validation_loss", **stopping)]
            try:
                self._fit(
                    stage, run.rows, run.validation, best, max_epochs=max_epochs, callbacks=[*callbacks, *stop],
                    check_val_every_n_epoch=1, num_sanity_val_steps=-1 if compared else 0, **options,
                )  # fmt: skip
            except BaseException:
                if whole and best.found and rescue:
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
        if settle:
            self._settle(run, sum(epochs))
        return epochs

    def _n_nets(self, *, refit: bool = True) -> int:
        """Networks at most. Without `refit` a single one of most encoders keeps its held-out spots, to go on with."""
        asked, encoder = self._hyper["n_nets"], ENCODERS[self._hyper["encoder"]]
        if asked == "auto":
            return encoder.most_nets if refit else encoder.nets_without_refit
        return int(asked)

    def _groups(self, run: Run, n_nets: int) -> InnerFolds | None:
        """Groups that one network each is trained without; `None` where there is one network for all."""
        if n_nets == 1:
            return None
        assert self.adata is not None
        targets, train = drop_unmeasured(run.targets, run.rows), run.spots.take(run.rows)
        sample = sections_of(self.adata, self._setup.sample_key)[run.rows]
        data = TrainingData(self.adata, self._setup, run.spots, run.targets, run.rows, None, train, targets, sample)
        return InnerFolds.of(data, n_folds=n_nets, seed=self._hyper["rng"])

    def _held_out_stages(self) -> NDArray[np.float64] | None:
        return self._made_held_out

    def _refit(self, run: Run, epochs: list[int], **options: Any) -> None:
        """Train once more on all spots, from the start; calibration stays."""
        module, state, platt, history = self.module, self.state, self.platt_, self.history
        try:
            rows = np.sort(np.concatenate([run.rows, run.validation]))
            self._prepare(run, rows, rows[:0])
            for stage, n in zip(self._passes(run), epochs, strict=True):
                if n:
                    self._fit(stage, rows, rows[:0], KeepBestWeights(), max_epochs=n, **options)
            self.platt_ = platt
            self._remember(rows)
            self._carry_over(state)
            if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
                msg = "The weights left all bounds when training once more on all spots; lower lr, or pass refit=False."
                raise RuntimeError(msg)
            assert self.adata is not None
            self.state.training = state.training | summarise_training(self.adata, self._setup, rows) | {"refit": True}
            self.state.seen = state.seen
        except BaseException:
            self.module, self.state_, self.platt_ = module, state, platt
            logger.warning("Training on all spots did not end; the model is the one before that.")
            raise
        finally:
            self.history_, self.is_trained_ = history, True
            self.module.eval()

    def _checkpointer(self, run: Run, epochs: int) -> Callable[[int], None] | None:
        """Function that writes the model as it is."""
        if run.directory is None:
            return None

        def write(n: int) -> None:
            trained = self.is_trained_
            with self.module.kept_rows():
                self._settle(run, epochs + n)
                assert run.directory is not None
                save_model(self, run.directory, overwrite=True)
            self.is_trained_, self._whole = trained, False  # training goes on with the weights

        return write

    def _settle(self, run: Run, epochs: int) -> None:
        """Calibrate the weights as they are, and say what they were trained on."""
        assert self.adata is not None
        self._whole = False
        self.module.eval()
        validation = run.spots.take(run.validation)
        earlier: dict[str, Any] = {}
        if run.start is None:
            self._fit_calibration(validation, run.targets, run.rows, run.validation)
        else:
            old, platt = run.start.state, run.start.platt
            assert platt is not None
            columns = run.targets.metabolites.get_indexer(old.metabolites)
            judged = some_of(run.targets.presence, run.validation, columns)
            at = np.asarray(in_pieces(lambda p: ~np.isnan(p).all(axis=0), judged))
            self.state_ = some_metabolites(old, at)
            self._fit_calibration(validation, run.targets, run.rows, run.validation)
            self.state_, fitted, self.platt_ = merge_calibration(old, self.state, at), self.platt_, platt.copy()
            self.platt_[at] = fitted
            earlier = {k: v for k, v in old.training.items() if k == "fine_tuned_from"}
        summary = summarise_training(self.adata, self._setup, run.rows)
        self.state.training = summary | {"epochs": epochs, "refit": False} | earlier
        self.state.seen = run.seen()
        self.is_trained_ = self._whole = True
