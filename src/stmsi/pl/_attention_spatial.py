"""Where on the tissue a metabolite attends to a gene or a programme."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import listing, require_rows, suggest
from stmsi._data.keys import Key
from stmsi._data.tables import get_table, require_frame, require_metabolites
from stmsi.pl._gene_maps import is_attention, programme_labels, record_of
from stmsi.pl._metabolite_layers import Layer, as_list
from stmsi.pl._panel_grid import Colours, draw_grid
from stmsi.pl._panels import check_least, hand_back
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure

    from stmsi._data.checks import Data

_CMAP = "cividis"
"""Another one than for intensities, so that nobody mixes them up."""


@shared_docs
def attention_spatial(
    data: Data,
    metabolite: str,
    tokens: str | Sequence[str] | None = None,
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
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw where on the tissue a metabolite attends to genes or programmes, with spots true to size.

    One panel per gene or programme and section, coloured by its share of the metabolite's attention in each spot (%). Where
    the tokens of the model are programmes, a gene gets the attention of each programme times its share in the programme.

    Attention says where the network looks, not what it makes of it; see the page on interpretation in the user guide.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.attention` with `per_spot`.
    metabolite
        Id or readable name of a metabolite in `per_spot`.
    tokens
        One or several programmes (``"programme01"``) or genes; `None`: the `n_top` tokens of the model with the largest mean.
    key
        What :func:`stmsi.tl.attention` wrote.
    n_top
        See `tokens`.
    %(grid)s
    vmin, vmax
        Colour limits, in per cent; `None`: `percentiles`.
    %(colours)s
    cmap
        Colour map; `None`: cividis.
    %(spots)s
    %(figure)s

    Raises
    ------
    KeyError
        No attention of single spots (the message names the call that makes it); unknown metabolite, gene, section or image.
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
    >>> model = stmsi.model.HurdleNet(st, encoder="transformer", encoder_kwargs={"n_hidden": 16, "n_tokens": 10})
    >>> model.train(max_epochs=2, show_progress_bar=False)
    >>> stmsi.tl.attention(st, model, per_spot="simPC(28:0)", show_progress_bar=False)
    >>> ax = stmsi.pl.attention_spatial(sdata, "simPC(28:0)", "programme04", sample="P1S1")
    >>> ax.get_title().splitlines()[0]
    'simPC(28:0), programme 04'
    """
    colours = Colours(norm, vmin, vmax, percentiles, share_norm, cmap, alpha)
    check_least(n_top, 1, "n_top")
    adata = get_table(data, table_key)
    require_rows(adata)
    record = record_of(adata, key)
    name, weights = _per_spot(adata, key, record, metabolite)
    layers = _token_layers(adata, key, name, weights, tokens, n_top)
    figure, axes = draw_grid(
        data, adata, layers, colours, sample=sample, sample_key=sample_key, spot_diameter=spot_diameter, image=image,
        ncols=ncols, scalebar=scalebar, ax=ax,
    )  # fmt: skip
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig)


def _per_spot(adata: AnnData, key: str, record: dict[str, Any], metabolite: str) -> tuple[str, pd.DataFrame]:
    """Readable name of a metabolite, and its attention in every spot."""
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
            f"The attention of {metabolite!r} in single spots was not kept; it was for {listing(kept)}. Call "
            f"stmsi.tl.attention(data, model, per_spot={metabolite!r}), which writes obsm[{where!r}]."
        )
        raise KeyError(msg)
    return str(names.get(identifier, identifier)), require_frame(adata, where)


def _token_layers(
    adata: AnnData, key: str, name: str, weights: pd.DataFrame, tokens: str | Sequence[str] | None, n_top: int
) -> list[Layer]:
    """A layer, in per cent, for each gene or programme."""
    shares = adata.varm.get(Key.programmes_of(key))
    labels = pd.Series(weights.columns, index=weights.columns)
    if isinstance(shares, pd.DataFrame):
        labels = "programme " + programme_labels(adata, key).str.replace(": ", "\n")
        shares = shares.dropna()
    else:
        shares = pd.DataFrame()
    wanted = list(weights.mean().nlargest(n_top).index) if tokens is None else as_list(tokens, "gene or programme")
    layers = []
    for token in wanted:
        if token in weights:
            values, label = weights[token].to_numpy(np.float64), str(labels[token])
        elif token in shares.index:
            share = shares.loc[token, list(weights.columns)].to_numpy(np.float64)
            values, label = weights.to_numpy(np.float64) @ share, token
        else:
            known = [*weights.columns, *shares.index]
            msg = (
                f"No programme or gene {token!r} in the attention; programmes or genes: {listing(known)}."
                f"{suggest(token, known)}"
            )
            raise KeyError(msg)
        layers.append(Layer(f"{name}, {label}", 100 * values, "attention (%)", cmap=_CMAP))
    return layers
