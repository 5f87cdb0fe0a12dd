"""Where on the tissue a gene contributes to a metabolite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing, require_rows, suggest
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import Label, label
from stmsi._data.tables import get_table, require_frame, require_metabolites
from stmsi.pl._gene_maps import control_of, is_attention, record_of
from stmsi.pl._metabolite_layers import Layer, as_list, intensity_label, labelled_features
from stmsi.pl._panel_grid import Colours, draw_grid
from stmsi.pl._panels import check_least, hand_back, wrap
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PERCENTILES, RESIDUAL_CMAP

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure

    from stmsi._data.checks import Data

_MOST = 99.0
"""Percentile of the magnitude at which colours end."""


@shared_docs
def attention_spatial(
    data: Data,
    metabolite: str,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = Key.varm.ATTENTION,
    n_top: int = 3,
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
    """Draw where on the tissue genes contribute to a metabolite by its attention, with spots true to size.

    One panel per gene and section, coloured by attention x value x slope in each spot, in the unit of the intensity. The
    contributions of all genes add up to the linear part of the intensity. The title of the first gene says whether the attention passed its
    control: held-out sections must be predicted better than with attention made uniform.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.attention` with `per_spot`.
    metabolite
        Id or readable name of a metabolite in `per_spot`.
    genes
        One or several genes; `None`: the `n_top` genes whose contributions vary most.
    key
        What :func:`stmsi.tl.attention` wrote.
    n_top
        See `genes`.
    %(grid)s
    vmin, vmax
        Colour limits, in the unit of the intensity; `None`: `percentiles`, symmetric around 0.
    %(colours)s
    cmap
        Colour map; `None`: RdBu_r.
    %(spots)s
    %(figure)s

    Raises
    ------
    KeyError
        No contributions in single spots (the message names the call that makes it); unknown metabolite, gene, section or image.
    ValueError
        `key` is an attribution, which has no values of single spots; or the number of axes is wrong.
    TypeError
        `image` with an AnnData, which holds none.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleNet.setup_anndata(st)
    >>> model = stmsi.model.HurdleNet(st, encoder="transformer", n_nets=2)
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> stmsi.tl.attention(st, model, per_spot="simPC(28:0)", show_progress_bar=False)
    >>> gene = st.obsm["msi_attention_simPC_28_0"].columns[0]
    >>> ax = stmsi.pl.attention_spatial(sdata, "simPC(28:0)", gene, sample="P1S1")
    >>> ax.get_title().splitlines()[0] == gene
    True
    """
    colours = Colours(norm, vmin, vmax, percentiles, share_norm, cmap, alpha)
    check_least(n_top, 1, "n_top")
    adata = get_table(data, table_key)
    require_rows(adata)
    record = record_of(adata, key)
    identifier, made = _per_spot(adata, key, record, metabolite)
    name = label(labelled_features(adata, Key.obsm.PRED), identifier)
    unit = f"contribution\n{intensity_label(adata, Key.obsm.MSI)}"
    layers = _gene_layers(name, made, genes, n_top, control_of(record), unit)
    figure, axes = draw_grid(
        data, adata, layers, colours, sample=sample, sample_key=sample_key, spot_diameter=spot_diameter, image=image,
        ncols=ncols, scalebar=scalebar, ax=ax, figsize=figsize,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _per_spot(adata: AnnData, key: str, record: dict[str, Any], metabolite: str) -> tuple[str, pd.DataFrame]:
    """Id of a metabolite, and the contributions to it in every spot."""
    if not is_attention(record):
        msg = (
            f"{key!r} is an attribution, which has no values of single spots; draw it with pl.attention_heatmap, or groups of "
            "spots with groupby= of stmsi.tl.attribute."
        )
        raise ValueError(msg)
    kept = [str(m) for m in record.get("params", {}).get("per_spot", [])]
    names = record["metabolites"][Key.var.NAME].astype(str)
    every = pd.Index(dict.fromkeys([*names.index.astype(str), *kept]))
    asked = metabolite if metabolite in every or metabolite in set(names) else safe_ids([metabolite])[0]
    (identifier,) = require_metabolites([asked if asked in every else metabolite], every, names)
    where = Key.group_of(key, identifier)
    if identifier not in kept or where not in adata.obsm:
        msg = (
            f"Contributions to {metabolite!r} in single spots were not kept; they were for {listing(kept)}. Call "
            f"stmsi.tl.attention(data, model, per_spot={metabolite!r}), which writes obsm[{where!r}]."
        )
        raise KeyError(msg)
    return identifier, require_frame(adata, where)


def _gene_layers(
    name: Label, made: pd.DataFrame, genes: str | Sequence[str] | None, n_top: int, control: str, unit: str
) -> list[Layer]:
    """A layer for each gene; the title of the first also bears the control."""
    wanted = list(made.std().nlargest(n_top).index) if genes is None else as_list(genes, "gene")
    layers: list[Layer] = []
    for gene in wanted:
        if gene not in made:
            hint = suggest(gene, made.columns)
            msg = f"No gene {gene!r} in the attention; the model uses {listing(made.columns)}.{hint}"
            raise KeyError(msg)
        values = made[gene].to_numpy(np.float64)
        # as many below 0 as above
        most = max(float(np.nanpercentile(np.abs(values), _MOST)), 1e-12)
        title = wrap(gene, name, "" if layers else control)
        layers.append(Layer(title, values, unit, (-most, most), RESIDUAL_CMAP))
    return layers
