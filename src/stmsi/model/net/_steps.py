"""The gradient steps of a network, and how the weights are judged meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train._logger import SimpleLogger

from stmsi._core.arrays_on_disk import some_of
from stmsi._core.learning.shared_ridge import HeldOutTruth
from stmsi._data.tables import sections_of
from stmsi._progress import current_display
from stmsi.model.net._callbacks import AverageWeights, EpochBar, FillBank, KeepBestWeights, KeepMostCorrelated
from stmsi.model.net._loss_plan import LossPlan
from stmsi.model.net._prediction import PREDICT_BATCH
from stmsi.model.net._preparation import NetPreparation
from stmsi.model.net._run import Run
from stmsi.model.net._stored_batches import StoredInput, StoredRows, StoredSplitter, check_stored_loader
from stmsi.model.net._surroundings import plain_interrupts, quiet, seeded, threads
from stmsi.model.net._train_options import in_this_pass
from stmsi.model.net.encoders import LocalFirstEncoder
from stmsi.model.net.modules._spot_rows import Stage

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
    from numpy.typing import NDArray


class NetSteps(NetPreparation, UnsupervisedTrainingMixin):
    """Gradient steps of :class:`stmsi.model.HurdleNet`."""

    _training_plan_cls = LossPlan
    _stored: StoredInput | None = None  # while it is trained on stores

    def _train_on_stored(self, stored: StoredInput, **options: Any) -> None:
        """Train on spots whose expression is on disk, and not in the AnnData; options as for ``train``.

        Batches come from windows of some thousand spots, whose blocks are drawn from all stores. What encoders see around spots is in
        files that are mapped into memory. Everything else is as in memory.
        """
        check_stored_loader(dict(options.get("datasplitter_kwargs") or {}))
        manager = self.adata_manager
        self._stored, self._data_splitter_cls = stored, StoredSplitter
        manager.stored_rows = partial(StoredRows, stored=stored)
        try:
            self.train(**options)
            for module in {id(m): m for m in (self.module, *(net.module for net in self._several))}.values():
                module.forget_spots()
        finally:
            stored.close()
            del manager.stored_rows
            for name in ("_stored", "_data_splitter_cls"):
                self.__dict__.pop(name, None)

    def _passes(self, run: Run) -> tuple[Stage, ...]:
        """What is trained, one after the other."""
        if isinstance(self.module.encoder, LocalFirstEncoder):
            return ("local", "correction")
        # trained once, the two encoders no longer depend on each other
        two = self._hyper["training"] == "two_stage" and run.start is None
        return ("presence", "intensity") if two else ("joint",)

    def _held_out_map(self, run: Run) -> Callable[[], NDArray[np.float64]]:
        """Function that predicts the map of the validation spots by the weights as they are, shape (spots, outputs)."""

        def predict() -> NDArray[np.float64]:
            module, parts = self.module, []
            self._remember(run.rows)
            with torch.no_grad(), quiet(), seeded(self._hyper["rng"]):
                loader = self._make_data_loader(adata=self.adata, indices=run.validation, batch_size=PREDICT_BATCH)
                for tensors in loader:
                    given = {k: v.to(module.device) for k, v in tensors.items()}
                    heads = module.read_out(**module.inference(**module._get_inference_input(given)))
                    there = (heads["logit"] - module.positive_weight.log()).sigmoid()
                    mean = heads["mean"] * module.target_scale + module.target_mean
                    parts.append((there * mean.clamp(min=0)).double().cpu())
            return torch.cat(parts).numpy()

        return predict

    def _judge(self, run: Run, stopping: dict[str, Any] | None) -> KeepMostCorrelated | None:
        """Keeper of the weights that follow the patterns inside held-out sections best, where the encoder wants that."""
        assert self.adata is not None
        if not (self.module.encoder.correlation_weight or self.module.encoder.retrieves):
            return None
        sample = sections_of(self.adata, self._setup.sample_key)[run.validation]
        truth = HeldOutTruth.of(
            np.asarray(some_of(run.targets.intensity, run.validation)),
            np.zeros(len(run.validation), np.int64),
            np.unique(sample.astype(str), return_inverse=True)[1],
        )
        keeper = KeepMostCorrelated(self._held_out_map(run), truth, stopping)
        return keeper if keeper.can_judge else None

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
        loader: Mapping[str, Any],
        loggers: Sequence[Logger],
        callbacks: Sequence[Callback],
        **options: Any,
    ) -> None:
        """Gradient steps on the module as it is."""
        assert self.adata is not None
        rest = np.setdiff1d(np.arange(self.adata.n_obs), np.concatenate([rows, validation]))
        # one or two spots left over for the last step would make its gradient noise
        while 0 < len(rows) % batch_size < 3 and len(rows) > batch_size:
            batch_size += 1
        validated = len(validation) > 0
        callbacks = in_this_pass(callbacks, validated=validated)
        if validated and loggers:
            options["logger"] = [SimpleLogger(), *loggers]  # the first becomes the history
        # the average must still be in place when the best weights are looked for
        average: list[Callback] = [] if decay is None else [AverageWeights(decay)]
        if self.module.encoder.has_exemplars:
            average.append(FillBank(lambda: self._remember(rows)))
        display = current_display()
        if display is not None and options.get("enable_progress_bar"):
            options["enable_progress_bar"] = False
            callbacks = [*callbacks, EpochBar(display)]
        self.module.begin(stage)
        try:
            with seeded(self._hyper["rng"]), quiet(), threads(n_threads), plain_interrupts():
                UnsupervisedTrainingMixin.train(
                    self,
                    batch_size=batch_size,
                    datasplitter_kwargs={**loader, "external_indexing": [rows, validation, rest]},
                    callbacks=[best, *average, *callbacks],
                    **options,
                )
            if best.exception is not None:  # some versions of Lightning keep an interrupt to themselves
                raise best.exception
        finally:
            self.module.begin("joint")
            self.module.eval()
