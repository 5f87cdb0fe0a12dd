"""Scores of metabolites against what limits them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from stmsi._data.checks import listing, suggest
from stmsi.pl._panels import get_axes, hand_back
from stmsi.pl._performance import READABLE, REFERENCE
from stmsi.pl._style import PALETTE, STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_LABELS = {
    "morans_i": "Moran's I",
    "prevalence": "prevalence",
    "dynamic_range": "dynamic range (log10)",
    "ceiling": "noise ceiling",
}
_SIZE = (2.9, 2.7)
_LEAST = 3


def reliability(
    table: pd.DataFrame,
    *,
    metric: str = "pearson",
    by: str | Sequence[str] | None = None,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw the score of each metabolite against what limits it, one point per metabolite.

    Titles give Spearman's correlation. In the panel of the noise ceiling, scores equal it on the dashed line.

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
    ax
        Axes to draw into, one per panel; `None`: a new figure.
    show
        `True` calls :func:`matplotlib.pyplot.show`, unless `ax` is given. `None` leaves it to matplotlib.
    return_fig
        Whether to return the figure instead of the axes.

    Returns
    -------
    The axes, or a list of them; with `return_fig` the figure.

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
    figure, axes = get_axes(len(names), ncols, ax, _SIZE)
    for place, name in zip(axes, names, strict=True):
        found = []
        for k, model in enumerate(models):
            rows = table if "model" not in table else table[table["model"] == model]
            x, y = rows[name].to_numpy(np.float64), rows[metric].to_numpy(np.float64)
            known = np.isfinite(x) & np.isfinite(y)
            colour = PALETTE[k % len(PALETTE)]
            place.scatter(x[known], y[known], s=14, color=colour, alpha=0.7, linewidths=0, label=str(model))
            varied = known.sum() >= _LEAST and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0
            found.append(f"{spearmanr(x[known], y[known]).statistic:.2f}" if varied else "-")
        if name == "ceiling":
            ends = np.array([max(0.0, float(np.nanmin(table[name]))), 1.0])
            place.plot(ends, ends, color="0.5", linestyle="--", linewidth=0.8)
        if metric in REFERENCE:
            place.axhline(REFERENCE[metric], color="0.8", linewidth=0.8, zorder=0)
        place.set_title("Spearman " + ", ".join(found), fontsize=STYLE.title_size)
        place.set_xlabel(_LABELS.get(name, name), fontsize=STYLE.label_size)
        place.tick_params(labelsize=STYLE.tick_size)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(READABLE.get(metric, metric), fontsize=STYLE.label_size)
    if len(models) > 1:
        axes[0].legend(frameon=False, fontsize=STYLE.tick_size)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)
