"""The spot by itself: a multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from stmsi.model.net.encoders._contexts import Context
from stmsi.model.net.encoders._encoder import Encoder, Sizes

_SHARED, _OWN = (256, 2), (16, 1)
"""Width and layers of the one network, and of the network of each metabolite."""


class MLPEncoder(Encoder):
    """Layers of linear, layer norm, GELU, dropout.

    With `per_metabolite` each metabolite has a small network of its own, which shares nothing with the others; all of
    them are computed together.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the layers; `None`: 256, with `per_metabolite` 16.
    n_layers
        Number of layers; `None`: 2, with `per_metabolite` 1.
    dropout
        Share of hidden units left out while training.
    input_dropout
        Share of genes left out while training, which keeps the model from leaning on single noisy genes.
    per_metabolite
        One network for each metabolite in the place of one for all.
    """

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int | None = None,
        n_layers: int | None = None,
        dropout: float = 0.3,
        input_dropout: float = 0.3,
        *,
        per_metabolite: bool = False,
    ) -> None:
        super().__init__(sizes)
        self.input_dropout = nn.Dropout(input_dropout)
        usual = _OWN if per_metabolite else _SHARED
        n_hidden, n_layers = (
            u if given is None else given for u, given in zip(usual, (n_hidden, n_layers), strict=True)
        )
        n_input = sizes.n_genes + sizes.n_covariates
        if per_metabolite:
            n_groups = max(sizes.n_metabolites, 1)
            self.is_grouped, self.n_output = True, n_groups * n_hidden
            self.layers = nn.Sequential(
                nn.Linear(n_input, self.n_output),
                nn.Unflatten(1, (n_groups, n_hidden)),
                *(_GroupedLayer(n_groups, n_hidden, dropout, first=i == 0) for i in range(n_layers)),
                nn.Flatten(),
            )
            return
        widths = [n_input, *[n_hidden] * n_layers]
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


class _GroupedLayer(nn.Module):
    """Linear (not in the first layer, whose input all share), layer norm, GELU, dropout, in each group by itself."""

    def __init__(self, n_groups: int, n_hidden: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        bound = n_hidden**-0.5
        shape = (n_groups, n_hidden, n_hidden)
        self.weight = None if first else nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = None if first else nn.Parameter(torch.zeros(n_groups, n_hidden))
        self.after = nn.Sequential(nn.LayerNorm(n_hidden), nn.GELU(), nn.Dropout(dropout))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Shape (spots, groups, hidden), kept."""
        if self.weight is not None and self.bias is not None:
            h = torch.einsum("bmh,mhk->bmk", h, self.weight) + self.bias
        return self.after(h)
