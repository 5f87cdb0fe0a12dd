"""A spot and its neighbours as sets: DeepSpot's design with genes as input."""

from __future__ import annotations

import torch
from torch import nn

from stmsi.model.net.encoders._encoder import Context, Encoder, Sizes


class DeepSetEncoder(Encoder):
    """One function for the spot and for each of its neighbours, whose results are joined by their maximum.

    Several such functions are trained together, and the median of their results counts, as do several ways to join them,
    whose mean counts: an ensemble for the price of wider matrices. DeepSpot's inner set, sub-spots of a spot, has no
    counterpart: a spot is its own only member.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the functions.
    dropout
        Share of hidden units left out while training.
    n_phi, n_rho
        Functions of one spot, and ways to join them. DeepSpot has ten of each.

    References
    ----------
    Nonchev et al., DeepSpot (2025).
    """

    uses_graph = True
    needs_graph = True

    def __init__(self, sizes: Sizes, n_hidden: int = 128, dropout: float = 0.3, n_phi: int = 3, n_rho: int = 3) -> None:
        super().__init__(sizes)
        if min(n_phi, n_rho) < 1:
            msg = f"n_phi and n_rho must be at least 1, found {n_phi} and {n_rho}."
            raise ValueError(msg)
        self.n_hidden = n_hidden
        # of all members in one matrix
        self.phi = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Linear(sizes.n_components, n_hidden * n_phi), nn.Dropout(dropout), nn.ReLU()
        )  # fmt: skip
        self.rho = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * n_hidden + sizes.n_covariates, n_hidden * n_rho), nn.GELU()
        )
        self.n_output = n_hidden

    def _members(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (-1, self.n_hidden))

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
    """Median over the members, the mean of the middle two where their number is even."""
    n = members.shape[-2]
    if n != 3:
        ordered = members.sort(dim=-2).values
        return (ordered[..., (n - 1) // 2, :] + ordered[..., n // 2, :]) / 2
    # of three without a sort, which takes longer
    a, b, c = members.unbind(dim=-2)
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
