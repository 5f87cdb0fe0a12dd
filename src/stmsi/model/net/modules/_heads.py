"""Parts of the hurdle module beside the encoder."""

from __future__ import annotations

import torch
from torch import nn


class GroupedHead(nn.Module):
    """One output for each metabolite, from the hidden units that are its own and from those that all share.

    Parameters
    ----------
    width
        Hidden units of all metabolites together.
    n_metabolites
        Metabolites; divides `width`.
    n_shared
        Hidden units that all share, which come after the others.
    """

    def __init__(self, width: int, n_metabolites: int, n_shared: int = 0) -> None:
        super().__init__()
        self.n_own = width // n_metabolites
        bound = self.n_own**-0.5
        self.weight = nn.Parameter(torch.empty(n_metabolites, self.n_own).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_metabolites))
        self.shared = nn.Linear(n_shared, n_metabolites, bias=False) if n_shared else None

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Shape (spots, width + shared) to (spots, metabolites)."""
        n = self.weight.numel()
        own = embedding[:, :n].unflatten(1, self.weight.shape)
        out = torch.einsum("bmh,mh->bm", own, self.weight) + self.bias
        return out if self.shared is None else out + self.shared(embedding[:, n:])


class LinearPath(nn.Module):
    """Linear predictions of both stages, fitted before the gradient steps and fixed during them.

    Parameters
    ----------
    n_inputs
        Standardised genes and further features.
    n_metabolites
        Outputs of each stage.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, n_inputs: int, n_metabolites: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_inputs, 2 * n_metabolites))
        self.register_buffer("bias", torch.zeros(2 * n_metabolites))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Log-odds of presence, then standardised intensity; shape (spots, 2 x metabolites)."""
        return inputs @ self.weight + self.bias


class SharedHead(nn.Module):
    """One linear map for the embeddings of all metabolites, then a scale and a bias for each.

    Parameters
    ----------
    width
        Of the embeddings.
    n_metabolites
        Metabolites of the training data.
    """

    def __init__(self, width: int, n_metabolites: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.zeros(n_metabolites))  # less 1
        self.bias = nn.Parameter(torch.zeros(n_metabolites))

    def forward(self, embedding: torch.Tensor, metabolites: torch.Tensor | None = None) -> torch.Tensor:
        """Read embeddings, shape (spots, metabolites, width), to one value each.

        Parameters
        ----------
        embedding
            The embeddings.
        metabolites
            Position of each metabolite, -1 for those that training did not have: they get no scale and bias of their own.
            `None`: all in their order.
        """
        value = self.shared(embedding).squeeze(-1)
        if metabolites is None:
            return value * (1 + self.scale) + self.bias
        seen = (metabolites >= 0).to(value.dtype)
        return value * (1 + self.scale[metabolites] * seen) + self.bias[metabolites] * seen
