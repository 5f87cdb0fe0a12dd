"""Reconstruction of hidden metabolites from genes: the second loss of CMRCNet."""

from __future__ import annotations

import torch
from torch import nn

N_TOKENS = 8
MASKED = 0.5
"""Share of the elements of the metabolite tokens that are hidden."""
_N_HEADS, _N_BLOCKS = 4, 2


class Reconstruction(nn.Module):
    """Metabolites as tokens, half of their elements hidden, completed by attention to tokens of the genes.

    Parameters
    ----------
    n_profile
        Columns of what was measured.
    width
        Of the embedding of the genes, of each token, and of what is reconstructed.
    dropout
        Share of the elements of tokens left out while training, as alpha dropout.

    References
    ----------
    Liu et al., CMRCNet (2025).
    """

    def __init__(self, n_profile: int, width: int, dropout: float) -> None:
        super().__init__()
        self.metabolites, self.genes = (_tokens(n, width, dropout) for n in (n_profile, width))
        self.first = nn.MultiheadAttention(width, _N_HEADS, batch_first=True)
        self.blocks = nn.ModuleList(_Fusion(width) for _ in range(_N_BLOCKS))

    def forward(self, profile: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
        """Reconstruct the embedding of metabolites.

        Parameters
        ----------
        profile
            What was measured, shape (spots, columns).
        genes
            Embedding of the genes, shape (spots, width).

        Returns
        -------
        Mean over the tokens, shape (spots, width).
        """
        other = self.genes(genes)
        h = self.metabolites(profile)
        h = h * (torch.rand_like(h) >= MASKED)
        h = h + self.first(h, other, other, need_weights=False)[0]
        for block in self.blocks:
            h = block(h, other)
        return h.mean(dim=1)


def _tokens(n_input: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_input, N_TOKENS * width), nn.ELU(), nn.AlphaDropout(dropout), nn.Unflatten(1, (N_TOKENS, width))
    )


class _Fusion(nn.Module):
    """Pre-norm attention of the tokens to each other, then to those of the genes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.within, self.across = (nn.MultiheadAttention(width, _N_HEADS, batch_first=True) for _ in range(2))

    def forward(self, h: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](h)
        h = h + self.within(normed, normed, normed, need_weights=False)[0]
        return h + self.across(self.norms[1](h), other, other, need_weights=False)[0]
