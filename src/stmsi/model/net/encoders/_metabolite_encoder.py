"""The interface of encoders in which metabolites ask for what they are predicted from."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from stmsi.model.net.encoders._encoder import Encoder

if TYPE_CHECKING:
    from stmsi.model.net.encoders._contexts import GeneContext


@dataclass(frozen=True)
class Queries:
    """Metabolites that are asked for.

    Attributes
    ----------
    embedding
        What each head asks with, shape (metabolites, heads, width).
    bias
        By how much each prefers genes before their keys are looked at, shape (metabolites, heads, genes).
    mix
        Weight of the values of each ring, shape (metabolites, heads, rings).
    known
        1 for metabolites of the training data, 0 for others, which have nothing of their own; shape (metabolites,).
    made
        What the encoder makes of them for every batch that they are asked with.
    """

    embedding: torch.Tensor
    bias: torch.Tensor
    mix: torch.Tensor
    known: torch.Tensor
    made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def some(self, at: torch.Tensor) -> Queries:
        """Some of the metabolites, by position."""
        return Queries(self.embedding[at], self.bias[at], self.mix[at], self.known[at])


@dataclass(frozen=True)
class Evidence:
    """What the training spots and the knowledge of the user tell of metabolites and genes.

    Attributes
    ----------
    mz
        In Da, NaN where unknown, shape (metabolites,).
    descriptors
        Further numbers, NaN where unknown, shape (metabolites, descriptors).
    screened
        How strongly each gene goes with each metabolite inside the training sections, shape (metabolites, genes).
    loadings
        Correlation of genes with principal components, shape (components, genes).
    prior
        Weights of the genes that are known to belong to each metabolite, shape (metabolites, genes); `None` where nothing is
        known.
    """

    mz: torch.Tensor
    descriptors: torch.Tensor
    screened: torch.Tensor
    loadings: torch.Tensor
    prior: torch.Tensor | None = None


class MetaboliteEncoder(Encoder):
    """A batch of spots in, the activity of some heads per spot **and metabolite** out.

    What such an encoder knows of a metabolite is its query, so that it can be asked for others than those it was trained on.

    Attributes
    ----------
    n_heads
        Attention heads.
    sign
        Whether each head looks for what goes with a metabolite (1) or against it (-1), shape (heads,).
    genes_per_metabolite
        Genes that each metabolite chooses before training.
    largest_batch
        Spots whose arrays fit into memory at once in a prediction.
    """

    is_joint = True
    residual = None
    n_heads: int
    genes_per_metabolite: int
    largest_batch: int
    sign: torch.Tensor

    @abstractmethod
    def describe(self, evidence: Evidence, seed: int) -> None:
        """Begin from what is known; `seed` is for what is drawn at random."""

    @abstractmethod
    def made_uniform(self) -> AbstractContextManager[None]:
        """Every metabolite attends to all genes alike inside: what is left of a prediction then is not due to attention."""

    @abstractmethod
    def ask(self, metabolites: torch.Tensor | None = None) -> Queries:
        """Queries of the metabolites of the training data, or of some of them by position."""

    @abstractmethod
    def ask_unseen(self, mz: torch.Tensor, descriptors: torch.Tensor) -> Queries:
        """Queries of other metabolites, as in :class:`Evidence`."""

    @abstractmethod
    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries | None = None,
    ) -> torch.Tensor:
        """Attend.

        Parameters
        ----------
        x, covariates, context
            As for :class:`Encoder`; the context holds genes.
        mask
            Signature of each spot's cluster, shape (spots, genes).
        queries
            Who asks; `None`: the metabolites of the training data.

        Returns
        -------
        Shape (spots, metabolites, ``n_heads``).
        """

    @abstractmethod
    def contributions(
        self,
        x: torch.Tensor,
        slope: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of single spots, and what it makes of each gene.

        Parameters
        ----------
        x, context, mask, queries
            As for :meth:`forward`.
        slope
            Of each head, shape (metabolites, heads).

        Returns
        -------
        Attention, the mean over heads, each by the size of its slope; and attention x value x slope, whose sum over genes is the
        sum of the outputs of :meth:`forward` times the slopes. Both of shape (spots, metabolites, genes).
        """

    @abstractmethod
    def summed(
        self,
        x: torch.Tensor,
        slope: torch.Tensor,
        membership: torch.Tensor,
        context: GeneContext | None = None,
        *,
        mask: torch.Tensor | None = None,
        queries: Queries,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of :meth:`contributions` over groups of spots, without an array of spots x metabolites x genes.

        Parameters
        ----------
        x, slope, context, mask, queries
            As for :meth:`contributions`.
        membership
            Weight of each spot in each group, shape (spots, groups).

        Returns
        -------
        Of attention and of contributions, shape (groups, metabolites, genes); of contributions times expression over all spots,
        shape (metabolites, genes).
        """
