"""Elements of a SpatialData: where they lie in a coordinate system, and which of their rows a table annotates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import listing
from stmsi._data.tables import instances

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_XY = ("x", "y")


def matrix_to(element: Any, frame: str) -> NDArray[np.float64] | None:
    """Matrix from an element into a coordinate system, shape (3, 3); `None` where the element has no place there."""
    from spatialdata.transformations import get_transformation

    known = get_transformation(element, get_all=True)
    return None if frame not in known else np.asarray(known[frame].to_affine_matrix(_XY, _XY), dtype=np.float64)


def frames_of(element: Any) -> str:
    """Coordinate systems of an element, for messages."""
    from spatialdata.transformations import get_transformation

    return listing(get_transformation(element, get_all=True))


def place(element: Any, matrix: NDArray[np.float64], frame: str) -> None:
    """Set the affine transformation of an element into a coordinate system."""
    from spatialdata.transformations import Affine, set_transformation

    set_transformation(element, Affine(matrix, input_axes=_XY, output_axes=_XY), to_coordinate_system=frame)


def shapes_of(sdata: SpatialData, element: str) -> GeoDataFrame:
    """A shapes element."""
    if element not in sdata.shapes:
        msg = f"No shapes {element!r}; shapes elements: {listing(sdata.shapes)}."
        raise KeyError(msg)
    return sdata.shapes[element]


def annotated_rows(sdata: SpatialData, element: str, table: AnnData, section: str) -> NDArray[np.int64]:
    """Rows of a shapes element that the observations of a section annotate."""
    rows = shapes_of(sdata, element).index.get_indexer(instances(table))
    if (rows < 0).any():
        msg = f"{int((rows < 0).sum())} observations of section {section!r} annotate nothing in shapes {element!r}."
        raise ValueError(msg)
    return np.asarray(rows)
