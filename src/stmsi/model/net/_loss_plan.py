"""What is logged while a network trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.train import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi.module.base import LossOutput


class LossPlan(TrainingPlan):
    """The plan of scvi-tools, that logs the losses of both stages; those of an evidence lower bound there are not."""

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: Mapping[str, Any], mode: str) -> None:
        """Log each part of the loss as ``<name>_train`` or ``<name>_validation``, once an epoch."""
        for name, value in loss_output.extra_metrics.items():
            self.log(
                f"{name}_{mode}", value.detach(), on_step=False, on_epoch=True, batch_size=loss_output.n_obs_minibatch
            )
