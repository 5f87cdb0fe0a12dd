"""Layers x sections as a grid of panels, and sections in given colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stmsi._data.tables import sections_of, table_sections
from stmsi.pl._colour_limits import check_percentiles, fill_norm, get_cmap, make_norm
from stmsi.pl._metabolite_layers import table_samples
from stmsi.pl._panels import colour_key, draw_colours, draw_spots, get_axes, panel_size, wrap
from stmsi.pl._sections import load_section
from stmsi.pl._style import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Patch
    from numpy.typing import NDArray

    from stmsi._data.checks import Data
    from stmsi.pl._metabolite_layers import Layer


@dataclass(frozen=True)
class Colours:
    """How values become colours, as the user asked for it."""

    norm: Normalize | None = None
    vmin: float | None = None
    vmax: float | None = None
    percentiles: tuple[float, float] = PERCENTILES
    share_norm: bool = True
    cmap: str | Colormap | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.norm is not None and not (self.vmin is None and self.vmax is None):
            msg = "Give either norm or vmin and vmax: a norm has limits of its own."
            raise ValueError(msg)
        check_percentiles(self.percentiles)

    def of(self, layer: Layer, values: NDArray[np.float64]) -> Normalize:
        """The norm of some values of a layer."""
        if self.norm is not None:
            return self.norm
        return make_norm(values, vmin=self.vmin, vmax=self.vmax, bounds=layer.bounds, percentiles=self.percentiles)


def draw_grid(
    data: Data,
    adata: AnnData,
    layers: Sequence[Layer],
    colours: Colours,
    *,
    sample: str | Sequence[str] | None,
    sample_key: str,
    spot_diameter: float | None,
    image: bool,
    ncols: int,
    scalebar: bool,
    ax: Axes | Sequence[Axes] | None,
    figsize: tuple[float, float] | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """A panel per layer and section, section by section within each layer."""
    names = table_samples(adata, sample_key, sample)
    options = {"sample_key": sample_key, "spot_diameter": spot_diameter, "image": image}
    sections = [load_section(data, adata, name, **options) for name in names]  # type: ignore[arg-type]
    # only then must titles tell which section is which
    several = len(table_sections(adata, sample_key)) > 1 and (sample is None or len(names) > 1)
    if len(layers) > 1 and 1 < len(sections) <= ncols:
        ncols = ncols // len(sections) * len(sections)  # the sections of a layer stay in one row
    lines = max(wrap(*layer.title.splitlines()).count("\n") for layer in layers) + 1
    figure, axes = get_axes(len(layers) * len(sections), ncols, ax, panel_size(sections, lines + several), figsize)
    drawn = np.concatenate([s.rows for s in sections])
    if colours.norm is not None:
        fill_norm(colours.norm, np.concatenate([layer.values[drawn] for layer in layers]), colours.percentiles)
    place = iter(axes)
    for layer in layers:
        shared = colours.of(layer, layer.values[drawn])
        for section in sections:
            values = layer.values[section.rows]
            draw_spots(
                next(place),
                section,
                values,
                norm=shared if colours.share_norm else colours.of(layer, values),
                cmap=get_cmap(colours.cmap, layer.cmap),
                label=layer.label,
                title=wrap(*layer.title.splitlines(), section.name if several else ""),
                scalebar=scalebar,
                alpha=colours.alpha,
                missing="not measured" if layer.measured else "no values",
            )
    return figure, axes


def rows_drawn(adata: AnnData, sample: str | Sequence[str] | None, sample_key: str) -> NDArray[np.int64]:
    """Rows of the sections asked for."""
    return np.flatnonzero(np.isin(sections_of(adata, sample_key).astype(str), table_samples(adata, sample_key, sample)))


def draw_coloured(
    data: Data,
    adata: AnnData,
    rgb: NDArray[np.float64],
    patches: Sequence[Patch],
    *,
    sample: str | Sequence[str] | None,
    sample_key: str,
    spot_diameter: float | None,
    image: bool,
    alpha: float,
    scalebar: bool,
    ncols: int,
    ax: Axes | Sequence[Axes] | None,
    figsize: tuple[float, float] | None = None,
    key_title: str | None = None,
) -> tuple[Figure | SubFigure, list[Axes]]:
    """A panel per section, each observation in a colour of its own; `rgb` is of shape (observations, 3), `patches` say what it means."""
    sections = [
        load_section(data, adata, name, sample_key=sample_key, spot_diameter=spot_diameter, image=image)
        for name in table_samples(adata, sample_key, sample)
    ]
    figure, axes = get_axes(len(sections), ncols, ax, panel_size(sections, 1), figsize)
    for place, section in zip(axes, sections, strict=True):
        draw_colours(place, section, rgb[section.rows], title=wrap(section.name), scalebar=scalebar, alpha=alpha)
    colour_key(axes[-1], patches, title=key_title)
    return figure, axes
