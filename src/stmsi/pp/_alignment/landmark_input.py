"""Landmarks from arrays, files and elements, in micrometres of their frames."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.checks import listing
from stmsi._data.elements import frames_of, matrix_to
from stmsi._data.keys import Key
from stmsi._data.small_files import read_list

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData

    Side: TypeAlias = ArrayLike | str
    Landmarks: TypeAlias = tuple[Side, Side] | str | PathLike[str]
    Unit: TypeAlias = float | str

Pair: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64]]"

FILE_UNITS = "file"
"""Landmarks in the x and y that the MSI file had."""
_COLUMNS = (
    ("x_msi", "y_msi", "x_st", "y_st"),
    ("msi_x", "msi_y", "st_x", "st_y"),
    ("x_left", "y_left", "x_right", "y_right"),
    ("met_before_x", "met_before_y", "rna_x", "rna_y"),
    ("moving_x", "moving_y", "fixed_x", "fixed_y"),
)
"""Headers that are understood, in any case: our own, MAGPIE's, JSRS's."""
_SECTION_COLUMNS = (Key.obs.SAMPLE, "section", "section_id")
_SUFFIXES = (".csv", ".tsv", ".txt")


def is_file(given: Any) -> bool:
    """Whether landmarks are given as the path of a table."""
    return isinstance(given, PathLike) or (isinstance(given, str) and given.lower().endswith(_SUFFIXES))


def read_landmarks(path: str | PathLike[str], samples: list[str]) -> dict[str, Pair] | Pair:
    """Landmarks of a csv file, each side (n, 2); where the file names sections, a pair for each of `samples` in it."""
    path = Path(path)
    table = read_list(path, "a table of landmarks")
    by_name = {str(c).strip().lower(): c for c in table.columns}
    known = next((names for names in _COLUMNS if set(names) <= set(by_name)), None)
    if known is None:
        wanted = " or ".join(",".join(names) for names in _COLUMNS[:3])
        msg = f"{path.name} has columns {listing(table.columns)}; expected {wanted}."
        raise ValueError(msg)
    values = table[[by_name[n] for n in known]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    label = next((by_name[c] for c in _SECTION_COLUMNS if c in by_name), None)
    if label is None:
        return values[:, :2], values[:, 2:]
    section = table[label].astype(str).to_numpy()
    found = {name: (values[section == name, :2], values[section == name, 2:]) for name in dict.fromkeys(section)}
    own = {name: pair for name, pair in found.items() if name in samples}
    if own:
        return own
    if len(found) == 1 and len(samples) == 1:
        return next(iter(found.values()))  # one section under another name
    msg = f"{path.name} has landmarks of sections {listing(found)}, but the data have {listing(samples)}."
    raise ValueError(msg)


def has_landmarks(sdata: SpatialData, name: str) -> bool:
    """Whether a section has landmarks under their usual names, on either side."""
    return any(Key.landmarks(name, side) in sdata.points for side in ("msi", "st"))


def landmark_pair(
    sdata: SpatialData,
    name: str,
    pair: Any,
    *,
    frames: tuple[str | None, str | None],
    units: tuple[Unit, Unit] = (1.0, 1.0),
    what: str = "(in the MSI frame, in the ST frame)",
) -> Pair:
    """Landmarks of a section as two arrays in micrometres of their frames; `None` takes the usual points elements.

    A side without a frame keeps its coordinates. `what` names the sides in messages.
    """
    if pair is None:
        pair = Key.landmarks(name, "msi"), Key.landmarks(name, "st")
    if is_file(pair):
        pair = read_landmarks(pair, [name])
        pair = pair[name] if isinstance(pair, Mapping) else pair
    if isinstance(pair, str) or len(pair) != 2:
        found = repr(pair) if isinstance(pair, str) else f"{len(pair)} items"
        msg = f"Landmarks are a pair {what}, or the path of a csv file; found {found}."
        raise ValueError(msg)
    arrays = [_side(sdata, name, side, frame, unit) for side, frame, unit in zip(pair, frames, units, strict=True)]
    return arrays[0], arrays[1]


def _side(sdata: SpatialData, name: str, side: Any, frame: str | None, unit: Unit) -> NDArray[np.float64]:
    if isinstance(side, str):
        return points_of(sdata, side, frame)
    try:
        xy = np.asarray(side, dtype=float)
    except (TypeError, ValueError) as error:
        msg = f"Landmarks are numbers, shape (n, 2): {error}."
        raise ValueError(msg) from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        return xy  # refused with a message of its own when it is fitted
    return apply_affine(_unit_matrix(sdata, name, unit, frame), xy)


def points_of(sdata: SpatialData, element: str, frame: str | None) -> NDArray[np.float64]:
    """Points of an element in a coordinate system, (n, 2); its own coordinates without one."""
    from spatialdata import transform

    if element in sdata.points:
        points: Any = sdata.points[element]
    elif element in sdata.shapes and (sdata.shapes[element].geometry.geom_type == "Point").all():
        points = sdata.shapes[element]
    else:
        msg = (
            f"No points {element!r}; points elements: {listing(sdata.points)}. "
            "Pass landmarks={section: (msi_xy, st_xy)} or transformation=."
        )
        raise KeyError(msg)
    if frame is not None:
        if matrix_to(points, frame) is None:
            msg = f"points {element!r} lie in {frames_of(points)}, not in {frame!r}; landmarks are (in the MSI, in the ST frame)."
            raise ValueError(msg)
        points = transform(points, to_coordinate_system=frame)
    if "geometry" in points:
        return np.column_stack([points.geometry.x, points.geometry.y]).astype(float)
    return points[["x", "y"]].compute().to_numpy(dtype=float)


def _unit_matrix(sdata: SpatialData, name: str, unit: Unit, frame: str | None) -> NDArray[np.float64]:
    """Matrix from the unit of landmarks into micrometres of a frame."""
    if isinstance(unit, str):
        if unit == FILE_UNITS:
            return _file_matrix(sdata, name)
        if unit not in sdata or unit in sdata.tables:
            names = [n for kind in (sdata.images, sdata.labels, sdata.shapes, sdata.points) for n in kind]
            msg = f"landmark_units={unit!r} is no element; elements: {listing(names)}, or a number, or {FILE_UNITS!r}."
            raise KeyError(msg)
        matrix = None if frame is None else matrix_to(sdata[unit], frame)
        if matrix is None:
            found = frames_of(sdata[unit])
            msg = f"Element {unit!r} lies in {found}, not in {frame!r}; landmarks in its coordinates have no place."
            raise ValueError(msg)
        return matrix
    scale = float(unit)
    if not (np.isfinite(scale) and scale > 0):
        msg = f"landmark_units holds micrometres per unit, a positive number; found {unit!r}."
        raise ValueError(msg)
    return np.diag([scale, scale, 1.0])


def _file_matrix(sdata: SpatialData, name: str) -> NDArray[np.float64]:
    """Matrix from x and y as the MSI file has them to micrometres of the MSI frame."""
    attrs = sdata.tables[Key.table.MSI].uns.get(Key.uns.MSI, {}).get("attrs", {}).get(name, {})
    if "pixel_size" not in attrs:
        msg = (
            f"What x and y of the MSI file mean is not known for section {name!r} (uns['msi']['attrs'] has no pixel "
            "size); pass micrometres per unit instead of 'file'."
        )
        raise ValueError(msg)
    fields = (attrs["pixel_size"], attrs.get("origin", 0.0), attrs.get("pitch", 1.0))
    size, origin, pitch = (np.broadcast_to(np.asarray(v, dtype=float), 2) for v in fields)
    out = np.diag([*(size / pitch), 1.0])
    # a coordinate of the file is the middle of a pixel
    out[:2, 2] = 0.5 * size - origin * size / pitch
    return out
