"""SpatialData that others have made, such as the readers of spatialdata-io: one ST section of it in the data model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stmsi._core.ids import safe_ids
from stmsi._data.checks import check_nonnegative, for_section, listing, require_rows, require_unique, suggest
from stmsi._data.elements import matrix_to
from stmsi._data.keys import Key
from stmsi._data.position_units import note_unit
from stmsi._data.sections import VISIUM_SPOT_DIAMETER, check_sample_name, columns_to_keep, outlined_section
from stmsi._data.spot_scale import BY_ARRAY, GIVEN, array_scale
from stmsi._data.tables import as_csr
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_BINS = re.compile(r"square_(\d+)um")
"""How spatialdata-io names the bins of Visium HD."""
_READER = "spatialdata_io_reader"
_UM_OF_READER = {"xenium": 1.0, "merscope": 1.0, "stereoseq": 0.5}
"""Micrometres per unit of the outlines that a reader of spatialdata-io stores; Stereo-seq counts spots 500 nm apart."""
_STEREOSEQ, _MERSCOPE = "cellBin_attrs", "EntityID"
"""What gives away two readers that do not write their name: an entry of ``uns``, and the column with the ids of the cells."""
_UM_FRAMES = ("micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres", "um")
"""Coordinate systems that say their unit, such as that of MERSCOPE."""
_USUAL_SIZE = (1.5, 120.0)
"""Widths (um) of bins, spots and cells that are not doubted."""


def adopt(
    name: str | None,
    sdata: SpatialData,
    table_key: str | None,
    shapes_key: str | None,
    um_per_unit: float | Mapping[str, float] | None,
    sample_key: str,
) -> SpatialData:
    """The section of a table and of the outlines that it annotates, in micrometres.

    Parameters
    ----------
    name
        Of the section; `None`: from ``obs[sample_key]``, else from the outlines.
    sdata
        Not changed; images that lie in a coordinate system of the outlines come along, everything else does not.
    table_key, shapes_key, um_per_unit
        See :func:`stmsi.pp.combine`.
    sample_key
        Column of ``obs`` with the name of the section.

    Raises
    ------
    KeyError
        The table or the outlines are not there.
    ValueError
        The table annotates several elements or labels, observations have no outline, or nothing tells the unit.
    """
    key = _table_key(sdata, table_key)
    table = sdata.tables[key]
    require_rows(table)
    element = _shapes_key(sdata, table, key, shapes_key)
    sample = check_sample_name(_name(table, element, sample_key) if name is None else name)
    if table.X is None:
        msg = f"Section {sample!r} has no X; put the raw gene counts there."
        raise ValueError(msg)
    check_nonnegative(as_csr(table.X), f"Gene counts of section {sample!r}")
    require_unique(table.var_names, "Gene names")
    require_unique(table.obs_names, f"Spot names of section {sample!r}", "Call .obs_names_make_unique() first.")
    shapes = sdata.shapes[element]
    rows = _rows(shapes, element, table, key)
    given = for_section(um_per_unit, sample, "um_per_unit")
    scale, visium, source = _scale(sdata, table, shapes, rows, element, sample, given)
    outlines = _in_micrometres(shapes, scale, visium)
    made = outlined_section(table, outlines, rows, sample=sample)
    for column, values in columns_to_keep(table, sample, Key.spots(sample)).items():
        made.tables[Key.table.ST].obs[column] = values
    note_unit(made.tables[Key.table.ST], table, sample, scale, source)
    brought = _add_images(made, sdata, shapes, scale, sample)
    left = [n for _, n, _ in sdata.gen_elements() if n not in {key, element, *brought}]
    if left:
        logger.info("Section %r: left out of the SpatialData: %s.", sample, listing(left))
    return made


def _table_key(sdata: SpatialData, table_key: str | None) -> str:
    tables = list(sdata.tables)
    if table_key is None and len(tables) == 1:
        return str(tables[0])
    if table_key in tables:
        return str(table_key)
    elements = listing(n for _, n, _ in sdata.gen_elements())
    if table_key is None:
        msg = (
            f"The SpatialData does not follow stmsi's data model (expected a table {Key.table.ST!r} and shapes "
            f"{Key.spots('<sample>')!r}), and has {len(tables)} tables; name that of the counts by table_key=; tables: "
            f"{listing(tables)}; elements: {elements}."
        )
        raise ValueError(msg)
    msg = f"The SpatialData has no table {table_key!r}; tables: {listing(tables)}.{suggest(table_key, tables)}"
    raise KeyError(msg)


def _shapes_key(sdata: SpatialData, table: AnnData, key: str, shapes_key: str | None) -> str:
    if shapes_key is not None:
        if shapes_key not in sdata.shapes:
            msg = f"No shapes {shapes_key!r}; shapes: {listing(sdata.shapes)}.{suggest(shapes_key, sdata.shapes)}"
            raise KeyError(msg)
        return shapes_key
    region = table.uns.get("spatialdata_attrs", {}).get("region", [])
    regions = [region] if isinstance(region, str) else list(region)
    if len(regions) == 1 and regions[0] in sdata.shapes:
        return str(regions[0])
    msg = (
        f"Expected a table {key!r} that annotates one shapes element; it annotates {listing(regions)}. Name the outlines by "
        f"shapes_key=; shapes: {listing(sdata.shapes)}. Labels become outlines by spatialdata.to_polygons; without any, pass "
        "the table itself (an AnnData with obsm['spatial']) with um_per_unit= and spot_diameter=."
    )
    raise ValueError(msg)


def _name(table: AnnData, element: str, sample_key: str) -> str:
    if sample_key in table.obs and len(names := table.obs[sample_key].dropna().astype(str).unique()) == 1:
        return str(names[0])
    return safe_ids([element])[0]


def _rows(shapes: GeoDataFrame, element: str, table: AnnData, key: str) -> NDArray[np.int64]:
    """The outline of each observation, by position."""
    instance_key = table.uns.get("spatialdata_attrs", {}).get("instance_key")
    wanted = table.obs_names if instance_key is None else pd.Index(table.obs[instance_key])
    rows = shapes.index.get_indexer(wanted)
    if (rows < 0).any():  # ids are numbers in one and text in the other
        as_text = shapes.index.astype(str)
        rows = as_text.get_indexer(wanted.astype(str)) if as_text.is_unique else rows
    if (rows < 0).any():
        msg = (
            f"{int((rows < 0).sum())} of {table.n_obs} observations of table {key!r} have no outline in shapes {element!r} "
            f"(by {instance_key!r}); leave them out of the table first, or name other outlines by shapes_key=."
        )
        raise ValueError(msg)
    return np.asarray(rows, dtype=np.int64)


def _scale(
    sdata: SpatialData,
    table: AnnData,
    shapes: GeoDataFrame,
    rows: NDArray[np.int64],
    element: str,
    sample: str,
    given: float | None,
) -> tuple[float, bool, str]:
    """Micrometres per unit of the outlines as stored, whether they are the spots of a Visium array, and what told it."""
    from spatialdata.transformations import get_transformation

    centre = shapes.geometry.centroid
    xy = np.column_stack([centre.x, centre.y])[rows]
    by_array = array_scale(table, xy) if "radius" in shapes else None
    if given is not None:
        return float(given), by_array is not None, GIVEN
    if by_array is not None:
        logger.info("Section %r: one unit is %.4g um, by %s.", sample, by_array, BY_ARRAY)
        return by_array, True, BY_ARRAY
    for key, other in sdata.shapes.items():
        bins = _BINS.search(str(key))
        if bins and _shares_frame(other, shapes):
            scale = float(bins.group(1)) / float(np.median(_width(other)))
            logger.info("Section %r: one unit is %.4g um, by the bins %r.", sample, scale, key)
            return scale, False, f"the bins {str(key)!r}"
    frame = next((str(f) for f in get_transformation(shapes, get_all=True) if str(f).lower() in _UM_FRAMES), None)
    if frame is not None:
        scale = float(np.sqrt(abs(np.linalg.det(_placed(shapes, frame)[:2, :2]))))
        logger.info("Section %r: one unit is %.4g um, by the coordinate system %r.", sample, scale, frame)
        return scale, False, f"the coordinate system {frame!r}"
    reader = _reader(sdata, table)
    if reader in _UM_OF_READER:
        logger.info("Section %r: one unit is %.4g um, as %s stores it.", sample, _UM_OF_READER[reader], reader)
        return _UM_OF_READER[reader], False, reader
    size = float(np.median(_width(shapes.iloc[rows])))
    low, high = _USUAL_SIZE
    if not low <= size <= high:
        msg = (
            f"Section {sample!r}: outlines of {element!r} are {size:.4g} units wide, which can hardly be micrometres. Pass "
            "um_per_unit= (CosMx: 0.12028 um a pixel, Stereo-seq: 0.5 um, else see the files of the instrument)."
        )
        raise ValueError(msg)
    logger.warning(
        "Section %r: nothing tells the unit of %r; its outlines, %.4g wide, are taken for micrometres. Pass um_per_unit= "
        "(1 if they are; CosMx 0.12028, Stereo-seq 0.5).", sample, element, size,
    )  # fmt: skip
    return 1.0, False, ""


def _reader(sdata: SpatialData, table: AnnData) -> str:
    """Which function of spatialdata-io read the data, where it can be told."""
    if _STEREOSEQ in table.uns:
        return "stereoseq"
    if table.uns.get("spatialdata_attrs", {}).get("instance_key") == _MERSCOPE:
        return "merscope"
    return str(sdata.attrs.get(_READER, ""))


def _width(shapes: GeoDataFrame) -> NDArray[np.float64]:
    """Side of squares, diameter of circles, side of a square of the same area for outlines."""
    if "radius" in shapes:
        return 2 * shapes["radius"].to_numpy(np.float64)
    return np.sqrt(shapes.geometry.area.to_numpy(np.float64))


def _placed(element: Any, frame: str) -> NDArray[np.float64]:
    """Matrix into a coordinate system that the element lies in."""
    matrix = matrix_to(element, frame)
    assert matrix is not None
    return matrix


def _shares_frame(a: GeoDataFrame, b: GeoDataFrame) -> bool:
    """Whether two elements are stored in one unit: the same way leads them into a coordinate system of both."""
    from spatialdata.transformations import get_transformation

    both = set(get_transformation(a, get_all=True)) & set(get_transformation(b, get_all=True))
    return any(np.allclose(_placed(a, f), _placed(b, f)) for f in both)


def _in_micrometres(shapes: GeoDataFrame, scale: float, visium: bool) -> GeoDataFrame:
    import geopandas as gpd
    import shapely

    geometry = shapely.transform(shapes.geometry.to_numpy(), lambda xy: xy * scale)
    frame = gpd.GeoDataFrame(geometry=geometry)
    if "radius" in shapes:  # scale factors draw the spots of Visium 65 um wide, they are printed 55 um wide
        radius = shapes["radius"].to_numpy(np.float64) * scale
        frame["radius"] = np.full(len(shapes), VISIUM_SPOT_DIAMETER / 2) if visium else radius
    return frame


def _add_images(made: SpatialData, sdata: SpatialData, shapes: GeoDataFrame, scale: float, sample: str) -> list[str]:
    """Images that lie in a coordinate system of the outlines, in the frame of the spots; returns their names."""
    from spatialdata.transformations import Affine, get_transformation, set_transformation

    frames = list(get_transformation(shapes, get_all=True))
    placed = {}
    for key, image in sdata.images.items():
        own = get_transformation(image, get_all=True)
        frame = next((f for f in frames if f in own), None)
        if frame is None:
            continue
        into = np.diag([scale, scale, 1.0]) @ np.linalg.inv(_placed(shapes, frame)) @ _placed(image, frame)
        placed[str(key)] = image, into
    histology = next((k for k in placed if "hires" in k), next(iter(placed)) if len(placed) == 1 else None)
    for key, (image, into) in placed.items():
        copy = image.copy(deep=False)
        name = Key.image(sample) if key == histology else key if key.startswith(sample) else f"{sample}_{key}"
        place = Affine(into, input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(copy, {Key.st_frame(sample): place}, set_all=True)
        made.images[name] = copy
    return list(placed)
