"""What encoders are told of the surroundings of a batch of spots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

Summary: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""What attention needs of a section: sums of keys times values, and of keys."""


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
