"""Measured and predicted metabolites side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._data.checks import listing, require_rows
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, measured_presence, require_frame
from stmsi.metrics import auroc, pearson
from stmsi.pl._colour_limits import check_percentiles, diverging_norm, get_cmap, make_norm
from stmsi.pl._metabolite_layers import as_list, column, intensity_label, resolve, table_samples, trust
from stmsi.pl._panels import draw_spots, get_axes, hand_back, panel_size, wrap
from stmsi.pl._sections import load_section
from stmsi.pl._style import INTENSITY_CMAP, PERCENTILES, RESIDUAL_CMAP, WIDTH_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data


def compare(
    data: Data,
    metabolite: str | Sequence[str],
    *,
    sample: str | None = None,
    pred_key: str = Key.obsm.PRED,
    metabolite_key: str = Key.obsm.MSI,
    presence_key: str | None = None,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    vmin: float | None = None,
    vmax: float | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    cmap: str | Colormap | None = None,
    residual_cmap: str | Colormap | None = None,
    spot_diameter: float | None = None,
    image: bool = False,
    alpha: float = 1.0,
    scalebar: bool = True,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw measured, predicted and residual of metabolites in one section.

    One row per metabolite. Measured and predicted share **one** norm; the residual (predicted - measured) diverges
    around 0: red is too much, blue too little. The title of the predicted panel tells the Pearson correlation over the
    covered spots and, where presence was predicted, the AUROC, and the tier that :func:`stmsi.tl.reliability`
    gave. With prediction bounds a fourth panel shows
    the width of the interval. Light grey spots are not covered by MSI.

    Parameters
    ----------
    data
        SpatialData or AnnData after `stmsi.tl.predict_metabolites`.
    metabolite
        One or several ids or readable names.
    sample
        The section; may be left out where there is only one.
    pred_key
        Predictions in ``obsm``; presence and bounds are looked up beside it (``"msi_pred_presence"``,
        ``"msi_pred_lower"``, ``"msi_pred_upper"``).
    metabolite_key
        Measured intensities in ``obsm``; may be missing.
    presence_key
        Measured presence in ``obsm``; `None`: ``obsm["<metabolite_key>_presence"]`` where it is there, else intensity
        above 0 (what :func:`stmsi.pp.impute_dropout` filled in counts as absent).
    table_key
        The ST table of a SpatialData.
    sample_key
        Column of ``obs`` with the section name.
    vmin, vmax
        Colour limits of measured and predicted; `None`: `percentiles` of both together.
    percentiles
        Percentiles at which colours are clipped; the residual is clipped at the upper one of its magnitude.
    cmap
        Colour map of measured and predicted; `None`: viridis.
    residual_cmap
        Colour map of the residual; `None`: RdBu_r.
    spot_diameter
        In micrometres; `None`: the size in ``shapes["<sample>_spots"]``, and 55 um for an AnnData.
    image
        Whether to draw the histology ``images["<sample>_he"]`` behind the spots.
    alpha
        Opacity of the spots.
    scalebar
        Whether to draw a scale bar.
    ax
        Axes to draw into, one per panel (3 or 4 for each metabolite); `None`: a new figure.
    show
        `True` calls :func:`matplotlib.pyplot.show`, unless `ax` is given. `None` leaves it to matplotlib.
    return_fig
        Whether to return the figure instead of the axes.

    Returns
    -------
    List of axes, row by row (measured, predicted, residual and, with bounds, interval width); with `return_fig` the
    figure. Where the section has no MSI, the measured and the residual panel say so.

    Raises
    ------
    KeyError
        No predictions, or an unknown metabolite (near names are suggested), section or table.
    ValueError
        Several sections and none named, or the number of axes is not the number of panels.
    TypeError
        `image` with an AnnData, which holds none.

    Examples
    --------
    Any layer can stand for the prediction; here the simulated truth does:

    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> st.obsm["msi_pred"] = st.obsm["truth_intensity"]
    >>> axes = stmsi.pl.compare(sdata, "simPC(36:0)", sample="P1S1")
    >>> len(axes)
    3
    """
    percentiles = check_percentiles(percentiles)
    adata = get_table(data, table_key)
    require_rows(adata)
    predicted = require_frame(adata, pred_key, "Predictions are missing: stmsi.tl.predict_metabolites writes them. ")
    ids, names = resolve(adata, pred_key, predicted, as_list(metabolite))
    section = load_section(
        data,
        adata,
        _one_section(adata, sample, sample_key),
        sample_key=sample_key,
        spot_diameter=spot_diameter,
        image=image,
    )
    lower, upper = (_part(adata, k) for k in Key.bounds_of(pred_key))
    width = None if lower is None or upper is None else upper - lower
    measured = _part(adata, metabolite_key)
    chance = _part(adata, Key.presence_of(pred_key))
    present = None if measured is None else measured_presence(adata, metabolite_key, presence_key)

    ncols = 3 if width is None else 4
    figure, axes = get_axes(
        ncols * len(ids), ncols, ax, panel_size([section], 3 if any(trust(adata, pred_key, m) for m in ids) else 2)
    )
    label = intensity_label(adata, pred_key)
    colours, diverging, widths = (
        get_cmap(cmap, INTENSITY_CMAP),
        get_cmap(residual_cmap, RESIDUAL_CMAP),
        get_cmap(None, WIDTH_CMAP),
    )
    for i, m in enumerate(ids):
        y, p = _values(measured, m, section.rows), _values(predicted, m, section.rows)
        norm = make_norm(np.concatenate([y, p]), vmin=vmin, vmax=vmax, percentiles=percentiles)
        scores = _scores(y, p, _values(present, m, section.rows), _values(chance, m, section.rows))
        name = str(names[m])
        panels = [
            (y, norm, colours, label, wrap(name, "measured")),
            (p, norm, colours, label, wrap("predicted", scores, trust(adata, pred_key, m))),
            (p - y, diverging_norm(p - y, percentiles[1]), diverging, "difference", wrap("predicted - measured")),
        ]
        if width is not None:
            w = _values(width, m, section.rows)
            panels.append((w, make_norm(w, vmin=0.0, percentiles=percentiles), widths, label, wrap("interval width")))
        for place, (values, own, palette, what, title) in zip(axes[i * ncols : (i + 1) * ncols], panels, strict=True):
            draw_spots(
                place,
                section,
                values,
                norm=own,
                cmap=palette,
                label=what,
                title=title,
                scalebar=scalebar,
                alpha=alpha,
                outlined=palette is diverging,
            )
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)


