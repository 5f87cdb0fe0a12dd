"""Measured and predicted metabolites side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._data.checks import require_rows
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import label
from stmsi._data.tables import get_table, measured_presence, require_frame, require_metabolites
from stmsi._data.training_marks import note
from stmsi.metrics import auroc, pearson
from stmsi.pl._colour_limits import check_percentiles, diverging_norm, get_cmap, make_norm
from stmsi.pl._metabolite_layers import (
    as_list,
    intensity_label,
    interval_name,
    labelled_features,
    one_section,
    readable_names,
    trust,
    values_of,
)  # fmt: skip
from stmsi.pl._panels import draw_spots, get_axes, hand_back, panel_size, wrap
from stmsi.pl._sections import load_section
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import INTENSITY_CMAP, PERCENTILES, RESIDUAL_CMAP, WIDTH_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data


@shared_docs
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
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw measured, predicted and residual of metabolites in one section.

    One row per metabolite. Measured and predicted share **one** norm; the residual (predicted - measured) diverges around
    0: red is too much, blue too little. The title of the predicted panel has the Pearson correlation over the covered
    spots and, where they are known, the AUROC of presence and the tier of :func:`stmsi.tl.reliability`; "(training spots)" marks
    scores of spots that the model was trained on, "(training spots?)" those of which that is not known. With prediction
    bounds a fourth panel shows the width of the interval. Light grey spots are not covered by MSI.
    Where a section has none, the measured and the residual panel say so.

    Parameters
    ----------
    data
        SpatialData or AnnData after :func:`stmsi.tl.predict_metabolites`. Measured metabolites may be missing.
    metabolite
        One or several ids or readable names.
    sample
        The section; may be left out where there is only one.
    %(measured)s
    %(tables)s
    vmin, vmax
        Colour limits of measured and predicted; `None`: `percentiles` of both together.
    percentiles
        Percentiles at which colours are clipped; the residual is clipped at the upper one of its magnitude.
    cmap
        Colour map of measured and predicted; `None`: viridis.
    residual_cmap
        Colour map of the residual; `None`: RdBu_r.
    %(spots)s
    %(figure)s

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
    if sample is not None and not isinstance(sample, str):
        msg = f"compare draws one section; sample must be its name, found {sample!r}."
        raise ValueError(msg)
    adata = get_table(data, table_key)
    require_rows(adata)
    predicted = require_frame(adata, pred_key, "Predictions are missing: stmsi.tl.predict_metabolites writes them. ")
    names = readable_names(adata, pred_key, predicted.columns)
    ids = require_metabolites(as_list(metabolite), predicted.columns, names)
    place = {"sample_key": sample_key, "spot_diameter": spot_diameter, "image": image}
    section = load_section(data, adata, one_section(adata, sample_key, sample), **place)  # type: ignore[arg-type]
    chance, lower, upper, measured = (
        require_frame(adata, k) if k in adata.obsm else None
        for k in (Key.presence_of(pred_key), *Key.bounds_of(pred_key), metabolite_key)
    )
    width = None if lower is None or upper is None else upper - lower
    present = None if measured is None else measured_presence(adata, metabolite_key, presence_key)

    ncols = 3 if width is None else 4
    # scores of spots with MSI, and so are the marks
    scored = section.rows if measured is None else section.rows[measured.notna().any(axis=1).to_numpy()[section.rows]]
    mark = note(adata, pred_key, scored) if len(scored) else ""
    tiers = [trust(adata, pred_key, m) for m in ids]
    figure, axes = get_axes(ncols * len(ids), ncols, ax, panel_size([section], 3), figsize)
    unit, features = intensity_label(adata, pred_key), labelled_features(adata, pred_key)
    width_key = Key.width_of(pred_key)
    widths = intensity_label(adata, width_key), f"{interval_name(adata, width_key)} width"
    colours, diverging = get_cmap(cmap, INTENSITY_CMAP), get_cmap(residual_cmap, RESIDUAL_CMAP)
    places = iter(axes)
    for m, tier in zip(ids, tiers, strict=True):
        y, p, w, there, probability = (
            values_of(frame, m, section.rows) for frame in (measured, predicted, width, present, chance)
        )
        norm = make_norm(np.concatenate([y, p]), vmin=vmin, vmax=vmax, percentiles=percentiles)
        panels = [
            (y, norm, colours, unit, wrap(label(features, m), "measured")),
            (p, norm, colours, unit, wrap("predicted", _scores(y, p, there, probability, mark), tier)),
            (
                p - y,
                diverging_norm(p - y, percentiles[1]),
                diverging,
                f"difference of\n{unit}",
                wrap("predicted - measured"),
            ),
        ]
        if width is not None:
            own = make_norm(w, vmin=0.0, percentiles=percentiles)
            panels.append((w, own, get_cmap(None, WIDTH_CMAP), widths[0], wrap(widths[1])))
        for values, own, palette, what, said in panels:
            draw_spots(
                next(places), section, values, norm=own, cmap=palette, label=what, title=said, scalebar=scalebar,
                alpha=alpha, outlined=palette is diverging,
            )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _scores(
    y: NDArray[np.float64], p: NDArray[np.float64], present: NDArray[np.float64], chance: NDArray[np.float64], mark: str
) -> str:
    """Scores for the title, with what they are worth; a score that does not exist is left out."""
    scores = {"Pearson": pearson(y, p)[0], "AUROC": auroc(present, chance)[0]}
    text = ", ".join(f"{name} {value:z.2f}" for name, value in scores.items() if np.isfinite(value))
    return f"{text} ({mark})" if text and mark else text
