"""A local prediction corrected by a small graph around the spot: SEPAL's design with genes as input."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import elu

from stmsi.model.net.encoders._encoder import Context, Encoder, Sizes
from stmsi.model.net.encoders._mlp import MLPEncoder

_REACH = 1.5
"""Neighbours closer than this many steps share an edge (on squares the diagonal ones too)."""


class GraphEncoder(Encoder):
    """The spot's own embedding plus a correction from graph convolutions over its two rings.

    Nodes are the spot and its neighbours, with their components and a sine and cosine encoding of their position relative
    to the spot; attention pools them. The correction starts at 0, so that training begins with the spot alone. SEPAL trains
    the local stage first, fixes it, and adds two predictions; here both are trained together and added as embeddings.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the local embedding.
    n_graph
        Width of the nodes.
    n_layers
        Graph convolutions.
    dropout, input_dropout
        As for ``"mlp"``.

    References
    ----------
    Mejia et al., SEPAL (2023).
    """

    uses_graph = True
    needs_graph = True
    uses_positions = True
    frequency: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 256,
        n_graph: int = 64,
        n_layers: int = 2,
        dropout: float = 0.3,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        if n_graph % 4:
            msg = f"n_graph={n_graph} must be a multiple of 4: sine and cosine of x and y."
            raise ValueError(msg)
        self.local = MLPEncoder(sizes, n_hidden=n_hidden, dropout=dropout, input_dropout=input_dropout)
        self.node = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Linear(sizes.n_components, n_graph), nn.Dropout(dropout)
        )
        self.layers = nn.ModuleList(nn.Linear(n_graph, n_graph) for _ in range(n_layers))
        self.score = nn.Linear(n_graph, 1)
        self.correction = nn.Linear(n_graph, n_hidden)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        frequency = 0.5 ** torch.arange(n_graph // 4)
        self.register_buffer("frequency", frequency, persistent=False)
        self.n_output = n_hidden

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        there = torch.cat([context.ring.new_ones(len(x), 1), context.ring], dim=1) > 0
        position = torch.cat([context.offset.new_zeros(len(x), 1, 2), context.offset], dim=1)
        components = torch.cat([context.own.unsqueeze(1), context.neighbours], dim=1)
        angle = (position.unsqueeze(-1) * self.frequency).flatten(-2)
        h = self.node(components) + torch.cat([angle.sin(), angle.cos()], dim=-1)
        near = torch.cdist(position, position) < _REACH  # a node is its own neighbour
        edges = (near & there.unsqueeze(1) & there.unsqueeze(2)).to(h.dtype)
        edges = edges / edges.sum(dim=2, keepdim=True).clamp(min=1)
        for layer in self.layers:
            h = elu(layer(edges @ h))
        weight = self.score(h).squeeze(-1).masked_fill(~there, -torch.inf).softmax(dim=1)
        pooled = (weight.unsqueeze(-1) * h).sum(dim=1)
        return self.local(x, covariates) + self.correction(pooled)
