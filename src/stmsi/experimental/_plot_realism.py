"""Synthetic beside measured sections, statistic by statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import listing
from stmsi.pl._panels import get_axes, hand_back
from stmsi.pl._style import PALETTE, STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SIZE = (2.7, 2.6)
_SCATTER = {
    "quantile": "quantiles where present",
    "prevalence": "prevalence",
    "morans_i": "Moran's I",
    "correlation": "correlation of metabolites",
}
_MOST = 5000


def plot_realism(
    table: pd.DataFrame,
    *,
    ncols: int = 4,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw all that :func:`stmsi.experimental.realism` compares.

    Scatter plots show synthetic against measured, a point per metabolite (or pair, or quantile) and section. Then standard
    deviation against mean, the variogram (median and quartiles over metabolites), the distances of Kolmogorov and Smirnov, and
    the AUROC of the classifier, one bar per draw. The orange line is the AUROC between two draws; below the dotted line the
    classifier hardly tells synthetic from measured.

    Parameters
    ----------
    table
        What :func:`stmsi.experimental.realism` returns.
    ncols
        Panels in a row.
    ax
        Eight axes to draw into; `None`: a new figure.
    show, return_fig
        Call :func:`matplotlib.pyplot.show` (`None` leaves it to matplotlib); return the figure instead of the axes.

    Returns
    -------
    The axes; with `return_fig` the figure. A statistic that was not computed has an empty panel.

    Raises
    ------
    KeyError
        A column is missing.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.sample_metabolites(sdata, "ridge", rng=0, show_progress_bar=False)
    >>> axes = stmsi.experimental.plot_realism(stmsi.experimental.realism(sdata, "msi_sample_0", classifier=False))
    >>> len(axes)
    8
    """
    if not isinstance(table, pd.DataFrame):
        msg = f"table must be the DataFrame of stmsi.experimental.realism, found {type(table).__name__}."
        raise TypeError(msg)
    missing = [c for c in ("statistic", "measured", "synthetic", "at", "draw") if c not in table]
    if missing:
        msg = f"table lacks the columns {listing(missing)}; found {listing(table.columns)}."
        raise KeyError(msg)
    figure, axes = get_axes(8, ncols, ax, _SIZE)
    of = {str(k): v for k, v in table.groupby("statistic", observed=True)}
    empty = table.iloc[:0]
    for place, (name, title) in zip(axes, _SCATTER.items(), strict=False):
        _scatter(place, of.get(name, empty), title)
    _mean_variance(axes[4], of.get("mean", empty), of.get("sd", empty))
    _variogram(axes[5], of.get("variogram", empty))
    _ks(axes[6], of.get("ks", empty))
    _auc(axes[7], of.get("auc", empty))
    for place in axes:
        place.tick_params(labelsize=STYLE.tick_size)
        place.spines[["top", "right"]].set_visible(False)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)


def _label(place: Axes, title: str, x: str, y: str = "") -> None:
    place.set_title(title, fontsize=STYLE.title_size)
    place.set_xlabel(x, fontsize=STYLE.label_size)
    place.set_ylabel(y, fontsize=STYLE.label_size)


def _scatter(place: Axes, rows: pd.DataFrame, title: str) -> None:
    _label(place, title, "measured", "synthetic")
    rows = rows[np.isfinite(rows["measured"]) & np.isfinite(rows["synthetic"])]
    if len(rows) == 0:
        return
    # every so many of many: more points than that show nothing more
    rows = rows.iloc[:: max(1, len(rows) // _MOST)]
    x, y = rows["measured"].to_numpy(), rows["synthetic"].to_numpy()
    place.scatter(x, y, s=7, color=PALETTE[0], alpha=0.35, linewidths=0, rasterized=True)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    place.plot(ends, ends, color="0.4", linestyle="--", linewidth=0.8)
    place.locator_params(nbins=5)


def _mean_variance(place: Axes, mean: pd.DataFrame, sd: pd.DataFrame) -> None:
    _label(place, "mean and spread", "mean", "standard deviation")
    by = ["sample", "draw", "metabolite"]
    if len(mean) == 0 or len(sd) == 0:
        return
    both = mean.merge(sd, on=by, suffixes=("_mean", "_sd"))
    for k, kind in enumerate(("measured", "synthetic")):
        x, y = both[f"{kind}_mean"], both[f"{kind}_sd"]
        place.scatter(x, y, s=9, color=PALETTE[k], alpha=0.45, linewidths=0, label=kind)
    place.legend(frameon=False, fontsize=STYLE.tick_size)


def _variogram(place: Axes, rows: pd.DataFrame) -> None:
    _label(place, "variogram", "distance", "half squared difference / variance")
    if len(rows) == 0:
        return
    # classes of distance differ a little between sections
    order = rows.groupby(["sample", "draw"], observed=True)["at"].rank(method="dense").astype(int)
    for k, kind in enumerate(("measured", "synthetic")):
        grouped = rows[kind].groupby(order)
        x = rows["at"].groupby(order).mean()
        place.plot(x, grouped.median(), color=PALETTE[k], marker="o", markersize=3, linewidth=1, label=kind)
        place.fill_between(x, grouped.quantile(0.25), grouped.quantile(0.75), color=PALETTE[k], alpha=0.15, linewidth=0)
    place.legend(frameon=False, fontsize=STYLE.tick_size)


def _ks(place: Axes, rows: pd.DataFrame) -> None:
    _label(place, "distance of distributions", "Kolmogorov-Smirnov", "metabolites x sections")
    if len(rows):
        place.hist(rows["synthetic"], bins=20, range=(0, max(0.3, float(rows["synthetic"].max()))), color=PALETTE[0])


def _auc(place: Axes, rows: pd.DataFrame) -> None:
    _label(place, "classifier's AUC", "draw")
    place.set_ylim(0.4, 1.02)
    place.axhline(0.5, color="0.4", linestyle="--", linewidth=0.8)
    place.axhline(0.65, color="0.4", linestyle=":", linewidth=0.8)
    place.set_xticks([])
    if len(rows):
        bars = place.bar(range(len(rows)), rows["synthetic"] - 0.4, bottom=0.4, color=PALETTE[0], width=0.7)
        place.set_xticks(range(len(rows)), rows["draw"].astype(str))
        place.set_xlim(-1, max(len(rows), 3))
        for k, equal in enumerate(rows["measured"]):
            place.hlines(equal, k - 0.45, k + 0.45, color=PALETTE[1], linewidth=1.8)
        place.bar_label(bars, [f"{v:.2f}" for v in rows["synthetic"]], fontsize=STYLE.tick_size)
