"""Metabolites on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._data.checks import listing, require_rows, suggest
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_metabolites
from stmsi.pl._metabolite_layers import (
    Layer,
    as_list,
    intensity_label,
    is_presence,
    is_width,
    layer_frame,
    readable_names,
    trust,
)
from stmsi.pl._panel_grid import Colours, draw_grid
from stmsi.pl._panels import hand_back
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import INTENSITY_CMAP, PERCENTILES, WIDTH_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure

    from stmsi._data.checks import Data


@shared_docs
def spatial(
    data: Data,
    metabolite: str | Sequence[str],
    *,
    metabolite_key: str = Key.obsm.MSI,
    sample: str | Sequence[str] | None = None,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    ncols: int = 4,
    norm: Normalize | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    share_norm: bool = True,
    cmap: str | Colormap | None = None,
    spot_diameter: float | None = None,
    image: bool = False,
    alpha: float = 1.0,
    scalebar: bool = True,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw metabolites on the tissue, with spots true to size.

    One panel per metabolite and section. Light grey spots are not covered by MSI (NaN); the colour of 0 means covered
    and absent. y points down, as in images.

    Parameters
    ----------
    data
        SpatialData or AnnData with metabolites in ``obsm``.
    metabolite
        One or several ids or readable names, or numeric columns of ``obs`` such as ``"msi_coverage"`` or
        ``"msi_pred_ood"``. A metabolite goes before a column of the same name.
    metabolite_key
        The layer in ``obsm`` to draw: ``"msi"``, ``"msi_presence"``, ``"msi_pred"``, ``"msi_pred_presence"``,
        ``"msi_pred_lower"``, ..., or ``"msi_pred_width"``, the width of the prediction interval.
    %(grid)s
    vmin, vmax
        Colour limits of all panels; `None`: `percentiles`, and 0 to 1 for presence and coverage.
    %(colours)s
    cmap
        Colour map; `None`: viridis.
    %(spots)s
    %(figure)s

    Returns
    -------
    The axes, or a list of them where there are several panels (metabolite by metabolite, within each section by
    section); with `return_fig` the figure.

    Raises
    ------
    KeyError
        Unknown metabolite (near names are suggested), section, table, layer or image.
    ValueError
        A column of ``obs`` is not numeric, the number of axes is not the number of panels, or limits contradict.
    TypeError
        `image` with an AnnData, which holds none.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> axes = stmsi.pl.spatial(sdata, ["simPC(28:0)", "msi_coverage"], sample="P1S1")
    >>> [ax.get_title() for ax in axes]
    ['simPC(28:0)', 'msi_coverage']
    """
    colours = Colours(norm, vmin, vmax, percentiles, share_norm, cmap, alpha)
    adata = get_table(data, table_key)
    require_rows(adata)
    figure, axes = draw_grid(
        data, adata, _layers(adata, as_list(metabolite), metabolite_key), colours, sample=sample, sample_key=sample_key,
        spot_diameter=spot_diameter, image=image, ncols=ncols, scalebar=scalebar, ax=ax,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)


def _layers(adata: AnnData, names: list[str], key: str) -> list[Layer]:
    """What to draw: metabolites of a layer, or columns of ``obs``."""
    if key not in adata.obsm and all(n in adata.obs for n in names):
        return [_obs_layer(adata, n) for n in names]
    frame = layer_frame(adata, key)
    readable = readable_names(adata, key, frame.columns)
    label, bounds = intensity_label(adata, key), (0.0, 1.0) if is_presence(key) else None
    default = WIDTH_CMAP if is_width(adata, key) else INTENSITY_CMAP
    known = {*readable.index, *readable}
    out = []
    for name in names:
        if name not in known and name in adata.obs:
            out.append(_obs_layer(adata, name))
            continue
        if name not in known and (near := suggest(name, adata.obs.columns)) and not suggest(name, known):
            msg = f"{name!r} is neither a metabolite of obsm[{key!r}] nor a column of obs.{near}"
            raise KeyError(msg)
        (identifier,) = require_metabolites([name], readable.index, readable)
        title = ", ".join(filter(None, (str(readable[identifier]), trust(adata, key, identifier))))
        out.append(Layer(title, frame[identifier].to_numpy(np.float64, na_value=np.nan), label, bounds, default))
    return out


def _obs_layer(adata: AnnData, name: str) -> Layer:
    values = adata.obs[name]
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
        numeric = [c for c in adata.obs if pd.api.types.is_numeric_dtype(adata.obs[c])]
        msg = (
            f"obs[{name!r}] is not numeric ({values.dtype}); numeric columns: {listing(numeric)}. "
            "Draw categories with squidpy.pl.spatial_scatter or spatialdata-plot."
        )
        raise ValueError(msg)
    bounds = (0.0, 1.0) if name == Key.obs.COVERAGE else None
    return Layer(name, values.to_numpy(dtype=np.float64, na_value=np.nan), "", bounds)
