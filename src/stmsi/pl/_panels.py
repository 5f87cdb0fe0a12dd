"""What the plots share: sections, spots true to size, colour norms, axes and how they are handed back."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.transforms import Affine2D
from matplotlib_scalebar.scalebar import ScaleBar

from stmsi._elements import VISIUM_SPOT_DIAMETER
from stmsi._keys import Key
from stmsi._validate import (
    instances,
    is_spatialdata,
    listing,
    require_frame,
    require_metabolites,
    require_sample,
    suggest,
)
from stmsi.get._feature_table import base_key, find_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._validate import Data

INTENSITY_CMAP = "viridis"
RESIDUAL_CMAP = "RdBu_r"
WIDTH_CMAP = "plasma"
PERCENTILES = (1.0, 99.0)
PRESENT_LABEL = "present"
"""Colour bar of measured presence, which is 0 or 1 and nothing between."""
_IMAGE_PIXELS = 1500
"""Longer side to which histology is thinned: a panel shows no more."""


@dataclass(frozen=True)
class Style:
    """How a panel looks."""

    not_covered: str = "#dcdcdc"
    title_size: float = 9
    label_size: float = 8
    tick_size: float = 7
    title_width: int = 34
    margin: float = 0.03
    """Free border, as a share of the section's longer side."""
    foot: float = 0.11
    """Free strip under the section, where the scale bar covers no spot."""
    panel_height: float = 2.5
    """In inches."""


STYLE = Style()


@dataclass(frozen=True)
class Histology:
    """The image behind a section."""

    pixels: NDArray[Any]
    extent: tuple[float, float, float, float]
    matrix: NDArray[np.float64]
    """Affine from pixels to micrometres, 3 x 3."""


