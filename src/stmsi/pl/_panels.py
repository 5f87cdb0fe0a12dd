"""Panels: axes and how they are handed back, spots and scale bars in them."""

from __future__ import annotations

from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.transforms import Affine2D
from matplotlib_scalebar.scalebar import ScaleBar

from stmsi._data.metabolite_labels import Label
from stmsi.pl._sections import MANY
from stmsi.pl._style import PRESENT_LABEL, STYLE, ink, paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Patch
    from numpy.typing import NDArray

    from stmsi.pl._sections import Lattice, Section

MOST_PANELS = 150
"""In one figure: drawing so many takes seconds, and four in a row fill ten screens."""
_IN_COLUMN = 14
"""Entries of a key below one another."""
_BESIDE = (1.03, 0.0, 0.045, 1.0)
"""Place of a colour bar: at the right of the panel, in units of the axes."""


def draw_spots(
    ax: Axes,
    section: Section,
    values: NDArray[np.float64],
    *,
    norm: Normalize,
    cmap: Colormap,
    label: str,
    title: str,
    scalebar: bool,
    alpha: float = 1.0,
    outlined: bool = False,
    missing: str = "not measured",
) -> None:
    """Spots of a section, true to size, coloured by one value each; `values` are those of the section.

    `outlined` draws a hairline around each, for colour maps that are white in the middle.
    """
    prepare_panel(ax, section, title)
    lowest, highest = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    if isinstance(norm, LogNorm):
        # zero is covered and absent: the darkest colour, not the grey of NaN
        values = np.where(values <= 0, lowest, values)
    shown = np.ma.masked_invalid(values)
    paint: dict[str, Any] = {"cmap": cmap, "norm": norm, "alpha": alpha, "zorder": 2}
    spots: Collection | ScalarMappable
    if section.lattice is not None:
        spots = _add_lattice(ax, section.lattice, shown, **paint)
    else:
        outlined = outlined and len(shown) < MANY
        paint |= {"linewidths": 0.3, "edgecolors": ink(0.4)} if outlined else _seamless(section)
        spots = add_spots(ax, section, array=shown, **paint)
    if shown.count() == 0:
        box = {"facecolor": paper(), "edgecolor": "none", "alpha": 0.85, "pad": 2}
        centre: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, missing, **centre, fontsize=STYLE.label_size, bbox=box, zorder=3)
    else:
        low, high = bool(shown.min() < lowest), bool(shown.max() > highest)
        extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
        bar = colour_bar(ax, spots, label, extend=extend[low, high])
        if label == PRESENT_LABEL:
            bar.set_ticks([0, 1])
    if scalebar:
        scale_bar(ax, section)


