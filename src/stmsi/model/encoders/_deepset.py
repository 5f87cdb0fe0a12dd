"""A spot and its neighbours as sets: DeepSpot's design with genes as input."""

from __future__ import annotations

import torch
from torch import nn

from stmsi.model.encoders._base import Context, Encoder, Sizes

_MEMBERS = 3


class DeepSetEncoder(Encoder):
    """One function for the spot and for each of its neighbours, whose results are joined by their maximum.

    Three such functions are trained together, and the median of their results counts, as do three ways to join them,
    whose mean counts: an ensemble for the price of wider matrices.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the functions.
    dropout
        Share of hidden units left out while training.

    References
    ----------
    Nonchev et al., DeepSpot (2025).
    """

    uses_graph = True

    def __init__(self, sizes: Sizes, n_hidden: int = 128, dropout: float = 0.3) -> None:
        super().__init__(sizes)
        self.n_hidden = n_hidden
        # of all members in one matrix
        self.phi = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Linear(sizes.n_components, n_hidden * _MEMBERS), nn.Dropout(dropout), nn.ReLU()
        )  # fmt: skip
        self.rho = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * n_hidden + sizes.n_covariates, n_hidden * _MEMBERS), nn.GELU()
        )
        self.n_output = n_hidden

    def _members(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (_MEMBERS, self.n_hidden))

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        own = _median(self._members(self.phi(context.own)))
        around = _median(self._members(self.phi(context.neighbours)))
        # after ReLU nothing is below 0, so that a spot without neighbours has the maximum of an empty set: 0
        around = around * (context.ring > 0).unsqueeze(-1)
        around = around.amax(dim=1) if around.shape[1] else torch.zeros_like(own)
        return self._members(self.rho(torch.cat([own, around, covariates], dim=1))).mean(dim=-2)


def _median(members: torch.Tensor) -> torch.Tensor:
    """Median over three members; torch's own sorts, which takes many times as long."""
    a, b, c = members.unbind(dim=-2)
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
