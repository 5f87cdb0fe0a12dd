"""Genes of spots and of the rings around them as encoders see them; of spots on disk, made in files that are mapped into memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from stmsi.model.net.modules._spot_rows import CLIP
from stmsi.model.shared._blocks import read_in_blocks, some_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._streamed_parts import StreamedParts

_GENES_AT_ONCE = 256
_AT_ONCE = 4096
"""Spots on disk that are read together."""
_FLAT = 1e-3


def _genes(module: HurdleModule, spots: Spots, genes: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Standardised expression of genes of a module as its encoder sees it, some at a time; shape (spots, some)."""
    names = ("gene_index", "gene_mean", "gene_scale")
    index, mean, deviation = (getattr(module, name).cpu().numpy()[genes] for name in names)
    log = _log_by_gene(spots)
    for start in range(0, len(index), _GENES_AT_ONCE):
        some = slice(start, start + _GENES_AT_ONCE)
        yield some, np.clip((log[:, index[some]].toarray() - mean[some]) / deviation[some], -CLIP, CLIP)


def _log_by_gene(spots: Spots) -> Any:
    """Log expression from which some genes are taken; turned once for all networks that predict the spots."""
    log = spots.log_expression()
    return spots.once("log by gene", log.tocsc) if isinstance(log, sp.csr_matrix) else log


def spot_genes(module: HurdleModule, spots: Spots) -> NDArray[np.float16]:
    """Genes of every spot as an encoder sees them: standardised expression, shape (spots, genes)."""
    if spots.is_streamed:
        return _stored_genes(module, spots)
    out = np.empty((len(spots), len(module.gene_index)), np.float16)
    for some, value in _genes(module, spots, np.arange(len(module.gene_index))):
        out[:, some] = value
    return out


def gene_rings(
    module: HurdleModule,
    spots: Spots,
    graph: sp.csr_matrix,
    genes: NDArray[np.int64] | None = None,
    steps: Sequence[_Step] | None = None,
) -> NDArray[np.float16]:
    """Genes of the neighbourhood of every spot as an encoder sees them.

    Parameters
    ----------
    module
        Its genes, their mean and scale, and the scale of each ring.
    spots, graph
        All spots, and the edges between those that may see each other.
    genes
        Some of the genes of the module by position, of spots in memory; `None`: all.
    steps
        From ring to ring, where not all spots are wanted.

    Returns
    -------
    Shape (spots wanted, rings, genes): the mean of standardised expression over a spot and its neighbours, and the mean of that. A spot
    without neighbours is its own ring.
    """
    if spots.is_streamed:
        return _stored_rings(module, spots, graph)
    genes = np.arange(len(module.gene_index)) if genes is None else genes
    scale = module.ring_scale.cpu().numpy()[:, genes]
    steps = _steps(graph, len(scale), None) if steps is None else steps
    out = np.empty((steps[0].n_wanted, *scale.shape), np.float16)
    for some, value in _genes(module, spots, genes):
        for ring, (of_ring, step) in enumerate(zip(scale, steps, strict=True)):
            value = step.average @ value
            out[:, ring, some] = np.clip(step.of_wanted(value) / of_ring[some], -CLIP, CLIP)
    return out


def set_gene_rings(
    modules: Sequence[HurdleModule], spots: Spots, graph: sp.csr_matrix, rows: NDArray[np.int64] | None = None
) -> None:
    """Put the neighbourhood of spots that are predicted into modules: as :func:`gene_rings`, averaged once for all of them.

    Log expression is averaged over neighbours in the place of standardised expression. Each module standardises the means, which is the
    same but for genes with a spot beyond the limit of standardised expression: their rings it is told as they are.

    Parameters
    ----------
    modules
        Changed in place; all keep the same array.
    spots, graph
        All spots, and the edges between those that may see each other.
    rows
        The spots that are predicted, ascending, which batches name by their place among these; `None`: all.
    """
    steps = _steps(graph, len(modules[0].ring_scale), rows)
    index = [module.gene_index.cpu().numpy() for module in modules]
    used, log = np.unique(np.concatenate(index)), _log_by_gene(spots)
    means = np.empty((steps[0].n_wanted, len(steps), len(used)), np.float32)
    low, high = np.zeros(len(used)), np.zeros(len(used))
    for start in range(0, len(used), _GENES_AT_ONCE):
        some = slice(start, start + _GENES_AT_ONCE)
        value = log[:, used[some]].toarray().astype(np.float32, copy=False)
        low[some], high[some] = value.min(axis=0), value.max(axis=0)
        for ring, step in enumerate(steps):
            value = step.average @ value
            means[:, ring, some] = step.of_wanted(value)
    for module, own in zip(modules, index, strict=True):
        place = np.searchsorted(used, own)
        mean, deviation = (getattr(module, name).cpu().numpy() for name in ("gene_mean", "gene_scale"))
        farthest = np.maximum(high[place] - mean, mean - low[place])
        beyond = np.flatnonzero(farthest > CLIP * deviation)
        module.set_ring_means(means, place, beyond, gene_rings(module, spots, graph, beyond, steps))


