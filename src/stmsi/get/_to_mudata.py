"""Genes and metabolites of the same spots as one MuData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import check_key, listing
from stmsi._data.feature_table import find_features
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.get._as_table import as_table

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from stmsi._data.checks import Data


def to_mudata(
    data: Data,
    *,
    metabolite_keys: str | Sequence[str] | None = None,
    genes: str = "rna",
    drop_not_measured: bool = False,
    table_key: str = Key.table.ST,
) -> MuData:
    """Collect genes, measured and predicted metabolites as the modalities of one MuData, for muon, MOFA and the like.

    Parameters
    ----------
    data
        SpatialData or its ST table with layers of metabolites.
    metabolite_keys
        Layers in ``obsm``, each a modality under the name of the layer; `None`: ``"msi"`` and ``"msi_pred"``, if they exist.
    genes
        Name of the modality with the genes.
    drop_not_measured
        Leave spots out of a modality if none of its metabolites was measured. Otherwise all modalities have the same
        spots in one order, and **NaN stays NaN**.
    table_key
        The ST table of a SpatialData.

    Returns
    -------
    :class:`mudata.MuData`, a copy:

    - the genes: the ST table (sparse stays sparse) without layers of metabolites and their records;
    - each layer as :func:`as_table` makes it, ``var`` being its feature table. Names of variables must differ between
      modalities, so a metabolite is called ``"<layer>:<id>"``; ``var["metabolite"]`` holds the id;
    - ``obs``: that of the ST table.

    Raises
    ------
    KeyError
        The table or a layer is missing, or the feature table of a layer.
    ValueError
        No layer, or one with the name of the genes.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> mdata = stmsi.get.to_mudata(sdata)
    >>> {name: part.shape for name, part in mdata.mod.items()}
    {'rna': (344, 120), 'msi': (344, 12), 'msi_pred': (344, 12)}
    """
    import mudata

    adata = get_table(data, table_key)
    check_key(genes, "genes")
    if metabolite_keys is None:
        wanted = [k for k in (Key.obsm.MSI, Key.obsm.PRED) if k in adata.obsm]
    else:
        wanted = list(dict.fromkeys([metabolite_keys] if isinstance(metabolite_keys, str) else metabolite_keys))
    if not wanted:
        msg = (
            f"No layer of metabolites; obsm holds {listing(adata.obsm.keys())}. stmsi.pp.map_to_spots writes 'msi', "
            "stmsi.tl.predict_metabolites 'msi_pred'."
        )
        raise ValueError(msg)
    if genes in wanted:
        msg = f"genes={genes!r} is the name of a layer; choose another name for the genes."
        raise ValueError(msg)
    parts: dict[str, AnnData] = {genes: _genes_only(adata)}
    for key in wanted:
        table = as_table(adata, metabolite_key=key)
        table.var["metabolite"] = table.var_names
        table.var_names = [f"{key}:{name}" for name in table.var_names]
        table.var.index.name = None
        if drop_not_measured:
            table = table[~np.isnan(table.X).all(axis=1)].copy()
        parts[key] = table
    if hasattr(mudata, "set_options"):  # before mudata 0.4
        separate = mudata.set_options(pull_on_update=False)
    else:
        separate = mudata.settings.override(pull_on_update=False)
    with separate:  # columns of the spots are put in once, without a prefix
        out = mudata.MuData(parts)
        for name in adata.obs:
            out.obs[name] = adata.obs[name].reindex(out.obs_names)
    return out


def _genes_only(adata: AnnData) -> AnnData:
    """A copy of a table without layers of metabolites."""
    out = adata.copy()
    for key in list(out.obsm):
        if find_features(adata, key) is not None:
            del out.obsm[key]
    records: list[Any] = [k for k, v in out.uns.items() if isinstance(v, dict) and "features" in v]
    for key in [*records, *(k for k in out.uns if str(k).startswith("_"))]:
        del out.uns[key]
    return out
