"""Sections: spots true to size in micrometres, with the histology behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import is_spatialdata, listing
from stmsi._data.elements import matrix_to
from stmsi._data.keys import Key
from stmsi._data.sections import VISIUM_PITCH, VISIUM_SPOT_DIAMETER
from stmsi._data.spot_scale import pitch_of, told_scale
from stmsi._data.tables import instances, require_frame, sections_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._data.checks import Data

_IMAGE_PIXELS = 1500
"""Longer side to which histology is thinned: a panel shows no more."""
MANY = 5000
"""Spots from which on single ones are hardly seen: drawn as pixels, also in vector graphics."""
_BENT = 0.5
"""Share of a pixel by which its centre may lie off a straight raster."""
_SNAP = 0.05
"""Share of a bin by which its centre may lie off the lattice."""


@dataclass(frozen=True)
class Histology:
    """The image behind a section; `matrix` is the affine from pixels to micrometres, 3 x 3."""

    pixels: NDArray[Any]
    extent: tuple[float, float, float, float]
    matrix: NDArray[np.float64]


@dataclass(frozen=True)
class Lattice:
    """Bins without gaps between them as the pixels of an image; `matrix` takes their corners to micrometres, 3 x 3."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    matrix: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.row.max()) + 1, int(self.col.max()) + 1

    @classmethod
    def find(cls, outlines: NDArray[np.float64]) -> Lattice | None:
        """The lattice that parallelograms of one size lie on, shape (n, 5, 2); `None` where there is none."""
        corner = outlines[:, 0]
        side = np.stack([outlines[0, 1] - corner[0], outlines[0, 3] - corner[0]])
        size = np.sqrt(abs(np.linalg.det(side)))
        if not size > 0 or np.abs((outlines - corner[:, None]) - (outlines[0] - corner[0])).max() > _SNAP * size:
            return None
        place = (corner - corner[0]) @ np.linalg.inv(side)
        at = np.rint(place).astype(np.int64)
        if np.abs(place - at).max() > _SNAP:
            return None
        first = at.min(axis=0)
        (col, row), (width, height) = (at - first).T, np.ptp(at, axis=0) + 1
        # a few bins far apart would make an image of nothing
        if height * width > 20 * len(at) or len(np.unique(row * width + col)) < len(at):
            return None
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = side.T, corner[0] + first @ side
        return cls(row, col, matrix)


@dataclass(frozen=True)
class Section:
    """The spots of a section, in micrometres or, where the table holds others, in the unit of its positions."""

    name: str
    rows: NDArray[np.int64]  # of the table
    xy: NDArray[np.float64]
    radius: NDArray[np.float64]
    # vertices, where spots are polygons (bins) and not circles; one array where all have the same number
    outlines: NDArray[np.float64] | tuple[NDArray[np.float64], ...] | None = None
    histology: Histology | None = None
    um_per_unit: float | None = 1.0  # of the positions; `None` where it is not known

    @cached_property
    def lattice(self) -> Lattice | None:
        """Where many bins lie without gaps, as in Visium HD."""
        if not isinstance(self.outlines, np.ndarray) or len(self.rows) < MANY or self.outlines.shape[1] != 5:
            return None
        return Lattice.find(self.outlines)

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all spots."""
        points = self.xy if self.outlines is None else np.vstack(self.outlines)  # type: ignore[arg-type]
        reach = self.radius[:, None] if self.outlines is None else 0.0
        (left, top), (right, bottom) = (points - reach).min(axis=0), (points + reach).max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    @property
    def aspect(self) -> float:
        """Width over height of a panel with this section."""
        left, top, right, bottom = self.bounds
        return float(np.clip((right - left) / (1.1 * (bottom - top)), 0.5, 2.5))


def load_section(
    data: Data, adata: AnnData, sample: str, *, sample_key: str, spot_diameter: float | None = None, image: bool = False
) -> Section:
    """Positions and true sizes of the spots of a section."""
    rows = np.flatnonzero(sections_of(adata, sample_key) == sample)
    xy = require_frame(adata, Key.obsm.SPATIAL, "It holds the spot centres in micrometres.").to_numpy(dtype=float)
    xy = xy[rows, :2]
    if spot_diameter is not None and not spot_diameter > 0:
        msg = f"spot_diameter is a positive number of micrometres, found {spot_diameter!r}."
        raise ValueError(msg)
    placed = is_spatialdata(data) and _is_placed(data, adata, sample, rows)
    um_per_unit = 1.0 if placed else told_scale(adata[rows], sample)
    diameter = spot_diameter or VISIUM_SPOT_DIAMETER
    if um_per_unit is not None:
        diameter /= um_per_unit
    elif spot_diameter is None:  # as wide, beside their distance, as those of Visium
        pitch = pitch_of(xy)
        diameter *= pitch / VISIUM_PITCH if np.isfinite(pitch) and pitch > 0 else 1.0
    radius = np.full(len(rows), diameter / 2)
    outlines: NDArray[np.float64] | tuple[NDArray[np.float64], ...] | None
    outlines = None if spot_diameter is not None else _squares(adata, rows, xy)
    histology = None
    if is_spatialdata(data):
        if spot_diameter is None:
            radius, shapes = _true_size(data, adata, sample, rows, radius)
            outlines = outlines if shapes is None else shapes
        if image:
            histology = _histology(data, sample)
    elif image:
        msg = f"image=True needs a SpatialData with an image {Key.image(sample)!r}; found {type(data).__name__}."
        raise TypeError(msg)
    return Section(sample, rows, xy, radius, outlines, histology, um_per_unit)


def _is_placed(sdata: SpatialData, adata: AnnData, sample: str, rows: NDArray[np.int64]) -> bool:
    """Whether the shapes of a section lie in one of its frames, which are in micrometres."""
    name = _element_name(sdata, adata, sample, rows)
    return name is not None and any(
        matrix_to(sdata.shapes[name], frame) is not None for frame in (Key.st_frame(sample), Key.msi_frame(sample))
    )


def _squares(adata: AnnData, rows: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Corners of MSI pixels that have no shapes, (pixels, 5, 2), from their places on the raster; `None` for spots.

    The raster may be turned, stretched or mirrored, as an alignment left it.
    """
    if Key.var.MZ not in adata.var or Key.obs.ROW not in adata.obs or Key.obs.COL not in adata.obs or len(rows) < 3:
        return None
    place = adata.obs[[Key.obs.COL, Key.obs.ROW]].iloc[rows].to_numpy(dtype=np.float64)
    if not np.isfinite(place).all() or not np.isfinite(xy).all():
        return None
    design = np.column_stack([place, np.ones(len(place))])
    fit, _, rank, _ = np.linalg.lstsq(design, xy, rcond=None)
    side = float(np.sqrt(abs(np.linalg.det(fit[:2]))))
    if rank < 3 or not side > 0 or np.abs(design @ fit - xy).max() > _BENT * side:
        return None
    corner = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    return xy[:, None] + corner @ fit[:2]