def colour_bar(
    ax: Axes, drawn: Any, label: str, *, extend: str = "neither", box: tuple[float, float, float, float] = _BESIDE
) -> Colorbar:
    """A colour bar beside a panel; `box` is its place in units of the axes."""
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes(box), extend=extend)
    bar.set_label(label, fontsize=STYLE.label_size)
    bar.ax.tick_params(labelsize=STYLE.tick_size, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def add_spots(ax: Axes, section: Section, chosen: NDArray[np.bool_] | None = None, **paint: Any) -> Collection:
    """The spots of a section, or some of them, as circles or polygons of their true size."""
    chosen = np.ones(len(section.xy), dtype=bool) if chosen is None else chosen
    paint.setdefault("rasterized", bool(chosen.sum() >= MANY))
    spots: Collection
    if section.outlines is None:
        size = 2 * section.radius[chosen]
        place: dict[str, Any] = {"units": "xy", "offsets": section.xy[chosen], "offset_transform": ax.transData}
        spots = EllipseCollection(size, size, np.zeros(len(size)), **place, **paint)
    elif isinstance(section.outlines, np.ndarray):
        spots = PolyCollection(section.outlines[chosen], **paint)  # type: ignore[arg-type]
    else:
        spots = PolyCollection([o for o, c in zip(section.outlines, chosen, strict=True) if c], **paint)
    ax.add_collection(spots, autolim=False)
    return spots


def draw_colours(
    ax: Axes, section: Section, rgb: NDArray[np.float64], *, title: str, scalebar: bool, alpha: float = 1.0
) -> None:
    """Spots of a section, true to size, each in a colour of its own; `rgb` is of shape (spots, 3)."""
    prepare_panel(ax, section, title)
    rgba = np.column_stack([rgb, np.full(len(rgb), alpha)])
    if section.lattice is not None:
        _show_lattice(ax, section.lattice, rgba, zorder=2)
    else:
        add_spots(ax, section, facecolors=rgba, zorder=2, **_seamless(section))
    if scalebar:
        scale_bar(ax, section)


def _seamless(section: Section) -> dict[str, Any]:
    """Spots without an edge; pixels and bins reach a hair into each other, so that no background shines through."""
    return {"linewidths": 0} if section.outlines is None else {"linewidths": 0.5, "edgecolors": "face"}


def colour_key(ax: Axes, patches: Sequence[Patch], title: str | None = None) -> None:
    """What colours stand for, beside a panel."""
    legend = ax.legend(
        handles=list(patches), title=title, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False,
        fontsize=STYLE.label_size, title_fontsize=STYLE.label_size, ncols=1 + (len(patches) - 1) // _IN_COLUMN,
    )  # fmt: skip
    legend.set_zorder(3)


def _add_lattice(
    ax: Axes, lattice: Lattice, values: np.ma.MaskedArray, cmap: Colormap, norm: Normalize, alpha: float, zorder: float
) -> ScalarMappable:
    """Bins as the pixels of an image."""
    mappable = ScalarMappable(norm, cmap)
    mappable.set_array(values)
    _show_lattice(ax, lattice, mappable.to_rgba(values, alpha=alpha), zorder)
    return mappable


def _show_lattice(ax: Axes, lattice: Lattice, rgba: NDArray[Any], zorder: float) -> None:
    """An image of bins; where there is no bin, it is transparent."""
    height, width = lattice.shape
    picture = np.ones((height, width, 4), dtype=np.float32)
    picture[..., 3] = 0
    picture[lattice.row, lattice.col] = rgba
    ax.imshow(
        picture, extent=(0, width, height, 0), origin="upper", transform=Affine2D(lattice.matrix) + ax.transData,
        zorder=zorder, interpolation="antialiased",
    )  # fmt: skip


def prepare_panel(ax: Axes, section: Section, title: str, also: NDArray[np.float64] | None = None) -> None:
    """Limits (around `also` as well), aspect and direction of a panel, with the histology behind."""
    if section.histology is not None:
        picture = section.histology
        to_um = Affine2D(picture.matrix) + ax.transData
        ax.imshow(picture.pixels, extent=picture.extent, transform=to_um, origin="upper", zorder=1)
    corners = np.reshape(section.bounds, (2, 2))
    corners = corners if also is None else np.vstack([corners, also])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    border = STYLE.margin * max(right - left, bottom - top)
    # y points down, as in images; below is room for the scale bar
    ax.set(aspect="equal", xlim=(left - border, right + border), xticks=[], yticks=[])
    ax.set_ylim(bottom + border + STYLE.foot * (bottom - top), top - border)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=STYLE.title_size)


def scale_bar(ax: Axes, section: Section) -> None:
    """A scale bar in micrometres, in the free strip under the section; none where the unit of the positions is not known."""
    if section.um_per_unit is None:
        return
    place: dict[str, Any] = {"location": "lower right", "scale_loc": "left", "border_pad": 0.2, "pad": 0.1, "sep": 3}
    look: dict[str, Any] = {"length_fraction": 0.3, "width_fraction": 0.012, "box_alpha": 0.0, "color": ink()}
    ax.add_artist(ScaleBar(section.um_per_unit, units="um", font_properties={"size": STYLE.tick_size}, **look, **place))


