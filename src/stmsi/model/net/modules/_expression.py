"""Log expression of the genes that networks use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scvi import REGISTRY_KEYS

from stmsi._core.learning.expression_space import TARGET_SUM


def log_expression(x: torch.Tensor, genes: torch.Tensor, *, logged: bool) -> torch.Tensor:
    """Log-normalised expression of some genes, from the counts of all genes or, with `logged`, from logarithms."""
    if logged:
        return x.index_select(1, genes)
    library = x.sum(dim=1, keepdim=True)
    return torch.log1p(x[:, genes] * (TARGET_SUM / torch.where(library > 0, library, torch.ones_like(library))))


class SharedExpression:
    """Log expression of a batch, normalised once for all networks that predict it.

    Parameters
    ----------
    index
        Genes that each network uses, as positions in the panel.
    logged
        Whether the expression comes as logarithms and not as counts.
    """

    def __init__(self, index: Sequence[torch.Tensor], *, logged: bool) -> None:
        index = [own.cpu() for own in index]
        self.genes, place = torch.cat(index).unique(return_inverse=True)
        self.places = place.split([len(own) for own in index])
        self.logged = logged

    def of(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """For each network, log expression of the genes that it uses, shape (spots, genes used)."""
        log = log_expression(tensors[REGISTRY_KEYS.X_KEY], self.genes, logged=self.logged)
        return [log.index_select(1, place) for place in self.places]
