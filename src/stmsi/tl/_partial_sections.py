"""Predictions corrected by what was measured in a part of their section."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.spatial.partial_sections import correct_section
from stmsi._core.uncertainty.conformal import doubt_of
from stmsi._core.uncertainty.weighted_quantiles import widening
from stmsi._data.checks import check_nonnegative
from stmsi._data.keys import Key
from stmsi._data.tables import imputed, require_frame, require_positions, sections_of
from stmsi._settings import logger
from stmsi.model.shared._map_scale import LEAST_PROBABILITY
from stmsi.tl._held_out import unseen_stages

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stmsi.model.shared._hurdle_model import HurdleModel
    from stmsi.model.shared._prediction import Prediction

    Floats = NDArray[np.float64]

_COLUMNS = ["n_measured", "offset", "scale", "smoothing", "length", "noise"]


def correct_by_measured(
    adata: AnnData, model: HurdleModel, prediction: Prediction, coverage: float
) -> tuple[Prediction, pd.DataFrame]:
    """The prediction with spots that were not measured corrected, and what was done to each section and metabolite."""
    setup, ids = model.state.setup, model.state.metabolites
    sample = sections_of(adata, setup.sample_key)
    measured, present = _measurements(adata, model)
    xy = None
    if Key.obsm.SPATIAL in adata.obsm:
        xy = require_positions(adata)[:, :2]
    else:
        logger.warning('obsm has no "spatial": without positions, predictions are corrected in offset and scale alone.')
    stages = np.stack([f.to_numpy(np.float64) for f in (prediction.presence, prediction.intensity)])
    unseen = unseen_stages(model, stages, measured, sample, xy)
    frames = {
        name: getattr(prediction, name).to_numpy().copy()
        for name in ("presence", "intensity", "expected", "lower", "upper")
    }
    tables = []
    for name in dict.fromkeys(sample):
        rows = np.flatnonzero(sample == name)
        known = ~np.isnan(measured[rows])
        columns = np.flatnonzero(known.any(axis=0) & ~known.all(axis=0))
        if len(columns) == 0:
            continue
        own = np.ix_(rows, columns)
        stages_here, xy_here = unseen[:, rows][:, :, columns], None if xy is None else xy[rows]
        doubt = doubt_of(prediction.ood[rows], prediction.missing_genes)
        made, table = _correct(model, columns, stages_here, measured[own], present[own], xy_here, coverage, doubt)
        for key, values in made.items():
            frames[key][own] = np.where(known[:, columns], frames[key][own], values)
        tables.append(table.assign(sample=str(name), metabolite=ids[columns].astype(str)))
    if not tables:
        logger.warning(
            "use_measured=True changes nothing: no section has obsm[%r] in some of its spots only.",
            setup.metabolite_key,
        )
    index, of = prediction.expected.index, prediction.expected.columns
    changed: dict[str, Any] = {key: pd.DataFrame(values, index=index, columns=of) for key, values in frames.items()}
    lead = ["sample", "metabolite"]
    done = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*lead, *_COLUMNS])
    return replace(prediction, **changed), done[[*lead, *_COLUMNS]]


def _measurements(adata: AnnData, model: HurdleModel) -> tuple[Floats, Floats]:
    """Intensities and presence of the metabolites of a model, each (spots, metabolites); NaN where not measured."""
    setup, ids = model.state.setup, model.state.metabolites
    key = setup.metabolite_key
    frame = require_frame(
        adata, key, "use_measured=True needs the measured intensities; stmsi.pp.map_to_spots writes them. "
    )
    filled = pd.DataFrame(imputed(adata, key, frame), frame.index, frame.columns)
    # what was filled in was not measured
    measured = frame.mask(filled).reindex(columns=ids).to_numpy(np.float64)
    check_nonnegative(measured, f"obsm[{key!r}]", allow_nan=True)
    if setup.presence_key is None:
        return measured, np.where(np.isnan(measured), np.nan, measured > 0)
    if setup.presence_key not in adata.obsm:
        logger.warning(
            "obsm has no %r, which the model learnt presence from: presence is not corrected. stmsi.pp.call_presence writes it.",
            setup.presence_key,
        )
        return measured, np.full(measured.shape, np.nan)
    present = require_frame(adata, setup.presence_key).reindex(columns=ids).to_numpy(np.float64)
    return measured, np.where(np.isnan(measured), np.nan, present)


def _correct(
    model: HurdleModel,
    columns: NDArray[np.int64],
    stages: Floats,
    measured: Floats,
    present: Floats,
    xy: Floats | None,
    coverage: float,
    doubt: Floats,
) -> tuple[dict[str, NDArray[np.float32]], pd.DataFrame]:
    """Corrected frames of one section, and its part of the table."""
    probability, intensity = stages
    found = correct_section(probability * intensity, probability, measured, present, xy)
    threshold = model.state.threshold[columns]
    presence = found.presence.astype(np.float32)
    called = presence >= threshold
    expected = np.where(called, found.intensity, 0).astype(np.float32)
    assert model.state.residuals is not None
    residuals = model.state.residuals.take(columns)
    # where presence is kriged to be certain it is not quite: the wider of the two
    sides = np.maximum(
        *(np.stack(residuals.half_widths(expected, p, intensity, coverage, doubt)) for p in (presence, probability))
    )
    # what kriging leaves of the error, then what the measured spots say of the intervals
    below, above = sides * np.sqrt(found.variance)
    factor = np.ones(measured.shape)
    for stratum in (called, ~called):
        factor = np.where(stratum, widening(measured, expected, below, above, coverage, stratum), factor)
    lower, upper = np.maximum(expected - factor * below, 0), expected + factor * above
    table = pd.DataFrame(
        {
            "n_measured": (~np.isnan(measured)).sum(axis=0),
            "offset": found.residuals.offset,
            "scale": found.slopes[0],
            "smoothing": found.slopes[1],
            "length": found.residuals.length,
            "noise": found.residuals.noise,
        }
    )
    # every output tells the same: the intensity given presence is what gives the corrected map
    given = found.intensity / np.maximum(presence, LEAST_PROBABILITY)
    frames = {"presence": presence, "intensity": given, "expected": expected, "lower": lower, "upper": upper}
    return {key: values.astype(np.float32) for key, values in frames.items()}, table
