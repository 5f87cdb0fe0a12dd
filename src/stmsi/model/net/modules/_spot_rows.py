"""What a module knows of the spots that batches name by their row: neighbourhoods, rings, sections."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import torch
from scvi.module.base import BaseModuleClass
from torch import nn

from stmsi._core.arrays_on_disk import row_pieces
from stmsi.model.net.encoders import Context, Encoder, GeneContext, LocalFirstEncoder, SectionContext
from stmsi.model.net.encoders._section import section_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stmsi._core.arrays_on_disk import Matrix
    from stmsi.model.net.encoders import SectionEncoder
    from stmsi.model.net.encoders._contexts import Summary
    from stmsi.model.net.modules._heads import CorrectedHead, LinearPath

Stage: TypeAlias = Literal["joint", "presence", "intensity", "local", "correction"]
CLIP = 10.0
"""Standard deviations that expression may lie from its training mean."""
_FLAT = 1e-3
_OF_SECTIONS = ("in_section", "section_rows", "section_start", "section_count")
_OF_ROWS = (
    "components",
    "neighbours",
    "ring",
    "offset",
    "position",
    "spot_genes",
    "embedded",
    "held_out",
    "ring_genes",
    "ring_means",
    "ring_place",
    "ring_beyond",
    *_OF_SECTIONS,
)
"""Buffers about the spots at hand."""


class SpotRows(BaseModuleClass):
    """The part of :class:`stmsi.model.net.modules.HurdleModule` that knows the spots at hand.

    All of it is set anew for each data set and not saved.
    """

    encoder: Encoder
    presence_head: nn.Module
    intensity_head: nn.Module
    linear_path: LinearPath | None
    stage: Stage
    gene_mean: torch.Tensor
    gene_scale: torch.Tensor
    ring_scale: torch.Tensor
    components: torch.Tensor
    neighbours: torch.Tensor
    ring: torch.Tensor
    offset: torch.Tensor
    position: torch.Tensor
    spot_genes: torch.Tensor
    embedded: torch.Tensor
    held_out: torch.Tensor
    ring_genes: torch.Tensor
    ring_means: torch.Tensor
    ring_place: torch.Tensor
    ring_beyond: torch.Tensor
    in_section: torch.Tensor
    section_rows: torch.Tensor
    section_start: torch.Tensor
    section_count: torch.Tensor

    def _register_rows(self, n_selected: int, n_metabolites: int, n_components: int) -> None:
        """Empty buffers for what is known of spots by row."""
        # of the spots at hand, whoever they are: set anew for each data set and not saved
        self.register_buffer("components", torch.empty(0, n_components), persistent=False)
        self.register_buffer("neighbours", torch.empty(0, 0, dtype=torch.long), persistent=False)
        self.register_buffer("ring", torch.empty(0, 0, dtype=torch.long), persistent=False)
        self.register_buffer("offset", torch.empty(0, 0, 2), persistent=False)
        self.register_buffer("position", torch.empty(0, 2), persistent=False)
        # half precision: of many spots these are the largest arrays
        self.register_buffer("spot_genes", torch.empty(0, n_selected, dtype=torch.float16), persistent=False)
        self.register_buffer("embedded", torch.empty(0, 0), persistent=False)
        self.register_buffer("held_out", torch.empty(0, 2 * n_metabolites), persistent=False)
        self.register_buffer("ring_genes", torch.empty(0, 0, n_selected, dtype=torch.float16), persistent=False)
        self.register_buffer("ring_means", torch.empty(0, 0, 0), persistent=False)
        for name in ("ring_place", "ring_beyond", *_OF_SECTIONS):
            self.register_buffer(name, torch.empty(0, dtype=torch.long), persistent=False)
        self._summary: list[Summary] | None = None
        # of the training sections, where targets are standardised in each
        self.register_buffer("section", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("section_mean", torch.empty(0, n_metabolites), persistent=False)
        self.register_buffer("section_scale", torch.empty(0, n_metabolites), persistent=False)

    def set_sections(self, code: NDArray[np.int64], mean: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        """Section of all spots that batches will name by their row, and statistics by which targets are standardised there.

        Parameters
        ----------
        code
            Shape (spots,).
        mean, scale
            Shape (sections, metabolites).
        """
        self._set_rows(section=code, section_mean=mean, section_scale=scale)

    def set_context(
        self,
        values: NDArray[np.float32] | NDArray[np.float16],
        neighbours: NDArray[np.int64],
        ring: NDArray[np.int64],
        offset: NDArray[np.float32],
    ) -> None:
        """The neighbourhoods of all spots that batches will name by their row.

        Parameters
        ----------
        values
            Components, or the standardised genes used where the encoder sees genes; shape (spots, width).
        neighbours, ring, offset
            Row, ring and relative position of each spot's neighbours; shapes (spots, K), (spots, K), (spots, K, 2).
        """
        seen = "spot_genes" if self.encoder.sees_genes else "components"
        made = {"embedded": self.embedded[:0], "held_out": self.held_out[:0]}
        self._set_rows(**{seen: values}, neighbours=neighbours, ring=ring, offset=offset, **made)

    def set_held_out(self, rows: NDArray[np.int64], held_out: Sequence[Matrix], values: NDArray[np.float32]) -> None:
        """What linear predictions without their group say of some spots; a correction is learned beside these.

        Beside the linear path, which was fitted to the same spots and is too good there, neighbours would seem to add little.

        Parameters
        ----------
        rows
            The spots.
        held_out
            Of either stage, shape (rows, metabolites).
        values
            What is filled and kept: NaN, shape (spots, 2 x metabolites).
        """
        width = held_out[0].shape[1]
        for k, of_stage in enumerate(held_out):
            for some in row_pieces(*of_stage.shape):
                values[rows[some], k * width : (k + 1) * width] = of_stage[some]
        self._set_rows(held_out=values)

    def set_gene_context(self, rings: NDArray[np.float16]) -> None:
        """Genes of the neighbourhoods of all spots that batches will name by their row, shape (spots, rings, genes used)."""
        self._set_rows(ring_genes=rings, ring_means=self.ring_means[:0])

    def set_ring_means(
        self,
        means: NDArray[np.float32],
        place: NDArray[np.int64],
        beyond: NDArray[np.int64],
        rings: NDArray[np.float16],
    ) -> None:
        """The same from means of log expression, which several modules keep as one array and standardise batch by batch.

        Parameters
        ----------
        means
            Mean log expression of each spot with its neighbours, and the mean of that, shape (spots, rings, genes of any module).
        place
            Where the genes used are among these.
        beyond, rings
            Genes used, by position, that are not made from the means, and their rings, as for :meth:`set_gene_context`.
        """
        self._set_rows(ring_means=means, ring_place=place, ring_beyond=beyond, ring_genes=rings)

    def scale_rings(self, rows: NDArray[np.int64]) -> None:
        """Bring the genes of each ring to unit variance over some spots, whose context was set."""
        if not len(self.ring_scale):
            return
        rings = self.ring_genes
        deviation = rings[torch.as_tensor(rows)].float().std(dim=0, correction=0)
        self.ring_scale.copy_(torch.where(deviation > _FLAT, deviation, torch.ones_like(deviation)))
        self.ring_genes = (rings / self.ring_scale).clamp(-CLIP, CLIP).half()

    def set_own_sections(self, section: NDArray[np.int64]) -> None:
        """Number of the section of all spots that batches will name by their row, for encoders with exemplars."""
        self._set_rows(in_section=section)

    def set_section_context(
        self, components: NDArray[np.float32], position: NDArray[np.float32], section: NDArray[np.int64]
    ) -> None:
        """The sections of all spots that batches will name by their row.

        Parameters
        ----------
        components
            Shape (spots, components).
        position
            In steps between spots, shape (spots, 2).
        section
            Number of each spot's section from 0, none left out; spots see those of the same number.
        """
        code = torch.as_tensor(section)
        count = code.bincount()
        self._set_rows(
            components=components, position=position, in_section=code, section_rows=code.argsort(stable=True),
            section_start=count.cumsum(0) - count, section_count=count,
        )  # fmt: skip

    def forget_spots(self) -> None:
        """Forget what is known of the spots at hand."""
        self._set_rows(**{name: getattr(self, name)[:0].clone() for name in _OF_ROWS})

    @contextmanager
    def kept_rows(self) -> Iterator[None]:
        """What is known of the spots by row, as it was afterwards, whatever other spots are embedded inside."""
        kept = {name: getattr(self, name) for name in _OF_ROWS}
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    def _set_rows(self, **values: Any) -> None:
        for name, value in values.items():
            old = getattr(self, name)
            setattr(self, name, torch.as_tensor(value, dtype=old.dtype, device=old.device))

    @contextmanager
    def sections_summed_up(self) -> Iterator[None]:
        """Sum up all sections once for all batches inside, in which neither weights nor spots may change."""
        if self.encoder.uses_section:
            self._summary = self._summarise(torch.arange(len(self.section_count), device=self.section_count.device))
        try:
            yield
        finally:
            self._summary = None

    def _summarise(self, sections: torch.Tensor) -> list[Summary]:
        encoder = cast("SectionEncoder", self.encoder)
        start, count = self.section_start[sections], self.section_count[sections]
        return encoder.summarise(
            section_keys(
                self.components, self.position, self.section_rows, start, count, encoder.n_keys, draw=self.training
            )
        )

    def _section_context(self, row: torch.Tensor) -> SectionContext:
        row = row.reshape(-1).long()
        section, summary = self.in_section[row], self._summary
        if summary is None:
            sections, section = section.unique(return_inverse=True)
            summary = self._summarise(sections)
        return SectionContext(self.components[row], self.position[row], section, summary)

    def _context(self, row: torch.Tensor) -> Context:
        row = row.reshape(-1).long()
        neighbours, ring = self.neighbours[row], self.ring[row]
        nodes = torch.cat([row.unsqueeze(1), torch.where(ring > 0, neighbours, row.unsqueeze(1))], dim=1)
        each, place = nodes.unique(return_inverse=True)
        edges = self._edges(nodes, ring) if self.encoder.uses_edges else None
        return Context(self._nodes(each), place[:, 0], place[:, 1:], ring, self.offset[row], edges)

    def _nodes(self, rows: torch.Tensor) -> torch.Tensor:
        """What the encoder is told of single spots, shape (rows, width)."""
        if len(self.embedded):
            return self.embedded[rows]
        values = (self.spot_genes if self.encoder.sees_genes else self.components)[rows].float()
        if not isinstance(self.encoder, LocalFirstEncoder):
            return values
        units = self.encoder.embed_locally(values)
        heads = (cast("CorrectedHead", head) for head in (self.presence_head, self.intensity_head))
        predicted = torch.cat([head.read_locally(units) for head in heads], dim=1)
        if self.linear_path is not None:
            predicted = predicted + self._as_if_held_out(rows, self.linear_path.of_genes(values))
        return torch.cat([units, predicted], dim=1)

    def _as_if_held_out(self, rows: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        """Linear predictions of spots; while a correction is learned, those without their group where there are any."""
        if self.stage != "correction" or not len(self.held_out):
            return linear
        apart = self.held_out[rows.reshape(-1).long()]
        return torch.where(apart.isnan(), linear, apart)

    def _edges(self, nodes: torch.Tensor, ring: torch.Tensor) -> torch.Tensor:
        """Whether two of the spots in each row of `nodes`, shape (spots, 1 + K), share an edge; never where one is missing."""
        there = torch.cat([ring.new_ones(len(ring), 1), ring], dim=1) > 0
        near = torch.where(self.ring[nodes] == 1, self.neighbours[nodes], -1)
        found = torch.zeros(*nodes.shape, nodes.shape[1], dtype=torch.bool, device=nodes.device)
        for column in near.unbind(dim=2):
            found |= column.unsqueeze(2) == nodes.unsqueeze(1)
        # of a spot with many neighbours some are kept, so that it may be named by one side only
        return (found | found.transpose(1, 2)) & there.unsqueeze(1) & there.unsqueeze(2)

    def gene_context(self, row: torch.Tensor | None) -> GeneContext | None:
        """Genes of the rings of spots; `None` where the model has no graph."""
        if row is None or not len(self.ring_scale):
            return None
        row = row.reshape(-1).long().to(self.ring_genes.device)
        if not len(self.ring_means):
            return GeneContext(self.ring_genes[row].float())
        of_rows = self.ring_means.index_select(0, row)
        # of two dimensions: of three, torch takes several times as long
        means = of_rows.flatten(0, 1).index_select(1, self.ring_place).unflatten(0, of_rows.shape[:2])
        rings = means.sub_(self.gene_mean).div_(self.gene_scale * self.ring_scale).clamp_(-CLIP, CLIP)
        rings[..., self.ring_beyond] = self.ring_genes[row].float()
        return GeneContext(rings)
