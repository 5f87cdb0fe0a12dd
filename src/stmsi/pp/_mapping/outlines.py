"""Where the spots and the aligned pixels of a section lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from stmsi._core.mapping.nearest_pixels import assignment, lattice_pitch, nearest_spots
from stmsi._core.mapping.overlap import Edges, circle_polygon_overlap, edges_of_rings, oriented_edges, polygon_overlap
from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.elements import annotated_rows, matrix_to, shapes_of
from stmsi._data.keys import Key

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_MAX_RATIO = 500.0
"""Beyond this ratio of spot to pixel size one of them is in another unit: bins of 2 um on pixels of 200 um have 100."""


class Circles(NamedTuple):
    """Spots that are circles."""

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]


@dataclass(frozen=True)
class SectionGeometry:
    """Outlines of the spots and pixels of a section, in the order of their tables.

    Overlaps are computed in the frame in which the spots are stored. There a circle is a circle, whatever the way into
    the ST frame, and shares of areas are the same in both.
    """

    name: str
    spots_to_frame: NDArray[np.float64]
    pixels_to_frame: NDArray[np.float64]
    origin: NDArray[np.float64]  # a place in the section: far-off coordinates cost no precision
    spots: Circles | Edges  # relative to the origin
    every_spot: NDArray[np.object_]  # of the element, as stored
    rows: NDArray[np.int64]  # of the table's spots in the element
    vertices: NDArray[np.float64]  # of the pixels, as stored, ring after ring
    ring: NDArray[np.int64]
    n_pixels: int

    def moved(self, matrix: NDArray[np.float64]) -> SectionGeometry:
        """The section with its pixels moved within the ST frame."""
        return replace(self, pixels_to_frame=matrix @ self.pixels_to_frame)

    def overlap(self) -> tuple[sp.csr_matrix, NDArray[np.float64], NDArray[np.float64]]:
        """Areas shared by spots and pixels, of the spots and of the pixels, in the squared unit of the spots' frame."""
        into = np.linalg.inv(self.spots_to_frame) @ self.pixels_to_frame
        pixels = edges_of_rings(apply_affine(into, self.vertices) - self.origin, self.ring, self.n_pixels)
        if isinstance(self.spots, Circles):
            return circle_polygon_overlap(*self.spots, pixels), np.pi * self.spots.radii**2, pixels.area
        return polygon_overlap(self.spots, pixels), self.spots.area, pixels.area

    def nearest(self, max_distance: float | None) -> tuple[sp.csr_matrix, float]:
        """Weights of 1 for the pixels of each spot, and how far a pixel may lie from its spot (um)."""
        points = self.every_spot if isinstance(self.spots, Circles) else shapely.centroid(self.every_spot)
        centres = apply_affine(self.spots_to_frame, shapely.get_coordinates(points))
        if max_distance is None:
            max_distance = 0.5 * lattice_pitch(centres)
            if not max_distance > 0:
                msg = (
                    f"Section {self.name!r}: the pitch of {len(centres)} spot(s) is unknown or 0; pass max_distance= "
                    "(um), usually half the distance between neighbouring spots."
                )
                raise ValueError(msg)
        corner = apply_affine(self.pixels_to_frame, self.vertices)
        first = np.searchsorted(self.ring, np.arange(self.n_pixels))
        count = np.bincount(self.ring, minlength=self.n_pixels) - 1  # the last vertex is the first again
        once = np.ones(len(corner), dtype=bool)
        once[first + count] = False
        middle = np.add.reduceat(corner[once], first - np.arange(self.n_pixels)) / count[:, None]
        spot = nearest_spots(middle, centres, max_distance)
        # pixels whose nearest spot is not in the table are nobody's
        position = np.full(len(centres), -1)
        position[self.rows] = np.arange(len(self.rows))
        return assignment(np.where(spot >= 0, position[spot], -1), len(self.rows)), float(max_distance)

    def extent(self) -> str:
        """Boxes of spots and pixels in the ST frame, for a message."""
        boxes = []
        for what, matrix, xy in (
            ("spots", self.spots_to_frame, shapely.get_coordinates(self.every_spot[self.rows])),
            ("pixels", self.pixels_to_frame, self.vertices),
        ):
            placed = apply_affine(matrix, xy)
            (x0, y0), (x1, y1) = placed.min(axis=0), placed.max(axis=0)
            boxes.append(f"{what} x {x0:.4g} to {x1:.4g}, y {y0:.4g} to {y1:.4g}")
        return "; ".join(boxes) + " um"


