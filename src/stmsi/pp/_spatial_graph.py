"""Which spots are neighbours."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stmsi._data.checks import check_choice, listing
from stmsi._data.keys import Key
from stmsi._data.tables import require_positions, sections_of, table_to_change
from stmsi._messages import only
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_LOGGER = "spatialdata._logging"
"""That of squidpy, which notes each graph; this asks nothing of a user."""


def spatial_graph(
    data: SpatialData | AnnData,
    *,
    coord_type: Literal["grid", "generic"] = "grid",
    n_neighs: int = 6,
    n_rings: int = 1,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Connect each spot with its neighbours inside its section.

    squidpy makes the graph (:func:`squidpy.gr.spatial_neighbors_grid`, :func:`squidpy.gr.spatial_neighbors_knn`), and
    its own graph serves as well: call it with ``library_key="sample"``, so that no edge joins two sections.

    Parameters
    ----------
    data
        SpatialData or its ST table; positions in ``obsm["spatial"]``.
    coord_type
        ``"grid"`` for Visium's hexagon or square bins, ``"generic"`` for any positions (k nearest).
    n_neighs
        Neighbours of a spot: 6 on a hexagon, 4 or 8 on squares, k for generic positions.
    n_rings
        Rings of neighbours on a grid.
    sample_key, table_key
        Column of ``obs`` with the section name; the ST table.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes ``obsp["spatial_connectivities"]``,
    ``obsp["spatial_distances"]`` and ``uns["spatial_neighbors"]``.

    Raises
    ------
    KeyError
        No ``obsm["spatial"]`` or section column.
    ValueError
        A section has a single spot, which can have no neighbours; positions are NaN or infinite.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.spatial_graph(sdata)
    >>> int(sdata.tables["st"].obsp["spatial_connectivities"].sum(axis=1).max())
    6
    """
    check_choice(coord_type, ("grid", "generic"), "coord_type")
    st, changed = table_to_change(data, table_key, copy=copy)
    require_positions(st)
    sample = sections_of(st, sample_key)
    names, count = np.unique(sample, return_counts=True)
    if (count < 2).any():
        msg = f"Sections with a single spot have no neighbours: {listing(names[count < 2])}. Leave them out."
        raise ValueError(msg)
    import squidpy as sq

    keys = {"spatial_key": Key.obsm.SPATIAL}
    if sample_key in st.obs:  # else all spots are one section
        if not isinstance(st.obs[sample_key].dtype, pd.CategoricalDtype):
            st.obs[sample_key] = pd.Categorical(st.obs[sample_key].astype(str))
        st.obs[sample_key] = st.obs[sample_key].cat.remove_unused_categories()
        keys["library_key"] = sample_key
    if coord_type == "grid":
        with only(logging.WARNING, _LOGGER):
            sq.gr.spatial_neighbors_grid(st, n_neighs=n_neighs, n_rings=n_rings, **keys)
    else:
        if count.min() <= n_neighs:
            logger.warning(
                "n_neighs=%d is lowered to %d in all sections, as %s have no more spots; leave them out to keep it.",
                n_neighs, count.min() - 1, listing(names[count <= n_neighs]),
            )  # fmt: skip
            n_neighs = int(count.min()) - 1
        with only(logging.WARNING, _LOGGER):
            sq.gr.spatial_neighbors_knn(st, n_neighs=n_neighs, **keys)
    return changed
