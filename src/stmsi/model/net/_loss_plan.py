"""What is logged while a network trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import CosineAnnealingLR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi.module.base import BaseModuleClass, LossOutput


class LossPlan(TrainingPlan):
    """The plan of scvi-tools, that logs the losses of both stages; those of an evidence lower bound there are not.

    Parameters
    ----------
    module
        What is trained.
    cosine_epochs
        Epochs after which the learning rate, which falls as a cosine, is 0; `None`: it stays as it is.
    **kwargs
        For scvi-tools.
    """

    def __init__(self, module: BaseModuleClass, *, cosine_epochs: int | None = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        self.cosine_epochs = cosine_epochs

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimizer, and how its learning rate changes."""
        config: dict[str, Any] = super().configure_optimizers()
        if self.cosine_epochs is not None:
            config["lr_scheduler"] = CosineAnnealingLR(config["optimizer"], self.cosine_epochs)
        return config

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: Mapping[str, Any], mode: str) -> None:
        """Log each part of the loss as ``<name>_train`` or ``<name>_validation``, once an epoch."""
        for name, value in loss_output.extra_metrics.items():
            self.log(
                f"{name}_{mode}", value.detach(), on_step=False, on_epoch=True, batch_size=loss_output.n_obs_minibatch
            )
