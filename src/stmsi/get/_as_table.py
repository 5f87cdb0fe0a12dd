"""A layer of metabolites as a table of its own."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from stmsi._data.checks import check_key, is_spatialdata, listing, require_unique
from stmsi._data.feature_table import feature_table, written_by
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame

if TYPE_CHECKING:
    from stmsi._data.checks import Data


def as_table(
    data: Data, *, key: str = Key.obsm.PRED, table_key: str = Key.table.ST, key_added: str | None = None
) -> AnnData:
    """A layer of metabolites as a table that annotates the same spots.

    spatialdata-plot, squidpy and napari colour spots by the variables of a table, not by columns of ``obsm``; with
    this table they can colour them by metabolite.

    Parameters
    ----------
    data
        SpatialData or AnnData with the layer.
    key
        The layer in ``obsm``: ``"msi_pred"``, ``"msi"``, ``"msi_pred_presence"``, ...
    table_key
        The ST table of a SpatialData.
    key_added
        Store the table in the SpatialData under this name too (an earlier one of that name is replaced); `None`: only
        return it.

    Returns
    -------
    AnnData spots x metabolites:

    - ``X``: dense float32, **NaN stays NaN** (not covered);
    - ``var``: the rows of :func:`feature_table`;
    - ``obs``, ``obsm["spatial"]`` and ``uns["spatialdata_attrs"]``: copies of those of the ST table, so that both
      tables annotate the same elements.

    Raises
    ------
    KeyError
        The table, the layer or its feature table is missing.
    ValueError
        The feature table lacks metabolites of the layer, or `key_added` names the ST or the MSI table.
    TypeError
        `key_added` with an AnnData, which has no place for a second table.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.get.as_table(sdata, key="msi", key_added="metabolites").shape
    (344, 12)
    >>> "metabolites" in sdata.tables
    True
    """
    from spatialdata.models import TableModel

    if key_added is not None and not is_spatialdata(data):
        msg = f"key_added={key_added!r} needs a SpatialData; found {type(data).__name__}. Use the returned table."
        raise TypeError(msg)
    if key_added is not None:
        check_key(key_added)
    if key_added in (table_key, Key.table.ST, Key.table.MSI):
        msg = f"key_added={key_added!r} would replace the {key_added!r} table itself; choose another name."
        raise ValueError(msg)
    adata = get_table(data, table_key)
    frame = require_frame(adata, key, f"{written_by(key)} ")
    frame = frame.set_axis(frame.columns.astype(str), axis=1)
    require_unique(frame.columns, f"Columns of obsm[{key!r}]")
    features = feature_table(adata, metabolite_key=key)
    unknown = frame.columns.difference(features.index)
    if len(unknown):
        msg = f"The feature table of {key!r} lacks {listing(unknown)} of obsm[{key!r}]; write both by one call."
        raise ValueError(msg)
    table = AnnData(
        np.array(frame.to_numpy(), dtype=np.float32), obs=adata.obs.copy(), var=features.loc[frame.columns].copy()
    )
    if Key.obsm.SPATIAL in adata.obsm:
        table.obsm[Key.obsm.SPATIAL] = np.array(adata.obsm[Key.obsm.SPATIAL])
    if TableModel.ATTRS_KEY in adata.uns:
        table.uns[TableModel.ATTRS_KEY] = deepcopy(dict(adata.uns[TableModel.ATTRS_KEY]))
    if key_added is not None:
        if key_added in data.tables:
            del data.tables[key_added]
        data.tables[key_added] = table
    return table