@dataclass(frozen=True)
class _Step:
    """From one ring to the next.

    Attributes
    ----------
    average
        Mean over each spot and its neighbours: of the spots that the next step reads, from those that the step before made.
    wanted
        Where the spots that are wanted are among them; `None`: all, in their order.
    """

    average: sp.csr_matrix
    wanted: NDArray[np.int64] | None

    @property
    def n_wanted(self) -> int:
        return self.average.shape[0] if self.wanted is None else len(self.wanted)

    def of_wanted(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the step made of the spots that are wanted."""
        return some_rows(values, self.wanted)


def _steps(graph: sp.csr_matrix, n_rings: int, rows: NDArray[np.int64] | None) -> list[_Step]:
    """From spots to their first ring, and on; rings of spots around those that are wanted are made where the next one reads them."""
    average = _average(graph)
    if rows is None:
        return [_Step(average, None)] * n_rings
    made, steps = rows, []
    for ring in range(n_rings):
        own = average[made]
        read = np.unique(own.indices).astype(np.int64) if ring < n_rings - 1 else np.arange(graph.shape[0])
        steps.append(_Step(own[:, read], np.searchsorted(made, rows)))
        made = read
    return steps[::-1]


def _average(graph: sp.csr_matrix) -> sp.csr_matrix:
    """What turns values of spots into their mean over each spot and its neighbours."""
    edges = sp.csr_matrix(graph != 0, dtype=np.float32) + sp.identity(graph.shape[0], dtype=np.float32, format="csr")
    return sp.csr_matrix(sp.diags((1 / np.asarray(edges.sum(axis=1)).ravel()).astype(np.float32)) @ edges)


def _stored_rings(module: HurdleModule, spots: Spots, graph: sp.csr_matrix) -> NDArray[np.float16]:
    """As :func:`gene_rings`; spots are read with as many rings of neighbours as there are to see."""
    n_rings, n_genes = module.ring_scale.shape
    whole = _whole(spots)
    out = whole.scratch((len(spots), n_rings, n_genes), np.float16)
    for block, some in read_in_blocks(replace(spots, graph=graph, made={}), n_rings, _AT_ONCE):
        assert some.graph is not None
        out[block.rows] = gene_rings(module, some, some.graph)[block.at]
        whole.forget_pages()
    return out


def _stored_genes(module: HurdleModule, spots: Spots) -> NDArray[np.float16]:
    """As :func:`spot_genes`."""
    whole = _whole(spots)
    out = whole.scratch((len(spots), len(module.gene_index)), np.float16)
    for block, some in read_in_blocks(replace(spots, graph=None, made={}), 0, _AT_ONCE):
        out[block.rows] = spot_genes(module, some)
        whole.forget_pages()
    return out


def scale_stored_rings(module: HurdleModule, spots: Spots, rows: NDArray[np.int64]) -> None:
    """As :meth:`HurdleModule.scale_rings`, some spots at a time; the mapped file is changed."""
    if not len(module.ring_scale):
        return
    rings, whole = module.ring_genes, _whole(spots)
    total = torch.zeros((2, *module.ring_scale.shape), dtype=torch.float64)
    shift = rings[torch.as_tensor(rows[:_AT_ONCE])].double().mean(dim=0)  # digits are lost far from the mean
    for start in range(0, len(rows), _AT_ONCE):
        own = rings[torch.as_tensor(rows[start : start + _AT_ONCE])].double() - shift
        total += torch.stack([own.sum(dim=0), (own**2).sum(dim=0)])
        whole.forget_pages()
    mean = total[0] / len(rows)
    deviation = (total[1] / len(rows) - mean**2).clamp(min=0).sqrt().float()
    module.ring_scale.copy_(torch.where(deviation > _FLAT, deviation, torch.ones_like(deviation)))
    for start in range(0, len(rings), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        rings[some] = (rings[some] / module.ring_scale).clamp(-CLIP, CLIP).half()
        whole.forget_pages()


def _whole(spots: Spots) -> StreamedParts:
    whole: Any = spots.expression
    return whole.whole