def _one_section(adata: AnnData, sample: str | None, sample_key: str) -> str:
    """The section to draw."""
    if sample is not None and not isinstance(sample, str):
        msg = f"compare draws one section; sample must be its name, found {sample!r}."
        raise ValueError(msg)
    found = table_samples(adata, sample_key, sample)
    if len(found) > 1:
        msg = f"There are {len(found)} sections; name one of them with sample=: {listing(found)}."
        raise ValueError(msg)
    return found[0]


def _part(adata: AnnData, key: str) -> pd.DataFrame | None:
    """A layer that may be missing, with text as column names."""
    if key not in adata.obsm:
        return None
    frame = require_frame(adata, key)
    return frame.set_axis(frame.columns.astype(str), axis=1)


def _values(frame: pd.DataFrame | None, metabolite: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values of a metabolite in a section; NaN where the layer does not know it."""
    if frame is None or metabolite not in frame.columns.astype(str):
        return np.full(len(rows), np.nan)
    return column(frame, metabolite)[rows]


def _scores(
    y: NDArray[np.float64], p: NDArray[np.float64], present: NDArray[np.float64], chance: NDArray[np.float64]
) -> str:
    """Scores for the title; a score that does not exist is left out."""
    scores = {"Pearson": pearson(y, p)[0], "AUROC": auroc(present, chance)[0]}
    return ", ".join(f"{name} {value:z.2f}" for name, value in scores.items() if np.isfinite(value))
