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


@dataclass(frozen=True)
class Queries:
    """Metabolites that are asked for.

    Attributes
    ----------
    embedding
        Shape (metabolites, width).
    bias
        By how much each prefers the tokens of a spot before it has seen any, shape (metabolites, tokens); `None`: not at
        all.
    """

    embedding: torch.Tensor
    bias: torch.Tensor | None = None


class MetaboliteEncoder(Encoder):
    """A batch of spots in, one embedding per spot **and metabolite** out, which all metabolites read with one head.

    What such an encoder knows of a metabolite is its query, so that it can be asked for others than those it was trained on.

    Attributes
    ----------
    n_heads
        Attention heads.
    tokens_are_genes
        Whether metabolites attend to genes, and not to programmes of them.
    largest_batch
        Spots whose arrays fit into memory at once in a prediction.
    """

    n_heads: int
    tokens_are_genes: bool
    largest_batch: int

    @abstractmethod
    def initialise(self, loadings: torch.Tensor, seed: int) -> None:
        """Start from what the training spots tell of genes.

        Parameters
        ----------
        loadings
            Correlation of genes with principal components, shape (components, genes).
        seed
            For what is drawn at random.
        """

    @abstractmethod
    def describe(self, mz: torch.Tensor, descriptors: torch.Tensor, prior: torch.Tensor | None = None) -> None:
        """Take what is known of the metabolites of the training data.

        Parameters
        ----------
        mz
            In Da, NaN where unknown, shape (metabolites,).
        descriptors
            Further numbers, NaN where unknown, shape (metabolites, descriptors).
        prior
            Weights of the genes that are known to belong to each metabolite, shape (metabolites, genes).
        """

    @abstractmethod
    def ask(self, metabolites: torch.Tensor | None = None) -> Queries:
        """Queries of the metabolites of the training data, or of some of them by position."""

    @abstractmethod
    def ask_unseen(self, mz: torch.Tensor, descriptors: torch.Tensor) -> Queries:
        """Queries of other metabolites, as in :meth:`describe`."""

    @abstractmethod
    def shares(self) -> torch.Tensor:
        """Share of each gene in each token, shape (tokens, genes); rows sum to 1."""

    @abstractmethod
    def attention(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, queries: Queries | None = None
    ) -> torch.Tensor:
        """Weights with which metabolites attend to tokens, shape (spots, metabolites, tokens); they sum to 1.

        Parameters
        ----------
        x, mask, queries
            As for :meth:`forward`.
        """

    @abstractmethod
    def forward(
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: Context | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries | None = None,
    ) -> torch.Tensor:
        """Embed spots for each metabolite.

        Parameters
        ----------
        x, covariates, context
            As for :class:`Encoder`.
        mask
            Signature of each spot's cluster, shape (spots, genes).
        queries
            Who asks; `None`: the metabolites of the training data.

        Returns
        -------
        Shape (spots, metabolites, ``n_output``).
        """
