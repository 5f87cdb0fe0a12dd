"""Parts of the hurdle module beside the encoder."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

_SLOPE = 0.3
"""Of each head, where training begins."""
_EMBEDDING, _BEND, _SMALL = 8, 32, 0.1
"""Width of the embedding of a metabolite, units of the network that all share, and the size with which embeddings begin."""
_SATURATION = 0.7
_IN_CACHE = 2**13
"""Spots times metabolites that are read out together in a prediction: the units of more leave the processor's cache."""
_PULL = 10.0
"""Shares of a pull over its weights, which so learn them in some 50 steps."""


class GroupedHead(nn.Module):
    """One output for each metabolite, from the hidden units that are its own and from those that all share.

    Parameters
    ----------
    width
        Hidden units of all metabolites together.
    n_metabolites
        Metabolites; divides `width`.
    n_shared
        Hidden units that all share, which come after the others.
    """

    def __init__(self, width: int, n_metabolites: int, n_shared: int = 0) -> None:
        super().__init__()
        self.n_own = width // n_metabolites
        bound = self.n_own**-0.5
        self.weight = nn.Parameter(torch.empty(n_metabolites, self.n_own).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_metabolites))
        self.shared = nn.Linear(n_shared, n_metabolites, bias=False) if n_shared else None

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Shape (spots, width + shared) to (spots, metabolites)."""
        n = self.weight.numel()
        own = embedding[:, :n].unflatten(1, self.weight.shape)
        out = torch.einsum("bmh,mh->bm", own, self.weight) + self.bias
        return out if self.shared is None else out + self.shared(embedding[:, n:])


class CorrectedHead(nn.Module):
    """A linear prediction of the spot by itself plus a correction by its neighbourhood, which begins at 0.

    The correction is linear in the units of the neighbourhood, and pulls the prediction to what the neighbours in each ring are predicted
    to have, by a share of its own for each metabolite and ring.

    Parameters
    ----------
    n_local, n_correction
        Units of the embedding of the spot, and of its neighbourhood, in this order.
    n_rings
        Rings, of which the differences to the spot come next: for each ring those of all metabolites.
    n_metabolites
        Outputs.
    n_shared
        Units after those, which the local prediction reads too.
    """

    def __init__(self, n_local: int, n_correction: int, n_rings: int, n_metabolites: int, n_shared: int = 0) -> None:
        super().__init__()
        self.widths = [n_local, n_correction, n_rings * n_metabolites, n_shared]
        self.local = nn.Linear(n_local + n_shared, n_metabolites)
        self.correction = nn.Linear(n_correction, n_metabolites)
        self.pull = nn.Parameter(torch.zeros(n_rings, n_metabolites))
        for parameter in self.correction.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Shape (spots, all units) to (spots, metabolites)."""
        local, around, rings, shared = embedding.split(self.widths, dim=1)
        pulled = (_PULL * self.pull * rings.unflatten(1, self.pull.shape)).sum(dim=1)
        return self.local(torch.cat([local, shared], dim=1)) + self.correction(around) + pulled

    def read_locally(self, units: torch.Tensor) -> torch.Tensor:
        """Local prediction from the first units of the embedding, the others at 0."""
        return linear(units, self.local.weight[:, : units.shape[1]], self.local.bias)


class LinearPath(nn.Module):
    """Linear predictions of both stages, fitted before the gradient steps and fixed during them.

    Parameters
    ----------
    n_inputs
        Standardised genes and further features.
    n_metabolites
        Outputs of each stage.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, n_inputs: int, n_metabolites: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_inputs, 2 * n_metabolites))
        self.register_buffer("bias", torch.zeros(2 * n_metabolites))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Log-odds of presence, then standardised intensity; shape (spots, 2 x metabolites)."""
        return inputs @ self.weight + self.bias

    def of_genes(self, genes: torch.Tensor) -> torch.Tensor:
        """The same with all further features at their mean."""
        return genes @ self.weight[: genes.shape[1]] + self.bias


class AttentionReadOut(nn.Module):
    """Reads the activities of attention heads to one value for each metabolite.

    That is a level, a slope for each head, and a bend: a small network shared by all metabolites, which sees the saturated
    activities and an embedding of the metabolite. It begins at 0, and learns saturation and products. Covariates add a linear term.

    Parameters
    ----------
    sign
        Of each head, with which its slope begins.
    n_metabolites
        Metabolites of the training data.
    n_covariates
        Columns of the covariates.
    """

    def __init__(self, sign: torch.Tensor, n_metabolites: int, n_covariates: int = 0) -> None:
        super().__init__()
        self.slope = nn.Parameter(_SLOPE * sign.clone())
        self.slope_of = nn.Parameter(torch.zeros(n_metabolites, len(sign)))  # less that of all
        self.level = nn.Parameter(torch.zeros(n_metabolites))
        self.embedding = nn.Parameter(_SMALL * torch.randn(n_metabolites, _EMBEDDING))
        self.bend = nn.Sequential(nn.Linear(len(sign) + _EMBEDDING, _BEND), nn.GELU(), nn.Linear(_BEND, 1))
        for parameter in self.bend[2].parameters():
            nn.init.zeros_(parameter)
        self.covariates = nn.Linear(n_covariates, n_metabolites, bias=False) if n_covariates else None
        if self.covariates is not None:
            nn.init.zeros_(self.covariates.weight)

    def begin_at_zero(self) -> None:
        """Begin as a correction: slopes are 0."""
        for parameter in (self.slope, self.slope_of):
            nn.init.zeros_(parameter)

    def slopes(self, known: torch.Tensor, metabolites: torch.Tensor | None = None) -> torch.Tensor:
        """Slope of each head, shape (metabolites, heads); arguments as for :meth:`forward`."""
        own = self.slope_of if metabolites is None else self.slope_of[metabolites]
        return self.slope + own * known.unsqueeze(-1)

    def forward(
        self,
        activity: torch.Tensor,
        known: torch.Tensor,
        covariates: torch.Tensor,
        metabolites: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read activities, shape (spots, metabolites, heads), to values of shape (spots, metabolites).

        Parameters
        ----------
        activity
            Attended values.
        known
            1 for metabolites that have a level, a slope and an embedding of their own, else 0; shape (metabolites,).
        covariates
            Shape (spots, covariates).
        metabolites
            Position of each metabolite; `None`: all in their order.
        """
        if not torch.is_grad_enabled() and len(activity) > (n := max(1, _IN_CACHE // max(activity.shape[1], 1))):
            few = zip(activity.split(n), covariates.split(n), strict=True)
            return torch.cat([self._values(some, known, beside, metabolites) for some, beside in few])
        return self._values(activity, known, covariates, metabolites)

    def _values(
        self, activity: torch.Tensor, known: torch.Tensor, covariates: torch.Tensor, metabolites: torch.Tensor | None
    ) -> torch.Tensor:
        """As :meth:`forward`, all spots at once."""
        at = slice(None) if metabolites is None else metabolites
        first, bending, last = self.bend
        assert isinstance(first, nn.Linear)
        # the embedding is the same in every spot: its part of the first layer is computed once
        of_heads, of_embedding = first.weight.split([activity.shape[-1], _EMBEDDING], dim=1)
        constant = linear(self.embedding[at] * known.unsqueeze(-1), of_embedding, first.bias)
        bent = last(bending(linear(torch.tanh(_SATURATION * activity), of_heads) + constant)).squeeze(-1)
        value = (activity * self.slopes(known, metabolites)).sum(dim=-1) + bent + self.level[at] * known
        if self.covariates is not None:
            value = value + self.covariates(covariates)[:, at] * known
        return value
