"""Scores of models, metabolite by metabolite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from stmsi._data.checks import check_choice, listing, suggest
from stmsi._data.constant_predictions import constant_counts_as_zero
from stmsi._data.keys import (
    ACROSS_SCORES,
    GROUP_SCORES,
    INTENSITY_SCORES,
    LOWER_IS_BETTER,
    MAP_SCORES,
    PRESENCE_SCORES,
    RELATION_SCORES,
    TRAINED_ON,
    Key,
)
from stmsi._data.training_marks import PARTLY, UNKNOWN
from stmsi._data.training_marks import TRAINED_ON as SEEN
from stmsi.pl._metabolite_layers import as_list
from stmsi.pl._panels import get_axes, hand_back, jitter
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

_DEFAULT = {"intensity": ["pearson", "pearson_between"], "presence": ["auroc"]}
_OF_STAGE = {
    "presence": PRESENCE_SCORES,
    "intensity": (*INTENSITY_SCORES, *MAP_SCORES, *RELATION_SCORES, *GROUP_SCORES),
}
READABLE = {
    "pearson": "Pearson correlation",
    "pearson_between": "Pearson correlation between sections",
    "pearson_pooled": "Pearson correlation of all spots pooled",
    "spearman": "Spearman correlation",
    "pearson_present": "Pearson correlation where present",
    "r2": "R²",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "ssim": "structural similarity",
    "moran_measured": "Moran's I of the measurement",
    "moran_predicted": "Moran's I of the prediction",
    "hotspot_jaccard": "overlap of hot spots",
    "coverage": "coverage of the interval",
    "interval_width": "width of the interval",
    "correlation_preserved": "correlations between metabolites preserved",
    "gene_correlation_preserved": "correlations with genes preserved",
    "group_agreement": "agreement of group means",
    "differential_agreement": "agreement of differences between groups",
}
REFERENCE = {
    "pearson": 0.0, "pearson_between": 0.0, "pearson_pooled": 0.0, "spearman": 0.0, "pearson_present": 0.0, "r2": 0.0,
    "mcc": 0.0, "auroc": 0.5,
}  # fmt: skip
_R2_FLOOR = -1.0
"""R2 has no lower bound: with a few failures, all other values would stand at the right edge."""
_DECISIVE = ("pearson", "auroc")
"""Scores that order the groups, the first that exists."""
_BASELINES = ("mean", "baseline")
_ROW_INCHES = 0.34
_BOX_PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class _Box:
    """The values of one group, and where they are drawn."""

    at: float
    height: float
    values: NDArray[np.float64]
    colour: str
    prevalence: float


@shared_docs
def performance(
    scores: pd.DataFrame,
    *,
    metric: str | Sequence[str] | None = None,
    stage: Literal["presence", "intensity"] = "intensity",
    by: str = "model",
    hue: str | None = None,
    ncols: int = 3,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw how well models predict, with one point per metabolite.

    A metabolite counts once: its value is the mean over sections and folds. Boxes span the quartiles with a line at the
    median (written at the right with the number of metabolites), whiskers the 5th to 95th percentile. The order is the same for
    every metric and stage: the highest median Pearson correlation on top, else the highest AUROC, and the baseline (``"mean"``)
    at the bottom; categories keep their own order. A baseline without a score is named as well. Dashed lines mark a prediction
    without skill: 0 for correlations and R2, 0.5 for AUROC, and the median prevalence of the metabolites for AUPRC. Correlations
    of constant predictions count as 0. Other missing scores (NaN) are left out and counted under the axis. The axis also says
    whether scores are of spots that a model was trained on.

    Parameters
    ----------
    scores
        The table of :func:`stmsi.tl.cross_validate` or :func:`stmsi.tl.evaluate`: one row per section, metabolite and
        stage (and model and fold), one column per metric.
    metric
        One or several metrics, a panel each. `None`: ``"auroc"`` for presence; for intensity ``"pearson"`` (within sections)
        and beside it ``"pearson_between"``, if it exists and there is room: no `ax`, and groups and colours are not of
        sections or folds, which share one value.
    stage
        Which rows to draw: of the intensity or of the presence stage.
    by
        Column that makes the groups, ``"model"`` by default; without that column all rows are one group.
    hue
        Another column (``"sample"``, ``"fold"``, ...) that splits each group by colour.
    ncols
        Panels in a row.
    %(figure)s

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        Unknown stage, no rows of the stage, or a metric without a finite value.

    Examples
    --------
    >>> import pandas as pd
    >>> import stmsi
    >>> scores = pd.DataFrame(
    ...     {
    ...         "model": ["a", "a", "b", "b"],
    ...         "sample": "P1S1",
    ...         "metabolite": ["m1", "m2", "m1", "m2"],
    ...         "stage": "intensity",
    ...         "pearson": [0.1, 0.2, 0.7, 0.6],
    ...     }
    ... )
    >>> ax = stmsi.pl.performance(scores)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['b', 'a']
    """
    check_choice(stage, _DEFAULT, "stage")
    rows = _rows_of(scores, stage)
    if by not in rows and by == "model":
        rows[by] = ""
    for name in ("metabolite", by, *([] if hue is None else [hue])):
        _require_column(rows, name)
    metrics = _default(rows, stage, {by, hue}, ax) if metric is None else as_list(metric, "metric")
    for m in metrics:
        _check_metric(rows, m, stage)
    known = scores if by in scores else scores.assign(**{by: rows[by]})
    groups = _order(constant_counts_as_zero(known), rows, by, metrics[0])
    levels = [None] if hue is None else list(dict.fromkeys(rows[hue].dropna()))
    n_rows = rows[by].nunique() * max(1.0, 0.7 * len(levels))
    wide = 4.2 + 0.055 * max(len(str(v)) for v in rows[by].unique())
    figure, axes = get_axes(
        len(metrics), ncols, ax, (wide, 0.9 + 0.45 * (hue is not None) + _ROW_INCHES * n_rows), figsize
    )
    for place, m in zip(axes, metrics, strict=True):
        _draw(place, rows, m, by, groups, hue, levels)
        if m == "pearson" and set(metrics) & set(ACROSS_SCORES):
            label = place.get_xlabel()
            place.set_xlabel(label.replace(READABLE[m], f"{READABLE[m]} within sections", 1))
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _rows_of(scores: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The rows of a stage."""
    if not isinstance(scores, pd.DataFrame):
        msg = f"scores must be the DataFrame of stmsi.tl.cross_validate or tl.evaluate, found {type(scores).__name__}."
        raise TypeError(msg)
    rows = scores.copy() if "stage" not in scores else scores[scores["stage"].astype(str) == stage].copy()
    if len(rows) == 0:
        found = listing(scores["stage"].unique()) if "stage" in scores else "no rows"
        msg = f"scores has no rows of stage {stage!r}; found {found}."
        raise ValueError(msg)
    return constant_counts_as_zero(rows)


def _order(scores: pd.DataFrame, rows: pd.DataFrame, by: str, metric: str) -> list[Any]:
    """Groups from top to bottom: the same for all stages and metrics of a table, the baseline last."""
    present = set(rows[by].dropna())
    if isinstance(scores[by].dtype, pd.CategoricalDtype):
        return [g for g in scores[by].cat.categories if g in present]
    names = [g for g in dict.fromkeys(scores[by].dropna()) if g in present]
    for decisive in (*_DECISIVE, metric):
        if decisive not in scores or decisive in ACROSS_SCORES:
            continue
        values = pd.to_numeric(scores[decisive], errors="coerce").replace([np.inf, -np.inf], np.nan)
        means = values.groupby([scores[by], scores["metabolite"]], observed=True).mean()
        medians = means.groupby(level=0, observed=True).median().dropna()
        if len(medians):
            sign = 1.0 if decisive in LOWER_IS_BETTER else -1.0
            # a group without that score comes after those that have it
            rank = {g: sign * float(medians[g]) if g in medians.index else np.inf for g in names}
            return sorted(names, key=lambda g: (_is_baseline(g), rank[g]))
    return sorted(names, key=_is_baseline)


def _is_baseline(group: Any) -> bool:
    return str(group).lower() in _BASELINES


def _default(rows: pd.DataFrame, stage: str, groups: set[str | None], ax: Any) -> list[str]:
    """The metric of a stage, and that of the level beside it where it says something."""
    first, *more = _DEFAULT[stage]
    if ax is not None or groups & {Key.obs.SAMPLE, "fold"}:
        return [first]
    return [first, *(m for m in more if m in rows and rows[m].notna().any())]


def _require_column(rows: pd.DataFrame, name: str) -> None:
    if name not in rows:
        msg = f"scores has no column {name!r}; found {listing(rows.columns)}.{suggest(name, rows.columns)}"
        raise KeyError(msg)


def _check_metric(rows: pd.DataFrame, metric: str, stage: str) -> None:
    """Raise where a metric cannot be drawn."""
    _require_column(rows, metric)
    if not pd.api.types.is_numeric_dtype(rows[metric]):
        msg = f"Column {metric!r} of scores is not numeric ({rows[metric].dtype}); metrics are {listing(_OF_STAGE[stage])}."
        raise ValueError(msg)
    if not np.isfinite(rows[metric].to_numpy(dtype=float, na_value=np.nan)).any():
        other = [s for s, known in _OF_STAGE.items() if metric in known and s != stage]
        remedy = f"It belongs to stage={other[0]!r}." if other else "No score of it exists."
        msg = f"Metric {metric!r} has no finite value in stage {stage!r}. {remedy}"
        raise ValueError(msg)


def _boxes(
    rows: pd.DataFrame, groups: list[Any], metric: str, by: str, hue: str | None, levels: list[Any]
) -> list[_Box]:
    """A row per group, in it a box per level of `hue`."""
    boxes, height = [], 0.8 / len(levels)
    for i, group in enumerate(groups):
        for j, level in enumerate(levels):
            part = rows[(rows[by] == group) & (True if hue is None else rows[hue] == level)]
            if len(part) == 0:
                continue
            own = part.groupby("metabolite", observed=True)
            base = np.nan
            if metric == "auprc" and Key.var.PREVALENCE in part:
                base = float(own[Key.var.PREVALENCE].mean().median())
            values = own[metric].mean().to_numpy(dtype=float)
            colour = ink(0.5) if hue is None and _is_baseline(group) else tone(j)
            boxes.append(_Box(i - 0.4 + (j + 0.5) * height, height, values, colour, base))
    return boxes


def _draw(
    ax: Axes, rows: pd.DataFrame, metric: str, by: str, groups: list[Any], hue: str | None, levels: list[Any]
) -> None:
    """One metric."""
    rows = rows.assign(**{metric: rows[metric].astype(float)}).replace({metric: {np.inf: np.nan, -np.inf: np.nan}})
    left_out = int(rows[metric].isna().sum())
    rows = rows[rows[metric].notna()]
    scored = set(rows[by])
    boxes = _boxes(rows, groups, metric, by, hue, levels)
    for box in boxes:
        _draw_box(ax, box)
    for at, group in enumerate(groups):
        if group not in scored:  # a constant prediction has no correlation
            ax.text(1.01, at, "no score", transform=ax.get_yaxis_transform(), va="center", fontsize=STYLE.label_size)
    if metric in REFERENCE:
        ax.axvline(REFERENCE[metric], color=ink(0.6), linestyle="--", linewidth=0.9, zorder=1)
    note = [READABLE.get(metric, metric)]
    if any(np.isfinite(b.prevalence) for b in boxes):
        note.append("dashed: median prevalence")
    if metric == "r2" and min(b.values.min() for b in boxes) < _R2_FLOOR < max(b.values.max() for b in boxes):
        below = sum(int((b.values < _R2_FLOOR).sum()) for b in boxes)
        ax.set_xlim(left=_R2_FLOOR - 0.05)
        note.append(f"{below} below {_R2_FLOOR:g} not shown")
    note += _training_notes(rows)
    if left_out:
        note.append(f"{left_out} NaN score{'s' * (left_out > 1)} left out")
        if len({len(b.values) for b in boxes}) > 1:
            note.append("n differs: not the same metabolites")
    ax.set_xlabel("\n".join(note), fontsize=STYLE.title_size)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_yticks(range(len(groups)), [str(g) for g in groups])
    ax.tick_params(axis="x", labelsize=STYLE.label_size)
    ax.tick_params(axis="y", labelsize=STYLE.title_size, length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    if hue is not None:
        handles = [Patch(color=tone(j), label=str(v)) for j, v in enumerate(levels)]
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": min(4, len(handles))}
        sizes: dict[str, Any] = {"fontsize": STYLE.label_size, "title_fontsize": STYLE.label_size, "handlelength": 1}
        ax.legend(handles=handles, title=hue, frameon=False, **place, **sizes)


def _training_notes(rows: pd.DataFrame) -> list[str]:
    """A line where scores are of spots that a model was trained on, or may have been."""
    if TRAINED_ON not in rows:
        return []
    states = rows[TRAINED_ON].astype(str)
    seen, unknown = states.isin([SEEN, PARTLY]), states == UNKNOWN
    if seen.any():
        return ["training spots: no evidence of skill" if seen.all() else "some scores are of training spots"]
    return ["training spots?"] if unknown.any() else []


def _draw_box(ax: Axes, box: _Box) -> None:
    """Box, points and the numbers of one group."""
    values = np.sort(box.values)
    at = box.at + 0.6 * box.height * jitter(len(values))
    ax.scatter(values, at, s=9, color=box.colour, alpha=0.45, linewidths=0, zorder=2)
    low, lower, median, upper, high = np.percentile(values, _BOX_PERCENTILES)
    thick = 0.75 * box.height
    # by hand: the argument that lays boxplot on its side changed its name in matplotlib 3.10
    ax.hlines([box.at] * 2, [low, upper], [lower, high], color=ink(0.85), linewidth=1.0, zorder=3)
    face, edge = to_rgba(box.colour, 0.25), ink(0.85)
    ax.barh(box.at, upper - lower, thick, left=lower, facecolor=face, edgecolor=edge, linewidth=1.0, zorder=3)
    ax.vlines(median, box.at - thick / 2, box.at + thick / 2, color=ink(0.95), linewidth=2.0, zorder=4)
    if np.isfinite(box.prevalence):
        ends = [box.at - box.height / 2, box.at + box.height / 2]
        ax.plot([box.prevalence] * 2, ends, color=ink(0.6), linestyle="--", linewidth=1.2, zorder=4)
    size = STYLE.label_size if box.height > 0.3 else STYLE.tick_size
    note = f"{median:z.2f} (n={len(values)})"
    ax.text(1.01, box.at, note, transform=ax.get_yaxis_transform(), va="center", fontsize=size)
