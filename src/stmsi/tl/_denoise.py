"""Measured maps without their noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._core.spatial.ring_denoising import denoise_by_rings, graph_rings
from stmsi._data.checks import check_key, check_nonnegative, listing, suggest
from stmsi._data.keys import Key
from stmsi._data.measured_and_predicted import PREDICT_WRITES, measured_sections
from stmsi._data.tables import (
    imputed,
    require_frame,
    require_mapped,
    require_positions,
    sections_of,
    table_to_change,
)
from stmsi._messages import warns_once
from stmsi.model.shared._block_prediction import MIN_GENES
from stmsi.tl._held_out import unseen_stages
from stmsi.tl._models import name_of, trained_model

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from stmsi.model.shared._hurdle_model import HurdleModel

_N_RINGS = 3


@warns_once
def denoise(
    data: SpatialData | AnnData,
    model: HurdleModel | str | Path | None = None,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    graph_key: str = Key.obsp.CONNECTIVITIES,
    include_self: bool = True,
    key_added: str = Key.obsm.DENOISED,
    min_genes: float = MIN_GENES,
    copy: bool = False,
) -> SpatialData | AnnData | None:
    """Denoise measured metabolites by their surroundings and by what genes predict.

    Each metabolite of each section is regressed (ridge) on the means of its measurement in three rings of neighbours, on its
    prediction, and on the means of the prediction in the spot's two nearest rings. A spot is predicted by coefficients fitted
    without it (leave-one-out). All metabolites share one penalty. Sections do not mix.

    **The prediction must come from a model that has not seen these spots.** One that has seen them repeats their noise. With
    `model`, held-out predictions take the place of those of training spots where the model has them in memory; a saved model has
    none, and a warning says so.

    Parameters
    ----------
    data
        SpatialData with the ST table, or the ST table itself, with measured intensities and a graph of neighbours.
    model
        A trained model, or the folder of a saved one. `None`: the prediction in ``obsm[pred_key]``.
    pred_key
        Prediction in ``obsm``, if there is no `model`. Metabolites that are not predicted are denoised by their surroundings alone.
    metabolite_key
        Measured intensities in ``obsm``; those that :func:`stmsi.pp.impute_dropout` filled in count as not measured.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.
    graph_key
        Graph of neighbours in ``obsp``, which :func:`stmsi.pp.spatial_graph` writes.
    include_self
        Average the result with the spot's own measurement, which counts as much as one neighbour. `False`: the measurement of a
        spot has no part in its own result.
    key_added
        Where to write in ``obsm``.
    min_genes
        Share of the training genes that must be in the data, for `model`.
    copy
        Return a changed copy instead of working in place.

    Returns
    -------
    `None`, or with ``copy=True`` the changed copy. Writes into the ST table (for ``key_added="msi_denoised"``):

    - ``obsm["msi_denoised"]``: intensity, DataFrame spots x metabolites, float32, at least 0, NaN where not measured;
    - ``uns["msi_denoised"]``: ``params``, and ``features`` where the metabolites have a feature table.

    Raises
    ------
    KeyError
        Intensities, prediction, graph or section names are not there.
    ValueError
        Negative or infinite values, no measured spot, or a `key_added` that would replace something else.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.pp.spatial_graph(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleLinear.setup_anndata(st)
    >>> model = stmsi.model.HurdleLinear(st)
    >>> model.train(show_progress_bar=False)
    >>> stmsi.tl.denoise(sdata, model)
    >>> st.obsm["msi_denoised"].shape
    (344, 12)
    """
    st, changed = table_to_change(data, table_key, copy=copy)
    _check_target(st, key_added)
    frame = require_mapped(st, metabolite_key)
    check_nonnegative(frame.to_numpy(), f"obsm[{metabolite_key!r}]", allow_nan=True)
    sample = sections_of(st, sample_key)
    measured = np.where(imputed(st, metabolite_key, frame), np.nan, frame.to_numpy(np.float64))
    if np.isnan(measured).all():
        msg = f"obsm[{metabolite_key!r}] holds no measured intensity; align and map the MSI first."
        raise ValueError(msg)
    if graph_key not in st.obsp:
        found = list(st.obsp)
        msg = f"obsp has no {graph_key!r}; found {listing(found)}. stmsi.pp.spatial_graph writes it.{suggest(graph_key, found)}"
        raise KeyError(msg)
    graph = sp.csr_matrix(st.obsp[graph_key])
    predicted = (
        _predicted(st, model, frame, min_genes) if model is not None else require_frame(st, pred_key, PREDICT_WRITES)
    )
    prediction = predicted.reindex(columns=frame.columns).to_numpy(np.float64)
    check_nonnegative(prediction, "Predictions", allow_nan=True)
    out = np.full(measured.shape, np.nan, np.float32)
    for _, rows in measured_sections(sample, measured):
        rings = graph_rings(graph[rows][:, rows], _N_RINGS)
        out[rows] = denoise_by_rings(measured[rows], prediction[rows], rings, include_self=include_self)
    st.obsm[key_added] = pd.DataFrame(out, index=frame.index, columns=frame.columns)
    params = {"metabolite_key": metabolite_key, "graph_key": graph_key, "include_self": include_self}
    params |= {"pred_key": pred_key} if model is None else {"model": name_of(model)}
    features = st.uns.get(metabolite_key, {}).get("features")
    st.uns[key_added] = {"params": params} | ({} if features is None else {"features": features.copy()})
    return changed


def _predicted(st: AnnData, model: HurdleModel | str | Path, measured: pd.DataFrame, min_genes: float) -> pd.DataFrame:
    """Mean of both stages, not cut where absence is called, held out for the training spots of the model."""
    fitted = trained_model(model)
    prediction = fitted._predict_all(st, min_genes=min_genes)
    stages = np.stack([f.to_numpy(np.float64) for f in (prediction.presence, prediction.intensity)])
    ids = fitted.state.metabolites
    xy = require_positions(st)[:, :2] if Key.obsm.SPATIAL in st.obsm else None
    sample = sections_of(st, fitted.state.setup.sample_key)
    unseen = unseen_stages(fitted, stages, measured.reindex(columns=ids).to_numpy(np.float64), sample, xy)
    return pd.DataFrame(unseen.prod(axis=0), index=measured.index, columns=ids)


def _check_target(st: AnnData, key: str) -> None:
    """Refuse to write over anything but an earlier result."""
    check_key(key)
    record = st.uns.get(key)
    earlier = isinstance(record, Mapping) and "include_self" in record.get("params", {})
    if (key in st.obsm or key in st.uns) and not earlier:
        where = "obsm" if key in st.obsm else "uns"
        msg = f"key_added={key!r} would replace {where}[{key!r}], which was not denoised; choose another name."
        raise ValueError(msg)
