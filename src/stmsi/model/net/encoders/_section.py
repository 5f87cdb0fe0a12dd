"""All spots of a section as context, by attention whose cost is linear in their number: HisToGene's design on genes."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn.functional import elu

from stmsi.model.net.encoders._contexts import SectionContext, SectionKeys, Summary
from stmsi.model.net.encoders._encoder import Encoder, Sizes
from stmsi.model.net.encoders._mlp import MLPEncoder

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_LARGEST_WAVELENGTH, _SMALLEST_WAVELENGTH = 256.0, 6.0
"""In steps between spots: as wide as a large section, and as narrow as attention of this kind can tell apart."""


class SectionEncoder(Encoder):
    r"""The spot's own embedding plus a correction from attention over all spots of its section.

    The attention is linearised: with :math:`\phi = \mathrm{elu} + 1`, a section is summed up once by
    :math:`\sum_j \phi(k_j) v_j^T` and :math:`\sum_j \phi(k_j)`, which every spot then reads, so that cost grows with
    the number of spots and not with its square. Queries and keys are turned by angles that their positions give
    (waves in all directions, 6 to 256 steps between spots long), so that a pair of spots is weighed by where one lies
    relative to the other and a shift of the section changes nothing. While training, the sums of each step are over at most
    `n_keys` spots of each section, drawn at random, and gradients pass through them; a prediction sums over all spots,
    once. The correction starts at 0, so that training begins with the spot alone.

    Parameters
    ----------
    sizes
        As for :class:`Encoder`.
    n_hidden
        Width of the local embedding.
    n_context
        Width of the tokens of the attention.
    n_heads
        Attention heads.
    n_layers
        Attention blocks.
    n_keys
        Spots of a section that a training step attends to at most.
    dropout, input_dropout
        As for ``"mlp"``.

    Notes
    -----
    Plain ``"mlp"`` or ridge does as well on every task that was measured.

    References
    ----------
    Pang et al., HisToGene (2021); Katharopoulos et al., Transformers are RNNs (2020).
    """

    uses_section = True
    uses_positions = True
    frequency: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        n_hidden: int = 256,
        n_context: int = 64,
        n_heads: int = 4,
        n_layers: int = 1,
        n_keys: int = 512,
        dropout: float = 0.3,
        input_dropout: float = 0.3,
    ) -> None:
        super().__init__(sizes)
        if n_context % (2 * n_heads):
            msg = (
                f"n_context={n_context} must be a multiple of 2 x n_heads={2 * n_heads}: sine and cosine in each head."
            )
            raise ValueError(msg)
        self.n_keys = n_keys
        self.local = MLPEncoder(sizes, n_hidden=n_hidden, dropout=dropout, input_dropout=input_dropout)
        self.token = nn.Sequential(
            nn.LayerNorm(sizes.n_components), nn.Linear(sizes.n_components, n_context), nn.Dropout(dropout)
        )
        self.blocks = nn.ModuleList(_LinearAttention(n_context, n_heads, dropout) for _ in range(n_layers))
        self.after = nn.LayerNorm(n_context)
        self.correction = nn.Linear(n_context, n_hidden)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        self.register_buffer(
            "frequency", _waves(n_context // 2).unflatten(0, (-1, n_heads)).transpose(0, 1), persistent=False
        )
        self.n_output = n_hidden

    def _angle(self, position: torch.Tensor) -> torch.Tensor:
        """Angles by which a position turns queries and keys, shape (..., heads, width of a head / 2)."""
        return torch.einsum("...c,hfc->...hf", position, self.frequency)

    def summarise(self, keys: SectionKeys) -> list[Summary]:
        """Sum up sections, once for each attention block.

        Parameters
        ----------
        keys
            Spots to attend to.

        Returns
        -------
        For each block the sums over each section, shapes (sections, heads, d, d) and (sections, heads, d).
        """
        h, angle = self.token(keys.components), self._angle(keys.position)
        summaries: list[Summary] = []
        for number, block in enumerate(self.blocks, start=1):
            summary = cast("_LinearAttention", block).summarise(h, angle, keys)
            if number < len(self.blocks):  # the next block reads tokens that have seen their section
                h = block(h, angle, *(s[keys.section] for s in summary))
            summaries.append(summary)
        return summaries

    def forward(self, x: torch.Tensor, covariates: torch.Tensor, context: SectionContext | None = None) -> torch.Tensor:  # type: ignore[override]
        """Embed spots; see :class:`Encoder`."""
        assert context is not None
        h, angle = self.token(context.own).unsqueeze(1), self._angle(context.position).unsqueeze(1)
        for block, summary in zip(self.blocks, context.summary, strict=True):
            h = block(h, angle, *(s[context.section] for s in summary))
        return self.local(x, covariates) + self.correction(self.after(h.squeeze(1)))


class _LinearAttention(nn.Module):
    """A pre-norm block of linear attention and a small network; groups of tokens read one summary each."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.back = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)
        )  # fmt: skip

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.n_heads, -1))

    def summarise(self, h: torch.Tensor, angle: torch.Tensor, keys: SectionKeys) -> Summary:
        h = self.before(h)
        key = (elu(self._heads(self.key(h))) + 1) * keys.there[..., None, None]
        pairs = torch.einsum("pnhd,pnhe->phde", _turn(key, angle), self._heads(self.value(h)))
        total, weight = (
            s.new_zeros(keys.n_sections, *s.shape[1:]).index_add(0, keys.section, s) for s in (pairs, key.sum(dim=1))
        )
        return total, weight

    def forward(self, h: torch.Tensor, angle: torch.Tensor, total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        query = elu(self._heads(self.query(self.before(h)))) + 1
        seen = torch.einsum("pnhd,phde->pnhe", _turn(query, angle), total)
        # the weights as they are before the turn, which are above 0
        seen = seen / torch.einsum("pnhd,phd->pnh", query, weight).clamp(min=1e-6).unsqueeze(-1)
        h = h + self.back(seen.flatten(-2))
        return h + self.feed(h)


def _waves(n: int) -> torch.Tensor:
    """Wave vectors of all directions and of lengths in geometric progression, shape (n, 2)."""
    i = torch.arange(n)
    length = _LARGEST_WAVELENGTH * (_SMALLEST_WAVELENGTH / _LARGEST_WAVELENGTH) ** (i / max(n - 1, 1))
    angle = i * _GOLDEN_ANGLE
    return torch.stack([angle.cos(), angle.sin()], dim=1) * (2 * math.pi / length).unsqueeze(1)


def _turn(values: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turn pairs of values by angles; scalar products of turned vectors depend on the difference of the angles."""
    a, b = values.chunk(2, dim=-1)
    sine, cosine = angle.sin(), angle.cos()
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


def section_keys(
    components: torch.Tensor,
    position: torch.Tensor,
    order: torch.Tensor,
    start: torch.Tensor,
    count: torch.Tensor,
    width: int,
    *,
    draw: bool,
) -> SectionKeys:
    """The spots of some sections, in pieces of equal size.

    Parameters
    ----------
    components, position
        Of all spots, shapes (spots, components) and (spots, 2).
    order
        Rows of the spots, section by section.
    start, count
        Where in `order` each of the sections begins, and its number of spots, shape (sections,).
    width
        Spots in a piece.
    draw
        One piece of each section, drawn at random (with replacement) where it has more spots; else all spots.
    """
    width = min(width, int(count.max()))
    pieces = torch.ones_like(count) if draw else (count + width - 1) // width
    section = torch.arange(len(count), device=count.device).repeat_interleave(pieces)
    number = torch.arange(len(section), device=count.device) - (pieces.cumsum(0) - pieces)[section]
    slot = number.unsqueeze(1) * width + torch.arange(width, device=count.device)
    n = count[section].unsqueeze(1)
    there = slot < n
    if draw:
        # float64: in float32 the last of more than 16 million could not be drawn
        drawn = (torch.rand(slot.shape, device=count.device, dtype=torch.float64) * n).long()
        slot = torch.where(n > width, drawn, slot)
    row = order[start[section].unsqueeze(1) + slot.clamp(max=n - 1)]
    return SectionKeys(components[row], position[row], there, section, len(count))
