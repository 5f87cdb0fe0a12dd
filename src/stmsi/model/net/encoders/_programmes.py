"""Self-attention among gene programmes, from which a spot says which genes to attend to."""

from __future__ import annotations

import torch
from torch import nn

N_PROGRAMMES = 16
_WIDTH, _N_HEADS, _DROPOUT = 32, 4, 0.1


class ProgrammeLayers(nn.Module):
    """The activities of gene programmes in a spot as tokens, which attend to each other; out comes a query for genes.

    Programmes are the leading principal components of the training spots. Blocks are pre-norm self-attention and a feed-forward
    network. What they say only directs attention: it adds to the logit of a gene the scalar product with the gene's key.

    Parameters
    ----------
    n_genes
        Genes of the input.
    n_layers
        Blocks.
    n_heads
        Attention heads that are directed.
    n_hidden
        Width of the keys of genes.

    Attributes
    ----------
    loadings
        Correlation of genes with components over the sum of its squares, shape (programmes, genes).
    """

    loadings: torch.Tensor

    def __init__(self, n_genes: int, n_layers: int, n_heads: int, n_hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.register_buffer("loadings", torch.zeros(N_PROGRAMMES, n_genes))
        self.which = nn.Parameter(torch.randn(N_PROGRAMMES, _WIDTH) * _WIDTH**-0.5)
        self.activity = nn.Parameter(torch.randn(N_PROGRAMMES, _WIDTH) * _WIDTH**-0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                _WIDTH, _N_HEADS, 2 * _WIDTH, _DROPOUT, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.after = nn.LayerNorm(_WIDTH)
        # training begins with the attention that a spot has without them
        self.query = nn.Linear(_WIDTH, n_heads * n_hidden)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def describe(self, loadings: torch.Tensor) -> None:
        """Take programmes from the correlation of genes with principal components, shape (components, genes)."""
        n = min(len(loadings), N_PROGRAMMES)
        some = loadings[:n].to(self.loadings)
        self.loadings.zero_()
        self.loadings[:n] = some / some.square().sum(dim=1, keepdim=True).clamp(min=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Queries of spots for genes, shape (spots, heads, width of the keys); `x`: standardised expression, (spots, genes)."""
        h = self.which + (x @ self.loadings.T).unsqueeze(-1) * self.activity
        for block in self.blocks:
            h = block(h)
        return self.query(self.after(h.mean(dim=1))).unflatten(1, (self.n_heads, -1))
