"""What encoders see around a spot: its neighbourhood, or its section."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.spatial.neighbourhoods import (
    MOST_IN_RING,
    edge_length,
    neighbour_rings,
    relative_positions,
    section_positions,
)
from stmsi._data.keys import Key
from stmsi._settings import logger
from stmsi.model.net.encoders import ENCODERS
from stmsi.model.net.modules._spot_rows import CLIP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots

_GENES_AT_ONCE = 256
CONTEXT_COMPONENTS = 128
"""Components in which encoders see a spot's neighbourhood, and from which a linear path predicts."""


def set_context(
    module: HurdleModule,
    encoder_name: str,
    spots: Spots,
    features: SpotFeatures,
    parts: Sequence[NDArray[np.int64]],
    sample_key: str,
) -> None:
    """Put neighbourhoods or sections of all spots into a module.

    Parameters
    ----------
    module
        Changed in place.
    encoder_name
        Its encoder, which says what it reads.
    spots, features
        All spots, and the space in which the encoder sees them.
    parts
        Rows that must not see each other (training, validation): edges between them are cut, as are sections that they
        share.
    sample_key
        For messages.

    Raises
    ------
    KeyError
        The encoder needs positions, and there are none.
    ValueError
        Positions or sections are missing for some spots.
    """
    encoder = ENCODERS[encoder_name]
    if spots.xy is None and encoder.uses_positions:
        msg = f'encoder={encoder_name!r} needs the positions of the spots in obsm["{Key.obsm.SPATIAL}"].'
        raise KeyError(msg)
    if spots.xy is not None and encoder.uses_positions and not np.isfinite(spots.xy).all():
        n_bad = int((~np.isfinite(spots.xy)).any(axis=1).sum())
        msg = f'obsm["{Key.obsm.SPATIAL}"] is NaN or infinite in {n_bad} spots; leave them out or place them.'
        raise ValueError(msg)
    part = np.zeros(len(spots), np.int64)
    for number, rows in enumerate(parts):
        part[rows] = number
    if encoder.n_rings:
        module.set_gene_context(gene_rings(module, spots, _cut(spots, part)))
        return
    if encoder.uses_section:
        assert spots.xy is not None
        section = _section_codes(spots, sample_key)
        _, seen = np.unique(np.column_stack([section, part]), axis=0, return_inverse=True)
        module.set_section_context(_components(spots, features), section_positions(spots.xy, section), seen.ravel())
        return
    n_hops = module.encoder.n_hops
    if part.any():
        around = _around(spots, _cut(spots, part), n_hops)
    else:  # spots that are predicted, by one network after the other
        around = spots.once(("around", n_hops), lambda: _around(spots, _cut(spots, part), n_hops))
    values = spot_genes(module, spots) if encoder.sees_genes else _components(spots, features)
    module.set_context(values, *around)


