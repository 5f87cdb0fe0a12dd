"""Metabolites against the genes that they attend to."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from scipy.cluster.hierarchy import dendrogram, linkage, optimal_leaf_ordering
from scipy.spatial.distance import pdist

from stmsi._data.checks import check_choice, listing, suggest
from stmsi._data.keys import Key
from stmsi._data.metabolite_labels import DESCRIBING, label, short_labels
from stmsi._data.tables import get_table
from stmsi.pl._attention_bars import draw_bars
from stmsi.pl._colour_limits import check_percentiles, clipped_limits, diverging_norm, get_cmap
from stmsi.pl._gene_maps import DriverMap, Values, control_of, driver_map, known_genes, record_of
from stmsi.pl._metabolite_layers import as_list, intensity_label, labelled_features
from stmsi.pl._panels import MOST_PANELS, check_figsize, check_least, colour_bar, get_axes, hand_back, wrap
from stmsi.pl._shared_docs import shared_docs
from stmsi.pl._style import INTENSITY_CMAP, PALETTE, RESIDUAL_CMAP, STYLE, ink, tone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

    from stmsi._data.checks import Data

Scale = Literal["row", "metabolites"]
_LEAST = 1e-12
_CELL = 0.17
"""In inches; less where there are many."""
_LABELLED = 70
"""Rows or columns up to which each bears its name."""
_MOST_ROWS = 500
_GAP, _STRIP, _TREE, _BAR, _BESIDE = 0.05, 0.13, 0.4, 1.4, 1.1
"""Inches between parts, of a strip of colours, of a tree, of the longest colour bar, and of its width with numbers and label."""


def _per_inch(ax: Axes) -> tuple[float, float]:
    """What an inch is in units of the axes, to the right and upwards."""
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    return dpi / box.width, dpi / box.height


@shared_docs
def attention_heatmap(
    data: Data,
    *,
    key: str = Key.varm.ATTENTION,
    values: Values = "contributions",
    metabolites: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    n_genes: int = 40,
    group: str | Sequence[str] | None = None,
    cluster: bool = True,
    scale: Scale | None = None,
    prior_key: str = Key.varm.PRIOR,
    percentiles: tuple[float, float] = (0.0, 99.0),
    cmap: str | Colormap | None = None,
    table_key: str = Key.table.ST,
    title: str | Sequence[str] | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | SubFigure:
    """Draw what each metabolite makes of the genes that it attends to, or which genes drive it.

    Of attention, contributions are drawn: what one standard deviation of a gene adds to the intensity, of groups of spots the mean
    contribution there; or weights, as multiples of an even share (1: all genes got the same). Of attribution it is the
    standardised effect. The title says whether the attention passed its control: held-out sections must be predicted better than
    with attention made uniform. Rows and columns are clustered (average linkage on correlation). White dots mark genes
    that are known to make, use or carry the metabolite; a strip at the right shows its class. A single metabolite is drawn as bars, one for
    each gene: blue adds, orange subtracts.

    Parameters
    ----------
    data
        SpatialData or its ST table, after :func:`stmsi.tl.attention` or :func:`stmsi.tl.attribute`.
    key
        What to draw: ``"msi_attention"`` or ``"attribution"`` (or the `key_added` of those calls).
    values
        Of attention: ``"contributions"``, in the unit of the intensities, or ``"weights"``.
    metabolites
        Ids or readable names; `None`: all that are stored.
    genes
        Genes to draw; `None`: the best of each metabolite in turn, `n_genes` in all.
    n_genes
        See `genes`.
    group
        One or several groups of spots that were stored with ``groupby=``, a panel each in one order and one norm; `None`:
        all spots.
    cluster
        Whether to cluster rows and columns; otherwise they stay as they are stored or named.
    scale
        ``"row"``: each metabolite divided by its largest magnitude, to read weak ones as well. ``"metabolites"``, for
        weights of attention: log2 of the ratio to the mean over the drawn metabolites, to see what sets one apart.
    prior_key
        Known genes in ``varm``, as :func:`stmsi.pp.knowledge_prior` writes them; where it is missing, those of
        :func:`stmsi.datasets.core_metabolites`.
    percentiles
        Percentiles at which colours are clipped.
    cmap
        Colour map; `None`: viridis, or RdBu_r where values have a sign. Bars have none.
    table_key
        The ST table of a SpatialData.
    %(figure)s

    Raises
    ------
    KeyError
        Nothing is stored (the message names the call that makes it), or an unknown metabolite, gene or group.
    ValueError
        A `scale` that does not fit, or more than 500 metabolites.

    Examples
    --------
    >>> import stmsi
    >>> sdata = stmsi.datasets.toy()
    >>> stmsi.pp.align(sdata)
    >>> stmsi.pp.map_to_spots(sdata)
    >>> st = sdata.tables["st"]
    >>> stmsi.model.HurdleLinear.setup_anndata(st)
    >>> model = stmsi.model.HurdleLinear(st, intensity="ridge")
    >>> model.train(show_progress_bar=False)
    >>> stmsi.tl.attribute(st, model)
    >>> ax = stmsi.pl.attention_heatmap(st, key="attribution", n_genes=20)
    >>> len(ax.get_yticklabels()), len(ax.get_xticklabels())
    (12, 20)
    """
    check_choice(values, get_args(Values), "values")
    if scale is not None:
        check_choice(scale, get_args(Scale), "scale")
    percentiles = check_percentiles(percentiles)
    check_least(n_genes, 1, "n_genes")
    adata = get_table(data, table_key)
    wanted = None if metabolites is None else as_list(metabolites)
    groups = [None] if group is None else as_list(group, "group")
    maps = [driver_map(adata, key, values, g, wanted) for g in groups]
    first = maps[0]
    if len(first.values) > _MOST_ROWS:
        msg = f"{len(first.values)} metabolites do not fit into one heat map, at most {_MOST_ROWS} do; name them: metabolites=."
        raise ValueError(msg)
    known, classes = known_genes(adata, prior_key, list(first.values.index), first.names)
    scaled = [_in_units(m, scale) for m in maps]
    columns = _columns(first, scaled, genes, n_genes)
    tables = [m[:, first.values.columns.get_indexer(pd.Index(columns))] for m in scaled]
    control = control_of(record_of(adata, key)) if first.is_attention else ""
    features = _features(adata, first)
    unit = _unit(first, scale, intensity_label(adata, Key.obsm.MSI))
    if len(first.values) == 1:
        identifier = str(first.values.index[0])
        heads = [wrap(label(features, identifier), "" if name is None else name, control) for name in groups]
        marked = known.reindex(columns, fill_value=False)[identifier].to_numpy(bool)
        bars = [pd.Series(table[0], index=columns) for table in tables]
        figure, axes = draw_bars(bars, marked, heads, unit, ordered=cluster and genes is None, ax=ax, figsize=figsize)
        return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)
    mean = np.mean(tables, axis=0)
    row, row_tree = _order(mean, cluster)
    col, col_tree = _order(mean.T, cluster)

    cells = np.concatenate([t.ravel() for t in tables])
    signed = bool((cells < 0).any())
    norm = diverging_norm(cells, percentiles[1]) if signed else Normalize(*clipped_limits(cells, percentiles))
    colours = get_cmap(cmap, RESIDUAL_CMAP if signed else INTENSITY_CMAP)
    ids = first.values.index
    rows = short_labels(features, [str(m) for m in ids])
    names, of_row = [rows[i] for i in row], classes.reindex(ids).iloc[row].tolist()
    figure, axes = _heat_axes(len(groups), ax, columns, names, classes, figsize)
    marks = known.reindex(columns, fill_value=False).to_numpy(bool).T[row][:, col]
    for place, table, name in zip(axes, tables, groups, strict=True):
        mesh = place.pcolormesh(table[row][:, col], norm=norm, cmap=colours, rasterized=table.size > 10_000)
        place.set_xlim(0, len(columns))
        place.set_ylim(len(mean), 0)
        _names(place, "y", names)
        _names(place, "x", [columns[j] for j in col])
        wide, high = _per_inch(place)
        handles, right = _mark(place, marks), _GAP
        if any(of_row):
            handles += _class_strip(place, of_row, (1 + right * wide, 0.0, _STRIP * wide, 1.0))
            right += _STRIP + _GAP
        if row_tree is not None:
            _tree(place, row_tree, (1 + right * wide, 0.0, _TREE * wide, 1.0), at_right=True)
            right += _TREE
        if col_tree is not None:
            _tree(place, col_tree, (0.0, 1 + _GAP * high, 1.0, _TREE * high), at_right=False)
        right += 2 * _GAP
        box = (1 + right * wide, 0.0, _STRIP * wide, min(1.0, _BAR * high))
        colour_bar(place, mesh, unit, box=box)
        if handles and place is axes[-1]:
            # above the colour bar where there is room for both
            right += 0.0 if 1 / high >= _BAR + 0.15 * (len(handles) + 1) else _BESIDE
            place.legend(
                handles=handles, loc="upper left", bbox_to_anchor=(1 + right * wide, 1.0), frameon=False,
                fontsize=STYLE.tick_size, handlelength=0.8, borderaxespad=0, borderpad=0,
            )  # fmt: skip
        head = "\n".join(line for line in (name, control) if line)
        if head or title is not None:
            place.set_title(head, fontsize=STYLE.title_size, pad=6 if col_tree is None else 72 * (_TREE + 2 * _GAP))
        place.spines[:].set_visible(False)
    return hand_back(figure, axes, ax=ax, show=show, return_fig=return_fig, title=title)


def _columns(
    part: DriverMap, scaled: list[NDArray[np.float64]], genes: str | Sequence[str] | None, n_genes: int
) -> list[str]:
    """Genes to draw."""
    available = part.values.columns
    if genes is not None:
        wanted = as_list(genes, "gene")
        unknown = [g for g in wanted if g not in available]
        if unknown:
            hint = suggest(unknown[0], available)
            msg = f"The model does not use the genes {listing(unknown)}; it uses {listing(available)}.{hint}"
            raise KeyError(msg)
        return list(dict.fromkeys(wanted))
    # the best of each metabolite, then the second of each, ...
    size = np.max(np.abs(scaled), axis=0)
    ranked = np.argsort(-size, axis=1, kind="stable").T.ravel()
    chosen = list(dict.fromkeys(ranked.tolist()))[:n_genes]
    return [str(g) for g in available[chosen]]


def _in_units(part: DriverMap, scale: Scale | None) -> NDArray[np.float64]:
    """Values to draw: weights of attention as a multiple of an even share."""
    values, shares = part.values.to_numpy(), part.is_attention and part.of == "weights"
    if scale == "metabolites":
        if not shares:
            what = (
                "contributions have not; use values='weights'" if part.is_attention else "an attribution has not; use"
            )
            what += ", or" if part.is_attention else ""
            msg = f"scale='metabolites' compares shares, which {what} scale='row' or None."
            raise ValueError(msg)
        return np.log2(np.maximum(values, _LEAST) / np.maximum(values.mean(axis=0), _LEAST))
    if shares:
        values = values * values.shape[1]
    if scale == "row":
        largest = np.abs(values).max(axis=1, keepdims=True)
        values = values / np.where(largest > 0, largest, 1)
    return values


def _features(adata: AnnData, part: DriverMap) -> pd.DataFrame:
    """Feature table for the labels of the rows."""
    known = labelled_features(adata, Key.obsm.PRED)
    names = part.names.rename(Key.var.NAME).to_frame()
    if known is None:
        return names
    return names.join(known[[c for c in DESCRIBING if c in known]], how="left")


def _unit(part: DriverMap, scale: Scale | None, intensity: str) -> str:
    if scale == "metabolites":
        return "attention, log2 of the\nratio to all metabolites"
    unit = "standardised effect (s.d.)"
    if part.is_attention:
        unit = "attention / even share" if part.of == "weights" else f"contribution\n{intensity}"
    return f"{unit},\nlargest of each row = 1" if scale == "row" else unit


def _order(values: NDArray[np.float64], cluster: bool) -> tuple[NDArray[np.int64], dict[str, Any] | None]:
    """Rows by average linkage on correlation, neighbours alike, and the tree; rows without variation are all alike."""
    if not cluster or len(values) < 3 or values.shape[1] < 2:
        return np.arange(len(values)), None
    distance = pdist(values, "correlation")
    distance = np.clip(np.where(np.isfinite(distance), distance, 1.0), 0, None)
    tree = dendrogram(optimal_leaf_ordering(linkage(distance, "average"), distance), no_plot=True)
    return np.asarray(tree["leaves"], dtype=np.int64), tree


def _heat_axes(
    n: int,
    ax: Axes | Sequence[Axes] | None,
    labels: list[str],
    rows: list[str],
    classes: pd.Series,
    figsize: tuple[float, float] | None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """The user's axes, or new ones with square cells and room for all that stands around them."""
    if ax is not None or n > MOST_PANELS:
        return get_axes(n, 2, ax, (1, 1))
    n_rows = len(rows)
    wide, high = (
        max(1.5, _CELL * (k if k <= _LABELLED else _LABELLED + (k - _LABELLED) / 5)) for k in (len(labels), n_rows)
    )
    left = _text_inches(rows) if n_rows <= _LABELLED else 0.2
    below = _text_inches(labels) if len(labels) <= _LABELLED else 0.2
    right = _TREE + _STRIP + max(0.9, 0.25 + _text_inches([*classes, "known gene"])) + 6 * _GAP
    if high < _BAR + 0.15 * (classes.nunique() + 2):
        right += _BESIDE
    panel = left + wide + right + 0.15, high + below + _TREE + 0.4
    n_cols = min(n, 2)
    n_lines = ceil(n / n_cols)
    if figsize is not None:
        whole = check_figsize(figsize)
        wide, high = max(0.5, wide + whole[0] / n_cols - panel[0]), max(0.5, high + whole[1] / n_lines - panel[1])
        panel = whole[0] / n_cols, whole[1] / n_lines
    # no layout engine: it would stretch the cells, and what is placed in their units
    figure = plt.figure(figsize=(n_cols * panel[0], n_lines * panel[1]))
    axes = []
    for i in range(n):
        line, col = divmod(i, n_cols)
        corner = (col + (left + 0.08) / panel[0]) / n_cols, (n_lines - 1 - line + (below + 0.08) / panel[1]) / n_lines
        axes.append(figure.add_axes((*corner, wide / panel[0] / n_cols, high / panel[1] / n_lines)))
    return figure, axes


