"""Two or three metabolites, ions or genes in one picture, each in a colour of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from stmsi._data.checks import require_rows
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.pl._colour_limits import check_percentiles, make_norm
from stmsi.pl._metabolite_layers import as_list, layers_of
from stmsi.pl._panel_grid import draw_coloured, rows_drawn
from stmsi.pl._panels import hand_back, wrap
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PERCENTILES, no_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.typing import ColorType

    from stmsi._data.checks import Data

COLOURS = ("magenta", "lime", "cyan")
"""Of the channels, which add up: two of them are told apart by people who are blind to red or green, too."""
_MOST = 3


@shared_docs
def composite(
    data: Data,
    metabolite: Sequence[str],
    *,
    metabolite_key: str = Key.obsm.MSI,
    layer: str | None = None,
    sample: str | Sequence[str] | None = None,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    colors: Sequence[ColorType] = COLOURS,
    percentiles: tuple[float, float] = PERCENTILES,
    spot_diameter: float | None = None,
    image: bool = False,
    alpha: float = 1.0,
    scalebar: bool = True,
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw two or three metabolites, ions or genes in one picture: where they are together, their colours add up.

    One panel per section. Each name is scaled by itself, over all sections drawn: black is its lower limit, its full colour the upper one.
    The picture shows where names are found together. It does not show how much of each there is: see :func:`stmsi.pl.spatial`.
    Grey spots lack a value of one of the names.

    Parameters
    ----------
    data
        SpatialData, or an AnnData of spots.
    metabolite
        Two or three names, as for :func:`stmsi.pl.spatial`: with ``table_key="msi"`` ions, drawn on their pixels.
    metabolite_key
        The layer of metabolites in ``obsm``.
    layer
        Layer of the table for genes and ions; `None`: ``X``.
    sample
        Sections to draw; `None`: all.
    %(tables)s
    colors
        A colour for each name.
    percentiles
        Percentiles at which each name is clipped.
    %(spots)s
    ncols
        Panels in a row.
    %(figure)s

    Raises
    ------
    KeyError
        Unknown name (near ones are suggested), section, table, layer or image.
    ValueError
        Not two or three names, fewer colours than names, or the number of axes is not the number of panels.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pl.composite(sdata, ["simPC(28:0)", "simPC(33:1)"], table_key="msi", sample="P1S1").get_title()
    'P1S1'
    """
    names = as_list(metabolite)
    if not 2 <= len(names) <= _MOST or len(colors) < len(names):
        msg = (
            f"A composite shows two or three names, each in a colour of its own; found {len(names)} names and {len(colors)} "
            "colours. Draw one name, or more, by stmsi.pl.spatial."
        )
        raise ValueError(msg)
    check_percentiles(percentiles)
    adata = get_table(data, table_key)
    require_rows(adata)
    layers = layers_of(adata, names, metabolite_key, layer)
    drawn = rows_drawn(adata, sample, sample_key)
    norms = [make_norm(one.values[drawn], bounds=one.bounds, percentiles=percentiles) for one in layers]
    full = np.array([to_rgb(colour) for colour in colors[: len(names)]])
    values = np.column_stack([one.values for one in layers])
    share = np.column_stack([np.clip(norm(v), 0, 1) for norm, v in zip(norms, values.T, strict=True)])
    rgb = np.clip(np.nan_to_num(np.ma.filled(share, 0)) @ full, 0, 1)
    rgb[np.isnan(values).any(axis=1)] = to_rgb(no_value())
    patches = [
        Patch(color=tuple(colour), label=wrap(one.short)) for colour, one in zip(full.tolist(), layers, strict=True)
    ]
    figure, axes = draw_coloured(
        data, adata, rgb, patches, sample=sample, sample_key=sample_key, spot_diameter=spot_diameter, image=image,
        alpha=alpha, scalebar=scalebar, ncols=ncols, ax=ax, figsize=figsize,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)
