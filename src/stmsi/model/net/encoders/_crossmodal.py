"""Genes and metabolites of a spot in one space: CMRCNet's design, with BLEEP's and mclSTExp's as options."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, mse_loss

from stmsi._data.checks import check_choice
from stmsi.model.net.encoders._encoder import Context, Encoder, Sizes
from stmsi.model.net.encoders._training_profiles import ProfileBank, Weighting

_N_TOKENS = 8
_MASKED = 0.5
"""Share of the elements of the metabolite tokens that are to be reconstructed."""


class CrossModalEncoder(Encoder):
    r"""Projections of genes and of metabolites, drawn together spot by spot; only the genes are needed to predict.

    Beside the losses of the two stages, training matches the two embeddings of each spot against those of the other spots
    of the step (soft-CLIP: spots that resemble each other in both are no mismatch), and reconstructs the embedding of the
    metabolites, half of which is hidden, with the help of the genes. Each loss :math:`l` counts as
    :math:`\log(1 + l)` times its weight.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    output
        ``"decoder"``: the two heads on the embedding of the genes. ``"retrieval"``: mean over the training spots
        whose metabolites lie nearest to it; the model then **keeps the metabolites of the training spots**.
    n_hidden
        Width of the shared space.
    n_neighbours, weighting
        Spots that ``"retrieval"`` takes the mean of, and their weights: ``"uniform"`` or ``"softmax"`` of the similarity.
    contrastive_weight, reconstruction_weight
        Weights of the two losses; with 0 for the second one this is BLEEP.
    temperature
        Of the similarities.
    hard_labels
        A spot matches itself only, as in mclSTExp.
    dropout, input_dropout
        Share of hidden units, and of genes, left out while training.

    References
    ----------
    Liu et al., CMRCNet (2025); Xie et al., BLEEP (2023); Min et al., mclSTExp (2024).
    """

    is_joint = True

    def __init__(
        self,
        sizes: Sizes,
        output: Literal["decoder", "retrieval"] = "decoder",
        n_hidden: int = 256,
        n_neighbours: int = 50,
        weighting: Weighting = "softmax",
        contrastive_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        temperature: float = 1.0,
        hard_labels: bool = False,
        dropout: float = 0.1,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        check_choice(output, ("decoder", "retrieval"), "output")
        check_choice(weighting, ("uniform", "softmax"), "weighting")
        if n_hidden % (2 * _N_TOKENS):
            msg = f"n_hidden={n_hidden} must be a multiple of {2 * _N_TOKENS}: {_N_TOKENS} tokens with two heads each."
            raise ValueError(msg)
        self.contrastive_weight, self.reconstruction_weight = contrastive_weight, reconstruction_weight
        self.temperature, self.hard_labels = temperature, hard_labels
        self.input_dropout = nn.Dropout(input_dropout)
        self.genes = _Projection(sizes.n_genes + sizes.n_covariates, n_hidden, dropout)
        self.metabolites = _Projection(2 * sizes.n_metabolites, n_hidden, dropout)
        self.reconstruction = _Reconstruction(2 * sizes.n_metabolites, n_hidden, dropout)
        self.bank = ProfileBank(n_neighbours, weighting, temperature / n_hidden**0.5) if output == "retrieval" else None
        self.n_output = n_hidden

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        return self.genes(torch.cat([self.input_dropout(x), covariates], dim=1))

    def auxiliary_loss(self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Contrastive and reconstruction loss; see :class:`Encoder`."""
        profile = _profile(target, present)
        other = self.metabolites(profile)
        loss = embedding.new_zeros(())
        if self.contrastive_weight:
            contrastive = soft_clip_loss(embedding, other, self.temperature, hard_labels=self.hard_labels)
            loss = loss + self.contrastive_weight * torch.log1p(contrastive)
        if self.reconstruction_weight:
            reconstructed = self.reconstruction(profile, embedding)
            loss = loss + self.reconstruction_weight * torch.log1p(mse_loss(reconstructed, other))
        return loss

    def remember(self, target: torch.Tensor, present: torch.Tensor) -> None:
        """Keep training spots, by the embedding of their metabolites."""
        if self.bank is not None:
            self.bank.fill(self.metabolites(_profile(target, present)), target, present)


def soft_clip_loss(a: torch.Tensor, b: torch.Tensor, temperature: float, *, hard_labels: bool = False) -> torch.Tensor:
    """Symmetric cross-entropy between the similarities across and within two embeddings of the same spots.

    Parameters
    ----------
    a, b
        Shape (spots, width).
    temperature
        Similarities are scalar products over the root of the width and over this; those of the targets are times this.
    hard_labels
        Targets are the spots themselves.
    """
    unit = a.shape[1] ** 0.5
    logits = a @ b.T / (unit * temperature)
    target = torch.eye(len(a), dtype=a.dtype, device=a.device)
    if not hard_labels:
        target = ((a @ a.T + b @ b.T) / (2 * unit) * temperature).softmax(dim=1)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _profile(target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """What the metabolite tower sees: intensity where present, else 0, and 1 / -1 / 0 for present, absent, unknown."""
    there = (present > 0) & ~torch.isnan(target)
    value = torch.where(there, target, torch.zeros_like(target))
    return torch.cat([value, torch.nan_to_num(2 * present - 1)], dim=1)


class _Projection(nn.Module):
    """Linear, and a residual step: GELU, linear, dropout; layer norm."""

    def __init__(self, n_input: int, n_output: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_input, n_output), nn.Linear(n_output, n_output)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(n_output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.norm(x + self.dropout(self.second(gelu(x))))


class _Reconstruction(nn.Module):
    """Metabolites as tokens, half of their elements hidden, completed by attention to the genes' embedding."""

    def __init__(self, n_input: int, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(n_input, n_hidden), nn.ELU(), nn.AlphaDropout(dropout))
        width = n_hidden // _N_TOKENS
        self.first = nn.MultiheadAttention(width, 2, batch_first=True)
        self.blocks = nn.ModuleList(_Fusion(width) for _ in range(2))

    def forward(self, profile: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(profile).unflatten(1, (_N_TOKENS, -1))
        other = genes.unflatten(1, (_N_TOKENS, -1))
        h = tokens * (torch.rand_like(tokens) >= _MASKED)
        h = h + self.first(h, other, other, need_weights=False)[0]
        for block in self.blocks:
            h = block(h, other)
        return h.flatten(1)


class _Fusion(nn.Module):
    """Pre-norm attention of the tokens to each other and to those of the other modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.within, self.across = (nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](h)
        h = h + self.within(normed, normed, normed, need_weights=False)[0]
        h = h + self.across(self.norms[1](h), other, other, need_weights=False)[0]
        return h + self.feed(self.norms[2](h))
