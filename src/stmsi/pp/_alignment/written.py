"""What an alignment leaves in the data: transformations, warped pixels and the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stmsi._core.registration.landmarks import apply_affine
from stmsi._data.elements import matrix_to, place
from stmsi._data.keys import Key
from stmsi._data.stale import mark_stale
from stmsi._data.tables import get_table
from stmsi._settings import logger

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from stmsi.pp._alignment.section_fit import Result, Task

_USUAL_SCALE = 1.1


def write_alignments(sdata: SpatialData, tasks: list[Task], results: list[Result], table_key: str) -> None:
    table = get_table(sdata, table_key)
    record = dict(table.uns.get(Key.uns.ALIGNMENT, {}))
    pairs = [(task, result, _warped(sdata, task, result)) for task, result in zip(tasks, results, strict=True)]
    moved = [task.name for task, result in zip(tasks, results, strict=True) if _moves(sdata, task, result)]
    for task, result, warped in pairs:
        name, fit = task.name, result.fit
        place(sdata.shapes[Key.pixels(name)], fit.matrix @ task.geometry.to_msi, Key.st_frame(name))
        if Key.tic_image(name) in sdata.images:  # it follows the pixels, affinely
            image = sdata.images[Key.tic_image(name)]
            to_msi = matrix_to(image, Key.msi_frame(name))
            if to_msi is not None:
                place(image, fit.matrix @ to_msi, Key.st_frame(name))
        if Key.warped_pixels(name) in sdata.shapes:
            del sdata.shapes[Key.warped_pixels(name)]
        record[name] = result.record
        if warped is not None:
            sdata.shapes[Key.warped_pixels(name)] = warped
            record[name]["element"] = Key.warped_pixels(name)
        if not 1 / _USUAL_SCALE < fit.scale < _USUAL_SCALE:
            size = task.geometry.pixel_size
            sizes = f"pixels stated as {size:.4g} um are {size * fit.scale:.4g} um wide in the ST frame"
            if np.isinf(task.max_scale):
                logger.info("Section %r: the size was free; %s.", name, sizes)
            else:
                logger.warning(
                    "Section %r: the alignment scales by %.3g; is its pixel size right? As it is, %s: the pixel size, the "
                    "unit of the spots or landmark_units= may be wrong.", name, fit.scale, sizes,
                )  # fmt: skip
        for note in result.notes:
            logger.warning("Section %r: %s", name, note)
    table.uns[Key.uns.ALIGNMENT] = record
    mark_stale(sdata, "alignment", moved, table)


def _moves(sdata: SpatialData, task: Task, result: Result) -> bool:
    """Whether pixels that had a place already get another one."""
    before = matrix_to(sdata.shapes[Key.pixels(task.name)], Key.st_frame(task.name))
    if before is None:
        return False
    warped = bool(result.fit.steps) or Key.warped_pixels(task.name) in sdata.shapes
    return warped or not np.allclose(before, result.fit.matrix @ task.geometry.to_msi)


def _warped(sdata: SpatialData, task: Task, result: Result) -> GeoDataFrame | None:
    """The pixels of a section with every corner where an alignment that is more than affine puts it."""
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    if not result.fit.steps:
        return None
    pixels, to_msi = sdata.shapes[Key.pixels(task.name)], task.geometry.to_msi
    geometry = shapely.transform(pixels.geometry.to_numpy(), lambda xy: result.fit(apply_affine(to_msi, xy)))
    frame = gpd.GeoDataFrame(geometry=geometry, index=pixels.index)
    return ShapesModel.parse(frame, transformations={Key.st_frame(task.name): Identity()})
