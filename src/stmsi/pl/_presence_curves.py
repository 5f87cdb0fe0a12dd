"""ROC and precision-recall curves of presence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.metrics.presence import auprc, auroc, prevalence, ranked_hits
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import short_labels
from stmsi._data.tables import get_table, measured_presence, require_frame, require_metabolites, sections_of
from stmsi._data.training_marks import note
from stmsi.pl._metabolite_layers import as_list, labelled_features, readable_names, table_samples
from stmsi.pl._panels import cut, get_axes, hand_back, label_plot, wrap
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

_SIZE = (3.4, 3.5)
_INSIDE: dict[str, Any] = {"frameon": False, "fontsize": STYLE.tick_size}
_GRID = np.linspace(0, 1, 101)
_SHOWN, _NAME = 6, 22
"""Metabolites in one panel, and letters of a name in the legend."""


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
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw how well the probability of presence ranks spots: ROC at the left, precision against recall at the right.

    Dotted lines are a ranking without skill. Its precision is the prevalence, which is high for a metabolite that is nearly
    everywhere.

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
    shown = [] if metabolite is None else short_labels(labelled_features(st, pred_key), list(ids))
    figure, axes = get_axes(2, 2, ax, _SIZE, figsize)
    areas = auroc(present, probability), auprc(present, probability)
    for place, values, area, what in zip(axes, curves(present, probability), areas, ("AUROC", "AUPRC"), strict=True):
        if metabolite is None:
            low, middle, high = np.percentile(values, [25, 50, 75], axis=1)
            label = f"median {what} {np.median(area):.2f} ({len(area)} metabolites)"
            place.plot(_GRID, middle, color=tone(0), label=label)
            place.fill_between(_GRID, low, high, color=tone(0), alpha=0.2, linewidth=0, label="quartiles")
        else:
            for m in range(len(ids)):
                place.plot(_GRID, values[:, m], color=tone(m), label=f"{cut(shown[m], _NAME)}, {what} {area[m]:.2f}")
        place.set_xlim(0, 1)
        place.set_ylim(0, 1.02)
        place.set_aspect("equal")
    axes[0].plot([0, 1], [0, 1], color=ink(0.5), linestyle=":", linewidth=1, label="without skill")
    shares = prevalence(present)
    if metabolite is None:
        share = float(np.median(shares))
        axes[1].axhline(
            share, color=ink(0.5), linestyle=":", linewidth=1, label=f"without skill: prevalence {share:.2f}"
        )
    else:
        for m, share in enumerate(shares):
            axes[1].axhline(share, color=tone(m), linestyle=":", linewidth=1)
        axes[1].plot([], [], color=ink(0.5), linestyle=":", linewidth=1, label="without skill: prevalence")
    said = f"({mark})" if mark else ""
    label_plot(axes[0], "false positive rate", "true positive rate", wrap("receiver operating characteristic", said))
    label_plot(axes[1], "recall", "precision", wrap("precision and recall", said))
    axes[0].legend(loc="lower right", **_INSIDE)
    axes[1].legend(loc="lower left", **_INSIDE)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


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
