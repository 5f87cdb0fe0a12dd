"""ROC and precision-recall curves of presence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.metrics.presence import auprc, auroc, prevalence, ranked_hits
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, measured_presence, require_frame, require_metabolites, sections_of
from stmsi._data.training_marks import note
from stmsi.pl._metabolite_layers import as_list, readable_names, table_samples
from stmsi.pl._panels import get_axes, hand_back, label_plot
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PALETTE, STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

SIZE = (3.4, 3.3)
_GRID = np.linspace(0, 1, 101)
_SHOWN = 6


@shared_docs
def presence_curves(
    data: Data,
    metabolite: str | Sequence[str] | None = None,
    *,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    sample: str | None = None,
    sample_key: str = Key.obs.SAMPLE,
    table_key: str = Key.table.ST,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw how well the probability of presence ranks spots: ROC at the left, precision against recall at the right.

    The dotted lines mark the prevalence, the precision of a ranking without skill: a metabolite that is nearly everywhere
    has a high one.

    Parameters
    ----------
    data
        SpatialData or its ST table with predictions and measurements, of sections that the model did not see while
        training.
    metabolite
        Up to six ids or readable names, a colour each; `None`: the median over all metabolites, with quartiles as a band.
    %(measured)s
    sample
        One section; `None`: all spots together.
    %(tables)s
    %(figure)s

    Raises
    ------
    KeyError
        A layer or metabolite is not there.
    ValueError
        No metabolite has both spots with it and without it, or more than six are named.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> stmsi.tl.predict_metabolites(sdata, "ridge", show_progress_bar=False)
    >>> axes = stmsi.pl.presence_curves(sdata)
    >>> [ax.get_ylabel() for ax in axes]
    ['true positive rate', 'precision']
    """
    st = get_table(data, table_key)
    measured = measured_presence(st, metabolite_key, presence_key).notna().any(axis=1).to_numpy()
    if sample is not None:
        measured = measured & (sections_of(st, sample_key) == sample)
    mark = note(st, pred_key, measured)
    ids, present, probability = presence_of(st, pred_key, metabolite_key, presence_key, sample, sample_key)
    names = readable_names(st, pred_key, ids)
    if metabolite is not None:
        columns = require_frame(st, pred_key).columns
        names = readable_names(st, pred_key, columns)
        wanted = require_metabolites(as_list(metabolite), columns, names)
        if len(wanted) > _SHOWN:
            msg = f"At most {_SHOWN} metabolites fit into one panel, found {len(wanted)}; metabolite=None draws their mean."
            raise ValueError(msg)
        at = ids.get_indexer(pd.Index(wanted))
        if (at < 0).any():
            msg = f"{wanted[int(np.argmin(at))]!r} was not measured, or is in all spots or in none: it has no curve."
            raise ValueError(msg)
        ids, present, probability = ids[at], present[:, at], probability[:, at]
    figure, axes = get_axes(2, 2, ax, SIZE)
    areas = auroc(present, probability), auprc(present, probability)
    for place, values, area, what in zip(axes, curves(present, probability), areas, ("AUROC", "AUPRC"), strict=True):
        if metabolite is None:
            low, middle, high = np.percentile(values, [25, 50, 75], axis=1)
            label = f"median {what} {np.median(area):.2f} (n={len(area)})"
            place.fill_between(_GRID, low, high, color=PALETTE[0], alpha=0.15, linewidth=0)
            place.plot(_GRID, middle, color=PALETTE[0], label=label)
        else:
            for m, identifier in enumerate(ids):
                place.plot(_GRID, values[:, m], color=PALETTE[m], label=f"{names[identifier]} {area[m]:.2f}")
        place.set_xlim(0, 1)
        place.set_ylim(0, 1.02)
        place.set_aspect("equal")
    axes[0].plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=1)
    shares = prevalence(present)
    for m, share in enumerate([float(np.median(shares))] if metabolite is None else shares):
        axes[1].axhline(share, color=PALETTE[m], linestyle=":", linewidth=1)
    label_plot(axes[0], "false positive rate", "true positive rate")
    label_plot(axes[1], "recall\ndotted: prevalence", "precision")
    if mark:
        for place in axes:
            place.set_title(mark, fontsize=STYLE.title_size)
    for place in axes:
        place.legend(frameon=False, fontsize=STYLE.tick_size, loc="lower right" if place is axes[0] else "best")
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)


def presence_of(
    st: AnnData, pred_key: str, metabolite_key: str, presence_key: str | None, sample: str | None, sample_key: str
) -> tuple[pd.Index, NDArray[np.float64], NDArray[np.float64]]:
    """Ids, measured presence and probability of the metabolites that have both classes."""
    probability = require_frame(st, Key.presence_of(pred_key), "stmsi.tl.predict_metabolites writes it.")
    there = measured_presence(st, metabolite_key, presence_key)
    rows: Any = slice(None)
    if sample is not None:
        rows = sections_of(st, sample_key) == table_samples(st, sample_key, sample)[0]
    ids = probability.columns[probability.columns.isin(there.columns)]
    truth = there.loc[rows, ids].to_numpy(np.float64)
    mean = prevalence(truth)
    both = (mean > 0) & (mean < 1)
    if not both.any():
        msg = "No metabolite has spots with it and spots without it; there is nothing to rank."
        raise ValueError(msg)
    return ids[both].astype(str), truth[:, both], probability.loc[rows, ids[both]].to_numpy(np.float64)


def curves(
    present: NDArray[np.float64], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True positive rate at false positive rates, and precision at recalls, of the grid; shape (grid, metabolites)."""
    hits, called, last, n1, n0 = ranked_hits(present, probability)
    tpr, precision = np.empty((len(_GRID), present.shape[1])), np.empty((len(_GRID), present.shape[1]))
    for m in range(present.shape[1]):
        keep = last[:, m].astype(bool) & (called[:, m] > 0)
        true, all_called = hits[keep, m], called[keep, m]
        rate = np.concatenate([[0.0], true / n1[m]])
        false = np.concatenate([[0.0], (all_called - true) / n0[m]])
        tpr[:, m] = np.interp(_GRID, false, rate)
        share = true / all_called
        # precision of the first threshold that reaches a recall
        at = np.searchsorted(rate[1:], _GRID - 1e-12)
        precision[:, m] = share[np.minimum(at, len(share) - 1)]
    return tpr, precision