def section_geometry(sdata: SpatialData, name: str, st: AnnData, msi: AnnData, pixel_key: str) -> SectionGeometry:
    """Geometry of a section, checked; `st` and `msi` are its rows of the tables."""
    spots, pixels = shapes_of(sdata, Key.spots(name)), shapes_of(sdata, pixel_key)
    frame = Key.st_frame(name)
    pixels_to_frame = matrix_to(pixels, frame)
    if pixels_to_frame is None:
        msg = f"Section {name!r} is not aligned: its pixels have no place in {frame!r}. Call stmsi.pp.align first."
        raise ValueError(msg)
    spots_to_frame = matrix_to(spots, frame)
    if spots_to_frame is None:
        msg = f"Section {name!r}: shapes {Key.spots(name)!r} have no place in {frame!r}; set their transformation."
        raise ValueError(msg)
    outline = pixels.geometry.to_numpy()[annotated_rows(sdata, pixel_key, msi, name)]
    if (kinds := set(shapely.get_type_id(outline))) != {3}:
        msg = (
            f"Section {name!r}: pixels are polygons (squares before alignment), found geometries of type id "
            f"{sorted(int(k) for k in kinds)} in {pixel_key!r}. Build the section with stmsi.pp.combine."
        )
        raise ValueError(msg)
    if shapely.get_num_interior_rings(outline).any():
        outline = shapely.polygons(shapely.get_exterior_ring(outline))
    vertices, ring = shapely.get_coordinates(outline, return_index=True)
    rows = annotated_rows(sdata, Key.spots(name), st, name)
    geometry = spots.geometry.to_numpy()
    outlines = geometry[rows]
    origin = shapely.total_bounds(outlines).reshape(2, 2).mean(axis=0)
    if "radius" in spots:
        radii = spots["radius"].to_numpy(dtype=float)[rows]
        shape: Circles | Edges = Circles(shapely.get_coordinates(outlines) - origin, radii)
        spot_area = np.pi * radii * np.abs(radii)  # negative with the radius
    else:
        crossing = ~shapely.is_valid(outlines)
        if crossing.any():  # a bow tie has no inside that everyone agrees on
            outlines = outlines.copy()
            outlines[crossing] = shapely.make_valid(outlines[crossing])
        edges = oriented_edges(outlines)
        shape = edges._replace(start=edges.start - origin, end=edges.end - origin)
        spot_area = shape.area
    if not (spot_area > 0).all():
        empty = int((~(spot_area > 0)).sum())
        msg = f"Section {name!r}: {empty} spots have no area; drop them or correct their radius or outline."
        raise ValueError(msg)
    section = SectionGeometry(
        name, spots_to_frame, pixels_to_frame, origin, shape, geometry, rows, vertices, ring, len(outline)
    )
    _check_sizes(section, spot_area, shapely.area(outline))
    return section


def _check_sizes(section: SectionGeometry, spot_area: NDArray[np.float64], pixel_area: NDArray[np.float64]) -> None:
    """Refuse sizes that only mixed-up units explain."""
    spot, pixel = (
        float(np.sqrt(np.median(area) * abs(np.linalg.det(matrix[:2, :2]))))
        for area, matrix in ((spot_area, section.spots_to_frame), (pixel_area, section.pixels_to_frame))
    )
    ratio = spot / pixel if pixel > 0 else np.inf
    if not 1 / _MAX_RATIO < ratio < _MAX_RATIO:
        msg = (
            f"Section {section.name!r}: spots are about {spot:.3g} um wide and pixels {pixel:.3g} um. One of them is in "
            "another unit (pixels of an image, nanometres): check the spot diameter, pixel_size and the alignment."
        )
        raise ValueError(msg)
