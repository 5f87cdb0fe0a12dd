"""The interface of encoders."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import nn

if TYPE_CHECKING:
    from stmsi.model.net.encoders._training_profiles import ProfileBank

Summary: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""What attention needs of a section: sums of keys times values, and of keys."""


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


@dataclass(frozen=True)
class SectionKeys:
    """Spots that are attended to, in pieces of one section each.

    Attributes
    ----------
    components
        Components of the spots, shape (pieces, spots, components).
    position
        In steps between spots, shape (pieces, spots, 2).
    there
        False for the places that a piece leaves empty, shape (pieces, spots).
    section
        Section of each piece, shape (pieces,).
    n_sections
        Number of sections.
    """

    components: torch.Tensor
    position: torch.Tensor
    there: torch.Tensor
    section: torch.Tensor
    n_sections: int


@dataclass(frozen=True)
class SectionContext:
    """The sections of a batch of spots.

    Attributes
    ----------
    own
        Components of the spots, shape (spots, components).
    position
        In steps between spots, shape (spots, 2).
    section
        Section of each spot, shape (spots,).
    summary
        Of each attention block, for each section.
    """

    own: torch.Tensor
    position: torch.Tensor
    section: torch.Tensor
    summary: list[Summary]


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
    uses_section
        Whether it reads all spots of the section.
    uses_positions
        Whether it also reads where these lie.
    is_joint
        Whether both stages can only be learned at once.
    residual
        What the heads correct when the user does not say; see :class:`stmsi.model.HurdleNet`.
    is_grouped
        Whether each metabolite has units of the embedding of its own, which lie one group after the other.
    bank
        Training spots from which a retrieval encoder predicts; `None` for all others.
    """

    n_output: int
    is_grouped: bool = False
    bank: ProfileBank | None
    uses_graph: ClassVar[bool] = False
    uses_section: ClassVar[bool] = False
    uses_positions: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False
    residual: ClassVar[str | None] = "ridge"

    def __init__(self, sizes: Sizes, **kwargs: Any) -> None:
        if kwargs:
            msg = f"{type(self).__name__} does not take {sorted(kwargs)}."
            raise TypeError(msg)
        super().__init__()
        self.bank = None

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

    def auxiliary_loss(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor | None:
        """A loss of the encoder's own, added to those of the two stages.

        Parameters
        ----------
        embedding
            Of the spots, as :meth:`forward` returned it.
        target
            Standardised intensity, shape (spots, metabolites), NaN where not covered.
        present
            1, 0 or NaN, likewise.

        Returns
        -------
        One number, `None` where the encoder has no such loss.
        """
        return None

    def remember(self, target: torch.Tensor, present: torch.Tensor) -> None:
        """Put training spots into the bank, for encoders that have one; arguments as for :meth:`auxiliary_loss`."""


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

    is_joint = True
    residual = None
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
