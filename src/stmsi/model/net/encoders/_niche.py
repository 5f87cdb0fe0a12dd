"""A spot and its rings as tokens: NicheTrans' design on genes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, leaky_relu

from stmsi.model.net.encoders._contexts import Context
from stmsi.model.net.encoders._encoder import Encoder, Sizes, Usual

_N_KINDS = 3
"""Kinds of token: centre, ring 1, ring 2."""


class NicheEncoder(Encoder):
    r"""One self-attention block over the genes of the spot and of its neighbours; the spot's own token is read.

    One network makes tokens of the spot and of its neighbours, and a learned vector tells the centre, ring 1 and ring 2 apart. A
    training step sees a few neighbours of each ring, drawn at random. A prediction sees all of them, and a ring counts as
    many as were drawn: :math:`\log` of drawn over present is added to the logits. After pre-norm attention come gated units
    (GEGLU), and for each metabolite hidden units of its own.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the tokens; the layer before them has twice as many units.
    n_heads
        Attention heads; divides `n_hidden`.
    n_drawn
        Neighbours of each ring that a training step sees.
    n_own
        Hidden units of each metabolite.
    dropout
        Share of units left out while training.
    input_dropout
        Share of genes left out while training.
    neighbour_dropout
        Share of the neighbours left out while training.

    Notes
    -----
    Plain ``"mlp"`` or ridge does as well on every task that was measured. As a correction of ridge it needs a small ``eps`` of AdamW and a
    learning rate of 3e-3 at once: with that of scvi-tools (0.01) it hardly leaves the ridge.

    References
    ----------
    "NicheTrans: Spatial-aware Cross-omics Translation", without its selection of features on the test slides. Layer norm stands
    in the place of batch norm.
    """

    uses_graph = True
    needs_graph = True
    sees_genes = True
    is_grouped = True
    usual = Usual(max_epochs=40, patience=10, eps=1e-8)

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 128,
        n_heads: int = 4,
        n_drawn: int = 4,
        n_own: int = 16,
        dropout: float = 0.2,
        input_dropout: float = 0.2,
        neighbour_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        if n_hidden % n_heads:
            msg = f"n_hidden={n_hidden} must be a multiple of n_heads={n_heads}."
            raise ValueError(msg)
        self.n_drawn, self.neighbour_dropout = n_drawn, neighbour_dropout
        self.spot = nn.Sequential(
            nn.Dropout(input_dropout), nn.Linear(sizes.n_genes, 2 * n_hidden), nn.LayerNorm(2 * n_hidden), nn.LeakyReLU(),
            nn.Linear(2 * n_hidden, n_hidden), nn.LayerNorm(n_hidden), nn.LeakyReLU(),
        )  # fmt: skip
        self.kind = nn.Embedding(_N_KINDS, n_hidden)
        self.before = nn.LayerNorm(n_hidden)
        self.attention = nn.MultiheadAttention(n_hidden, n_heads, dropout=dropout, batch_first=True)
        self.gate = nn.Sequential(nn.LayerNorm(n_hidden), nn.Linear(n_hidden, 4 * n_hidden))
        self.back = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * n_hidden, n_hidden))
        n_metabolites, width = max(sizes.n_metabolites, 1), n_hidden + sizes.n_covariates
        bound = width**-0.5
        self.own = nn.Parameter(torch.empty(n_metabolites, width, n_own).uniform_(-bound, bound))
        self.own_bias = nn.Parameter(torch.zeros(n_metabolites, n_own))
        self.after = nn.Dropout(dropout)
        self.n_output = n_metabolites * n_own

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        neighbour, ring, logit = self._drawn(context) if self.training else self._all(context)
        # spots that no attention sees are not embedded
        seen, place = torch.cat([context.spot.unsqueeze(1), neighbour], dim=1).unique(return_inverse=True)
        made = self.spot(context.values[seen])
        kind = torch.cat([ring.new_zeros(len(ring), 1), ring], dim=1)
        tokens = made[place] + self.kind(kind)
        normed = self.before(tokens)
        logit = torch.cat([logit.new_zeros(len(ring), 1), logit], dim=1).unsqueeze(1)
        # only the centre asks: what the neighbours would learn of each other is read by nobody
        answer, _ = self.attention(
            normed[:, :1], normed, normed, attn_mask=logit.repeat_interleave(self.attention.num_heads, dim=0),
            need_weights=False,
        )  # fmt: skip
        token = (tokens[:, :1] + answer).squeeze(1)
        value, gate = self.gate(token).chunk(2, dim=-1)
        token = torch.cat([token + self.back(value * gelu(gate)), covariates], dim=1)
        own = torch.einsum("bd,mdh->bmh", token, self.own) + self.own_bias
        return self.after(leaky_relu(own)).flatten(1)

    def _drawn(self, context: Context) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Neighbours of a training step, their ring, and what is added to their logits; each of shape (spots, drawn)."""
        kept = []
        for number in range(1, _N_KINDS):
            inside = context.ring == number
            lot = torch.rand(inside.shape, device=inside.device).masked_fill(~inside, 2.0)
            kept.append(lot.argsort(dim=1)[:, : self.n_drawn])
        at = torch.cat(kept, dim=1)
        # places that a small ring leaves empty hold neighbours of no ring or of the other one
        wanted = torch.arange(1, _N_KINDS, device=at.device).repeat_interleave(at.shape[1] // (_N_KINDS - 1))
        ring = context.ring.gather(1, at)
        ring = ring * (ring == wanted)
        ring = ring * (torch.rand(ring.shape, device=ring.device) >= self.neighbour_dropout)
        logit = torch.zeros(ring.shape, device=ring.device).masked_fill(ring == 0, -torch.inf)
        return torch.where(ring > 0, context.neighbour.gather(1, at), context.spot.unsqueeze(1)), ring, logit

    def _all(self, context: Context) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All neighbours, as :meth:`_drawn`: a ring counts as much as those that a training step draws of it."""
        ring = context.ring
        logit = torch.full(ring.shape, -torch.inf, device=ring.device)
        for number in range(1, _N_KINDS):
            inside = ring == number
            present = inside.sum(dim=1, keepdim=True).clamp(min=1)
            logit = torch.where(inside, (present.clamp(max=self.n_drawn) / present).log(), logit)
        return context.neighbour, ring, logit