@dataclass(frozen=True)
class Section:
    """The spots of a section, in micrometres."""

    name: str
    rows: NDArray[np.int64]
    """Rows of the table."""
    xy: NDArray[np.float64]
    radius: NDArray[np.float64]
    outlines: tuple[NDArray[np.float64], ...] = ()
    """Vertices, where the spots are polygons (bins) and not circles."""
    histology: Histology | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all spots."""
        points = np.vstack(self.outlines) if self.outlines else self.xy
        reach = 0.0 if self.outlines else self.radius[:, None]
        (left, top), (right, bottom) = (points - reach).min(axis=0), (points + reach).max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    @property
    def aspect(self) -> float:
        """Width over height of a panel with this section."""
        left, top, right, bottom = self.bounds
        return float(np.clip((right - left) / (1.1 * (bottom - top)), 0.5, 2.5))


@dataclass(frozen=True)
class Layer:
    """One value per spot, and how it is named and coloured."""

    title: str
    values: NDArray[np.float64]
    label: str
    bounds: tuple[float, float] | None = None
    """Limits of the colours where the values have natural ones."""


def table_samples(adata: AnnData, sample_key: str, sample: str | Sequence[str] | None) -> list[str]:
    """The sections asked for; `None`: all of them."""
    present = list(dict.fromkeys(map(str, require_sample(adata, sample_key))))
    if sample is None:
        return present
    wanted = [sample] if isinstance(sample, str) else [str(s) for s in sample]
    unknown = [s for s in wanted if s not in present]
    if unknown or not wanted:
        msg = f"No section {listing(unknown)}; sections: {listing(present)}.{suggest(unknown[0], present) if unknown else ''}"
        raise KeyError(msg)
    return wanted


def as_list(names: str | Sequence[str], what: str = "metabolite") -> list[str]:
    """One name or several as a list."""
    out = [names] if isinstance(names, str) else [str(n) for n in names]
    if not out:
        msg = f"Name at least one {what}."
        raise ValueError(msg)
    return out


def readable_names(adata: AnnData, key: str, columns: pd.Index) -> pd.Series:
    """Readable name of each metabolite of a layer; its id where none is known."""
    names = pd.Series(columns.astype(str), index=columns.astype(str), dtype=object)
    features = find_features(adata, key)
    if features is None:
        features = find_features(adata, Key.obsm.MSI)
    if features is not None and Key.var.NAME in features:
        known = features[Key.var.NAME].astype(str)
        known = known[(known != "") & known.index.isin(names.index)]
        names.loc[known.index] = known
    return names


def trust(adata: AnnData, key: str, metabolite: str) -> str:
    """The tier that :func:`stmsi.tl.reliability` gave a predicted metabolite, for titles; empty where there is none."""
    features = find_features(adata, key)
    if features is None or Key.var.TIER not in features or metabolite not in features.index:
        return ""
    return f"trust: {features[Key.var.TIER].loc[metabolite]!s}"


def resolve(adata: AnnData, key: str, frame: pd.DataFrame, metabolites: Sequence[str]) -> tuple[list[str], pd.Series]:
    """Ids of the metabolites asked for, and the readable names of all."""
    columns = frame.columns.astype(str)
    names = readable_names(adata, key, columns)
    return require_metabolites(metabolites, columns, names), names


def column(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """One metabolite of a layer as floats."""
    j = list(frame.columns.astype(str)).index(name)
    return frame.iloc[:, j].to_numpy(dtype=np.float64, na_value=np.nan)


def is_presence(key: str) -> bool:
    """Whether a layer holds presence, 0 to 1."""
    return key == Key.obsm.TRUTH_PRESENCE or key.endswith(Key.presence_of(""))


def intensity_label(adata: AnnData, key: str) -> str:
    """What the colours of a layer mean."""
    if is_presence(key):
        return PRESENT_LABEL if key in (Key.obsm.PRESENCE, Key.obsm.TRUTH_PRESENCE) else "P(present)"
    if key == Key.obsm.TRUTH_INTENSITY:
        return "intensity"
    params: Any = adata.uns.get(Key.uns.MSI, {})
    for name in ("params", "normalize_msi", "log1p"):
        params = params.get(name, {}) if isinstance(params, dict) else {}
    logged = base_key(key) in (Key.obsm.MSI, Key.obsm.PRED) and params not in ({}, False)
    return "log1p intensity" if logged else "intensity"


def load_section(
    data: Data,
    adata: AnnData,
    sample: str,
    *,
    sample_key: str,
    spot_diameter: float | None = None,
    image: bool = False,
) -> Section:
    """Positions and true sizes of the spots of a section."""
    rows = np.flatnonzero(require_sample(adata, sample_key) == sample)
    xy = require_frame(adata, Key.obsm.SPATIAL, "It holds the spot centres in micrometres.").to_numpy(dtype=float)
    xy = xy[rows, :2]
    if spot_diameter is not None and not spot_diameter > 0:
        msg = f"spot_diameter is a positive number of micrometres, found {spot_diameter!r}."
        raise ValueError(msg)
    radius = np.full(len(rows), (spot_diameter or VISIUM_SPOT_DIAMETER) / 2)
    outlines: tuple[NDArray[np.float64], ...] = ()
    histology = None
    if is_spatialdata(data):
        if spot_diameter is None:
            radius, outlines = _true_size(data, adata, sample, rows, radius)
        if image:
            histology = _histology(data, sample)
    elif image:
        msg = f"image=True needs a SpatialData with an image {Key.image(sample)!r}; found {type(data).__name__}."
        raise TypeError(msg)
    return Section(sample, rows, xy, radius, outlines, histology)


def _true_size(
    sdata: SpatialData, adata: AnnData, sample: str, rows: NDArray[np.int64], default: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], ...]]:
    """Radii (um) or outlines of spots from their shapes element; the default where it does not hold them."""
    import shapely

    element = sdata.shapes.get(Key.spots(sample)) if Key.spots(sample) in sdata.shapes else None
    if element is None or "spatialdata_attrs" not in adata.uns:
        return default, ()
    at = element.index.get_indexer(instances(adata)[rows])
    if (at < 0).any():
        return default, ()
    matrix = _to_frame(element, sample)
    if "radius" in element:
        scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        return element["radius"].to_numpy(dtype=float)[at] * scale, ()
    shapes = element.geometry.to_numpy()[at]
    shapes = np.where(shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON, shapes, shapely.convex_hull(shapes))
    vertices, of = shapely.get_coordinates(shapely.get_exterior_ring(shapes), return_index=True)
    vertices = vertices @ matrix[:2, :2].T + matrix[:2, 2]
    return default, tuple(np.split(vertices, np.flatnonzero(np.diff(of)) + 1))


def _to_frame(element: Any, sample: str) -> NDArray[np.float64]:
    """Affine of an element into the section's frame (um); identity where the element has no place in it."""
    from spatialdata.transformations import get_transformation

    to_frame = get_transformation(element, get_all=True).get(Key.st_frame(sample))
    return np.eye(3) if to_frame is None else to_frame.to_affine_matrix(("x", "y"), ("x", "y"))


