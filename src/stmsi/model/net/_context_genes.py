"""Genes of spots and of the rings around them as encoders see them; of spots on disk, made in files that are mapped into memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from stmsi.model.net.modules._hurdle import CLIP
from stmsi.model.shared._blocks import read_in_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._spot_input import Spots
    from stmsi.model.shared._streamed_parts import StreamedParts

_GENES_AT_ONCE = 256
_AT_ONCE = 4096
"""Spots on disk that are read together."""
_FLAT = 1e-3


def _genes(module: HurdleModule, spots: Spots) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Standardised expression of the genes used as an encoder sees it, some genes at a time; shape (spots, some)."""
    index, mean, deviation = (getattr(module, name).cpu().numpy() for name in ("gene_index", "gene_mean", "gene_scale"))
    log = spots.log_expression()
    if isinstance(log, sp.csr_matrix):  # turned once for all networks that predict the spots
        log = spots.once("log by gene", log.tocsc)
    for start in range(0, len(index), _GENES_AT_ONCE):
        some = slice(start, start + _GENES_AT_ONCE)
        yield some, np.clip((log[:, index[some]].toarray() - mean[some]) / deviation[some], -CLIP, CLIP)


def spot_genes(module: HurdleModule, spots: Spots) -> NDArray[np.float16]:
    """Genes of every spot as an encoder sees them: standardised expression, shape (spots, genes)."""
    if spots.is_streamed:
        return _stored_genes(module, spots)
    out = np.empty((len(spots), len(module.gene_index)), np.float16)
    for some, value in _genes(module, spots):
        out[:, some] = value
    return out


def gene_rings(module: HurdleModule, spots: Spots, graph: sp.csr_matrix) -> NDArray[np.float16]:
    """Genes of the neighbourhood of every spot as an encoder sees them.

    Parameters
    ----------
    module
        Its genes, their mean and scale, and the scale of each ring.
    spots, graph
        All spots, and the edges between those that may see each other.

    Returns
    -------
    Shape (spots, rings, genes): the mean of standardised expression over a spot and its neighbours, and the mean of that. A spot
    without neighbours is its own ring.
    """
    if spots.is_streamed:
        return _stored_rings(module, spots, graph)
    scale = module.ring_scale.cpu().numpy()
    edges = sp.csr_matrix(graph != 0, dtype=np.float32) + sp.identity(len(spots), dtype=np.float32, format="csr")
    average = sp.csr_matrix(sp.diags(1 / np.asarray(edges.sum(axis=1)).ravel()) @ edges)
    out = np.empty((len(spots), *scale.shape), np.float16)
    for some, value in _genes(module, spots):
        for ring, of_ring in enumerate(scale):
            value = average @ value
            out[:, ring, some] = np.clip(value / of_ring[some], -CLIP, CLIP)
    return out


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
