"""Scores of metabolites against what limits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from stmsi._data.checks import listing, suggest
from stmsi._data.keys import Key
from stmsi.pl._panels import get_axes, hand_back, label_plot
from stmsi.pl._performance import READABLE, REFERENCE
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, paper, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_LABELS = {
    "morans_i": "Moran's I of the measurement",
    "prevalence": "prevalence (share of spots)",
    "dynamic_range": "dynamic range (log10)",
    "ceiling": "noise ceiling (correlation)",
}
_SIZE = (2.9, 2.8)
_TIERS = {"high": 0, "medium": 2, "low": 1, "none": 5}
"""Numbers of their colours."""
_LEAST = 3


@shared_docs
def reliability(
    table: pd.DataFrame,
    *,
    metric: str = "pearson",
    by: str | Sequence[str] | None = None,
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw the score of each metabolite against what limits it, one point per metabolite.

    Titles give Spearman's correlation of score and property. Colours are the tiers of trust, or the models where there are several.
    In the panel of the noise ceiling, scores equal it on the dashed line. The grey line is a prediction without skill.

    Parameters
    ----------
    table
        Table of :func:`stmsi.tl.reliability`, or of several models, joined: each has a colour.
    metric
        Column with the score: ``"pearson"``, ``"auroc"``, ``"r2"``, ``"mcc"``, ...
    by
        One or several of ``"morans_i"``, ``"prevalence"``, ``"dynamic_range"``, ``"ceiling"``, a panel each; `None`: those
        that have values.
    ncols
        Panels in a row.
    %(figure)s

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        Nothing to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> import stmsi
    >>> table = pd.DataFrame({"pearson": [0.1, 0.5, 0.4], "morans_i": [0.0, 0.6, 0.3]}, index=list("abc"))
    >>> ax = stmsi.pl.reliability(table, by="morans_i")
    >>> ax.get_title()
    'Spearman 1.00'
    """
    if not isinstance(table, pd.DataFrame):
        msg = f"table must be the DataFrame of stmsi.tl.reliability, found {type(table).__name__}."
        raise TypeError(msg)
    if by is None:
        names = [n for n in _LABELS if n in table and np.isfinite(table[n].to_numpy(np.float64)).any()]
    else:
        names = [by] if isinstance(by, str) else list(by)
    for name in (metric, *names):
        if name not in table:
            msg = f"table has no column {name!r}; found {listing(table.columns)}.{suggest(name, table.columns)}"
            raise KeyError(msg)
    if not names or not np.isfinite(table[metric].to_numpy(np.float64)).any():
        msg = f"table has no finite score {metric!r}, or no property to draw it against."
        raise ValueError(msg)
    models = list(dict.fromkeys(table["model"])) if "model" in table else [""]
    of_tier = None
    if len(models) == 1 and Key.var.TIER in table:
        of_tier = (
            table[Key.var.TIER].astype(str).map(lambda tier: tone(_TIERS.get(tier, _TIERS["none"]))).to_numpy(object)
        )
    figure, axes = get_axes(len(names), ncols, ax, _SIZE, figsize)
    for place, name in zip(axes, names, strict=True):
        found = []
        for k, model in enumerate(models):
            rows = table if "model" not in table else table[table["model"] == model]
            x, y = rows[name].to_numpy(np.float64), rows[metric].to_numpy(np.float64)
            known = np.isfinite(x) & np.isfinite(y)
            colour = tone(k) if of_tier is None else of_tier[known]
            place.scatter(x[known], y[known], s=18, c=colour, alpha=0.8, linewidths=0.4, edgecolors=paper())
            varied = known.sum() >= _LEAST and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0
            found.append(f"{spearmanr(x[known], y[known]).statistic:.2f}" if varied else "-")
        if name == "ceiling":
            ends = np.array([max(0.0, float(np.nanmin(table[name]))), 1.0])
            place.plot(ends, ends, color=ink(0.5), linestyle="--", linewidth=0.8)
        if metric in REFERENCE:
            place.axhline(REFERENCE[metric], color=ink(0.3), linewidth=0.8, zorder=0)
        score = READABLE.get(metric, metric)
        label_plot(place, _LABELS.get(name, name), score if place is axes[0] else "", "Spearman " + ", ".join(found))
    if of_tier is not None:
        seen = set(table[Key.var.TIER].astype(str))
        entries = {f"trust: {tier}": tone(number) for tier, number in _TIERS.items() if tier in seen}
    else:
        entries = {str(m): tone(k) for k, m in enumerate(models)} if len(models) > 1 else {}
    dot: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linestyle": "none"}
    handles = [Line2D([], [], color=colour, label=name, **dot) for name, colour in entries.items()]
    if "ceiling" in names:
        handles.append(Line2D([], [], color=ink(0.5), linestyle="--", linewidth=0.8, label="score = ceiling"))
    if metric in REFERENCE:
        handles.append(Line2D([], [], color=ink(0.3), linewidth=0.8, label="without skill"))
    if handles:
        axes[-1].legend(
            handles=handles, frameon=False, fontsize=STYLE.tick_size, loc="upper left", bbox_to_anchor=(1.02, 1.0),
            borderaxespad=0,
        )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)
