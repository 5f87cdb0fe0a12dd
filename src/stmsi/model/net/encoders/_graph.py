"""A local prediction, fixed, then corrected by a small graph around the spot: SEPAL's design with genes as input."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn.functional import elu, leaky_relu

from stmsi._core.spatial.neighbourhoods import MOST_IN_RING
from stmsi._data.checks import check_choice
from stmsi.model.net.encoders._contexts import Context
from stmsi.model.net.encoders._encoder import Sizes, Usual
from stmsi.model.net.encoders._local_first import LocalFirstEncoder
from stmsi.model.net.encoders._mlp import MLPEncoder

Convolution: TypeAlias = Literal["gcn", "sage", "attention"]
Combination: TypeAlias = Literal["sum", "concat"]


class GraphEncoder(LocalFirstEncoder):
    """A spot by itself, learned first and fixed, and a graph of its neighbours that corrects the prediction.

    In the first pass a multi-layer perceptron learns from single spots. In the second one it is fixed, and so is the prediction
    from it. Nodes are the spot and the neighbours that are up to `n_hops` edges away. Each has its local embedding, its local
    prediction, and a sine and cosine encoding of its position relative to the spot. Convolutions along the edges between them
    and attention pooling give one vector, from which a linear layer predicts what is added to the local prediction. It begins at
    0, and is kept only where it makes the held-out loss lower. A spot without neighbours is a graph of one node.

    SEPAL's nodes have no prediction, as there it is linear in the embedding; here it also holds the linear path. Covariates
    add linear terms to the local prediction: those of a neighbour are not known.

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
    n_hops
        Edges between the spot and its farthest neighbours, 1 to 3.
    conv
        ``"gcn"`` (SEPAL): mean over a node and its neighbours, weighted by their numbers of edges; ``"sage"`` (GraphSAGE, as
        in Hist2ST): the node and the mean of its neighbours by weights of their own; ``"attention"`` (graph attention, as in
        THItoGene): a learned mean.
    combine
        Whether the encoding of the position is added to a node (``"sum"``) or laid beside it (``"concat"``).
    dropout, input_dropout
        As for ``"mlp"``.

    Raises
    ------
    ValueError
        A width that cannot hold sines and cosines, too many hops, or an unknown option.

    References
    ----------
    Mejia et al., SEPAL (2023), https://arxiv.org/abs/2309.01036; Zeng et al., Hist2ST (2022); Jia et al., THItoGene (2024).
    """

    uses_graph = True
    needs_graph = True
    uses_edges = True
    uses_positions = True
    usual = Usual(lr=1e-3, eps=1e-8)
    frequency: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 256,
        n_graph: int = 64,
        n_layers: int = 2,
        n_hops: int = 2,
        conv: Convolution = "gcn",
        combine: Combination = "sum",
        dropout: float = 0.3,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        check_choice(conv, _CONVOLUTIONS, "conv")
        check_choice(combine, ("sum", "concat"), "combine")
        if n_graph % 4:
            msg = f"n_graph={n_graph} must be a multiple of 4: sine and cosine of x and y."
            raise ValueError(msg)
        if not 1 <= n_hops <= len(MOST_IN_RING):
            msg = f"n_hops={n_hops} must be 1 to {len(MOST_IN_RING)}: neighbours further away are not read."
            raise ValueError(msg)
        self.n_hops, self.combine = n_hops, combine
        self.local = MLPEncoder(
            replace(sizes, n_covariates=0), n_hidden=n_hidden, dropout=dropout, input_dropout=input_dropout
        )
        width = n_hidden + 2 * sizes.n_metabolites
        self.node = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_graph))
        self.dropout = nn.Dropout(dropout)
        widths = [n_graph if combine == "sum" else 2 * n_graph, *[n_graph] * n_layers]
        self.layers = nn.ModuleList(_CONVOLUTIONS[conv](a, n_graph) for a in widths[:-1])
        self.score, self.after = nn.Linear(n_graph, 1), nn.LayerNorm(n_graph)
        self.register_buffer("frequency", 0.5 ** torch.arange(n_graph // 4), persistent=False)
        self.n_local, self.n_correction = n_hidden, n_graph
        self.n_rings_units = 2 * n_hops * sizes.n_metabolites
        self.n_output = n_hidden + sizes.n_covariates + n_graph + self.n_rings_units

    def embed_locally(self, genes: torch.Tensor) -> torch.Tensor:
        """Embed spots by themselves; see :class:`LocalFirstEncoder`."""
        return self.local(genes, genes.new_zeros(len(genes), 0))

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`. Without a context, as in the first pass, there is no correction."""
        alone = [self.embed_locally(x), covariates]
        if context is None:
            around = [x.new_zeros(len(x), self.n_correction + self.n_rings_units)]
        else:
            around = [self.embed_around(context), self.ring_differences(context)]
        return torch.cat([*alone, *around], dim=1)

    def embed_around(self, context: Context) -> torch.Tensor:
        """Embed neighbourhoods, shape (spots, ``n_correction``)."""
        assert context.edges is not None
        # before the nodes are gathered, of which most belong to several spots
        nodes = self.node(context.values)
        h = torch.cat([context.of_spots(nodes).unsqueeze(1), context.of_neighbours(nodes)], dim=1)
        here = self.dropout(h), self.encode_position(context.offset)
        h = here[0] + here[1] if self.combine == "sum" else torch.cat(here, dim=-1)
        for layer in self.layers:
            h = elu(layer(h, context.edges))
        there = torch.cat([context.ring.new_ones(len(h), 1), context.ring], dim=1) > 0
        weight = self.score(h).squeeze(-1).masked_fill(~there, -torch.inf).softmax(dim=1)
        return self.after((weight.unsqueeze(1) @ h).squeeze(1))

    def encode_position(self, offset: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of positions relative to the spot, which comes first; shape (spots, 1 + K, width of the nodes)."""
        position = torch.cat([offset.new_zeros(len(offset), 1, 2), offset], dim=1)
        angle = (position.unsqueeze(-1) * self.frequency).flatten(-2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class _GCN(nn.Module):
    """Graph convolution (Kipf and Welling 2017): each node is its own neighbour."""

    def __init__(self, n_input: int, n_output: int) -> None:
        super().__init__()
        self.weight = nn.Linear(n_input, n_output)

    def forward(self, h: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Shape (spots, nodes, width), along edges of shape (spots, nodes, nodes)."""
        near = _with_self(edges).to(h.dtype)
        root = near.sum(dim=2, keepdim=True).rsqrt()
        return self.weight(root * (near @ (root * h)))


class _SAGE(nn.Module):
    """GraphSAGE with the mean (Hamilton et al. 2017): a node, and the mean of its neighbours."""

    def __init__(self, n_input: int, n_output: int) -> None:
        super().__init__()
        self.own, self.around = nn.Linear(n_input, n_output), nn.Linear(n_input, n_output, bias=False)

    def forward(self, h: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """As for :class:`_GCN`."""
        near = edges.to(h.dtype)
        return self.own(h) + self.around((near @ h) / near.sum(dim=2, keepdim=True).clamp(min=1))


class _GraphAttention(nn.Module):
    """Graph attention (Velickovic et al. 2018), one head."""

    def __init__(self, n_input: int, n_output: int) -> None:
        super().__init__()
        self.weight = nn.Linear(n_input, n_output)
        self.asks, self.answers = nn.Linear(n_output, 1, bias=False), nn.Linear(n_output, 1, bias=False)

    def forward(self, h: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """As for :class:`_GCN`."""
        h = self.weight(h)
        score = leaky_relu(self.asks(h) + self.answers(h).transpose(1, 2), 0.2)
        return score.masked_fill(~_with_self(edges), -torch.inf).softmax(dim=2) @ h


_CONVOLUTIONS: dict[str, type[nn.Module]] = {"gcn": _GCN, "sage": _SAGE, "attention": _GraphAttention}


def _with_self(edges: torch.Tensor) -> torch.Tensor:
    """Edges, and one from each node to itself."""
    return edges | torch.eye(edges.shape[1], dtype=torch.bool, device=edges.device)
