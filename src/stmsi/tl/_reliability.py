"""A trust tier for every metabolite, from held-out evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.metrics.reliability import mean_and_error
from stmsi._data.checks import listing, refuse_view
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.tl._share_of_ceiling import read_ceiling, share_of_ceiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

CONTROLS = ("mean", "coordinates", "shuffled_genes", "toroidal_shift")
"""Models by whose scores luck is known: no gene tells them anything about the test section."""
HIGH, MEDIUM, LOW = 0.5, 0.25, 0.1
"""Lower bounds of the Pearson correlation from which a tier is given."""
HIGH_SHARE = 0.7
"""A metabolite of the middle tier that reaches this share of its noise ceiling is in the high one."""
AUROC_MEDIUM, AUROC_LOW = 0.75, 0.6
"""Lower bounds of the AUROC from which presence alone earns a tier."""


def reliability(
    data: Data,
    scores: pd.DataFrame | None = None,
    *,
    model: str | None = None,
    ceiling: pd.DataFrame | None = None,
    controls: Sequence[str] = CONTROLS,
    pred_key: str = Key.obsm.PRED,
    table_key: str = Key.table.ST,
) -> pd.DataFrame:
    """Say of each predicted metabolite how far it can be trusted.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.predict_metabolites`.
    scores
        What :func:`stmsi.tl.cross_validate` returned for the model that predicted and, for a fair verdict, for negative
        controls: ``cross_validate(sdata, ["ridge", "mean", "coordinates", "shuffled_genes", "toroidal_shift"])``. `None`:
        the scores on held-out training spots that the model brings along; they are one number for each metabolite, without
        an error, and earn ``"medium"`` at most.
    model
        Which model of the scores predicted; `None`: the only one that is no control.
    ceiling
        What :func:`stmsi.tl.noise_ceiling` returns; `None`: the one written into the data, if any.
    controls
        Models of the scores that count as negative controls.
    pred_key
        Prediction in ``obsm``.
    table_key
        The ST table.

    Returns
    -------
    One row per predicted metabolite, its id as index: ``tier``, ``reason``, ``pearson``, ``pearson_se``,
    ``pearson_lower``, ``auroc``, ``auroc_se``, ``auroc_lower``, ``n_sections``, ``ceiling``, ``share_of_ceiling``,
    ``control`` (the best negative control), ``margin`` and ``margin_lower`` (Pearson correlation above that control, section
    by section). Standard errors are over sections (or folds); lower bounds are those of Student's t, one-sided 90 %. It is
    also written to ``uns["msi_pred"]["reliability"]``, and ``tier`` into the feature table, so that
    :func:`stmsi.get.feature_table`, :func:`stmsi.get.as_table` and the titles of plots show it.

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
        `model` is not in the scores, or must be named; the scores share no metabolite with the prediction.

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
    st = get_table(data, table_key)
    refuse_view(st)
    record = st.uns.get(pred_key)
    features = record.get("features") if isinstance(record, dict) else None
    if not isinstance(features, pd.DataFrame) or pred_key not in st.obsm:
        msg = f"There is no prediction {pred_key!r}; stmsi.tl.predict_metabolites writes it."
        raise KeyError(msg)
    if ceiling is None and Key.uns.CEILING in st.uns:
        ceiling = read_ceiling(st)
    ids = features.index.astype(str)
    out = _of_training(features) if scores is None else _of_scores(scores, ids, model, ceiling, controls)
    if ceiling is not None and out["ceiling"].isna().all():
        out["ceiling"] = read_ceiling(ceiling).groupby("metabolite")["ceiling"].mean().reindex(ids).to_numpy()
        out["share_of_ceiling"] = out["pearson"] / out["ceiling"].where(out["ceiling"] >= 0.05)
    out.insert(0, Key.var.TIER, "none")
    out.insert(1, "reason", "")
    verdicts = [_tier(row, held=scores is not None) for row in out.to_dict("records")]
    out[Key.var.TIER], out["reason"] = zip(*verdicts, strict=True)
    record["reliability"] = out.copy()
    record["features"] = features.assign(**{Key.var.TIER: out["tier"].to_numpy()})
    return out


_COLUMNS = (
    "pearson", "pearson_se", "pearson_lower", "auroc", "auroc_se", "auroc_lower", "n_sections", "ceiling",
    "share_of_ceiling", "control", "margin", "margin_lower",
)  # fmt: skip


def _of_training(features: pd.DataFrame) -> pd.DataFrame:
    """Evidence that the model brings along."""
    out = pd.DataFrame(np.nan, index=features.index.astype(str), columns=list(_COLUMNS))
    out["pearson"] = out["pearson_lower"] = features["held_out_pearson"].to_numpy(np.float64)
    out["auroc"] = out["auroc_lower"] = features["held_out_auroc"].to_numpy(np.float64)
    return out.astype({"control": object}).assign(control="", n_sections=0)


def _of_scores(
    scores: pd.DataFrame, ids: pd.Index, model: str | None, ceiling: pd.DataFrame | None, controls: Sequence[str]
) -> pd.DataFrame:
    """Evidence from cross-validation."""
    for name in ("sample", "metabolite", "stage", "pearson", "auroc"):
        if name not in scores:
            msg = f"scores has no column {name!r}; found {listing(scores.columns)}. stmsi.tl.cross_validate makes such a table."
            raise KeyError(msg)
    scores = scores if "model" in scores else scores.assign(model="")
    names = list(dict.fromkeys(scores["model"].astype(str)))
    candidates = [n for n in names if n not in controls]
    if model is None and len(candidates) == 1:
        model = candidates[0]
    if model is None or model not in names:
        msg = f"model={model!r} must name the model that predicted; the scores hold {listing(names)}."
        raise ValueError(msg)
    if not set(scores["metabolite"].astype(str)) & set(ids):
        msg = f"Scores and prediction share no metabolite: {listing(scores['metabolite'].unique()[:3])}, {listing(ids[:3])}."
        raise ValueError(msg)
    of_model = {name: scores[scores["model"].astype(str) == name] for name in names}
    pearson = _wide(of_model[model], "intensity", "pearson", ids)
    r, r_se, k, r_lower = mean_and_error(pearson.to_numpy())
    a, a_se, _, a_lower = mean_and_error(_wide(of_model[model], "presence", "auroc", ids).to_numpy())
    out = pd.DataFrame(
        {
            "pearson": r, "pearson_se": r_se, "pearson_lower": r_lower, "auroc": a, "auroc_se": a_se, "auroc_lower": a_lower,
            "n_sections": k, "ceiling": np.nan, "share_of_ceiling": np.nan, "control": "", "margin": np.nan,
            "margin_lower": np.nan,
        },
        index=ids,
    )  # fmt: skip
    if ceiling is not None:
        shares = share_of_ceiling(of_model[model], ceiling)
        grouped = shares[shares["stage"] == "intensity"].groupby("metabolite", observed=True)
        out["ceiling"] = grouped["ceiling"].mean().reindex(ids)
        out["share_of_ceiling"] = grouped["pearson_share"].mean().reindex(ids)
    best = np.full(len(ids), -np.inf)
    for name in [n for n in names if n in controls and n != model]:
        # a constant prediction correlates with nothing
        other = _wide(of_model[name], "intensity", "pearson", ids).reindex(pearson.index).fillna(0.0)
        level = _column_mean(other.to_numpy())
        margin, _, _, lower = mean_and_error((pearson - other).to_numpy())
        better = level > best
        best = np.where(better, level, best)
        out.loc[better, "control"] = name
        out.loc[better, "margin"], out.loc[better, "margin_lower"] = margin[better], lower[better]
    return out


def _column_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.nan_to_num(values).mean(axis=0))


def _wide(rows: pd.DataFrame, stage: str, metric: str, ids: pd.Index) -> pd.DataFrame:
    """Scores of one model, (section and fold) x metabolites."""
    rows = rows[rows["stage"].astype(str) == stage]
    by: Any = [rows["sample"].astype(str), *([rows["fold"].astype(str)] if "fold" in rows else [])]
    return rows.pivot_table(index=by, columns=rows["metabolite"].astype(str), values=metric, dropna=False).reindex(
        columns=ids
    )


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
    bound = "lower bound of the " if held else "held-out "
    if held and r >= HIGH:
        return "high", f"{bound}correlation {r:.2f}"
    if held and r >= MEDIUM and row["share_of_ceiling"] >= HIGH_SHARE:
        return "high", f"{bound}correlation {r:.2f}, {row['share_of_ceiling']:.0%} of the noise ceiling"
    if r >= MEDIUM:
        return "medium", f"{bound}correlation {r:.2f}"
    if a >= AUROC_MEDIUM:
        return "medium", f"presence only: {bound}AUROC {a:.2f}"
    if r >= LOW:
        return "low", f"{bound}correlation {r:.2f}"
    if a >= AUROC_LOW:
        return "low", f"presence only: {bound}AUROC {a:.2f}"
    return "none", f"{bound}correlation {r:.2f}, AUROC {a:.2f}"