def _histology(sdata: SpatialData, sample: str) -> Histology:
    """The histology image of a section, thinned to what a panel can show."""
    name = Key.image(sample)
    if name not in sdata.images:
        msg = f"No image {name!r} to draw behind section {sample!r}; images: {listing(sdata.images)}. Use image=False."
        raise KeyError(msg)
    element = sdata.images[name]
    scales = [element] if hasattr(element, "dims") and "c" in element.dims else _scales(element)
    full = scales[0].transpose("c", "y", "x")
    height, width = full.shape[1:]
    # the coarsest scale that is still fine enough
    enough = [s for s in scales if max(s.sizes["y"], s.sizes["x"]) >= min(_IMAGE_PIXELS, max(height, width))]
    coarse = enough[-1].transpose("c", "y", "x")
    step = max(1, ceil(max(coarse.shape[1:]) / _IMAGE_PIXELS))
    pixels = np.moveaxis(np.asarray(coarse[:, ::step, ::step].data), 0, -1)
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / np.iinfo(pixels.dtype).max
    pixels = np.clip(pixels.astype(np.float32), 0, 1)
    # one channel is grey; of more than three, the first three
    pixels = np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] < 3 else pixels[..., :3]
    return Histology(pixels, (0.0, float(width), float(height), 0.0), _to_frame(element, sample))


def _scales(pyramid: Any) -> list[Any]:
    """Images of a multiscale element, finest first."""
    return [next(iter(pyramid[level].ds.data_vars.values())) for level in pyramid.children]


def clipped_limits(
    values: NDArray[np.float64], percentiles: tuple[float, float] = PERCENTILES, *, positive: bool = False
) -> tuple[float, float]:
    """Colour limits at two percentiles of the finite values.

    A metabolite in less than one percent of the spots would vanish between its percentiles: it gets its full range.
    """
    finite = values[np.isfinite(values) & ((values > 0) if positive else True)]
    if len(finite) == 0:
        return (1.0, 10.0) if positive else (0.0, 1.0)
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    if high <= low:
        high = low * 10 if positive else low + 1
    return low, high


def make_norm(
    values: NDArray[np.float64],
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    bounds: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
) -> Normalize:
    """A linear norm, clipped at percentiles where no limit is given."""
    low, high = clipped_limits(values, percentiles) if bounds is None else bounds
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if not low < high:
        if vmin is not None and vmax is not None:
            msg = f"vmin must be smaller than vmax, found {vmin!r} and {vmax!r}."
            raise ValueError(msg)
        low, high = (low, low + 1) if vmax is None else (high - 1, high)
    return Normalize(low, high)


def diverging_norm(values: NDArray[np.float64], percentile: float = PERCENTILES[1]) -> Normalize:
    """A norm with 0 in its middle."""
    finite = np.abs(values[np.isfinite(values)])
    reach = float(np.percentile(finite, percentile)) if len(finite) else 0.0
    reach = reach or float(finite.max(initial=0)) or 1.0
    return Normalize(-reach, reach)


def fill_norm(norm: Normalize, values: NDArray[np.float64], percentiles: tuple[float, float] = PERCENTILES) -> None:
    """Fill the open limits of a user's norm, as matplotlib's own autoscaling does."""
    low, high = clipped_limits(values, percentiles, positive=isinstance(norm, LogNorm))
    norm.vmin = low if norm.vmin is None else norm.vmin
    norm.vmax = high if norm.vmax is None else norm.vmax


def check_percentiles(percentiles: tuple[float, float]) -> tuple[float, float]:
    """Raise where two percentiles are no range."""
    low, high = percentiles
    if not 0 <= low < high <= 100:
        msg = f"percentiles are two rising numbers between 0 and 100, found {percentiles!r}."
        raise ValueError(msg)
    return float(low), float(high)


