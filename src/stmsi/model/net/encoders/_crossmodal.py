"""Genes and metabolites of a spot in one space: CMRCNet's design, with those of BLEEP, mclSTExp and EGN as options."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, mse_loss

from stmsi._data.checks import check_choice
from stmsi.model.net.encoders._contexts import Context
from stmsi.model.net.encoders._encoder import Encoder, Sizes, Usual
from stmsi.model.net.encoders._exemplars import ExemplarBridge
from stmsi.model.net.encoders._reconstruction import Reconstruction
from stmsi.model.net.encoders._training_profiles import ProfileBank, Weighting

_N_HEADS = 4
_N_NEIGHBOURS = {"uniform": 50, "softmax": 50, "similarity": 200}
_N_EXEMPLARS = 16


class CrossModalEncoder(Encoder):
    r"""Projections of genes and of metabolites, drawn together spot by spot; only the genes are needed to predict.

    Beside the losses of the two stages, training matches the two embeddings of each spot against those of the other spots
    of the step (soft-CLIP: spots that resemble each other in both are no mismatch), and where asked for reconstructs the embedding of the
    metabolites, half of whose tokens' elements are hidden, with the help of the genes. Each loss :math:`l` counts as
    :math:`\log(1 + l)` times its weight. The learning rate falls as a cosine.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    output
        ``"decoder"``: the two heads on the embedding of the genes. ``"retrieval"``: mean over the training spots
        whose metabolites lie nearest to it. ``"exemplars"``: the heads also see what attention makes of the training spots of
        other sections whose genes lie nearest. The model then **keeps the metabolites of the training spots**, but with
        ``"decoder"``.
    n_hidden
        Width of the shared space.
    n_neighbours
        Training spots that ``"retrieval"`` takes the mean of, or exemplars; `None`: 50 as in BLEEP, 200 with
        ``weighting="similarity"`` as in mclSTExp, 16 exemplars.
    weighting
        Of the spots that ``"retrieval"`` takes the mean of: ``"uniform"``, ``"similarity"`` (cosine), or ``"softmax"`` of it.
    contrastive_weight, reconstruction_weight
        Weights of the two losses. CMRCNet has 1 for both, BLEEP 1 and 0; the reconstruction makes training several times as long.
    temperature
        Of the similarities.
    hard_labels
        A spot matches itself only, as in mclSTExp.
    dropout, input_dropout, output_dropout
        Share of hidden units, of genes, and of the embedding that the heads read, left out while training.

    Notes
    -----
    Plain ``"mlp"`` or ridge does as well on every task that was measured. On a small simulation, the decoder, exemplars and reconstruction are
    within 0.003 of ``"mlp"`` in correlation, and retrieval is 0.04 to 0.06 behind.

    References
    ----------
    Liu et al., CMRCNet (2025); Xie et al., BLEEP (2023); Min et al., mclSTExp (2024); Yang et al., EGN (2023).
    """

    is_joint = True
    usual = Usual(max_epochs=60, patience=15, cosine=True)

    def __init__(
        self,
        sizes: Sizes,
        output: Literal["decoder", "retrieval", "exemplars"] = "decoder",
        n_hidden: int = 256,
        n_neighbours: int | None = None,
        weighting: Weighting = "softmax",
        contrastive_weight: float = 0.1,
        reconstruction_weight: float = 0.0,
        temperature: float = 1.0,
        hard_labels: bool = False,
        dropout: float = 0.1,
        input_dropout: float = 0.3,
        output_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        check_choice(output, ("decoder", "retrieval", "exemplars"), "output")
        check_choice(weighting, ("uniform", "softmax", "similarity"), "weighting")
        if n_hidden % _N_HEADS:
            msg = f"n_hidden={n_hidden} must be a multiple of {_N_HEADS}, the number of attention heads."
            raise ValueError(msg)
        self.contrastive_weight, self.reconstruction_weight = contrastive_weight, reconstruction_weight
        self.temperature, self.hard_labels = temperature, hard_labels
        self.retrieves, self.has_exemplars = output == "retrieval", output == "exemplars"
        self.n_hidden = n_hidden
        self.input_dropout, self.output_dropout = nn.Dropout(input_dropout), nn.Dropout(output_dropout)
        n_profile = 2 * sizes.n_metabolites
        self.genes = _Projection(sizes.n_genes + sizes.n_covariates, n_hidden, dropout)
        self.metabolites = _Projection(n_profile, n_hidden, dropout)
        self.reconstruction = Reconstruction(n_profile, n_hidden, dropout) if reconstruction_weight else None
        if output != "decoder":
            usual = _N_EXEMPLARS if self.has_exemplars else _N_NEIGHBOURS[weighting]
            self.bank = ProfileBank(n_neighbours or usual, weighting, temperature / n_hidden**0.5)
        self.bridge = ExemplarBridge(n_hidden, 4 * sizes.n_metabolites, _N_HEADS) if self.has_exemplars else None
        self.n_output = 2 * n_hidden if self.has_exemplars else n_hidden

    def forward(
        self,
        x: torch.Tensor,
        covariates: torch.Tensor,
        context: Context | None = None,
        *,
        section: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`. Exemplars of the same `section` are passed over."""
        embedding = self.genes(torch.cat([self.input_dropout(x), covariates], dim=1))
        if self.bridge is None:
            return self.output_dropout(embedding)
        assert self.bank is not None
        if not len(self.bank):  # before the first step
            return self.output_dropout(torch.cat([embedding, torch.zeros_like(embedding)], dim=1))
        found = self.bridge(embedding, self.bank.exemplars(embedding.detach(), section))
        return self.output_dropout(torch.cat([embedding, found], dim=1))

    def auxiliary_loss(self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Contrastive and reconstruction loss; see :class:`Encoder`."""
        # what exemplars add knows metabolites already
        embedding = embedding[:, : self.n_hidden]
        profile = _profile(target, present)
        other = self.metabolites(profile)
        loss = embedding.new_zeros(())
        if self.contrastive_weight:
            contrastive = soft_clip_loss(embedding, other, self.temperature, hard_labels=self.hard_labels)
            loss = loss + self.contrastive_weight * torch.log1p(contrastive)
        if self.reconstruction is not None:
            reconstructed = self.reconstruction(profile, embedding)
            loss = loss + self.reconstruction_weight * torch.log1p(mse_loss(reconstructed, other))
        return loss

    def remember(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor, section: torch.Tensor | None = None
    ) -> None:
        """Keep training spots, for retrieval by the embedding of their metabolites, as exemplars by that of their genes."""
        if self.bank is not None:
            kept = embedding[:, : self.n_hidden] if self.has_exemplars else self.metabolites(_profile(target, present))
            self.bank.fill(kept, target, present, section)


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
