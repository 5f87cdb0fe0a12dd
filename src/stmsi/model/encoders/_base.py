"""The interface of encoders."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Widths of what an encoder is given.

    Attributes
    ----------
    n_genes
        Genes of the input.
    n_covariates
        Columns of the covariates.
    n_components
        Components of spots and neighbours in the :class:`Context`; 0 without a graph.
    n_metabolites
        Metabolites of the training data.
    has_prior
        Whether it is known which genes belong to which metabolite.
    """

    n_genes: int
    n_covariates: int
    n_components: int = 0
    n_metabolites: int = 0
    has_prior: bool = False


@dataclass(frozen=True)
class Context:
    """The neighbourhood of a batch of spots.

    Attributes
    ----------
    own
        Components of the spots, shape (spots, components).
    neighbours
        Components of their neighbours, shape (spots, K, components); 0 where there is none.
    ring
        Ring of each neighbour, 1 or 2, shape (spots, K); 0 where there is none.
    offset
        Position of each neighbour relative to the spot, in steps of the graph, shape (spots, K, 2).
    """

    own: torch.Tensor
    neighbours: torch.Tensor
    ring: torch.Tensor
    offset: torch.Tensor


class Encoder(nn.Module):
    """A batch of spots in, one embedding per spot out.

    Parameters
    ----------
    sizes
        Widths of the input.

    Attributes
    ----------
    n_output
        Width of the embedding.
    uses_graph
        Whether the encoder reads the neighbourhood.
    uses_positions
        Whether it also reads where the neighbours lie.
    """

    n_output: int
    uses_graph: ClassVar[bool] = False
    uses_positions: ClassVar[bool] = False
    per_metabolite: ClassVar[bool] = False

    def __init__(self, sizes: Sizes, **kwargs: Any) -> None:
        if kwargs:
            msg = f"{type(self).__name__} does not take {sorted(kwargs)}."
            raise TypeError(msg)
        super().__init__()

    @abstractmethod
    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots.

        Parameters
        ----------
        x
            Scaled expression, shape (spots, genes).
        covariates
            Shape (spots, covariates).
        context
            The neighbourhood, for encoders that use it.

        Returns
        -------
        Shape (spots, ``n_output``).
        """
