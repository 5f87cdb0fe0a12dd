"""The interface of encoders."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
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
    has_graph
        Whether spots have neighbours.
    has_signature
        Whether spots have the signature mask of a cluster.
    n_features
        Columns of further features, which are the last of the covariates.
    """

    n_genes: int
    n_covariates: int
    n_components: int = 0
    n_metabolites: int = 0
    has_prior: bool = False
    has_graph: bool = False
    has_signature: bool = False
    n_features: int = 0


@dataclass(frozen=True)
class Usual:
    """How an encoder is trained when the user does not say: see ``train``.

    `eps` is that of AdamW. The usual of scvi-tools, 0.01, all but stops weights whose gradients are small, such as those behind a layer
    that begins at 0.
    """

    max_epochs: int = 150
    patience: int = 20
    batch_size: int = 128
    lr: float = 3e-3
    eps: float = 0.01
    cosine: bool = False  # whether the learning rate falls to 0 as a cosine over all epochs

    def fill(self, name: str, given: Any) -> Any:
        """What was given, or the usual."""
        return getattr(self, name) if given is None else given


@dataclass(frozen=True)
class Context:
    """The neighbourhood of a batch of spots, in which every spot is held once.

    An encoder embeds `values` and gathers what comes out with :meth:`of_spots` and :meth:`of_neighbours`: spots that are
    neighbours of many spots of the batch are embedded once.

    Attributes
    ----------
    values
        Of the spots of the batch and of all their neighbours, shape (nodes, width): components, or the standardised genes where
        :attr:`Encoder.sees_genes`, or what the local stage of a :class:`LocalFirstEncoder` makes of these.
    spot
        Row of `values` of each spot, shape (spots,).
    neighbour
        Row of `values` of each neighbour, shape (spots, K); that of the spot itself where there is none.
    ring
        Ring of each neighbour from 1, shape (spots, K); 0 where there is none.
    offset
        Position of each neighbour relative to the spot, in steps of the graph, shape (spots, K, 2).
    edges
        Whether two nodes share an edge of the graph, shape (spots, 1 + K, 1 + K), of the spot and its neighbours in their order;
        `None` unless :attr:`Encoder.uses_edges`.
    """

    values: torch.Tensor
    spot: torch.Tensor
    neighbour: torch.Tensor
    ring: torch.Tensor
    offset: torch.Tensor
    edges: torch.Tensor | None = None

    @property
    def own(self) -> torch.Tensor:
        """Values of the spots, shape (spots, width)."""
        return self.of_spots(self.values)

    @property
    def neighbours(self) -> torch.Tensor:
        """Values of their neighbours, shape (spots, K, width); 0 where there is none."""
        return self.of_neighbours(self.values)

    def of_spots(self, nodes: torch.Tensor) -> torch.Tensor:
        """What was made of each node, shape (nodes, ...), for the spots."""
        return nodes[self.spot]

    def of_neighbours(self, nodes: torch.Tensor) -> torch.Tensor:
        """What was made of each node, shape (nodes, width), for the neighbours: (spots, K, width), 0 where there is none."""
        return nodes[self.neighbour] * (self.ring > 0).unsqueeze(-1)

    def ring_mean(self, nodes: torch.Tensor, number: int) -> torch.Tensor:
        """Mean over the neighbours in one ring, shape (spots, width); 0 where it is empty."""
        inside = (self.ring == number).to(nodes.dtype).unsqueeze(-1)
        return (nodes[self.neighbour] * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class GeneContext:
    """Genes of the neighbourhood of a batch of spots.

    Attributes
    ----------
    rings
        Standardised mean expression of each spot with its neighbours, and the mean of that, shape (spots, rings, genes).
    """

    rings: torch.Tensor


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
    needs_graph
        Whether it cannot do without.
    sees_genes
        Whether the :class:`Context` holds the genes of spots and neighbours, and not their components.
    uses_edges
        Whether it reads which of the neighbours share an edge.
    n_hops
        Rings of neighbours in the :class:`Context`, 1 to 3.
    n_rings
        Rings of which it sees mean genes in a :class:`GeneContext`, and no single neighbours.
    uses_section
        Whether it reads all spots of the section.
    uses_positions
        Whether it also reads where these lie.
    is_joint
        Whether both stages can only be learned at once.
    residual
        What the heads correct when the user does not say; see :class:`stmsi.model.HurdleNet`.
    most_nets, nets_without_refit
        Networks at most, one for each held-out group, when the user does not say; and with ``train(refit=False)``.
    usual
        How it is trained when the user does not say.
    correlation_weight
        Weight of one less the correlation inside a batch beside the loss of the intensity. Where it is not 0, training ends by the
        correlation inside held-out sections.
    is_grouped
        Whether each metabolite has units of the embedding of its own, which lie one group after the other.
    bank
        Training spots that an encoder with retrieval or exemplars keeps; `None` for all others.
    retrieves
        Whether predictions are means over the bank, and not those of the heads.
    has_exemplars
        Whether embeddings depend on the bank, which then is filled before each epoch.
    """

    n_output: int
    is_grouped: bool = False
    bank: ProfileBank | None
    retrieves: bool = False
    has_exemplars: bool = False
    uses_graph: ClassVar[bool] = False
    needs_graph: ClassVar[bool] = False
    sees_genes: ClassVar[bool] = False
    uses_edges: ClassVar[bool] = False
    n_hops: int = 2
    n_rings: ClassVar[int] = 0
    uses_section: ClassVar[bool] = False
    uses_positions: ClassVar[bool] = False
    is_joint: ClassVar[bool] = False
    residual: ClassVar[str | None] = "ridge"
    most_nets: ClassVar[int] = 3
    nets_without_refit: ClassVar[int] = 1
    usual: ClassVar[Usual] = Usual()
    correlation_weight: ClassVar[float] = 0.0

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

    def remember(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor, section: torch.Tensor | None = None
    ) -> None:
        """Put training spots into the bank, for encoders that have one.

        Parameters
        ----------
        embedding, target, present
            As for :meth:`auxiliary_loss`.
        section
            Number of the section of each spot: its spots are no exemplars of each other. `None`: all may be.
        """


class LocalFirstEncoder(Encoder):
    """Spots by themselves are learned first and fixed; then neighbours learn to correct their *prediction*.

    The module trains it in two passes. The embedding is that of the spot, then that of the neighbourhood (``n_correction`` units), then,
    for each ring and of both stages, the mean local prediction there less that of the spot (``2 * n_hops * n_metabolites``). Heads add
    what they read from each, so that all but the first is a correction of the prediction.

    Attributes
    ----------
    local
        Embeds spots by their genes.
    n_local
        Width of what it returns. The nodes of the :class:`Context` have these units and the predictions of both stages from them,
        ``n_local + 2 * n_metabolites`` in all.
    n_correction
        Units of the embedding that come from the neighbourhood.
    n_rings_units
        Units of the differences, which come last.
    """

    is_joint = True
    sees_genes = True
    local: nn.Module
    n_local: int
    n_correction: int
    n_rings_units: int
    _fixed: bool = False

    def fix(self, fixed: bool) -> None:
        """Keep the local stage as it is, without dropout, from now on; or no longer."""
        self._fixed = fixed
        self.local.requires_grad_(not fixed)
        self.train(self.training)

    def train(self, mode: bool = True) -> LocalFirstEncoder:
        """As for any module; a local stage that is fixed stays as in a prediction."""
        super().train(mode)
        if self._fixed:
            self.local.eval()
        return self

    def of_stages(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding for presence, and for intensity: each with the differences of its own stage only."""
        units, rings = embedding.split([self.n_output - self.n_rings_units, self.n_rings_units], dim=1)
        presence, intensity = rings.unflatten(1, (self.n_hops, 2, -1)).unbind(dim=2)
        return torch.cat([units, presence.flatten(1)], dim=1), torch.cat([units, intensity.flatten(1)], dim=1)

    def ring_differences(self, context: Context) -> torch.Tensor:
        """Mean local prediction in each ring less that of the spot, 0 where a ring is empty; shape (spots, units)."""
        predicted = context.values[:, self.n_local :]
        own = context.of_spots(predicted)
        rings = []
        for number in range(1, self.n_hops + 1):
            there = (context.ring == number).any(dim=1, keepdim=True)
            rings.append((context.ring_mean(predicted, number) - own) * there)
        return torch.cat(rings, dim=1)

    @abstractmethod
    def embed_locally(self, genes: torch.Tensor) -> torch.Tensor:
        """Embed spots by themselves, shape (spots, genes) to (spots, ``n_local``)."""


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
    """

    embedding: torch.Tensor
    bias: torch.Tensor
    mix: torch.Tensor
    known: torch.Tensor

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