def _text_inches(texts: Iterable[Any]) -> float:
    """Width of the longest text beside the cells, with room for the hinting of small pictures."""
    widths = (TextPath((0, 0), str(text) or "-", size=STYLE.tick_size).get_extents().width for text in texts)
    return 1.12 * max(widths) / 72


def _names(ax: Axes, axis: Literal["x", "y"], names: list[str]) -> None:
    """Names of rows or columns, where there is room for them."""
    own = ax.yaxis if axis == "y" else ax.xaxis
    if len(names) > _LABELLED:
        own.set_label_text(f"{len(names)} {'metabolites' if axis == 'y' else 'genes'}", fontsize=STYLE.label_size)
        names = []
    own.set_ticks(np.arange(len(names)) + 0.5, names, fontsize=STYLE.tick_size, rotation=0 if axis == "y" else 90)
    ax.tick_params(axis=axis, length=0)


def _mark(ax: Axes, known: NDArray[np.bool_]) -> list[Line2D | Patch]:
    """Dots on known genes, which are seen on dark and on light cells; what the legend says of them."""
    row, col = np.nonzero(known)
    if len(row) == 0:
        return []
    dot: dict[str, Any] = {"marker": "o", "markersize": 4, "color": "white", "linestyle": "none"}
    dot |= {"markeredgecolor": "black", "markeredgewidth": 0.6}
    ax.plot(col + 0.5, row + 0.5, **dot)
    return [Line2D([], [], label="known gene", **dot)]


