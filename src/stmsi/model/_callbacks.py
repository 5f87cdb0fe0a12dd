"""Lightning callbacks of the training."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class KeepBestWeights(Callback):
    """Keep the weights with the lowest validation loss and put them back when training ends, however it ends.

    Parameters
    ----------
    monitor
        Name of the logged loss.
    """

    def __init__(self, monitor: str = "validation_loss") -> None:
        self.monitor = monitor
        self.best = float("inf")
        self.best_epoch = -1
        self._state: dict[str, Any] | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and torch.isfinite(value) and float(value) < self.best:
            self.best, self.best_epoch = float(value), trainer.current_epoch
            self._state = deepcopy(cast("torch.nn.Module", pl_module.module).state_dict())

    def restore(self, module: Any) -> None:
        """Put the best weights back."""
        if self._state is not None:
            module.load_state_dict(self._state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back after training."""
        self.restore(pl_module.module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the best weights back when training is interrupted."""
        self.restore(pl_module.module)
