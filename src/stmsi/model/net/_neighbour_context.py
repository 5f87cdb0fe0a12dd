"""What encoders see around a spot: its neighbourhood, or its section."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from stmsi.model.net._context_genes import gene_rings, spot_genes
from stmsi.model.net.encoders import ENCODERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stmsi.model.net.modules import HurdleModule
    from stmsi.model.shared._spot_features import SpotFeatures
    from stmsi.model.shared._spot_input import Spots

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
