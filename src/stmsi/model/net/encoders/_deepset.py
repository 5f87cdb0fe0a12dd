"""A spot, what is inside it, and its neighbours as sets: DeepSpot's design with genes as input."""

from __future__ import annotations

import torch
from torch import nn

from stmsi.model.net.encoders._contexts import Context
from stmsi.model.net.encoders._encoder import Encoder, Sizes


class DeepSetEncoder(Encoder):
    """One function for the spot, for what is inside it and for each of its neighbours, and another one that joins the three sets.

    The spot is a set of one, the inner set counts by its sum, the neighbours by their maximum. Several such functions
    are trained together, and the median of their results counts, as do several ways to join them, whose mean counts: an ensemble
    for the price of wider matrices. Without an inner set there are two sets.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the functions.
    dropout
        Share of hidden units left out while training.
    n_phi, n_rho
        Functions of one member, and ways to join the sets. DeepSpot has ten of each; three wider ones with the optimizer of ``"mlp"``
        predicted better in a simulation, and train faster.
    n_inner
        Members of the inner set; 0: none. They stand side by side in the columns of ``feature_key``, all of one width: bins or cells
        in the spot, each by its embedding. With one column each they are programmes, such as deconvolved cell types, and the column
        says how much of it there is. The sum over programmes is weighted by that, and each has an embedding that is learned.

    Raises
    ------
    ValueError
        No function, or an inner set that does not fit the columns of ``feature_key``.

    Notes
    -----
    Without an inner set, plain ``"mlp"`` or ridge does as well on the tasks that were measured, for an eighth of the time.

    References
    ----------
    Nonchev et al., DeepSpot (2025), https://doi.org/10.1101/2025.02.09.25321567.
    """

    uses_graph = True
    needs_graph = True

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 128,
        dropout: float = 0.3,
        n_phi: int = 3,
        n_rho: int = 3,
        n_inner: int = 0,
    ) -> None:
        super().__init__(sizes)
        if min(n_phi, n_rho) < 1:
            msg = f"n_phi and n_rho must be at least 1, found {n_phi} and {n_rho}."
            raise ValueError(msg)
        if n_inner and (not sizes.n_features or sizes.n_features % n_inner):
            msg = (
                f"n_inner={n_inner} members stand side by side in the columns of feature_key, which are {sizes.n_features}; set up "
                "with feature_key= of an obsm whose number of columns is a multiple of n_inner."
            )
            raise ValueError(msg)
        self.n_hidden, self.n_inner, self.n_features = n_hidden, n_inner, sizes.n_features
        # of all members of the ensemble in one matrix
        self.phi = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Linear(sizes.n_components, n_hidden * n_phi), nn.Dropout(dropout), nn.ReLU()
        )  # fmt: skip
        width = sizes.n_features // max(n_inner, 1)
        # what brings inner members to the width of a spot
        self.inner = nn.Linear(width, sizes.n_components) if n_inner and width > 1 else None
        self.programmes = nn.Parameter(torch.randn(n_inner, sizes.n_components)) if n_inner and width == 1 else None
        n_sets = 3 if n_inner else 2
        self.rho = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(n_sets * n_hidden + sizes.n_covariates, n_hidden * n_rho), nn.GELU()
        )
        self.n_output = n_hidden

    def embed_members(self, values: torch.Tensor) -> torch.Tensor:
        """The function of one member: shape (..., components) to (..., ``n_hidden``)."""
        return median(self.phi(values).unflatten(-1, (-1, self.n_hidden)))

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: Context | None = None) -> torch.Tensor:
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        # before they are gathered: most spots are neighbours of several others
        nodes = self.embed_members(context.values)
        # after ReLU nothing is below 0, so that those that are not there do not count, and the maximum of an empty set is 0
        around = context.of_neighbours(nodes)
        sets = [context.of_spots(nodes), around.amax(dim=1) if around.shape[1] else x.new_zeros(len(x), self.n_hidden)]
        if self.n_inner:
            sets.append(self.embed_inner(covariates[:, covariates.shape[1] - self.n_features :]))
        joined = self.rho(torch.cat([*sets, covariates], dim=1))
        return joined.unflatten(-1, (-1, self.n_hidden)).mean(dim=-2)

    def embed_inner(self, features: torch.Tensor) -> torch.Tensor:
        """Sum over the inner set, whose members stand side by side; shape (spots, ``n_hidden``)."""
        members = features.unflatten(1, (self.n_inner, -1))
        if self.inner is not None:
            total = self.embed_members(self.inner(members)).sum(dim=1)
        else:
            assert self.programmes is not None
            total = members.squeeze(-1) @ self.embed_members(self.programmes)
        return total / self.n_inner**0.5  # of the size of the other sets


def median(members: torch.Tensor) -> torch.Tensor:
    """Median over the last but one axis, the mean of the middle two where its length is even."""
    n = members.shape[-2]
    ordered = members.sort(dim=-2).values
    return (ordered[..., (n - 1) // 2, :] + ordered[..., n // 2, :]) / 2