def get_cmap(cmap: str | Colormap | None, default: str) -> Colormap:
    """A colour map in which NaN is the grey of spots that are not covered."""
    found = cmap if isinstance(cmap, Colormap) else colormaps[cmap or default]
    return found.with_extremes(bad=STYLE.not_covered)


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
    paint: dict[str, Any] = {"array": shown, "cmap": cmap, "norm": norm, "alpha": alpha, "zorder": 2}
    paint |= {"linewidths": 0.3, "edgecolors": "0.6"} if outlined else {"linewidths": 0}
    spots: PolyCollection | EllipseCollection
    if section.outlines:
        spots = PolyCollection(section.outlines, **paint)
    else:
        size = 2 * section.radius
        spots = EllipseCollection(
            size, size, np.zeros(len(size)), units="xy", offsets=section.xy, offset_transform=ax.transData, **paint
        )
    ax.add_collection(spots, autolim=False)
    if shown.count() == 0:
        ax.text(
            0.5,
            0.5,
            missing,
            transform=ax.transAxes,
            ha="center",
            va="center",
            fontsize=STYLE.label_size,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2},
            zorder=3,
        )
    else:
        low, high = bool(shown.min() < lowest), bool(shown.max() > highest)
        cax = ax.inset_axes((1.03, 0.0, 0.045, 1.0))
        extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
        bar = ax.figure.colorbar(spots, cax=cax, extend=extend[low, high])
        bar.set_label(label, fontsize=STYLE.label_size)
        if label == PRESENT_LABEL:
            bar.set_ticks([0, 1])
        bar.ax.tick_params(labelsize=STYLE.tick_size, length=2)
        bar.outline.set_visible(False)  # type: ignore[operator]
    if scalebar:
        scale_bar(ax)


def prepare_panel(ax: Axes, section: Section, title: str) -> None:
    """Limits, aspect and direction of a panel, with the histology behind."""
    if section.histology is not None:
        picture = section.histology
        to_um = Affine2D(picture.matrix) + ax.transData
        ax.imshow(picture.pixels, extent=picture.extent, transform=to_um, origin="upper", zorder=1)
    left, top, right, bottom = section.bounds
    border = STYLE.margin * max(right - left, bottom - top)
    foot = STYLE.foot * (bottom - top)
    ax.set_aspect("equal")
    ax.set_xlim(left - border, right + border)
    # y points down, as in images
    ax.set_ylim(bottom + border + foot, top - border)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title, fontsize=STYLE.title_size)


def scale_bar(ax: Axes) -> None:
    """A scale bar in micrometres, in the free strip under the section."""
    ax.add_artist(
        ScaleBar(
            1,
            units="um",
            length_fraction=0.3,
            width_fraction=0.012,
            location="lower right",
            scale_loc="left",
            border_pad=0.2,
            pad=0.1,
            sep=3,
            box_alpha=0.0,
            color="black",
            font_properties={"size": STYLE.tick_size},
        )
    )


def wrap(*lines: str) -> str:
    """Lines of a title; long names are broken."""
    return "\n".join(fill(line, STYLE.title_width) for line in lines if line)


def get_axes(
    n: int, ncols: int, ax: Axes | Sequence[Axes] | None, size: tuple[float, float]
) -> tuple[Figure | SubFigure, list[Axes]]:
    """`n` axes: the user's own, or a new figure's with panels of `size` inches."""
    if ax is not None:
        axes = [ax] if isinstance(ax, Axes) else list(np.asarray(ax, dtype=object).ravel())
        if len(axes) != n:
            msg = f"ax holds {len(axes)} axes, but there are {n} panels; give {n} axes, or ax=None for a new figure."
            raise ValueError(msg)
        return axes[0].figure, axes
    if ncols < 1:
        msg = f"ncols must be at least 1, found {ncols!r}."
        raise ValueError(msg)
    ncols = min(ncols, n)
    nrows = ceil(n / ncols)
    figure, grid = plt.subplots(
        nrows, ncols, figsize=(ncols * size[0], nrows * size[1]), squeeze=False, layout="constrained"
    )
    for spare in grid.ravel()[n:]:
        spare.remove()
    return figure, list(grid.ravel()[:n])


def panel_size(sections: Sequence[Section], title_lines: int) -> tuple[float, float]:
    """Inches of a panel with its title and colour bar."""
    width = STYLE.panel_height * max(s.aspect for s in sections)
    return width + 0.75, STYLE.panel_height + 0.17 * title_lines


def hand_back(
    figure: Figure | SubFigure, axes: list[Axes], *, ax: object, show: bool | None, return_fig: bool
) -> Axes | list[Axes] | Figure | SubFigure:
    """What a plot returns: its axes, or its figure."""
    if show and ax is None:
        plt.show()
    if return_fig:
        return figure
    return axes if len(axes) > 1 else axes[0]
