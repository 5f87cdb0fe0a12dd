"""Metabolites, ion images, genes and columns of obs on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stmsi._data.checks import require_rows
from stmsi._data.keys import Key
from stmsi._data.tables import get_table
from stmsi.pl._metabolite_layers import as_list, layers_of
from stmsi.pl._panel_grid import Colours, draw_grid
from stmsi.pl._panels import hand_back
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    layer: str | None = None,
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
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw metabolites, genes, ion images or columns of ``obs`` on the tissue, with spots and pixels true to size.

    One panel per name and section: name by name, within each section by section. Light grey spots are not
    covered by MSI (NaN); the colour of 0 means covered and absent. y points down, as in images.

    With ``table_key="msi"`` the panels are ion images: the pixels of the MSI table as squares, in the place that the alignment gave
    them, else in the frame of their raster.

    Parameters
    ----------
    data
        SpatialData, or an AnnData of spots.
    metabolite
        One or several names. Of the ST table: ids or readable names of metabolites, numeric columns of ``obs`` such as
        ``"msi_coverage"`` or ``"msi_pred_ood"``, or genes; in this order, where one name is several of these. Of the MSI table: ions by id
        or name, or columns of ``obs``.
    metabolite_key
        The layer in ``obsm`` to draw: ``"msi"``, ``"msi_presence"``, ``"msi_pred"``, ``"msi_pred_presence"``,
        ``"msi_pred_lower"``, ..., or ``"msi_pred_width"``, the width of the prediction interval.
    layer
        Layer of the table for genes and ions; `None`: ``X``.
    %(grid)s
    vmin, vmax
        Colour limits of all panels; `None`: `percentiles`, and 0 to 1 for presence and coverage.
    %(colours)s
    cmap
        Colour map; `None`: viridis.
    %(spots)s
    %(figure)s

    Raises
    ------
    KeyError
        Unknown name (near ones are suggested), section, table, layer or image.
    ValueError
        A column of ``obs`` is not numeric, a name is that of several ions or genes, the number of axes is not the number of panels, or limits contradict.
    TypeError
        `image` with an AnnData, which holds none.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> axes = stmsi.pl.spatial(sdata, ["simPC(28:0)", "msi_coverage"], sample="P1S1")
    >>> [ax.get_title().splitlines() for ax in axes]
    [['simPC(28:0) [M+H]+', 'm/z 518.9531'], ['msi_coverage']]
    >>> stmsi.pl.spatial(sdata, "simPC(28:0)", table_key="msi", sample="P1S1", title="ion image").get_title()
    'ion image'
    """
    colours = Colours(norm, vmin, vmax, percentiles, share_norm, cmap, alpha)
    adata = get_table(data, table_key)
    require_rows(adata)
    figure, axes = draw_grid(
        data, adata, layers_of(adata, as_list(metabolite), metabolite_key, layer), colours, sample=sample, sample_key=sample_key,
        spot_diameter=spot_diameter, image=image, ncols=ncols, scalebar=scalebar, ax=ax, figsize=figsize,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)
