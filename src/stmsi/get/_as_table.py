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
    data: Data, *, metabolite_key: str = Key.obsm.PRED, table_key: str = Key.table.ST, key_added: str | None = None
) -> AnnData:
    """Make a table of a layer of metabolites, which annotates the same spots.

    spatialdata-plot, squidpy and napari colour spots by the variables of a table, not by columns of ``obsm``.

    Parameters
    ----------
    data
        SpatialData or AnnData with the layer.
    metabolite_key
        The layer in ``obsm``: ``"msi_pred"``, ``"msi"``, ``"msi_pred_presence"``, ...
    table_key
        The ST table of a SpatialData.
    key_added
        Also store the table in the SpatialData under this name, in place of an earlier one; `None`: only return it.

    Returns
    -------
    AnnData spots x metabolites:

    - ``X``: dense float32, **NaN stays NaN** (not covered);
    - ``var``: the rows of :func:`feature_table`;
    - ``obs``, ``obsm["spatial"]`` and ``uns["spatialdata_attrs"]``: copies of those of the ST table.

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
    >>> stmsi.get.as_table(sdata, metabolite_key="msi", key_added="metabolites").shape
    (344, 12)
    >>> "metabolites" in sdata.tables
    True
    """
    from spatialdata.models import TableModel

    if key_added is not None:
        if not is_spatialdata(data):
            msg = f"key_added={key_added!r} needs a SpatialData; found {type(data).__name__}. Use the returned table."
            raise TypeError(msg)
        check_key(key_added)
        if key_added in (table_key, Key.table.ST, Key.table.MSI):
            msg = f"key_added={key_added!r} would replace the {key_added!r} table itself; choose another name."
            raise ValueError(msg)
    adata = get_table(data, table_key)
    frame = require_frame(adata, metabolite_key, f"{written_by(metabolite_key)} ")
    frame = frame.set_axis(frame.columns.astype(str), axis=1)
    require_unique(frame.columns, f"Columns of obsm[{metabolite_key!r}]")
    features = feature_table(adata, metabolite_key=metabolite_key)
    unknown = frame.columns.difference(features.index)
    if len(unknown):
        layer = f"obsm[{metabolite_key!r}]"
        msg = f"The feature table of {metabolite_key!r} lacks {listing(unknown)} of {layer}; write both by one call."
        raise ValueError(msg)
    values = np.array(frame.to_numpy(), dtype=np.float32)
    table = AnnData(values, obs=adata.obs.copy(), var=features.loc[frame.columns].copy())
    if Key.obsm.SPATIAL in adata.obsm:
        table.obsm[Key.obsm.SPATIAL] = np.array(adata.obsm[Key.obsm.SPATIAL])
    if TableModel.ATTRS_KEY in adata.uns:
        table.uns[TableModel.ATTRS_KEY] = deepcopy(dict(adata.uns[TableModel.ATTRS_KEY]))
    if key_added is not None:
        if key_added in data.tables:
            del data.tables[key_added]
        data.tables[key_added] = table
    return table
