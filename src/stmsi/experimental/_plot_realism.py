"""Synthetic beside measured sections, statistic by statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from stmsi._data.checks import listing
from stmsi.pl._panels import get_axes, hand_back, label_plot
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SIZE = (2.8, 2.8)
_SCATTER = {
    "quantile": ("quantiles where present", "intensity (a.u.)"),
    "prevalence": ("prevalence", "share of spots"),
    "morans_i": ("Moran's I", "Moran's I"),
    "correlation": ("pairs of metabolites", "correlation"),
}
_ALIKE = 0.65
"""AUROC below which the classifier hardly tells synthetic from measured."""
_MOST = 5000
_KINDS = ("measured", "synthetic")
_INSIDE: dict[str, Any] = {"frameon": False, "fontsize": STYLE.tick_size}


@shared_docs
def plot_realism(
    table: pd.DataFrame,
    *,
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw all that :func:`stmsi.experimental.realism` compares.

    Scatter plots show synthetic against measured, a point per metabolite (or pair, or quantile) and section. Then standard
    deviation against mean, the variogram (median and quartiles over metabolites), Kolmogorov-Smirnov distances (0: the
    same distribution), and the AUROC of a classifier that tells synthetic from measured spots, one bar per draw. The orange line is
    the AUROC between two draws; below the dotted line the classifier hardly tells synthetic from measured.

    Parameters
    ----------
    table
        What :func:`stmsi.experimental.realism` returns.
    ncols
        Panels in a row.
    %(figure)s

    A statistic that was not computed has an empty panel.

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
    figure, axes = get_axes(8, ncols, ax, _SIZE, figsize)
    of = {str(k): v for k, v in table.groupby("statistic", observed=True)}
    empty = table.iloc[:0]
    for place, (name, (head, unit)) in zip(axes, _SCATTER.items(), strict=False):
        _scatter(place, of.get(name, empty), head, unit)
    _mean_variance(axes[4], of.get("mean", empty), of.get("sd", empty))
    _variogram(axes[5], of.get("variogram", empty))
    _ks(axes[6], of.get("ks", empty))
    _auc(axes[7], of.get("auc", empty))
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _scatter(place: Axes, rows: pd.DataFrame, head: str, unit: str) -> None:
    rows = rows[np.isfinite(rows["measured"]) & np.isfinite(rows["synthetic"])]
    label_plot(place, f"measured\n{unit}", f"synthetic\n{unit}", head)
    if len(rows) == 0:
        return
    # every so many of many: more points than that show nothing more
    rows = rows.iloc[:: max(1, len(rows) // _MOST)]
    x, y = rows["measured"].to_numpy(), rows["synthetic"].to_numpy()
    place.scatter(x, y, s=8, color=tone(0), alpha=0.6, linewidths=0, rasterized=True)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    place.plot(ends, ends, color=ink(0.6), linestyle="--", linewidth=0.8, label="alike")
    place.legend(**_INSIDE, loc="upper left")
    place.locator_params(nbins=5)


def _mean_variance(place: Axes, mean: pd.DataFrame, sd: pd.DataFrame) -> None:
    label_plot(place, "mean intensity (a.u.)", "standard deviation (a.u.)", "mean and spread")
    by = ["sample", "draw", "metabolite"]
    if len(mean) == 0 or len(sd) == 0:
        return
    both = mean.merge(sd, on=by, suffixes=("_mean", "_sd"))
    for k, kind in enumerate(_KINDS):
        x, y = both[f"{kind}_mean"], both[f"{kind}_sd"]
        place.scatter(x, y, s=10, color=tone(k), alpha=0.6, linewidths=0, label=kind)
    place.legend(**_INSIDE)


def _variogram(place: Axes, rows: pd.DataFrame) -> None:
    label_plot(place, "distance of spots (µm)", "semivariance / variance", "variogram, with quartiles")
    if len(rows) == 0:
        return
    # classes of distance differ a little between sections
    order = rows.groupby(["sample", "draw"], observed=True)["at"].rank(method="dense").astype(int)
    for k, kind in enumerate(_KINDS):
        grouped = rows[kind].groupby(order)
        x = rows["at"].groupby(order).mean()
        place.plot(x, grouped.median(), color=tone(k), marker="o", markersize=3, linewidth=1, label=kind)
        place.fill_between(x, grouped.quantile(0.25), grouped.quantile(0.75), color=tone(k), alpha=0.2, linewidth=0)
    place.legend(**_INSIDE, loc="lower right")


def _ks(place: Axes, rows: pd.DataFrame) -> None:
    label_plot(place, "Kolmogorov-Smirnov distance", "metabolites x sections", "distance of distributions")
    if len(rows) == 0:
        return
    found = rows["synthetic"]
    place.hist(found, bins=20, range=(0, max(0.3, float(found.max()))), color=tone(0))
    middle = float(found.median())
    place.axvline(middle, color=ink(0.8), linestyle="--", linewidth=1, label=f"median {middle:.2f}")
    place.yaxis.set_major_locator(MaxNLocator(integer=True))
    place.legend(**_INSIDE)


def _auc(place: Axes, rows: pd.DataFrame) -> None:
    label_plot(place, "draw", "AUROC, synthetic or measured?", "classifier's AUC")
    place.set_ylim(0.4, 1.02)
    place.set_xticks([])
    if len(rows):
        bars = place.bar(range(len(rows)), rows["synthetic"] - 0.4, bottom=0.4, color=tone(0), width=0.7)
        place.set_xticks(range(len(rows)), rows["draw"].astype(str))
        place.set_xlim(-1, max(len(rows), 3))
        for k, equal in enumerate(rows["measured"]):
            said = "between two draws" if k == 0 else "_nolegend_"
            place.hlines(equal, k - 0.45, k + 0.45, color=tone(1), linewidth=1.8, label=said)
        place.bar_label(bars, [f"{v:.2f}" for v in rows["synthetic"]], fontsize=STYLE.tick_size)
    place.axhline(0.5, color=ink(0.6), linestyle="--", linewidth=0.8, label="a guess")
    place.axhline(_ALIKE, color=ink(0.6), linestyle=":", linewidth=0.8, label="hardly told apart")
    place.legend(**_INSIDE, loc="upper right")
