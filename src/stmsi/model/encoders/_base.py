"""The interface of encoders."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn


class Encoder(nn.Module):
    """A batch of spots in, one embedding per spot out.

    Parameters
    ----------
    n_genes
        Genes of the input.
    n_covariates
        Columns of the covariates.

    Attributes
    ----------
    n_output
        Width of the embedding.
    uses_graph
        Whether the encoder reads the neighbourhood.
    """

    n_output: int
    uses_graph: ClassVar[bool] = False

    def __init__(self, n_genes: int, n_covariates: int, **kwargs: Any) -> None:
        if kwargs:
            msg = f"{type(self).__name__} does not take {sorted(kwargs)}."
            raise TypeError(msg)
        super().__init__()

    @abstractmethod
    def forward(self, x: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """Embed spots.

        Parameters
        ----------
        x
            Scaled expression, shape (spots, genes).
        covariates
            Shape (spots, covariates).

        Returns
        -------
        Shape (spots, ``n_output``).
        """
