"""Attention that leaves most genes out."""

from __future__ import annotations

import torch


def entmax15(logits: torch.Tensor) -> torch.Tensor:
    r"""1.5-entmax over the last dimension: between softmax and sparsemax, with weights that are exactly 0.

    .. math::
        p_g = \max(z_g / 2 - \tau, 0)^2, \quad \sum_g p_g = 1.

    The threshold is found by sorting, so that the result and its gradient are exact.

    Parameters
    ----------
    logits
        Shape (..., genes).

    References
    ----------
    Peters, Niculae and Martins, Sparse sequence-to-sequence models (2019).
    """
    z = (logits - logits.amax(dim=-1, keepdim=True)) / 2
    ordered = z.sort(dim=-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    mean = ordered.cumsum(dim=-1) / count
    spread = ordered.square().cumsum(dim=-1) - count * mean.square()
    # below the least positive number the root has no gradient
    threshold = mean - ((1 - spread) / count).clamp(min=1e-12).sqrt()
    support = (threshold <= ordered).sum(dim=-1, keepdim=True)
    return (z - threshold.gather(-1, support - 1)).clamp(min=0).square()
