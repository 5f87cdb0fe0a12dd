"""Losses of the two stages; entries that were not measured never count."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

PresenceLoss: TypeAlias = Literal["bce", "focal"]
IntensityLoss: TypeAlias = Literal["mse", "huber", "pearson", "cosine"]
PRESENCE_LOSSES, INTENSITY_LOSSES = get_args(PresenceLoss), get_args(IntensityLoss)

_FOCUS = 2.0
"""Exponent of the focal loss (Lin et al., 2017)."""
_LEVEL = 0.1
"""Weight of the squared error that is added to a loss which ignores the level."""
_MIN_ENTRIES = 3
"""Spots with the metabolite that a correlation over a batch needs; of two it is 1 or -1."""
_MIN_VARIANCE = 1e-6
"""Of standardised intensities, below which they count as constant."""


def presence_loss(
    logit: torch.Tensor, present: torch.Tensor, positive_weight: torch.Tensor, kind: PresenceLoss = "bce"
) -> torch.Tensor:
    r"""Mean class-balanced cross-entropy over the covered entries.

    Parameters
    ----------
    logit
        Shape (spots, metabolites).
    present
        1, 0 or NaN, likewise.
    positive_weight
        Absent over present training entries of each metabolite.
    kind
        ``"bce"``: the cross-entropy; ``"focal"``: each entry times :math:`(1 - p)^2`, where :math:`p` is the probability
        given to what was measured, so that easy entries hardly count.
    """
    covered = ~torch.isnan(present)
    target = torch.where(covered, present, torch.zeros_like(present))
    loss = binary_cross_entropy_with_logits(logit, target, reduction="none")
    if kind == "focal":
        loss = loss * (-torch.expm1(-loss)) ** _FOCUS  # the cross-entropy is -log p
    # weights that average to one whatever the prevalence
    weight = torch.where(target > 0, positive_weight, torch.ones_like(positive_weight)) * 2 / (1 + positive_weight)
    return (loss * weight * covered).sum() / covered.sum().clamp(min=1)


def intensity_loss(
    mean: torch.Tensor, target: torch.Tensor, present: torch.Tensor, kind: IntensityLoss = "mse"
) -> torch.Tensor:
    """Mean loss over the entries where the metabolite is present.

    Parameters
    ----------
    mean
        Predicted standardised intensity, shape (spots, metabolites).
    target
        Standardised intensity, NaN where not covered, likewise.
    present
        1, 0 or NaN, likewise.
    kind
        ``"mse"``; ``"huber"`` (linear beyond one standard deviation); ``"pearson"`` or ``"cosine"``: one less the
        correlation, or cosine, of each metabolite over the spots of the batch that have it, averaged over metabolites
        with three of them or more that differ, plus a tenth of the squared error, since both ignore the level.
    """
    counts = (present > 0) & ~torch.isnan(target)
    target = torch.where(counts, target, torch.zeros_like(target))
    mean = torch.where(counts, mean, torch.zeros_like(mean))
    n_entries = counts.sum().clamp(min=1)
    if kind == "huber":
        return huber_loss(mean, target, reduction="sum") / n_entries
    squared = ((mean - target) ** 2).sum() / n_entries
    if kind == "mse":
        return squared
    return 1 - _similarity(mean, target, counts, centre=kind == "pearson") + _LEVEL * squared


def correlation_loss(mean: torch.Tensor, target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """One less the mean correlation over the spots of the batch that have the metabolite; arguments as for :func:`intensity_loss`."""
    counts = (present > 0) & ~torch.isnan(target)
    target, mean = (torch.where(counts, v, torch.zeros_like(v)) for v in (target, mean))
    return 1 - _similarity(mean, target, counts, centre=True)


def _similarity(mean: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, *, centre: bool) -> torch.Tensor:
    """Mean over metabolites of the cosine between prediction and target (centred: Pearson correlation); 1 without any.

    What does not count is 0 in both.
    """
    n = counts.sum(dim=0)
    if centre:
        some = n.clamp(min=1)
        mean = (mean - mean.sum(dim=0) / some) * counts
        target = (target - target.sum(dim=0) / some) * counts
    # the same floor under both: a constant prediction has similarity 0 and a finite gradient
    floor = _MIN_VARIANCE * n.clamp(min=1)
    power, measured = (mean**2).sum(dim=0), (target**2).sum(dim=0)
    similarity = (mean * target).sum(dim=0) / ((power + floor) * (measured + floor)).sqrt()
    usable = (n >= _MIN_ENTRIES) & (measured > floor)
    total = torch.where(usable, similarity, torch.zeros_like(similarity)).sum()
    return (total + (~usable.any()).to(total.dtype)) / usable.sum().clamp(min=1)