def _around(
    spots: Spots, graph: sp.csr_matrix, n_hops: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Row, ring and relative position of each spot's neighbours, as :meth:`HurdleModule.set_context` takes them."""
    index, ring = neighbour_rings(graph, MOST_IN_RING[:n_hops])
    offset = np.zeros((*index.shape, 2), np.float32)
    if spots.xy is not None:
        step = edge_length(graph, spots.xy) if spots.edge_length is None else spots.edge_length
        offset = relative_positions(spots.xy, index, step)
    return index, ring, offset


def _components(spots: Spots, features: SpotFeatures) -> NDArray[np.float32]:
    """Components of all spots in their places."""
    components = features.components(spots)
    padded = np.zeros((len(spots), CONTEXT_COMPONENTS), np.float32)  # few training spots have fewer components
    padded[:, : components.shape[1]] = components
    return padded


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
    out = np.empty((len(spots), len(module.gene_index)), np.float16)
    for some, value in _genes(module, spots, np.arange(len(module.gene_index))):
        out[:, some] = value
    return out


def gene_rings(
    module: HurdleModule, spots: Spots, graph: sp.csr_matrix, genes: NDArray[np.int64] | None = None
) -> NDArray[np.float16]:
    """Genes of the neighbourhood of every spot as an encoder sees them.

    Parameters
    ----------
    module
        Its genes, their mean and scale, and the scale of each ring.
    spots, graph
        All spots, and the edges between those that may see each other.
    genes
        Some of the genes of the module by position; `None`: all.

    Returns
    -------
    Shape (spots, rings, genes): the mean of standardised expression over a spot and its neighbours, and the mean of that. A spot
    without neighbours is its own ring.
    """
    genes = np.arange(len(module.gene_index)) if genes is None else genes
    scale, average = module.ring_scale.cpu().numpy()[:, genes], _average(graph)
    out = np.empty((len(spots), *scale.shape), np.float16)
    for some, value in _genes(module, spots, genes):
        for ring, of_ring in enumerate(scale):
            value = average @ value
            out[:, ring, some] = np.clip(value / of_ring[some], -CLIP, CLIP)
    return out


def set_gene_rings(modules: Sequence[HurdleModule], spots: Spots, graph: sp.csr_matrix) -> None:
    """Put the neighbourhood of spots that are predicted into modules: as :func:`gene_rings`, averaged once for all of them.

    Log expression is averaged over neighbours in the place of standardised expression. Each module standardises the means, which is the
    same but for genes with a spot beyond the limit of standardised expression: their rings it is told as they are.

    Parameters
    ----------
    modules
        Changed in place; all keep the same array.
    spots, graph
        All spots, and the edges between those that may see each other.
    """
    average = _average(graph)
    index = [module.gene_index.cpu().numpy() for module in modules]
    used, log = np.unique(np.concatenate(index)), _log_by_gene(spots)
    means = np.empty((len(spots), modules[0].ring_scale.shape[0], len(used)), np.float32)
    low, high = np.zeros(len(used)), np.zeros(len(used))
    for start in range(0, len(used), _GENES_AT_ONCE):
        some = slice(start, start + _GENES_AT_ONCE)
        value = log[:, used[some]].toarray().astype(np.float32, copy=False)
        low[some], high[some] = value.min(axis=0), value.max(axis=0)
        for ring in range(means.shape[1]):
            value = average @ value
            means[:, ring, some] = value
    for module, own in zip(modules, index, strict=True):
        place = np.searchsorted(used, own)
        mean, deviation = (getattr(module, name).cpu().numpy() for name in ("gene_mean", "gene_scale"))
        farthest = np.maximum(high[place] - mean, mean - low[place])
        beyond = np.flatnonzero(farthest > CLIP * deviation)
        module.set_ring_means(means, place, beyond, gene_rings(module, spots, graph, beyond))


def _average(graph: sp.csr_matrix) -> sp.csr_matrix:
    """What turns values of spots into their mean over each spot and its neighbours."""
    edges = sp.csr_matrix(graph != 0, dtype=np.float32) + sp.identity(graph.shape[0], dtype=np.float32, format="csr")
    return sp.csr_matrix(sp.diags((1 / np.asarray(edges.sum(axis=1)).ravel()).astype(np.float32)) @ edges)


def _cut(spots: Spots, part: NDArray[np.int64]) -> sp.csr_matrix:
    """The graph without edges between parts."""
    assert spots.graph is not None
    edges = spots.graph.tocoo()
    inside = part[edges.row] == part[edges.col]
    return sp.csr_matrix((edges.data[inside], (edges.row[inside], edges.col[inside])), shape=edges.shape)


def _section_codes(spots: Spots, key: str) -> NDArray[np.int64]:
    """Number of each spot's section."""
    if spots.sample is None:
        logger.warning("obs has no column %r: all %d spots are taken to be of one section.", key, len(spots))
        return np.zeros(len(spots), np.int64)
    codes, _ = pd.factorize(spots.sample)
    if (codes < 0).any():
        msg = f"obs[{key!r}] has {int((codes < 0).sum())} missing values; every spot needs a section."
        raise ValueError(msg)
    return codes.astype(np.int64)
