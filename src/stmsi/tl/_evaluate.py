"""Scores of predictions against measurements, per section and metabolite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core import metrics
from stmsi._keys import Key
from stmsi._validate import (
    check_nonnegative,
    get_table,
    imputed,
    listing,
    require_frame,
    require_sample,
    shared_metabolites,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

PRESENCE_SCORES = ("precision", "recall", "f1", "auroc", "auprc", "prevalence", "brier", "ece")
INTENSITY_SCORES = ("mse", "mae", "r2", "pearson", "spearman", "pearson_present", "coverage", "interval_width")


def evaluate(
    data: SpatialData | AnnData,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
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
        Measured presence in ``obsm``; `None`: ``obsm["msi_presence"]`` where it is there, else intensity above 0.
    sample_key
        Column of ``obs`` with the section name.
    table_key
        The ST table.

    Returns
    -------
    One row per section x metabolite x stage: ``sample``, ``metabolite``, ``stage`` (``"presence"`` or
    ``"intensity"``), ``n`` (spots that count), and the scores of the stage (NaN for those of the other): ``precision``,
    ``recall``, ``f1``, ``auroc``, ``auprc`` (compare with ``prevalence``), ``brier``, ``ece``; ``mse``, ``mae``, ``r2``
    (against the training mean), ``pearson``, ``spearman`` (over all covered spots), ``pearson_present`` (where present),
    ``coverage`` (share of the spots whose intensity lies in the prediction interval) and ``interval_width`` (its mean).
    Sections without MSI have no rows. Intensities that :func:`stmsi.pp.impute_dropout` filled in were not measured: they
    count in no score of intensity, and as absent in those of presence unless presence was called before. A score that does not exist (a constant column, one class only) is NaN.

    Raises
    ------
    KeyError
        Prediction or measurement is not there.
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
    if presence_key is None and metabolite_key == Key.obsm.MSI and Key.obsm.PRESENCE in st.obsm:
        presence_key = Key.obsm.PRESENCE
    filled = pd.DataFrame(imputed(st, metabolite_key, measured), index=measured.index, columns=measured.columns)
    presence = ((measured > 0) & ~filled) if presence_key is None else require_frame(st, presence_key)
    for name, frame in ((Key.presence_of(pred_key), probability), (presence_key, presence)):
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
    return score_sections(
        ids,
        require_sample(st, sample_key),
        y,
        np.where(np.isnan(y), np.nan, presence[ids].to_numpy(np.float64)),
        predicted[ids].to_numpy(np.float64),
        probability[ids].to_numpy(np.float64),
        features.loc[ids, "training_mean"].to_numpy(np.float64),
        _bounds(st, pred_key, ids),
        filled[ids].to_numpy(bool),
    )


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
) -> pd.DataFrame:
    """The table of :func:`evaluate` from arrays of shape (spots, metabolites); intensities `filled` in do not count."""
    there_at_all = ~np.isnan(y)
    y = y if filled is None else np.where(filled, np.nan, y)
    lower, upper = (np.full_like(y, np.nan),) * 2 if bounds is None else bounds
    covered = np.where(np.isnan(y) | np.isnan(lower) | np.isnan(upper), np.nan, (lower <= y) & (y <= upper))
    width = np.where(np.isnan(y), np.nan, upper - lower)
    parts = []
    for name in dict.fromkeys(sample):
        rows = sample == name
        if not there_at_all[rows].any():
            continue
        truth, pred, there, p = y[rows], predicted[rows], present[rows], probability[rows]
        called = np.where(np.isnan(pred), np.nan, pred > 0)
        base = {"sample": name, "metabolite": ids}
        presence = {
            "precision": metrics.precision(there, called),
            "recall": metrics.recall(there, called),
            "f1": metrics.f1(there, called),
            "auroc": metrics.auroc(there, p),
            "auprc": metrics.auprc(there, p),
            "prevalence": metrics.prevalence(there),
            "brier": metrics.brier(there, p),
            "ece": metrics.ece(there, p),
        }
        intensity = {
            "mse": metrics.mse(truth, pred),
            "mae": metrics.mae(truth, pred),
            "r2": metrics.r2(truth, pred, training_mean),
            "pearson": metrics.pearson(truth, pred),
            "spearman": metrics.spearman(truth, pred),
            "pearson_present": metrics.pearson(np.where(there > 0, truth, np.nan), pred),
            "coverage": _mean(covered[rows]),
            "interval_width": _mean(width[rows]),
        }
        parts += [
            pd.DataFrame({**base, "n": counted.sum(axis=0), "stage": stage, **scores})
            for stage, scores, counted in (
                ("presence", presence, there_at_all[rows]),
                ("intensity", intensity, ~np.isnan(truth)),
            )
        ]
    if not parts:
        msg = "No section has MSI to score against: all measured intensities are NaN."
        raise ValueError(msg)
    columns = ["sample", "metabolite", "stage", "n", *PRESENCE_SCORES, *INTENSITY_SCORES]
    table = pd.concat([part.reindex(columns=columns) for part in parts if len(part)], ignore_index=True)
    table = table.astype(dict.fromkeys((*PRESENCE_SCORES, *INTENSITY_SCORES), np.float64))
    return table.loc[table["n"] > 0].reset_index(drop=True)


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
