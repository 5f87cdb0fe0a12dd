"""Regions, clusters and other labels of spots or pixels on the tissue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from stmsi._data.checks import listing, require_rows
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_obs
from stmsi.pl._panel_grid import draw_coloured, rows_drawn
from stmsi.pl._panels import hand_back, wrap
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PALETTE, no_value, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.typing import ColorType

    from stmsi._data.checks import Data

_MOST = 60


@shared_docs
def regions(
    data: Data,
    key: str,
    *,
    sample: str | Sequence[str] | None = None,
    table_key: str = Key.table.ST,
    sample_key: str = Key.obs.SAMPLE,
    palette: Mapping[str, ColorType] | Sequence[ColorType] | None = None,
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
    """Draw regions, clusters or other labels on the tissue, with spots and pixels true to size.

    One panel per section, with one colour for each label in all of them. Grey spots have no label.

    Parameters
    ----------
    data
        SpatialData, or an AnnData of spots.
    key
        Column of ``obs`` with labels: ``"cluster"``, ``"domain"``, ``"msi_pred_trained_on"``, ``"patient"``.
    sample
        Sections to draw; `None`: all.
    %(tables)s
    palette
        Colours by label, or in the order of the labels; `None`: ``uns["<key>_colors"]``, where scanpy keeps them, else colours that are safe
        for red-green colour blindness.
    %(spots)s
    ncols
        Panels in a row.
    %(figure)s

    Raises
    ------
    KeyError
        No such column (near ones are suggested), section, table or image.
    ValueError
        A column of numbers, more than 60 labels, labels without a colour, or the number of axes is not the number of panels.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pl.regions(sdata, "domain", sample="P1S1").get_title()
    'P1S1'
    """
    adata = get_table(data, table_key)
    require_rows(adata)
    column = require_obs(adata, key, "It holds the labels to draw. ")
    if pd.api.types.is_float_dtype(column):
        msg = f"obs[{key!r}] holds numbers ({column.dtype}), not labels; draw them by stmsi.pl.spatial."
        raise ValueError(msg)
    labels = column.astype("category")
    names = [str(name) for name in labels.cat.categories]
    if len(names) > _MOST:
        msg = f"obs[{key!r}] has {len(names):,} labels, of which a picture can show {_MOST}: {listing(names)}."
        raise ValueError(msg)
    colours = _colours(adata, key, names, palette)
    # the last colour is that of spots without a label, whose code is -1
    table = np.array([*(to_rgb(colours[name]) for name in names), to_rgb(no_value())])
    code = labels.cat.codes.to_numpy()
    drawn = np.unique(code[rows_drawn(adata, sample, sample_key)])
    patches = [Patch(color=colours[names[number]], label=wrap(names[number])) for number in drawn if number >= 0]
    figure, axes = draw_coloured(
        data, adata, table[code], patches, sample=sample, sample_key=sample_key, spot_diameter=spot_diameter, image=image,
        alpha=alpha, scalebar=scalebar, ncols=ncols, ax=ax, figsize=figsize, key_title=key,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _colours(
    adata: AnnData, key: str, names: list[str], palette: Mapping[str, ColorType] | Sequence[ColorType] | None
) -> dict[str, ColorType]:
    """A colour for each label."""
    kept = adata.uns.get(f"{key}_colors")
    if palette is None and kept is not None and len(kept) >= len(names):
        palette = [str(colour) for colour in kept]
    if palette is None:
        from matplotlib import colormaps

        few = len(names) <= len(PALETTE)
        palette = (
            [tone(k) for k in range(len(names))]
            if few
            else [colormaps["turbo"](x) for x in np.linspace(0.03, 0.97, len(names))]
        )
    pairs = palette.items() if isinstance(palette, Mapping) else zip(names, palette, strict=False)
    found = {str(name): colour for name, colour in pairs}
    lacking = [name for name in names if name not in found]
    if lacking:
        msg = f"palette has no colour for {listing(lacking)}; it names {listing(found)}."
        raise ValueError(msg)
    return found