def _class_strip(ax: Axes, classes: list[str], box: tuple[float, ...]) -> list[Line2D | Patch]:
    """Colours of classes beside the rows; what the legend says of them."""
    present = [c for c in dict.fromkeys(classes) if c]
    first = sorted(present, key=lambda c: -classes.count(c))[: len(PALETTE)]
    if len(present) > len(PALETTE):
        first = first[:-1]
    colour_of = {name: tone(k) for k, name in enumerate(first)}
    strip = ax.inset_axes(box)  # type: ignore[arg-type]
    colour = [colour_of.get(c, ink(0.15) if c else "none") for c in classes]
    strip.barh(np.arange(len(classes)) + 0.5, 1, height=1, color=colour)
    strip.set_xlim(0, 1)
    strip.set_ylim(len(classes), 0)
    strip.axis("off")
    if len(present) > len(first):
        colour_of["other"] = ink(0.15)
    return [Patch(color=value, label=name) for name, value in colour_of.items()]


def _tree(ax: Axes, tree: dict[str, Any], box: tuple[float, ...], *, at_right: bool) -> None:
    """The tree of a clustering beside the rows or above the columns."""
    place, n = ax.inset_axes(box), len(tree["leaves"])  # type: ignore[arg-type]
    for along, height in zip(tree["icoord"], tree["dcoord"], strict=True):
        at = np.asarray(along) / 10  # scipy puts leaves at 5, 15, 25, ...
        place.plot(*((height, at) if at_right else (at, height)), color=ink(0.65), linewidth=0.6)
    if at_right:
        place.set(ylim=(n, 0), xlim=(0, None))
    else:
        place.set(xlim=(0, n), ylim=(0, None))
    place.axis("off")
