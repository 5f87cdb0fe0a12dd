"""Scores inside each section, from arrays: the rows of `evaluate` and `cross_validate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.learning.expression_space import column_moments
from stmsi._core.metrics import intensity as metrics
from stmsi._core.metrics import maps, presence, structure
from stmsi._core.metrics.columns import paired
from stmsi._data.keys import INTENSITY_SCORES, MAP_SCORES, PRESENCE_SCORES, SECTION_MOMENTS, TRAINED_ON
from stmsi._data.measured_and_predicted import measured_sections
from stmsi._data.training_marks import UNKNOWN, of_metabolites

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    Scores = dict[str, NDArray[np.float64]]

_BLOCK = 32
"""Metabolites scored at a time: their columns stay in the processor's cache, which halves the time."""
N_GENES = 500
"""Genes of a section that take part, by their variance: correlations with genes hardly ever seen are noise."""


@dataclass(frozen=True)
class Comparison:
    """What was measured and predicted, each (spots, metabolites); NaN where it was not."""

    ids: list[str]
    sample: NDArray[Any]
    measured: NDArray[np.float64]
    present: NDArray[np.float64]
    predicted: NDArray[np.float64]
    probability: NDArray[np.float64]
    training_mean: NDArray[np.float64]  # of each metabolite
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    filled: NDArray[np.bool_] | None = None  # intensities that were imputed, which do not count
    training_predicted_mean: NDArray[np.float64] | None = None  # of each metabolite, where it is known
    xy: NDArray[np.float64] | None = None  # positions of the spots, where maps are scored
    trained_on: NDArray[Any] | None = None  # mark of each spot; `None`: not known

    @property
    def truth(self) -> NDArray[np.float64]:
        """Intensities that count."""
        return self.measured if self.filled is None else np.where(self.filled, np.nan, self.measured)


def score_sections(found: Comparison) -> pd.DataFrame:
    """One row per section with MSI, stage and metabolite that was measured there.

    The scores across sections are NaN: :func:`stmsi.tl._across_sections.score_across` fills them once all rows are there.
    """
    truth, map_scores = found.truth, MAP_SCORES if found.xy is not None else ()
    shown = [*PRESENCE_SCORES, *INTENSITY_SCORES, *map_scores, *SECTION_MOMENTS]
    columns = ["sample", "metabolite", "stage", "n", TRAINED_ON, *shown, "reason"]
    marks = np.full(len(found.sample), UNKNOWN, object) if found.trained_on is None else found.trained_on
    parts: dict[str, list[Any]] = {column: [] for column in columns}
    for name, rows in measured_sections(found.sample, found.measured):
        graph = None if found.xy is None else maps.near_graph(found.xy[rows])
        starts = range(0, len(found.ids), _BLOCK)
        blocks = [_block(found, truth, rows, slice(start, start + _BLOCK), graph) for start in starts]
        for stage, of_blocks in zip(("presence", "intensity"), zip(*blocks, strict=True), strict=True):
            scored: dict[str, Any] = {
                key: np.concatenate([scores[key] for scores in of_blocks]) for key in of_blocks[0]
            }
            counted = ~np.isnan((found.measured if stage == "presence" else truth)[rows])
            scored |= {"sample": name, "metabolite": found.ids, "stage": stage}
            scored[TRAINED_ON] = of_metabolites(marks[rows], counted)
            for column, values in parts.items():
                values.append(np.broadcast_to(np.asarray(scored.get(column, np.nan), object), len(found.ids)))
    if not parts["n"]:
        msg = "No section has MSI to score against: all measured intensities are NaN."
        raise ValueError(msg)
    types = {"n": np.int64} | dict.fromkeys(shown, np.float64)
    table = pd.DataFrame({c: np.concatenate(v).astype(types.get(c, object)) for c, v in parts.items()})
    return table.loc[table["n"] > 0].reset_index(drop=True)


