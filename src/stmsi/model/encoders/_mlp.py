"""The spot by itself: a multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from stmsi.model.encoders._base import Context, Encoder, Sizes


class MLPEncoder(Encoder):
    """Layers of linear, layer norm, GELU, dropout.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the layers.
    n_layers
        Number of layers.
    dropout
        Share of hidden units left out while training.
    input_dropout
        Share of genes left out while training, which keeps the model from leaning on single noisy genes.
    """

    def __init__(
        self, sizes: Sizes, n_hidden: int = 256, n_layers: int = 2, dropout: float = 0.3, input_dropout: float = 0.3
    ) -> None:
        super().__init__(sizes)
        self.input_dropout = nn.Dropout(input_dropout)
        widths = [sizes.n_genes + sizes.n_covariates, *[n_hidden] * n_layers]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(dropout))
                for a, b in pairwise(widths)
            )
        )
        self.n_output = widths[-1]

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        return self.layers(torch.cat([self.input_dropout(x), covariates], dim=1))
