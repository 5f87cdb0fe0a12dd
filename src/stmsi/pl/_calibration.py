"""Calibration of the probabilities of presence and coverage of the intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from stmsi._core.metrics.presence import ece
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame, sections_of
from stmsi._data.training_marks import note
from stmsi.pl._metabolite_layers import interval_name
from stmsi.pl._panels import check_least, get_axes, hand_back, jitter, label_plot, wrap
from stmsi.pl._presence_curves import presence_of
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from stmsi._data.checks import Data

_SIZE = (3.9, 3.4)


@shared_docs
def calibration(
    data: Data,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    n_bins: int = 10,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw a reliability diagram of the probabilities of presence, and the coverage of the prediction intervals.

    Left: spots and metabolites in bins of their probability. On the diagonal, the probability is the share in which the
    metabolite was found. Larger points hold more values; bars are quartiles over the metabolites. Right: the share of spots
    whose intensity lies in its interval, one point per metabolite and section; the dashed line is the coverage asked for.

    Parameters
    ----------
    data
        SpatialData or its ST table with predictions and measurements, of sections that the model did not see while
        training.
    %(measured)s
    n_bins
        Bins of equal width.
    %(tables)s
    %(figure)s

    Raises
    ------
    KeyError
        A layer is not there.
    ValueError
        Fewer than two bins, or nothing measured.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> axes = stmsi.pl.calibration(sdata)
    >>> [ax.get_xlabel() for ax in axes]
    ['probability of presence', 'section']
    """
    check_least(n_bins, 2, "n_bins")
    st = get_table(data, table_key)
    _, present, probability = presence_of(st, pred_key, metabolite_key, presence_key, None, sample_key)
    measured = require_frame(st, metabolite_key)
    writes = "stmsi.tl.predict_metabolites writes it."
    lower, upper = (require_frame(st, key, writes) for key in Key.bounds_of(pred_key))
    ids = [m for m in lower.columns if m in measured.columns]
    figure, axes = get_axes(2, 2, ax, _SIZE, figsize)
    mark = note(st, pred_key, measured.notna().any(axis=1).to_numpy())
    _reliability_diagram(axes[0], present, probability, n_bins, mark)
    y, low, high = (f[ids].to_numpy(np.float64) for f in (measured, lower, upper))
    inside = np.where(np.isnan(y) | np.isnan(low), np.nan, (low <= y) & (y <= high))
    sample = sections_of(st, sample_key)
    names = [n for n in dict.fromkeys(sample) if not np.isnan(inside[sample == n]).all()]
    place, means = axes[1], []
    for k, name in enumerate(names):
        rows = inside[sample == name]
        n = (~np.isnan(rows)).sum(axis=0)
        share = np.sort((np.nansum(rows, axis=0) / np.maximum(n, 1))[n > 0])
        first = k == 0
        place.scatter(
            k + 0.6 * jitter(len(share)), share, s=10, color=tone(0), alpha=0.65, linewidths=0,
            label="a metabolite" if first else None,
        )  # fmt: skip
        mean = "mean of a section" if first else "_nolegend_"
        place.hlines(share.mean(), k - 0.35, k + 0.35, color=ink(0.9), linewidth=1.8, label=mean)
        means.append(share.mean())
    asked = st.uns.get(pred_key, {}).get("params", {}).get("coverage")
    if asked is not None:
        said = f"asked for: {100 * float(asked):g} %"
        place.axhline(float(asked), color=ink(0.6), linestyle="--", linewidth=0.9, label=said)
    place.set_xticks(range(len(names)), [str(n) for n in names], rotation=90 if len(names) > 4 else 0)
    place.set_ylim(top=1.01)
    what = interval_name(st, pred_key)
    head = wrap(f"coverage of the {what}", f"mean {100 * np.mean(means):.0f} %" if means else "")
    label_plot(place, "section", "share of spots in the interval", head)
    place.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    legend: dict[str, Any] = {"frameon": False, "fontsize": STYLE.tick_size, "loc": "upper left"}
    axes[0].legend(**legend)
    place.legend(**legend, bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _reliability_diagram(place: Axes, present: np.ndarray, probability: np.ndarray, n_bins: int, mark: str) -> None:
    """Observed share against probability."""
    known = ~np.isnan(present) & ~np.isnan(probability)
    code = np.minimum((np.nan_to_num(probability) * n_bins).astype(int), n_bins - 1)
    x, y, size, spread = [], [], [], []
    for b in range(n_bins):
        chosen = known & (code == b)
        n = chosen.sum(axis=0)
        if n.sum() == 0:
            continue
        x.append(probability[chosen].mean())
        y.append(present[chosen].mean())
        size.append(n.sum())
        share = (np.where(chosen, present, 0).sum(axis=0) / np.maximum(n, 1))[n >= 5]
        spread.append(np.percentile(share, [25, 75]) if len(share) else np.full(2, np.nan))
    low, high = np.array(spread).T
    place.plot([0, 1], [0, 1], color=ink(0.5), linestyle="--", linewidth=0.9, label="as promised")
    place.vlines(x, low, high, color=tone(0), alpha=0.4, linewidth=2, label="quartiles of metabolites")
    place.plot(x, y, color=tone(0), linewidth=1, marker="o", markersize=4, label="found (size: values)")
    place.scatter(x, y, s=10 + 60 * np.array(size) / max(size), color=tone(0), zorder=3)
    error = float(np.nanmedian(ece(present, probability)))
    head = wrap("calibration of presence", f"median error {error:.3f}", f"({mark})" if mark else "")
    label_plot(place, "probability of presence", "share of spots where present", head)
    # room for the points at both ends
    place.set_xlim(-0.03, 1.03)
    place.set_ylim(-0.03, 1.03)
    place.set_aspect("equal")
