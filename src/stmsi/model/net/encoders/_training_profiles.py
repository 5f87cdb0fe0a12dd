"""Training spots kept with a model, from which it predicts by similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import embedding_bag, normalize

Weighting = Literal["uniform", "softmax", "similarity"]

_BUFFERS = ("embedding", "profile")
_PRIOR = 1.0
"""Neighbours that the training mean counts for: metabolites that few of the nearest spots have are pulled to it."""
_LEAST_SIMILARITY = 1e-6


@dataclass(frozen=True)
class Exemplars:
    """The training spots that lie nearest to each spot of a batch.

    Attributes
    ----------
    embedding
        On the sphere whose radius is the root of the width, shape (spots, exemplars, width).
    profile
        For each metabolite 1 where it was measured, 1 where present, 1 where its intensity is known, and its standardised
        intensity; shape (spots, exemplars, 4 x metabolites).
    there
        False where fewer spots were left than asked for, shape (spots, exemplars).
    """

    embedding: torch.Tensor
    profile: torch.Tensor
    there: torch.Tensor


class ProfileBank(nn.Module):
    """Embeddings of training spots and what was measured there.

    Parameters
    ----------
    n_neighbours
        Spots that a prediction is the mean of.
    weighting
        ``"uniform"`` (BLEEP), ``"similarity"``: the cosine similarity, not below 0 (mclSTExp), or ``"softmax"`` of it over
        `temperature`.
    temperature
        See `weighting`.

    References
    ----------
    Xie et al., BLEEP (2023); Min et al., mclSTExp (2024).
    """

    embedding: torch.Tensor
    profile: torch.Tensor
    section: torch.Tensor

    def __init__(self, n_neighbours: int, weighting: Weighting, temperature: float) -> None:
        super().__init__()
        self.n_neighbours, self.weighting, self.temperature = n_neighbours, weighting, temperature
        for name in _BUFFERS:
            self.register_buffer(name, torch.empty(0, 0))
        # asked for while training only
        self.register_buffer("section", torch.empty(0, dtype=torch.long), persistent=False)

    def __len__(self) -> int:
        return len(self.embedding)

    def fill(
        self, embedding: torch.Tensor, target: torch.Tensor, present: torch.Tensor, section: torch.Tensor | None = None
    ) -> None:
        """Replace what is kept.

        Parameters
        ----------
        embedding
            In the shared space, shape (spots, width).
        target
            Standardised intensity, shape (spots, metabolites), NaN where not covered.
        present
            1, 0 or NaN, likewise.
        section
            Number of the section of each spot; `None`: all of one.
        """
        covered = ~torch.isnan(present)
        there = (present > 0) & ~torch.isnan(target)
        value = torch.where(there, target, torch.zeros_like(target))
        self.embedding = normalize(embedding, dim=1)
        self.section = torch.zeros(len(target), dtype=torch.long, device=target.device) if section is None else section
        self.profile = torch.cat(
            [covered.to(value.dtype), (present > 0).to(value.dtype), there.to(value.dtype), value], 1
        )

    def look_up(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict from the nearest spots.

        Parameters
        ----------
        embedding
            Shape (spots, width).

        Returns
        -------
        Log-odds of presence, and standardised intensity where present, each of shape (spots, metabolites).
        """
        similarity = normalize(embedding, dim=1) @ self.embedding.T
        nearest, index = similarity.topk(min(self.n_neighbours, len(self)), dim=1)
        weight = torch.ones_like(nearest)
        if self.weighting != "uniform":
            closeness = nearest.clamp(min=_LEAST_SIMILARITY)
            if self.weighting == "softmax":
                closeness = (nearest / self.temperature).softmax(dim=1)
            weight = closeness / closeness.sum(dim=1, keepdim=True) * nearest.shape[1]
        covered, present, there, value = embedding_bag(
            index, self.profile, mode="sum", per_sample_weights=weight
        ).chunk(4, 1)
        known, positive = self.profile.sum(dim=0).chunk(4)[:2]
        prior = (positive + 0.5) / (known + 1)
        p = (present + _PRIOR * prior) / (covered + _PRIOR)
        # the training mean of standardised intensities is 0
        return torch.logit(p), value / (there + _PRIOR)

    def exemplars(self, embedding: torch.Tensor, section: torch.Tensor | None = None) -> Exemplars:
        """The spots that are nearest by cosine similarity.

        Parameters
        ----------
        embedding
            Shape (spots, width).
        section
            Of each spot; spots of the same section are passed over. `None`: none is.
        """
        similarity = normalize(embedding, dim=1) @ self.embedding.T
        if section is not None:
            similarity = similarity.masked_fill(section.unsqueeze(1) == self.section, -torch.inf)
        nearest, index = similarity.topk(min(self.n_neighbours, len(self)), dim=1)
        return Exemplars(
            self.embedding[index] * self.embedding.shape[1] ** 0.5, self.profile[index], nearest > -torch.inf
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the shapes of what was saved: how many spots there are is not known before."""
        for name in _BUFFERS:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