def _block(
    found: Comparison, truth: NDArray[np.float64], rows: NDArray[np.int64], block: slice, graph: sp.csr_matrix | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of both stages of some metabolites in one section."""
    y, pred, there, p = (v[rows, block] for v in (truth, found.predicted, found.present, found.probability))
    bounds = (np.full_like(y, np.nan),) * 2 if found.bounds is None else [v[rows, block] for v in found.bounds]
    first = _presence_scores(there, p, pred)
    second = _intensity_scores(y, pred, there, found.training_mean[block], *bounds)
    second |= _moments(y, pred) | {"training_mean": found.training_mean[block]}
    if found.training_predicted_mean is not None:
        second["training_predicted_mean"] = found.training_predicted_mean[block]
    if found.xy is not None:
        moran = maps.moran_i(np.hstack([y, np.where(np.isnan(y), np.nan, pred)]), graph)  # type: ignore[arg-type]
        second |= {
            "ssim": maps.ssim(y, pred, found.xy[rows]),
            "moran_measured": moran[: y.shape[1]],
            "moran_predicted": moran[y.shape[1] :],
            "hotspot_jaccard": maps.hotspot_jaccard(y, pred),
        }
    n_first, n_second = ((~np.isnan(v)).sum(axis=0) for v in (found.measured[rows, block], y))
    return {"n": n_first, **first}, {"n": n_second, **second}


def _presence_scores(
    there: NDArray[np.float64], p: NDArray[np.float64], pred: NDArray[np.float64]
) -> dict[str, NDArray[np.float64] | list[str]]:
    """Scores of stage 1, and why some do not exist."""
    called = np.where(np.isnan(pred), np.nan, pred > 0)
    scores = {name: getattr(presence, name)(there, called) for name in ("precision", "recall", "f1", "mcc")}
    scores |= {name: getattr(presence, name)(there, p) for name in ("auroc", "auprc", "brier", "ece")}
    scores["prevalence"] = presence.prevalence(there)
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
    """Scores of stage 2, and why some do not exist."""
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
    why = {
        "fewer than 2 spots": few,
        "constant measurement": ~few & metrics.is_constant(truth),
        "constant prediction": ~few & metrics.is_constant(np.where(np.isnan(truth), np.nan, pred)),
        "present in fewer than 2 spots": ~few & few_present,
        "constant where present": ~few_present & np.isnan(scores["pearson_present"]),
        "no interval": np.isnan(scores["coverage"]) & (n > 0),
        "no training mean": np.isnan(training_mean),
    }
    return scores | {"reason": _reasons(why, scores)}


def _moments(truth: NDArray[np.float64], pred: NDArray[np.float64]) -> Scores:
    """Mean and standard deviation of both sides in the spots that count."""
    found: Scores = {}
    for name, values in zip(("measured", "predicted"), paired(truth, pred), strict=True):
        found[f"{name}_mean"] = _mean(values)
        found[f"{name}_sd"] = np.sqrt(_mean((values - found[f"{name}_mean"]) ** 2))
    return found


def _reasons(why: dict[str, NDArray[np.bool_]], scores: Scores) -> list[str]:
    """What holds of each metabolite that lacks a score, as text."""
    lacks = np.asarray(np.isnan(np.stack(list(scores.values()))).any(axis=0))
    return ["; ".join(text for text, holds in why.items() if holds[m]) if lacks[m] else "" for m in range(len(lacks))]


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column without NaN, NaN where there is nothing else."""
    return metrics.ratio(metrics.total(values), metrics.total(~np.isnan(values)))


def score_relations(
    found: Comparison, log: sp.csr_matrix | None = None, group: pd.Series | None = None
) -> pd.DataFrame:
    """How well relations are preserved, one row per section with MSI and metabolite.

    `log`, log expression of spots x genes: correlations between metabolites and with genes. `group` of each spot: differences between groups.
    """
    truth, parts = found.truth, []
    for name, rows in measured_sections(found.sample, truth):
        measured = rows[~np.isnan(truth[rows]).all(axis=1)]
        y, pred = truth[measured], found.predicted[measured]
        part = pd.DataFrame({"sample": name, "metabolite": found.ids, "stage": "intensity"})
        if log is not None:
            part["correlation_preserved"] = structure.correlation_preserved(y, pred)
            genes = _most_variable(log[measured])
            part["gene_correlation_preserved"] = structure.gene_correlation_preserved(genes, y, pred)
        if group is not None:
            own = group.iloc[measured].to_numpy(object)
            part["group_agreement"] = structure.group_agreement(y, pred, own)
            part["differential_agreement"] = structure.differential_agreement(y, pred, own)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _most_variable(genes: sp.csr_matrix) -> sp.csr_matrix:
    variance = column_moments(genes)[1]
    return genes[:, np.sort(np.argsort(-variance, kind="stable")[:N_GENES])]
