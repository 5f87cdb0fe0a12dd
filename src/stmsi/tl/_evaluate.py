"""Scores of predictions against measurements, per section and metabolite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.metrics import intensity as metrics
from stmsi._core.metrics import maps as metrics_maps
from stmsi._core.metrics import presence as metrics_presence
from stmsi._data.checks import check_nonnegative, listing
from stmsi._data.keys import INTENSITY_SCORES, MAP_SCORES, PRESENCE_SCORES, Key
from stmsi._data.tables import (
    get_table,
    imputed,
    measured_presence,
    presence_key_of,
    require_frame,
    require_obs,
    require_sample,
    shared_metabolites,
)
from stmsi.model.shared._spot_input import read_counts
from stmsi.tl._relation_scores import score_relations

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_BLOCK = 32
"""Metabolites scored at a time: their columns stay in the processor's cache, which halves the time."""


def evaluate(
    data: SpatialData | AnnData,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    maps: bool = False,
    relations: bool = False,
    group_key: str | None = None,
    layer: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Score predicted against measured metabolites.

    Scores are per metabolite **within each section** and never flattened over metabolites. They speak of skill only
    where the model did not see the section while training.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.predict_metabolites`.
    pred_key
        Prediction in ``obsm``.
    metabolite_key
        Measured intensities in ``obsm``.
    presence_key
        Measured presence in ``obsm``; `None`: ``obsm["<metabolite_key>_presence"]`` where it is there, else intensity
        above 0 (what :func:`stmsi.pp.impute_dropout` filled in counts as absent).
    maps
        Also compare the maps, from the positions in ``obsm["spatial"]``.
    relations
        Also compare how metabolites are correlated with one another and with the 500 most variable genes of the section.
    group_key
        Column of ``obs`` with clusters or regions: also compare what they differ in.
    layer
        Raw counts in ``layers``, for `relations`; `None`: ``X``.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.

    Returns
    -------
    One row per section x metabolite x stage: ``sample``, ``metabolite``, ``stage`` (``"presence"`` or
    ``"intensity"``), ``n`` (spots that count), and the scores of the stage (NaN for those of the other): ``precision``,
    ``recall``, ``f1``, ``mcc``, ``auroc``, ``auprc`` (compare with ``prevalence``), ``brier``, ``ece``; ``mse``, ``mae``, ``r2``
    (against the training mean), ``pearson``, ``spearman`` (over all covered spots), ``pearson_present`` (where present),
    ``coverage`` (share of the spots whose intensity lies in the prediction interval) and ``interval_width`` (its mean).
    With `maps` also ``ssim``, ``moran_measured`` and ``moran_predicted`` (Moran's I over neighbouring spots) and
    ``hotspot_jaccard``; with `relations` ``correlation_preserved`` and ``gene_correlation_preserved``; with `group_key`
    ``group_agreement`` (of the groups' means) and ``differential_agreement`` (share of the differences between groups that
    the prediction shows too); see :mod:`stmsi.metrics`. A score that does not exist is NaN and never 0, and ``reason`` says why
    (``"present nowhere"``, ``"constant prediction"``, ...; empty where all exist).

    Sections without MSI have no rows. Intensities that :func:`stmsi.pp.impute_dropout` filled in were not measured: they
    count in no score of intensity, and as absent in those of presence unless presence was called before.

    Raises
    ------
    KeyError
        Prediction or measurement is not there, positions for `maps`, or the column `group_key`.
    ValueError
        They share no metabolite, or no section has MSI.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> scores = stmsi.tl.evaluate(sdata)
    >>> scores.groupby("stage").size().to_dict()
    {'intensity': 36, 'presence': 36}
    """
    st = get_table(data, table_key)
    if pred_key == metabolite_key:
        msg = f"pred_key and metabolite_key are both {pred_key!r}: a prediction cannot be scored against itself."
        raise ValueError(msg)
    predicted = require_frame(st, pred_key, "stmsi.tl.predict_metabolites writes it.")
    measured = require_frame(st, metabolite_key, "stmsi.pp.map_to_spots writes it.")
    check_nonnegative(measured.to_numpy(), f"obsm[{metabolite_key!r}]", allow_nan=True)
    check_nonnegative(predicted.to_numpy(), f"obsm[{pred_key!r}]", allow_nan=True)
    ids = shared_metabolites(predicted, measured)
    probability = require_frame(st, Key.presence_of(pred_key), "stmsi.tl.predict_metabolites writes it.")
    filled = pd.DataFrame(imputed(st, metabolite_key, measured), index=measured.index, columns=measured.columns)
    presence = measured_presence(st, metabolite_key, presence_key)
    called = presence_key_of(st, metabolite_key, presence_key)
    for name, frame in ((Key.presence_of(pred_key), probability), (called, presence)):
        missing = [m for m in ids if m not in frame.columns]
        if missing:
            msg = (
                f"obsm[{name!r}] lacks the metabolites {listing(missing)}; it holds {listing(frame.columns)}. Write it "
                "again from the same table."
            )
            raise ValueError(msg)
    features = st.uns.get(pred_key, {}).get("features")
    if not isinstance(features, pd.DataFrame) or "training_mean" not in features:
        msg = f"uns[{pred_key!r}] has no training means; predict again with stmsi.tl.predict_metabolites."
        raise KeyError(msg)
    y = measured[ids].to_numpy(np.float64)
    sample, values = require_sample(st, sample_key), predicted[ids].to_numpy(np.float64)
    group = None if group_key is None else require_obs(st, group_key)
    table = score_sections(
        ids,
        sample,
        y,
        presence[ids].to_numpy(np.float64),
        values,
        probability[ids].to_numpy(np.float64),
        features.loc[ids, "training_mean"].to_numpy(np.float64),
        _bounds(st, pred_key, ids),
        filled[ids].to_numpy(bool),
        map_positions(st) if maps else None,
    )
    if not relations and group is None:
        return table
    counts = read_counts(st, layer) if relations else None
    more = score_relations(ids, sample, np.where(filled[ids].to_numpy(bool), np.nan, y), values, counts, group)
    table = table.merge(more, on=["sample", "metabolite", "stage"], how="left", validate="one_to_one")
    return table[[*(c for c in table if c != "reason"), "reason"]]


def map_positions(st: AnnData) -> NDArray[np.float64]:
    """Positions of the spots, for scores of maps."""
    if Key.obsm.SPATIAL not in st.obsm:
        msg = f'maps=True needs the positions of the spots in obsm["{Key.obsm.SPATIAL}"]; found {listing(st.obsm.keys())}.'
        raise KeyError(msg)
    xy = np.asarray(st.obsm[Key.obsm.SPATIAL], dtype=np.float64)[:, :2]
    if not np.isfinite(xy).all():
        msg = f'obsm["{Key.obsm.SPATIAL}"] contains NaN or infinite positions; place those spots or leave them out.'
        raise ValueError(msg)
    return xy


def score_sections(
    ids: list[str],
    sample: NDArray[np.str_],
    y: NDArray[np.float64],
    present: NDArray[np.float64],
    predicted: NDArray[np.float64],
    probability: NDArray[np.float64],
    training_mean: NDArray[np.float64],
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    filled: NDArray[np.bool_] | None = None,
    xy: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """The table of :func:`evaluate` from arrays of shape (spots, metabolites).

    Intensities `filled` in do not count; with positions `xy` maps are scored too.
    """
    there_at_all = ~np.isnan(y)
    y = y if filled is None else np.where(filled, np.nan, y)
    lower, upper = (np.full_like(y, np.nan),) * 2 if bounds is None else bounds
    parts = []
    for name in dict.fromkeys(sample):
        rows = np.flatnonzero(sample == name)
        if not there_at_all[rows].any():
            continue
        graph = None if xy is None else metrics_maps.near_graph(xy[rows])
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            truth, pred, there, p = (v[rows, block] for v in (y, predicted, present, probability))
            base = {"sample": name, "metabolite": ids[block]}
            presence = _presence_scores(there, p, pred)
            intensity = _intensity_scores(
                truth, pred, there, training_mean[block], lower[rows, block], upper[rows, block]
            )
            if xy is not None:
                moran = metrics_maps.moran_i(np.hstack([truth, np.where(np.isnan(truth), np.nan, pred)]), graph)
                intensity |= {
                    "ssim": metrics_maps.ssim(truth, pred, xy[rows]),
                    "moran_measured": moran[: truth.shape[1]],
                    "moran_predicted": moran[truth.shape[1] :],
                    "hotspot_jaccard": metrics_maps.hotspot_jaccard(truth, pred),
                }
            for stage, scores, n in (
                ("presence", presence, there_at_all[rows, block].sum(axis=0)),
                ("intensity", intensity, (~np.isnan(truth)).sum(axis=0)),
            ):
                order = np.arange(start, start + truth.shape[1])
                parts.append(pd.DataFrame({**base, "stage": stage, "n": n, **scores, "_order": order}))
    if not parts:
        msg = "No section has MSI to score against: all measured intensities are NaN."
        raise ValueError(msg)
    scores_shown = [*PRESENCE_SCORES, *INTENSITY_SCORES, *(MAP_SCORES if xy is not None else ())]
    columns = ["sample", "metabolite", "stage", "n", *scores_shown, "reason"]
    table = pd.concat([part.reindex(columns=[*columns, "_order"]) for part in parts if len(part)], ignore_index=True)
    # section by section, stage by stage, metabolites in their order
    place = {name: i for i, name in enumerate(dict.fromkeys(sample))}
    keys = (table["_order"], table["stage"] == "intensity", table["sample"].map(place))
    table = table.iloc[np.lexsort([k.to_numpy() for k in keys])][columns]
    table = table.astype(dict.fromkeys(scores_shown, np.float64))
    return table.loc[table["n"] > 0].reset_index(drop=True)


def _presence_scores(
    there: NDArray[np.float64], p: NDArray[np.float64], pred: NDArray[np.float64]
) -> dict[str, NDArray[np.float64] | list[str]]:
    """Scores of stage 1 in one section, and why some do not exist."""
    called = np.where(np.isnan(pred), np.nan, pred > 0)
    scores = {
        "precision": metrics_presence.precision(there, called),
        "recall": metrics_presence.recall(there, called),
        "f1": metrics_presence.f1(there, called),
        "mcc": metrics_presence.mcc(there, called),
        "auroc": metrics_presence.auroc(there, p),
        "auprc": metrics_presence.auprc(there, p),
        "prevalence": metrics_presence.prevalence(there),
        "brier": metrics_presence.brier(there, p),
        "ece": metrics_presence.ece(there, p),
    }
    known = ~(np.isnan(there) | np.isnan(called))
    why = {
        "presence not known": ~known.any(axis=0),
        "present nowhere": ~(known & (there > 0)).any(axis=0),
        "present everywhere": ~(known & (there == 0)).any(axis=0),
        "called present nowhere": ~(known & (called > 0)).any(axis=0),
        "called present everywhere": ~(known & (called == 0)).any(axis=0),
        "no probability": np.isnan(p).all(axis=0),
    }
    return scores | {"reason": _reasons(why, scores)}


def _intensity_scores(
    truth: NDArray[np.float64],
    pred: NDArray[np.float64],
    there: NDArray[np.float64],
    training_mean: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> dict[str, NDArray[np.float64] | list[str]]:
    """Scores of stage 2 in one section, and why some do not exist."""
    inside = np.where(np.isnan(truth) | np.isnan(lower) | np.isnan(upper), np.nan, (lower <= truth) & (truth <= upper))
    where_present = np.where(there > 0, truth, np.nan)
    scores = {
        "mse": metrics.mse(truth, pred),
        "mae": metrics.mae(truth, pred),
        "r2": metrics.r2(truth, pred, training_mean),
        "pearson": metrics.pearson(truth, pred),
        "spearman": metrics.spearman(truth, pred),
        "pearson_present": metrics.pearson(where_present, pred),
        "coverage": _mean(inside),
        "interval_width": _mean(np.where(np.isnan(truth), np.nan, upper - lower)),
    }
    n, n_present = ((~np.isnan(v)).sum(axis=0) for v in (truth, where_present))
    few, few_present = n < 2, n_present < 2
    no_present = np.isnan(scores["pearson_present"])
    why = {
        "fewer than 2 spots": few,
        "constant measurement": ~few & metrics.is_constant(truth),
        "constant prediction": ~few & metrics.is_constant(np.where(np.isnan(truth), np.nan, pred)),
        "present in fewer than 2 spots": ~few & few_present,
        "constant where present": ~few_present & no_present,
        "no interval": np.isnan(scores["coverage"]) & (n > 0),
        "no training mean": np.isnan(training_mean),
    }
    return scores | {"reason": _reasons(why, scores)}


def _reasons(why: dict[str, NDArray[np.bool_]], scores: dict[str, NDArray[np.float64]]) -> list[str]:
    """What holds of each metabolite of which a score does not exist, as text."""
    lacks: NDArray[np.bool_] = np.isnan(np.stack(list(scores.values()))).any(axis=0)  # type: ignore[assignment]
    return ["; ".join(text for text, holds in why.items() if holds[m]) if lacks[m] else "" for m in range(len(lacks))]


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column without NaN, NaN where there is nothing else."""
    n = (~np.isnan(values)).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)


def _bounds(st: AnnData, pred_key: str, ids: list[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Bounds of the prediction, where they were written for these metabolites."""
    keys = Key.bounds_of(pred_key)
    if any(key not in st.obsm for key in keys):
        return None
    lower, upper = (require_frame(st, key).reindex(columns=ids).to_numpy(np.float64) for key in keys)
    return lower, upper
