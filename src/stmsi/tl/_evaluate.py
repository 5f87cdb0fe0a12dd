"""Scores of predictions against measurements, per section and metabolite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi._data.keys import Key
from stmsi._data.measured_and_predicted import PREDICT_WRITES, MeasuredAndPredicted, values_of
from stmsi._data.tables import (
    get_table,
    imputed,
    measured_presence,
    presence_key_of,
    require_frame,
    require_obs,
    sections_of,
)
from stmsi._data.training_marks import PARTLY, TRAINED_ON, of_scores, read_marks
from stmsi._messages import warns_once
from stmsi._settings import logger
from stmsi.model.shared._spot_input import read_log_expression
from stmsi.tl._across_sections import score_across
from stmsi.tl._section_scores import Comparison, score_relations, score_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


@warns_once
def evaluate(
    data: SpatialData | AnnData,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    maps: bool = False,
    relations: bool = False,
    groupby: str | None = None,
    layer: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Score predicted against measured metabolites.

    Each metabolite is scored **within each section** (the pattern), and by what it does **between sections** (the level).
    Scores show skill only where the model did not see the section while training: the column ``trained_on`` says where, and a
    warning names the sections where it did.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.predict_metabolites`.
    pred_key, metabolite_key
        Prediction and measured intensities in ``obsm``.
    presence_key
        Measured presence in ``obsm``. `None`: ``obsm["<metabolite_key>_presence"]`` if it exists, else intensity above 0
        (imputed intensities count as absent).
    maps
        Also compare the maps, from the positions in ``obsm["spatial"]``.
    relations
        Also compare correlations between metabolites, and with the 500 most variable genes of the section.
    groupby
        Column of ``obs`` with clusters or regions: also compare the differences between them.
    layer
        Expression in ``layers`` (counts or logarithms), for `relations`; `None`: ``X``.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.

    Returns
    -------
    One row per section x metabolite x stage: ``sample``, ``metabolite``, ``stage`` (``"presence"`` or ``"intensity"``), ``n``
    (spots that count), ``trained_on`` (whether the model was trained on these: ``"no"``, ``"yes"``, ``"partly"``, or
    ``"unknown"`` for predictions and models of versions that kept no record), and the scores of the stage (NaN for those of the other):

    - presence: ``precision``, ``recall``, ``f1``, ``mcc``, ``auroc``, ``auprc`` (compare with ``prevalence``), ``brier``, ``ece``;
    - intensity: ``mse``, ``mae``, ``r2`` (against the training mean), ``pearson`` and ``spearman`` (over all covered spots),
      ``pearson_present`` (where present), ``coverage`` (share of spots inside the prediction interval), ``interval_width`` (mean);
    - level and pattern together, one number per metabolite, the same in each of its rows: ``pearson_between`` (of the means
      of the sections, three or more) and ``pearson_pooled`` (of all spots of all sections);
    - what these follow from: ``measured_mean``, ``predicted_mean``, ``measured_sd``, ``predicted_sd`` (of the section),
      ``training_mean`` and, in cross-validation, ``training_predicted_mean``;
    - with `maps`: ``ssim``, ``moran_measured``, ``moran_predicted`` (Moran's I over neighbouring spots), ``hotspot_jaccard``;
    - with `relations`: ``correlation_preserved``, ``gene_correlation_preserved``;
    - with `groupby`: ``group_agreement`` (of the means of groups), ``differential_agreement`` (share of the differences between
      groups that the prediction shows too).

    See :mod:`stmsi.metrics`. A score that does not exist is NaN, and ``reason`` says why (``"present nowhere"``,
    ``"constant prediction"``, ``"fewer than 3 sections"``, ...). Sections without MSI have no rows. Intensities that :func:`stmsi.pp.impute_dropout` filled
    in count in no score of intensity.

    Raises
    ------
    KeyError
        The prediction, the measurement, the positions for `maps` or the column `groupby` is missing.
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
    pair = MeasuredAndPredicted.read(st, metabolite_key, pred_key)
    ids, p_key, called_key = pair.ids, Key.presence_of(pred_key), presence_key_of(st, metabolite_key, presence_key)
    probability = values_of(require_frame(st, p_key, PREDICT_WRITES), ids, p_key)
    present = values_of(measured_presence(st, metabolite_key, presence_key), ids, called_key)
    features = st.uns.get(pred_key, {}).get("features")
    if not isinstance(features, pd.DataFrame) or "training_mean" not in features:
        msg = f"uns[{pred_key!r}] has no training means; predict again with stmsi.tl.predict_metabolites."
        raise KeyError(msg)
    group = None if groupby is None else require_obs(st, groupby)
    bounds = None
    if all(key in st.obsm for key in Key.bounds_of(pred_key)):
        lower, upper = (require_frame(st, k).reindex(columns=ids).to_numpy(float) for k in Key.bounds_of(pred_key))
        bounds = lower, upper
    found = Comparison(
        ids, sections_of(st, sample_key), pair.measured, present, pair.predicted, probability,
        training_mean=features.loc[ids, "training_mean"].to_numpy(np.float64), bounds=bounds,
        filled=imputed(st, metabolite_key, require_frame(st, metabolite_key)[ids]),
        xy=map_positions(st) if maps else None, trained_on=read_marks(st, pred_key),
    )  # fmt: skip
    table = score_across(score_sections(found))
    _warn_of_training(table, pred_key)
    if not relations and group is None:
        return table
    more = score_relations(found, read_log_expression(st, layer, sample_key) if relations else None, group)
    table = table.merge(more, on=["sample", "metabolite", "stage"], how="left", validate="one_to_one")
    return table[[*(c for c in table if c != "reason"), "reason"]]


def _warn_of_training(table: pd.DataFrame, pred_key: str) -> None:
    """Say, once for all sections, where scores are of spots that the model was trained on."""
    seen = [name for name, state in of_scores(table).items() if state in (TRAINED_ON, PARTLY)]
    if seen:
        logger.warning(
            "The model of obsm[%r] was trained on spots that are scored here, in %d of %d sections (%s): these scores show how well it "
            "fits, not how well it predicts. Score sections that it has not seen (column 'trained_on': 'no'), or call "
            "stmsi.tl.cross_validate.",
            pred_key, len(seen), table["sample"].nunique(), listing(seen),
        )  # fmt: skip


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
