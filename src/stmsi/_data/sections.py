"""Building blocks of a section: spots, pixels and the tables that annotate them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._data.checks import check_nonnegative, listing, require_unique
from stmsi._data.keys import Key
from stmsi._data.tables import as_csr
from stmsi._settings import logger

if TYPE_CHECKING:
    import scipy.sparse as sp
    from geopandas import GeoDataFrame
    from numpy.typing import ArrayLike, NDArray
    from spatialdata import SpatialData
    from xarray import DataArray

VISIUM_SPOT_DIAMETER = 55.0
"""Diameter of a Visium spot in micrometres."""
VISIUM_PITCH = 100.0
"""Distance between the centres of neighbouring Visium spots in micrometres."""

_MOST_CELLS, _MANY_CELLS, _MOST_EMPTY = 2**26, 2**20, 100
"""Cells of a raster that are refused and told, where they are also so many times as many as the pixels."""
_TEXT = (Key.var.NAME, Key.var.FORMULA, Key.var.ADDUCT)


def check_sample_name(sample: str) -> str:
    """A section's name, which names elements and so must be safe."""
    sample = str(sample)
    safe = safe_ids([sample])[0]
    if sample != safe:
        msg = f"Section name {sample!r} has characters that SpatialData refuses; use letters, digits, _ . - ({safe!r})."
        raise ValueError(msg)
    return sample


def feature_frame(var: pd.DataFrame) -> pd.DataFrame:
    """The columns of the data model in a metabolite ``var``: safe unique ids as index, readable names in ``name``."""
    require_unique(var.index, "Metabolite names")
    out = var.copy()
    out.columns = safe_ids(out.columns)
    if Key.var.NAME not in out:
        out[Key.var.NAME] = var.index.astype(str)
    out.index = pd.Index(safe_ids(var.index))
    for column in out:
        if column in (Key.var.MZ, Key.var.FDR):
            out[column] = pd.to_numeric(out[column], errors="coerce").astype(np.float64)
        elif column in _TEXT or out[column].dtype == object:  # text with gaps would not survive a write
            out[column] = filled_text(out[column])
    if Key.var.MZ not in out:
        out[Key.var.MZ] = np.nan
    return out


def filled_text(column: pd.Series) -> pd.Series:
    """A column as text, empty where it has gaps."""
    return column.astype(object).where(column.notna(), "").astype(str)


def pixel_squares(row: ArrayLike, col: ArrayLike, pixel_size: float | tuple[float, float]) -> GeoDataFrame:
    """Pixel rectangles in micrometres; pixel (0, 0) spans from the origin to one pixel size (x, y)."""
    import geopandas as gpd
    import shapely

    size_x, size_y = np.broadcast_to(np.asarray(pixel_size, dtype=float), 2)
    x, y = np.asarray(col) * size_x, np.asarray(row) * size_y
    return gpd.GeoDataFrame(geometry=shapely.box(x, y, x + size_x, y + size_y))


def link_table(adata: AnnData, region: str | None = None, rows: NDArray[np.int64] | None = None) -> None:
    """Make a table annotate `rows` of the element `region` (row by row), or else the elements that its own columns name."""
    from spatialdata.models import TableModel

    if region is not None:
        adata.obs[Key.obs.REGION] = pd.Categorical([region] * adata.n_obs)
        adata.obs[Key.obs.INSTANCE] = np.arange(adata.n_obs) if rows is None else rows
    adata.uns[TableModel.ATTRS_KEY] = {
        TableModel.REGION_KEY: list(dict.fromkeys(adata.obs[Key.obs.REGION].astype(str))),
        TableModel.REGION_KEY_KEY: Key.obs.REGION,
        TableModel.INSTANCE_KEY: Key.obs.INSTANCE,
    }


def msi_section(
    X: sp.spmatrix | NDArray[Any],
    var: pd.DataFrame,
    row: ArrayLike,
    col: ArrayLike,
    *,
    sample: str,
    pixel_size: float | tuple[float, float],
    obs: pd.DataFrame | None = None,
    attrs: dict[str, Any] | None = None,
    checked: bool = False,
    squares: GeoDataFrame | None = None,
) -> SpatialData:
    """A SpatialData with the ions of one section: table ``msi`` and shapes ``<sample>_pixels``.

    `X` pixels x ions, stored as float32 CSR; `var` with readable names as index and ``mz`` in Da where known; `row` and `col`
    of each pixel, integers; `pixel_size` in micrometres; `obs` more columns of the pixels; `attrs` plain values for
    ``uns["msi"]["attrs"][sample]``. `checked`: `X` is known to hold no impossible value, and to look takes memory; the
    extent of the raster is known to be right, and that no two pixels share a position. `squares` are the shapes where they are
    not made here, because the caller writes those of all pixels by itself.
    """
    sample = check_sample_name(sample)
    row, col = _raster_index(row, sample), _raster_index(col, sample)
    size = check_pixel_size(pixel_size)
    if len(row) == 0:
        msg = f"Section {sample!r} has no pixels."
        raise ValueError(msg)
    if not checked:
        check_extent(row, col, f"Section {sample!r}")
        _check_positions(row, col, sample)
    X = as_csr(X, np.float32)
    if not checked:
        check_nonnegative(X, f"MSI intensities of section {sample!r}")
    obs, centres = pixel_columns(row, col, sample=sample, size=size, obs=obs)
    table = AnnData(X, obs=obs, var=feature_frame(var))
    table.uns[Key.uns.MSI] = {"attrs": {sample: {"pixel_size": np.array(size), **(attrs or {})}}}
    table.obsm[Key.obsm.SPATIAL] = centres
    if squares is None:
        squares = pixel_squares(row, col, size)
    return _linked(table, Key.table.MSI, squares, Key.pixels(sample), Key.msi_frame(sample))


