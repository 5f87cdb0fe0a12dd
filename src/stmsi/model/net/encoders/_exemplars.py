"""Exemplars: training spots that resemble a spot, and what was measured there, as an input of attention."""

from __future__ import annotations

import torch
from torch import nn

from stmsi.model.net.encoders._training_profiles import Exemplars


class ExemplarBridge(nn.Module):
    """Attention of a spot to its exemplars.

    The spot asks by its embedding, exemplars answer by theirs. Their values are what was measured there, and by how much their
    embedding differs from that of the spot. A further exemplar, which is learned, stands for "none of them".

    Parameters
    ----------
    width
        Of the embeddings.
    n_profile
        Columns of what was measured.
    n_heads
        Attention heads; divides `width`.
    dropout
        Share of values left out while training.

    References
    ----------
    Yang et al., Exemplar Guided Deep Neural Network for Spatial Transcriptomics Analysis of Gene Expression Prediction (EGN,
    WACV 2023); EGGN (Pattern Recognition 145, 2024).
    """

    def __init__(self, width: int, n_profile: int, n_heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.value = nn.Sequential(
            nn.Linear(n_profile + width, width), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(width)
        )
        self.none = nn.Parameter(torch.zeros(2, width))
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)

    def forward(self, embedding: torch.Tensor, exemplars: Exemplars) -> torch.Tensor:
        """What the exemplars say of spots, shape (spots, width); `embedding` likewise."""
        key = exemplars.embedding
        value = self.value(torch.cat([exemplars.profile, key - embedding.unsqueeze(1)], dim=-1))
        none = self.none.expand(len(embedding), 2, -1)
        key, value = (torch.cat([v, none[:, i : i + 1]], dim=1) for i, v in enumerate((key, value)))
        absent = torch.cat([~exemplars.there, exemplars.there.new_zeros(len(embedding), 1)], dim=1)
        query = embedding.unsqueeze(1)
        return self.attention(query, key, value, key_padding_mask=absent, need_weights=False)[0].squeeze(1)
