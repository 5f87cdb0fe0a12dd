"""The interface of encoders that learn spots by themselves first, and then what their neighbours correct."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from stmsi.model.net.encoders._encoder import Encoder

if TYPE_CHECKING:
    from stmsi.model.net.encoders._contexts import Context


class LocalFirstEncoder(Encoder):
    """Spots by themselves are learned first and fixed; then neighbours learn to correct their *prediction*.

    The module trains it in two passes. The embedding is that of the spot, then that of the neighbourhood (``n_correction`` units), then,
    for each ring and of both stages, the mean local prediction there less that of the spot (``2 * n_hops * n_metabolites``). Heads add
    what they read from each, so that all but the first is a correction of the prediction.

    Attributes
    ----------
    local
        Embeds spots by their genes.
    n_local
        Width of what it returns. The nodes of the :class:`Context` have these units and the predictions of both stages from them,
        ``n_local + 2 * n_metabolites`` in all.
    n_correction
        Units of the embedding that come from the neighbourhood.
    n_rings_units
        Units of the differences, which come last.
    """

    is_joint = True
    sees_genes = True
    local: nn.Module
    n_local: int
    n_correction: int
    n_rings_units: int
    _fixed: bool = False

    def fix(self, fixed: bool) -> None:
        """Keep the local stage as it is, without dropout, from now on; or no longer."""
        self._fixed = fixed
        self.local.requires_grad_(not fixed)
        self.train(self.training)

    def train(self, mode: bool = True) -> LocalFirstEncoder:
        """As for any module; a local stage that is fixed stays as in a prediction."""
        super().train(mode)
        if self._fixed:
            self.local.eval()
        return self

    def of_stages(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding for presence, and for intensity: each with the differences of its own stage only."""
        units, rings = embedding.split([self.n_output - self.n_rings_units, self.n_rings_units], dim=1)
        presence, intensity = rings.unflatten(1, (self.n_hops, 2, -1)).unbind(dim=2)
        return torch.cat([units, presence.flatten(1)], dim=1), torch.cat([units, intensity.flatten(1)], dim=1)

    def ring_differences(self, context: Context) -> torch.Tensor:
        """Mean local prediction in each ring less that of the spot, 0 where a ring is empty; shape (spots, units)."""
        predicted = context.values[:, self.n_local :]
        own = context.of_spots(predicted)
        rings = []
        for number in range(1, self.n_hops + 1):
            there = (context.ring == number).any(dim=1, keepdim=True)
            rings.append((context.ring_mean(predicted, number) - own) * there)
        return torch.cat(rings, dim=1)

    @abstractmethod
    def embed_locally(self, genes: torch.Tensor) -> torch.Tensor:
        """Embed spots by themselves, shape (spots, genes) to (spots, ``n_local``)."""