def label_plot(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Labels of a plot of scores, without the frame at the top and at the right."""
    ax.set_xlabel(x, fontsize=STYLE.label_size)
    ax.set_ylabel(y, fontsize=STYLE.label_size)
    ax.set_title(title, fontsize=STYLE.title_size)
    ax.tick_params(which="both", labelsize=STYLE.tick_size)
    ax.spines[["top", "right"]].set_visible(False)


def jitter(n: int) -> NDArray[np.float64]:
    """Steps of the golden ratio, -0.5 to 0.5: they spread `n` points evenly, and alike in every run."""
    return np.asarray(np.arange(n) * 0.618034 % 1 - 0.5, dtype=np.float64)


def wrap(*lines: str | Label) -> str:
    """Lines of a title; long ones are broken, those with the name of a metabolite only behind a slash."""
    width = STYLE.title_width
    return "\n".join(
        "\n".join(line.lines(width)) if isinstance(line, Label) else fill(line, width) for line in lines if line
    )


def cut(text: str, most: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def check_least(value: int, least: int, name: str) -> None:
    """Raise where a number is too small."""
    if value < least:
        msg = f"{name} must be at least {least}, found {value!r}."
        raise ValueError(msg)


def get_axes(
    n: int,
    ncols: int,
    ax: Axes | Sequence[Axes] | None,
    size: tuple[float, float],
    figsize: tuple[float, float] | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """`n` axes: the user's own, or a new figure's, as large as the user wants it or with panels of `size` inches."""
    if ax is not None:
        axes = [ax] if isinstance(ax, Axes) else list(np.asarray(ax, dtype=object).ravel())
        if len(axes) != n:
            msg = f"ax holds {len(axes)} axes, but there are {n} panels; give {n} axes, or ax=None for a new figure."
            raise ValueError(msg)
        return axes[0].figure, axes
    if n > MOST_PANELS:
        msg = (
            f"{n} panels do not fit into one figure, at most {MOST_PANELS} do; name fewer metabolites or sections and draw "
            "the others in another call, or hand over axes of your own (ax=)."
        )
        raise ValueError(msg)
    check_least(ncols, 1, "ncols")
    ncols = min(ncols, n)
    nrows = ceil(n / ncols)
    inches = (ncols * size[0], nrows * size[1]) if figsize is None else check_figsize(figsize)
    figure, grid = plt.subplots(nrows, ncols, figsize=inches, squeeze=False, layout="constrained")
    for spare in grid.ravel()[n:]:
        spare.remove()
    return figure, list(grid.ravel()[:n])


def check_figsize(figsize: tuple[float, float]) -> tuple[float, float]:
    """Raise where a size is not two lengths."""
    if np.shape(figsize) != (2,) or not all(side > 0 for side in figsize):
        msg = f"figsize is the width and height of the figure in inches, two positive numbers; found {figsize!r}."
        raise ValueError(msg)
    return float(figsize[0]), float(figsize[1])


def panel_size(sections: Sequence[Section], title_lines: int) -> tuple[float, float]:
    """Inches of a panel with its title and colour bar."""
    width = STYLE.panel_height * max(s.aspect for s in sections)
    return width + 0.75, STYLE.panel_height + 0.17 * title_lines


def hand_back(
    figure: Figure | SubFigure,
    axes: list[Axes],
    *,
    ax: object,
    show: bool | None,
    return_fig: bool,
    title: str | Sequence[str] | None = None,
) -> Axes | list[Axes] | Figure | SubFigure:
    """What a plot returns: its axes, or its figure; under the user's own titles where there are any."""
    if title is not None:
        titles = [title] if isinstance(title, str) else [str(t) for t in title]
        if title == "":
            titles = [""] * len(axes)
        if len(titles) != len(axes):
            if ax is None:
                plt.close(figure)  # type: ignore[arg-type]
            msg = f"title holds {len(titles)} titles, but there are {len(axes)} panels; give one for each."
            raise ValueError(msg)
        for place, text in zip(axes, titles, strict=True):
            place.title.set_text(text)  # font and distance stay as they are
    if show and ax is None:
        plt.show()
    if return_fig:
        return figure
    return axes if len(axes) > 1 else axes[0]
