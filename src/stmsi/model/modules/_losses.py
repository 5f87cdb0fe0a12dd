"""Losses of the two stages; entries that were not measured never count."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def presence_loss(logit: torch.Tensor, present: torch.Tensor, positive_weight: torch.Tensor) -> torch.Tensor:
    """Mean class-balanced cross-entropy over the covered entries.

    Parameters
    ----------
    logit
        Shape (spots, metabolites).
    present
        1, 0 or NaN, likewise.
    positive_weight
        Absent over present training entries of each metabolite.
    """
    covered = ~torch.isnan(present)
    target = torch.where(covered, present, torch.zeros_like(present))
    loss = binary_cross_entropy_with_logits(logit, target, reduction="none")
    # weights that average to one whatever the prevalence
    weight = torch.where(target > 0, positive_weight, torch.ones_like(positive_weight)) * 2 / (1 + positive_weight)
    return (loss * weight * covered).sum() / covered.sum().clamp(min=1)


def intensity_loss(mean: torch.Tensor, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the entries where the metabolite is present.

    Parameters
    ----------
    mean
        Predicted standardised intensity, shape (spots, metabolites).
    target
        Standardised intensity, NaN where not covered, likewise.
    present
        1, 0 or NaN, likewise.
    """
    counts = (present > 0) & ~torch.isnan(target)
    residual = torch.where(counts, mean - target, torch.zeros_like(mean))
    return (residual**2).sum() / counts.sum().clamp(min=1)
