"""How far each predicted metabolite can be trusted, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.metrics.realism import marginals
from stmsi._core.metrics.reliability import mean_and_error
from stmsi._core.spatial.morans_i import morans_i, neighbour_means
from stmsi._data.checks import listing, own_view
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._data.keys import GROUP_SCORES, INTENSITY_SCORES, MAP_SCORES, PRESENCE_SCORES, RELATION_SCORES, Key
from stmsi._data.measured_and_predicted import measured_sections
from stmsi._data.tables import copy_of, get_table, require_frame, sections_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

CONTROLS = ("mean", "coordinates", "shuffled_genes", "toroidal_shift")
"""Models by whose scores luck is known: no gene tells them anything about the test section."""
TIERS = {"high": (0.5, np.inf), "medium": (0.25, 0.75), "low": (0.1, 0.6)}
"""Least lower bound of the Pearson correlation, and of the AUROC, which earns a tier for presence alone."""
HIGH_SHARE = 0.7
"""A metabolite of the middle tier that reaches this share of its noise ceiling is in the high one."""
LEAST_CEILING = 0.05
"""No share is taken of a lower ceiling."""
LIMITS = ("prevalence", "morans_i", "dynamic_range")
_EVIDENCE = (
    "pearson", "pearson_se", "pearson_lower", "auroc", "auroc_se", "auroc_lower", "n_sections", "ceiling",
    "share_of_ceiling", "control", "margin", "margin_lower", "model", "r2_share",
)  # fmt: skip
_ALL_SCORES = (*PRESENCE_SCORES, *INTENSITY_SCORES, *MAP_SCORES, *RELATION_SCORES, *GROUP_SCORES)


def reliability(
    data: SpatialData | AnnData,
    scores: pd.DataFrame | None = None,
    *,
    model: str | None = None,
    ceiling: pd.DataFrame | None = None,
    controls: Sequence[str] = CONTROLS,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    copy: bool = False,
) -> pd.DataFrame | SpatialData | AnnData:
    """Tell how far each predicted metabolite can be trusted, and what limits it.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.predict_metabolites`.
    scores
        Table of :func:`stmsi.tl.cross_validate` for the model that predicted and, for a fair verdict, for negative
        controls: ``cross_validate(sdata, ["ridge", "mean", "coordinates", "shuffled_genes", "toroidal_shift"])``. `None`:
        the scores inside held-out training sections (or blocks of one) that the model brings along. They earn ``"medium"`` at
        most.
    model
        Which model of the scores predicted; `None`: the only one that is no control.
    ceiling
        Table of :func:`stmsi.tl.noise_ceiling`; `None`: the one in the data, if any.
    controls
        Models of the scores that count as negative controls.
    pred_key
        Prediction in ``obsm``.
    metabolite_key
        Measured intensities in ``obsm``, if any: they tell what limits a metabolite.
    sample_key, table_key
        Column of ``obs`` with the section name, and the ST table.
    copy
        Return a changed copy of the data instead of the table.

    Returns
    -------
    One row per predicted metabolite, its id as index:

    - verdict: ``tier`` and ``reason`` (what decided);
    - scores, mean over sections (or folds): ``pearson``, ``pearson_se``, ``pearson_lower``, ``auroc``, ``auroc_se``,
      ``auroc_lower``, ``n_sections``. Lower bounds are those of Student's t, one-sided 90 %;
    - noise ceiling: ``ceiling``, ``share_of_ceiling`` (Pearson correlation over the ceiling of the section) and ``r2_share``
      (R2 over the reliability); shares of a ceiling below 0.05 are NaN, a share above 1 is chance or a ceiling that is too low;
    - ``control`` (the best negative control), ``margin`` and ``margin_lower`` (Pearson correlation above it, by section);
    - ``model``, whose scores these are;
    - limits, mean over the sections that measured the metabolite: ``prevalence``, ``morans_i`` (six nearest neighbours) and
      ``dynamic_range`` (log10 of the 95th over the 5th percentile where present);
    - the mean of every other score of the model, such as ``pearson_between`` (the level between sections), ``r2`` and ``mcc``.

    Writes the table to ``uns["msi_pred"]["reliability"]``, and ``tier`` into the feature table: :func:`stmsi.get.feature_table`,
    :func:`stmsi.get.as_table` and the titles of plots show it. :func:`stmsi.pl.reliability` draws the scores against the limits.

    The tiers:

    - ``"high"``: lower bound of the Pearson correlation at least 0.5; or 0.25 and at least 70 % of the noise ceiling;
    - ``"medium"``: lower bound at least 0.25, or of the AUROC at least 0.75;
    - ``"low"``: lower bound at least 0.1, or of the AUROC at least 0.6;
    - ``"none"``: less than that, no evidence, or a margin over the best negative control whose lower bound is not above 0.

    Raises
    ------
    KeyError
        No prediction, or a column is missing.
    ValueError
        `model` is not in the scores, or must be named; the scores share no metabolite with the prediction or the ceilings.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> scores = stmsi.tl.cross_validate(sdata, ["ridge", "mean"], show_progress_bar=False)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> trust = stmsi.tl.reliability(sdata, scores)
    >>> set(trust["tier"]) <= {"high", "medium", "low", "none"}
    True
    >>> "tier" in stmsi.get.feature_table(sdata, metabolite_key="msi_pred")
    True
    """
    changed = copy_of(data) if copy else data
    st = get_table(changed, table_key)
    own_view(st)
    record = st.uns.get(pred_key)
    features = record.get("features") if isinstance(record, dict) else None
    if not isinstance(features, pd.DataFrame) or pred_key not in st.obsm:
        msg = f"There is no prediction {pred_key!r}; stmsi.tl.predict_metabolites writes it."
        raise KeyError(msg)
    if ceiling is None:
        ceiling = st.uns.get(Key.uns.CEILING, {}).get("table")
    if ceiling is not None and (missing := [c for c in ("sample", "metabolite", "ceiling") if c not in ceiling]):
        msg = f"The table of ceilings lacks {listing(missing)}; stmsi.tl.noise_ceiling makes it."
        raise KeyError(msg)
    out = verdicts(
        st, features, scores, model=model, ceiling=ceiling, controls=controls, metabolite_key=metabolite_key, sample_key=sample_key
    )  # fmt: skip
    record["reliability"] = out.copy()
    record["features"] = features.assign(**{Key.var.TIER: out[Key.var.TIER].to_numpy()})
    return changed if copy else out


def verdicts(
    st: AnnData,
    features: pd.DataFrame,
    scores: pd.DataFrame | None,
    *,
    model: str | None = None,
    ceiling: pd.DataFrame | None = None,
    controls: Sequence[str] = CONTROLS,
    metabolite_key: str = Key.obsm.MSI,
    sample_key: str = Key.obs.SAMPLE,
) -> pd.DataFrame:
    """The table of :func:`reliability`, from the measured spots (of which no expression is read) and the feature table of a model."""
    ids = features.index.astype(str)
    others = pd.DataFrame(index=ids)
    if scores is None:
        out = _of_training(features)
    else:
        of_model = _by_model(scores, ids)
        candidates = [name for name in of_model if name not in controls]
        model = candidates[0] if model is None and len(candidates) == 1 else model
        if model is None or model not in of_model:
            msg = f"model={model!r} must name the model that predicted; the scores hold {listing(of_model)}."
            raise ValueError(msg)
        out = _of_scores(of_model, ids, model, controls)
        if ceiling is not None:
            out[["ceiling", "share_of_ceiling", "r2_share"]] = _shares(of_model[model], ceiling).reindex(ids)
        named = [s for s in _ALL_SCORES if s in scores and s not in (*_EVIDENCE, *LIMITS)]
        finite = of_model[model][named].replace([np.inf, -np.inf], np.nan)
        others = finite.groupby(of_model[model]["metabolite"].astype(str)).mean().reindex(ids)
    if ceiling is not None and out["ceiling"].isna().all():
        out["ceiling"] = ceiling.groupby("metabolite")["ceiling"].mean().reindex(ids).to_numpy()
        out["share_of_ceiling"] = out["pearson"] / out["ceiling"].where(out["ceiling"] >= LEAST_CEILING)
    out = pd.concat([out, _limits(st, metabolite_key, sample_key, ids), others], axis=1)
    found = [_tier(row, held=scores is not None) for row in out.to_dict("records")]
    tiers, reasons = zip(*found, strict=True)
    out.insert(0, Key.var.TIER, tiers)
    out.insert(1, "reason", reasons)
    return out


def _of_training(features: pd.DataFrame) -> pd.DataFrame:
    """Evidence that the model brings along."""
    out = pd.DataFrame(np.nan, index=features.index.astype(str), columns=list(_EVIDENCE))
    for score in ("pearson", "auroc"):
        out[score] = features[f"held_out_{score}"].to_numpy(np.float64)
        out[f"{score}_lower"] = features[f"held_out_{score}_lower"].to_numpy(np.float64)
    units = features["held_out_units"].fillna(0).to_numpy(np.int64)
    return out.astype({"control": object, "model": object}).assign(control="", model="", n_sections=units)


def _by_model(scores: pd.DataFrame, ids: pd.Index) -> dict[str, pd.DataFrame]:
    """The scores of each model."""
    for name in ("sample", "metabolite", "stage", "pearson", "auroc"):
        if name not in scores:
            msg = f"scores has no column {name!r}; found {listing(scores.columns)}. stmsi.tl.cross_validate makes such a table."
            raise KeyError(msg)
    if not set(scores["metabolite"].astype(str)) & set(ids):
        msg = f"Scores and prediction share no metabolite: {listing(scores['metabolite'].unique()[:3])}, {listing(ids[:3])}."
        raise ValueError(msg)
    scores = constant_counts_as_zero(scores)
    model = scores["model"].to_numpy(str) if "model" in scores else np.full(len(scores), "")
    return {str(name): scores[model == name] for name in dict.fromkeys(model)}


def _of_scores(of_model: dict[str, pd.DataFrame], ids: pd.Index, model: str, controls: Sequence[str]) -> pd.DataFrame:
    """Evidence from cross-validation."""
    pearson = _wide(of_model[model], "intensity", "pearson", ids)
    r, r_se, k, r_lower = mean_and_error(pearson.to_numpy())
    a, a_se, _, a_lower = mean_and_error(_wide(of_model[model], "presence", "auroc", ids).to_numpy())
    known = {
        "pearson": r, "pearson_se": r_se, "pearson_lower": r_lower, "auroc": a, "auroc_se": a_se, "auroc_lower": a_lower,
        "n_sections": k, "control": "", "model": model,
    }  # fmt: skip
    out = pd.DataFrame({name: known.get(name, np.nan) for name in _EVIDENCE}, index=ids)
    best = np.full(len(ids), -np.inf)
    for name in [n for n in of_model if n in controls and n != model]:
        # a constant prediction correlates with nothing
        other = _wide(of_model[name], "intensity", "pearson", ids).reindex(pearson.index).fillna(0.0)
        level = other.to_numpy().mean(axis=0)
        margin, _, _, lower = mean_and_error((pearson - other).to_numpy())
        better = level > best
        best = np.where(better, level, best)
        out.loc[better, "control"] = name
        out.loc[better, "margin"], out.loc[better, "margin_lower"] = margin[better], lower[better]
    return out


def _wide(rows: pd.DataFrame, stage: str, metric: str, ids: pd.Index) -> pd.DataFrame:
    """Scores of one model, (section and fold) x metabolites."""
    rows = rows[rows["stage"].astype(str) == stage]
    by: Any = [rows["sample"].astype(str), *([rows["fold"].astype(str)] if "fold" in rows else [])]
    of = rows["metabolite"].astype(str)
    return rows.pivot_table(index=by, columns=of, values=metric, dropna=False).reindex(columns=ids)


def _shares(scores: pd.DataFrame, ceiling: pd.DataFrame) -> pd.DataFrame:
    """Noise ceiling of each metabolite and the share of it that its scores reach: means over sections.

    A section without a ceiling takes the mean over sections.
    """
    if "r2" not in scores:
        msg = f"scores has no column 'r2'; found {listing(scores.columns)}. stmsi.tl.evaluate makes such a table."
        raise KeyError(msg)
    if not set(scores["metabolite"]) & set(ceiling["metabolite"]):
        msg = f"Scores and ceilings share no metabolite: {listing(scores['metabolite'].unique()[:3])}."
        raise ValueError(msg)
    rows = scores[scores["stage"].astype(str) == "intensity"]
    own = ceiling.groupby(["sample", "metabolite"], observed=True)["ceiling"].mean()
    overall = ceiling.groupby("metabolite", observed=True)["ceiling"].mean()
    found = own.reindex(pd.MultiIndex.from_frame(rows[["sample", "metabolite"]].astype(str))).to_numpy(np.float64)
    found = np.where(np.isnan(found), overall.reindex(rows["metabolite"].astype(str)).to_numpy(np.float64), found)
    usable = np.where(found >= LEAST_CEILING, found, np.nan)
    r, r2 = (rows[name].to_numpy(np.float64) for name in ("pearson", "r2"))
    share = pd.DataFrame({"ceiling": found, "share_of_ceiling": r / usable, "r2_share": r2 / usable**2})
    return share.groupby(rows["metabolite"].astype(str).to_numpy()).mean()


def _limits(st: AnnData, metabolite_key: str, sample_key: str, ids: pd.Index) -> pd.DataFrame:
    """Properties of the measured metabolites, means over sections; NaN where nothing was measured."""
    parts: list[pd.DataFrame] = []
    if metabolite_key in st.obsm:
        frame = require_frame(st, metabolite_key)
        frame = frame[[m for m in frame.columns if m in ids]]
        xy = st.obsm.get(Key.obsm.SPATIAL)
        xy = None if xy is None else np.asarray(xy, dtype=np.float64)[:, :2]
        for _, rows in measured_sections(sections_of(st, sample_key), frame.to_numpy(np.float64)):
            parts += _section_limits(frame.iloc[rows], None if xy is None else xy[rows])
    if not parts:
        return pd.DataFrame(np.nan, index=ids, columns=list(LIMITS))
    return pd.concat(parts).groupby("metabolite").mean().reindex(index=ids, columns=list(LIMITS))


def _section_limits(section: pd.DataFrame, xy: NDArray[np.float64] | None) -> list[pd.DataFrame]:
    """Properties of the metabolites of a section, those measured in the same spots together."""
    parts = []
    patterns, of = np.unique(section.notna().to_numpy(), axis=1, return_inverse=True)
    for k, rows in enumerate(patterns.T):
        if rows.sum() < 3:
            continue
        own = section.loc[:, of.ravel() == k]
        y = own.to_numpy(np.float64)[rows]
        found = {name: v for name, v in marginals(y).items() if name in LIMITS}
        if xy is not None:
            found["morans_i"] = morans_i(neighbour_means(xy[rows]), y)
        parts.append(pd.DataFrame({"metabolite": own.columns.astype(str), **found}))
    return parts


def _tier(row: dict[Any, Any], *, held: bool) -> tuple[str, str]:
    """Tier of a metabolite and what decided."""
    r, a = row["pearson_lower"], row["auroc_lower"]
    if np.isnan(row["pearson"]) and np.isnan(row["auroc"]):
        return "none", "no held-out score"
    if np.isnan(r) and np.isnan(a):
        return "none", "one section only: no standard error"
    if row["control"] and not row["margin_lower"] > 0:
        return "none", f"not better than {row['control']}"
    r, a = np.nan_to_num(r, nan=-1.0), np.nan_to_num(a, nan=-1.0)
    bound = "lower bound of the " if held else "lower bound of the held-out "
    share = row["share_of_ceiling"] if held else np.nan
    if TIERS["medium"][0] <= r < TIERS["high"][0] and share >= HIGH_SHARE:
        return "high", f"{bound}correlation {r:.2f}, {share:.0%} of the noise ceiling"
    for tier, (least_r, least_a) in TIERS.items():
        if r >= least_r and (held or tier != "high"):
            return tier, f"{bound}correlation {r:.2f}"
        if a >= least_a:
            return tier, f"presence only: {bound}AUROC {a:.2f}"
    return "none", f"{bound}correlation {r:.2f}, AUROC {a:.2f}"