def pixel_columns(
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    *,
    sample: str,
    size: tuple[float, float],
    obs: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """What the table says of pixels: the columns of ``obs`` with names as index, and the centres in micrometres, (n, 2)."""
    obs = pd.DataFrame(index=pd.RangeIndex(len(row))) if obs is None else obs.copy()
    obs.index = pd.Index([f"{sample}_{r}_{c}" for r, c in zip(row.tolist(), col.tolist(), strict=True)])
    obs[Key.obs.SAMPLE] = pd.Categorical([sample] * len(row))
    obs[Key.obs.ROW], obs[Key.obs.COL] = row, col
    return obs, np.column_stack([(col + 0.5) * size[0], (row + 0.5) * size[1]])


def _check_positions(row: NDArray[np.int64], col: NDArray[np.int64], sample: str) -> None:
    position = pd.MultiIndex.from_arrays([row, col])
    if not position.is_unique:
        msg = (
            f"Several pixels of section {sample!r} share a position (row, col): {listing(position[position.duplicated()])}. "
            "Several rasters (regions, polarities) in one table need a name each in obs['sample']; two measurements of one section "
            "are combined, aligned and mapped one by one (stmsi.pp.add_metabolites brings them together)."
        )
        raise ValueError(msg)


def check_extent(row: NDArray[np.integer], col: NDArray[np.integer], what: str) -> None:
    """Raise where the raster around the pixels is so much larger than they are that some positions must be wrong."""
    shape = [int(axis.max()) - int(axis.min()) + 1 for axis in (row, col)]
    cells = shape[0] * shape[1]
    if cells <= max(_MANY_CELLS, _MOST_EMPTY * len(row)):
        return
    off = np.maximum(*(np.abs(axis - np.median(axis)) for axis in (row, col)))
    worst = np.argsort(-off, kind="stable")[:3]
    places = listing(zip(col[worst].tolist(), row[worst].tolist(), strict=True))
    found = f"{what}: {len(row)} pixels lie on a raster of {shape[1]} x {shape[0]}; farthest from the others (x, y): {places}."
    if cells > _MOST_CELLS:
        msg = f"{found} Correct or leave out the positions that are wrong, or read regions of a slide one by one."
        raise ValueError(msg)
    logger.warning("%s Check that these positions are right.", found)


def check_pixel_size(pixel_size: float | tuple[float, float]) -> tuple[float, float]:
    """Side of a pixel (x, y) in micrometres, positive and finite."""
    size = np.asarray(pixel_size, dtype=float)
    if size.shape not in ((), (1,), (2,)):
        msg = f"pixel_size is one number of micrometres or a pair (x, y), found {pixel_size!r}."
        raise ValueError(msg)
    size = np.broadcast_to(size, 2)
    if not (np.isfinite(size).all() and (size > 0).all()):
        msg = f"pixel_size must be a positive number of micrometres, found {pixel_size!r}."
        raise ValueError(msg)
    return float(size[0]), float(size[1])


def raster_image(
    row: NDArray[np.int64], col: NDArray[np.int64], values: NDArray[Any], pixel_size: tuple[float, float], sample: str
) -> DataArray:
    """An image of one value a pixel, in the frame of the pixels of a section; 0 where there is no pixel."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    image = np.zeros((1, int(row.max()) + 1, int(col.max()) + 1), np.float32)
    image[0, row, col] = values
    scale = Scale(list(pixel_size), axes=("x", "y"))
    return Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=[Key.obs.TIC], transformations={Key.msi_frame(sample): scale}
    )


def _raster_index(values: ArrayLike, sample: str) -> NDArray[np.int64]:
    """Rows or columns of pixels; numbers that are not whole would put pixels on top of each other."""
    number = pd.to_numeric(pd.Series(np.asarray(values)), errors="coerce").to_numpy(dtype=np.float64)
    if not (np.isfinite(number) & (number == np.round(number))).all():
        msg = f"Pixels of section {sample!r} need integer row and col; divide coordinates in micrometres by pixel_size."
        raise ValueError(msg)
    return number.astype(np.int64)


def st_section(adata: AnnData, xy: ArrayLike, *, sample: str, spot_diameter: float) -> SpatialData:
    """A SpatialData with the spots of one section: table ``st`` and circles ``<sample>_spots``.

    `adata` spots x genes is copied; `xy` centres, shape (spots, 2), and `spot_diameter` are in micrometres.
    """
    import geopandas as gpd
    import shapely

    sample = check_sample_name(sample)
    xy = np.asarray(xy, dtype=float)
    if adata.n_obs == 0:
        msg = f"Section {sample!r} has no spots."
        raise ValueError(msg)
    if xy.shape != (adata.n_obs, 2) or not np.isfinite(xy).all():
        msg = f"Spot positions of section {sample!r} must be finite, shape ({adata.n_obs}, 2); found shape {xy.shape}."
        raise ValueError(msg)
    table = adata.copy()
    table.obs[Key.obs.SAMPLE] = pd.Categorical([sample] * table.n_obs)
    table.obsm[Key.obsm.SPATIAL] = xy
    circles = gpd.GeoDataFrame({"radius": np.full(len(xy), spot_diameter / 2)}, geometry=shapely.points(xy))
    return _linked(table, Key.table.ST, circles, Key.spots(sample), Key.st_frame(sample))


def add_image(sdata: SpatialData, name: str, image: NDArray[Any], pixel: float, sample: str) -> None:
    """Add an image (rows, columns, channels) whose pixels are `pixel` micrometres wide, in the frame of the spots."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    scale = Scale([pixel, pixel], axes=("x", "y"))
    sdata.images[name] = Image2DModel.parse(
        np.moveaxis(image, -1, 0), dims=("c", "y", "x"), transformations={Key.st_frame(sample): scale}
    )


def columns_to_keep(adata: AnnData, sample: str, element: str) -> dict[str, pd.Series]:
    """Columns of ``obs`` that the data model writes itself, but that mean something else here, under other names.

    ``sample`` names the section, ``region`` and ``instance_id`` what a table annotates in a SpatialData; `element` is the
    name of that element.
    """
    from spatialdata.models import TableModel

    attrs = adata.uns.get(TableModel.ATTRS_KEY, {})
    ours = {attrs.get(TableModel.REGION_KEY_KEY), attrs.get(TableModel.INSTANCE_KEY)}
    if Key.obs.REGION in adata.obs and (adata.obs[Key.obs.REGION].astype(str) == element).all():
        ours |= {Key.obs.REGION, Key.obs.INSTANCE}  # what is left of a link that lost its note
    if Key.obs.SAMPLE in adata.obs and (adata.obs[Key.obs.SAMPLE].astype(str) == sample).all():
        ours.add(Key.obs.SAMPLE)
    renamed = {}
    for key in (Key.obs.SAMPLE, Key.obs.REGION, Key.obs.INSTANCE):
        if key in adata.obs and key not in ours:
            new = f"{key}_given"
            while new in adata.obs:
                new += "_"
            renamed[key] = new
    if renamed:
        logger.warning(
            "Section %r: stmsi writes the columns %s of obs itself; yours are kept as %s.",
            sample, listing(renamed), listing(renamed.values()),
        )  # fmt: skip
    return {new: adata.obs[key].copy() for key, new in renamed.items()}


def outlined_section(adata: AnnData, outlines: GeoDataFrame, rows: NDArray[np.int64], *, sample: str) -> SpatialData:
    """A SpatialData with the bins, cells or spots of one section: table ``st`` and shapes ``<sample>_spots``.

    `adata` observations x genes is copied; `outlines` are in micrometres and may be more than the table has; `rows` names
    that of each observation by position.
    """
    table = adata.copy()
    table.obs[Key.obs.SAMPLE] = pd.Categorical([sample] * table.n_obs)
    centre = outlines.geometry.centroid.iloc[rows]
    table.obsm[Key.obsm.SPATIAL] = np.column_stack([centre.x, centre.y])
    return _linked(table, Key.table.ST, outlines, Key.spots(sample), Key.st_frame(sample), rows)


def _linked(
    table: AnnData,
    table_key: str,
    shapes: GeoDataFrame,
    region: str,
    frame: str,
    rows: NDArray[np.int64] | None = None,
) -> SpatialData:
    """A SpatialData with a table and the shapes that it annotates, which lie in the coordinate system `frame`.

    `rows` names the shape of each observation by position; `None`: they go row by row.
    """
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    link_table(table, region, rows)
    element = ShapesModel.parse(shapes, transformations={frame: Identity()})
    return SpatialData(shapes={region: element}, tables={table_key: table})