def _true_size(
    sdata: SpatialData, adata: AnnData, sample: str, rows: NDArray[np.int64], default: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | tuple[NDArray[np.float64], ...] | None]:
    """Radii (um) or outlines of spots from their shapes element; the default where it does not hold them."""
    import shapely

    name = _element_name(sdata, adata, sample, rows)
    if name is None:
        return default, None
    element = sdata.shapes[name]
    at = element.index.get_indexer(instances(adata)[rows])
    if (at < 0).any():
        return default, None
    matrix = _to_frame(element, sample)
    if "radius" in element:
        scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        return element["radius"].to_numpy(dtype=float)[at] * scale, None
    shapes = element.geometry.to_numpy()[at]
    shapes = np.where(shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON, shapes, shapely.convex_hull(shapes))
    vertices, of = shapely.get_coordinates(shapely.get_exterior_ring(shapes), return_index=True)
    vertices = vertices @ matrix[:2, :2].T + matrix[:2, 2]
    number = np.bincount(of)
    if (number == number[0]).all():
        return default, vertices.reshape(len(number), -1, 2)
    return default, tuple(np.split(vertices, np.cumsum(number)[:-1]))


def _element_name(sdata: SpatialData, adata: AnnData, sample: str, rows: NDArray[np.int64]) -> str | None:
    """Shapes that the observations of a section annotate: spots, or pixels where they lie after the alignment."""
    attrs = adata.uns.get("spatialdata_attrs")
    if attrs is None or len(rows) == 0:
        return None
    column = adata.obs.get(attrs.get("region_key"))
    name = Key.spots(sample) if column is None else str(column.iloc[rows[0]])
    if name == Key.pixels(sample) and Key.warped_pixels(sample) in sdata.shapes:
        name = Key.warped_pixels(sample)
    return name if name in sdata.shapes else None


def _to_frame(element: Any, sample: str) -> NDArray[np.float64]:
    """Affine of an element into the section's frame (um), else into that of its MSI; identity where it has a place in neither."""
    frames = (matrix_to(element, frame) for frame in (Key.st_frame(sample), Key.msi_frame(sample)))
    return next((matrix for matrix in frames if matrix is not None), np.eye(3))


def _histology(sdata: SpatialData, sample: str) -> Histology:
    """The histology image of a section, thinned to what a panel can show."""
    name = Key.image(sample)
    if name not in sdata.images:
        msg = f"No image {name!r} to draw behind section {sample!r}; images: {listing(sdata.images)}. Use image=False."
        raise KeyError(msg)
    element = sdata.images[name]
    scales = image_scales(element)
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


def image_scales(element: Any) -> list[Any]:
    """Images of an element, finest first: one, or those of a pyramid."""
    if hasattr(element, "dims") and "c" in element.dims:
        return [element]
    return [next(iter(element[level].ds.data_vars.values())) for level in element.children]
