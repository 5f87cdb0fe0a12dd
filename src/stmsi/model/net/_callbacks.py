"""Lightning callbacks of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from numpy.typing import NDArray
    from rich.progress import Progress

    from stmsi._core.learning.shared_ridge import HeldOutTruth

HELD_OUT_DISTANCE = "held_out_distance"
"""One less the mean correlation inside held-out sections."""


class KeepBestWeights(Callback):
    """Keep the weights with the lowest validation loss and put them back when training ends, however it ends.

    Parameters
    ----------
    monitor
        Name of the logged loss.
    on_better
        Called whenever the loss has fallen, with the number of epochs so far.

    Attributes
    ----------
    best, best_epoch
        The lowest loss and its epoch from 0; -1: the weights that training began with, where these were validated.
    found
        Whether there was a finite validation loss.
    exception
        What ended training early.
    """

    def __init__(self, monitor: str = "validation_loss", on_better: Callable[[int], None] | None = None) -> None:
        self.monitor, self.on_better = monitor, on_better
        self.best = float("inf")
        self.best_epoch = -1
        self.exception: BaseException | None = None
        self._state: dict[str, Any] | None = None

    @property
    def found(self) -> bool:
        """Whether there was a finite validation loss."""
        return self._state is not None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        self._compare(float("nan") if value is None else float(value), trainer, pl_module)

    def _compare(self, value: float, trainer: Trainer, pl_module: LightningModule) -> None:
        if np.isfinite(value) and value < self.best:
            # validated before the first step, training has not begun
            self.best, self.best_epoch = value, -1 if trainer.sanity_checking else trainer.current_epoch
            self._state = deepcopy(trained_module(pl_module).state_dict())
            if self.on_better is not None:
                self.on_better(self.best_epoch + 1)

    def restore(self, module: Any) -> None:
        """Put the best weights back."""
        if self._state is not None:
            module.load_state_dict(self._state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back after training."""
        self.restore(trained_module(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the best weights back when training is interrupted."""
        self.exception = exception
        self.restore(trained_module(pl_module))


class KeepMostCorrelated(KeepBestWeights):
    """Keep the weights whose predictions follow the patterns inside held-out sections best, and stop when none gets better.

    Parameters
    ----------
    predict
        Predictions of the held-out spots by the weights as they are, shape (spots, metabolites).
    truth
        Of these spots.
    stopping
        Training ends after ``patience`` epochs that were not better by ``min_delta``; `None`: never.
    """

    def __init__(
        self, predict: Callable[[], NDArray[np.float64]], truth: HeldOutTruth, stopping: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(HELD_OUT_DISTANCE)
        self.predict, self.truth, self.stopping = predict, truth, stopping
        self._last, self._last_epoch = float("inf"), -1
        # metabolites that vary inside a section that was held out
        self.can_judge = bool(np.isfinite(truth.scores(np.zeros(truth.y.shape))[0]).any())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far."""
        with np.errstate(invalid="ignore"):
            score = float(np.nanmean(self.truth.scores(self.predict())[0]))
        pl_module.log(self.monitor, 1 - score)
        self._compare(1 - score, trainer, pl_module)
        if self.stopping is None or trainer.sanity_checking:
            return
        if 1 - score < self._last - self.stopping["min_delta"]:
            self._last, self._last_epoch = 1 - score, trainer.current_epoch
        if trainer.current_epoch - self._last_epoch >= self.stopping["patience"]:
            trainer.should_stop = True


class FillBank(Callback):
    """Put the training spots, as the weights embed them, into the bank of an encoder with exemplars before each epoch.

    Parameters
    ----------
    fill
        Does it.
    """

    def __init__(self, fill: Callable[[], None]) -> None:
        self.fill = fill

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the bank."""
        self.fill()


class AverageWeights(Callback):
    """Exponential moving average of the weights: what is validated, and what is left when training ends.

    Parameters
    ----------
    decay
        Share of the average kept at each step. The average of the first steps reaches back less far.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.n_steps = 0
        self._average: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the weights."""
        weights = self._weights(pl_module)
        if not self._average:
            self._average = [w.clone() for w in weights]
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        get_ema_multi_avg_fn(decay)(self._average, weights, None)
        self.n_steps += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average."""
        self._swap(pl_module)
        self._average = []

    def _weights(self, pl_module: LightningModule) -> list[torch.Tensor]:
        return [p.detach() for p in trained_module(pl_module).parameters()]

    def _swap(self, pl_module: LightningModule) -> None:
        for average, weight in zip(self._average, self._weights(pl_module), strict=bool(self._average)):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


class EpochBar(Callback):
    """Epochs as a bar in a display that is open already, in the place of Lightning's own bar.

    Parameters
    ----------
    display
        The display.
    """

    def __init__(self, display: Progress) -> None:
        self.display = display
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the bar."""
        self._task = self.display.add_task("epochs, at most", total=trainer.max_epochs)
        self.display.advance(self._task, 0)  # the estimate of the time left starts here

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One epoch more."""
        self.display.advance(self._task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away: early stopping leaves it short of its end."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._remove()

    def _remove(self) -> None:
        if self._task is not None:
            self.display.remove_task(self._task)
            self._task = None


def trained_module(pl_module: LightningModule) -> torch.nn.Module:
    """The module inside a training plan, also where it is compiled."""
    module: Any = pl_module.module
    return getattr(module, "_orig_mod", module)
