"""A spot and its rings as tokens: NicheTrans' design with genes as input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu

from stmsi.model.net.encoders._encoder import Context, Encoder, Sizes

_N_TOKENS = 3
"""Kinds of token: centre, ring 1, ring 2."""


class NicheEncoder(Encoder):
    """One self-attention block over the spot and its neighbours, each marked with its ring; the spot's own token counts.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the tokens.
    n_heads
        Attention heads.
    dropout
        Share of units left out while training.
    neighbour_dropout
        Share of neighbours left out while training.

    References
    ----------
    NicheTrans (2026).
    """

    uses_graph = True
    needs_graph = True

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 128,
        n_heads: int = 4,
        dropout: float = 0.2,
        neighbour_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        if n_hidden % n_heads:
            msg = f"n_hidden={n_hidden} must be a multiple of n_heads={n_heads}."
            raise ValueError(msg)
        self.neighbour_dropout = neighbour_dropout
        self.spot = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Dropout(dropout), nn.Linear(sizes.n_components, 2 * n_hidden),
            nn.LayerNorm(2 * n_hidden), nn.LeakyReLU(), nn.Linear(2 * n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.LeakyReLU(),
        )  # fmt: skip
        self.kind = nn.Embedding(_N_TOKENS, n_hidden)
        self.before = nn.LayerNorm(n_hidden)
        self.attention = nn.MultiheadAttention(n_hidden, n_heads, dropout=dropout, batch_first=True)
        self.gate = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, 4 * n_hidden))
        self.back = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * n_hidden, n_hidden))
        self.n_output = n_hidden + sizes.n_covariates

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        ring = context.ring
        if self.training and self.neighbour_dropout:
            ring = ring * (torch.rand(ring.shape, device=ring.device) >= self.neighbour_dropout)
        centre = self.spot(context.own).unsqueeze(1) + self.kind.weight[0]
        tokens = torch.cat([centre, self.spot(context.neighbours) + self.kind(ring)], dim=1)
        absent = torch.cat([ring.new_zeros(len(ring), 1, dtype=torch.bool), ring == 0], dim=1)
        normed = self.before(tokens)
        # only the centre asks: what the neighbours would learn of each other is read by nobody
        seen, _ = self.attention(normed[:, :1], normed, normed, key_padding_mask=absent, need_weights=False)
        token = (centre + seen).squeeze(1)
        value, gate = self.gate(token).chunk(2, dim=-1)
        return torch.cat([token + self.back(value * gelu(gate)), covariates], dim=1)
