"""What a store holds of each pixel (outline, name, place), written in blocks; outlines are read when they are asked for.

An outline takes half a kilobyte in memory and 93 bytes in a file, so those of all pixels are never made at once here.
"""

from __future__ import annotations

import json
from collections import UserDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._data.keys import Key
from stmsi._data.sections import link_table, pixel_columns, pixel_squares

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_BLOCK, _OUTLINES = 2**14, 2**12
"""Pixels whose rows of ``obs`` are in memory at once, and whose outlines are (one row group of the file)."""


class StoredPixels(NamedTuple):
    """The pixels of a section in the order of its table: places on the raster, side (x, y) in um, total ion currents."""

    sample: str
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    size: tuple[float, float]
    tic: NDArray[np.float64]

    @property
    def first(self) -> slice:
        """The pixels of the table that SpatialData writes; `write` adds the others."""
        return slice(0, _BLOCK)

    def corners(self) -> GeoDataFrame:
        """Two squares with the bounds of all, which SpatialData writes; `write` puts all in their place."""
        row, col = ([int(axis.min()), int(axis.max())] for axis in (self.row, self.col))
        return pixel_squares(row, col, self.size)

    def write(self, store: Path) -> None:
        """Complete a store of the first pixels and the corners."""
        self._write_outlines(store / "shapes" / Key.pixels(self.sample) / "shapes.parquet")
        self._write_rows(store / "tables" / Key.table.MSI)

    def _blocks(self, size: int, start: int = 0) -> Iterator[slice]:
        yield from (slice(first, first + size) for first in range(start, len(self.row), size))

    def _write_outlines(self, path: Path) -> None:
        """The file has the schema and the metadata that geopandas gave that of the corners, but for the number of rows."""
        import pyarrow.parquet as pq

        schema = _with_rows(pq.read_schema(path), len(self.row))
        new = path.with_suffix(".new")
        with pq.ParquetWriter(new, schema) as writer:
            for block in self._blocks(_OUTLINES):
                squares = pixel_squares(self.row[block], self.col[block], self.size)
                writer.write_table(_as_table(squares, schema))
        new.replace(path)

    def _write_rows(self, path: Path) -> None:
        """Add the other pixels to the arrays of ``obs`` and ``obsm`` that anndata wrote."""
        import zarr

        group: Any = zarr.open_group(str(path), mode="r+", use_consolidated=False)
        n = len(self.row)
        group["X"].attrs["shape"] = [n, group["X"].attrs["shape"][1]]
        for block in self._blocks(_BLOCK, self.first.stop):
            for name, values in _arrays_of(self._table(block)).items():
                array = group[name]
                if array.shape[0] < n:
                    array.resize((n, *array.shape[1:]))
                array[block.start : block.start + len(values)] = values

    def _table(self, block: slice) -> AnnData:
        """The table of some pixels, without ions."""
        obs, centres = pixel_columns(
            self.row[block], self.col[block], sample=self.sample, size=self.size,
            obs=pd.DataFrame({Key.obs.TIC: self.tic[block]}),
        )  # fmt: skip
        table = AnnData(obs=obs, obsm={Key.obsm.SPATIAL: centres})
        link_table(table, Key.pixels(self.sample), np.arange(block.start, block.start + len(obs)))
        return table

    def read_on_demand(self, sdata: SpatialData, store: Path) -> None:
        """Give a SpatialData the outlines of its store, which are read when they are asked for."""
        from spatialdata.models import ShapesModel

        name = Key.pixels(self.sample)
        sdata.shapes[name] = ShapesModel.parse(self.corners())  # takes the name among those of all elements
        sdata.shapes.data = StoredShapes(store, [name])


def _arrays_of(table: AnnData) -> dict[str, NDArray[Any]]:
    """The arrays that anndata makes of the pixels in ``obs`` and ``obsm``, by their places in the group of the table."""
    import zarr
    from anndata.io import write_elem

    group: Any = zarr.create_group(zarr.storage.MemoryStore(), zarr_format=3)
    write_elem(group, "obs", table.obs)
    write_elem(group, "obsm", dict(table.obsm))
    members = group.members(max_depth=None)
    return {
        name: np.asarray(part[...])
        for name, part in members
        if isinstance(part, zarr.Array) and not name.endswith("/categories")
    }


def _with_rows(schema: pa.Schema, n: int) -> pa.Schema:
    """The schema of a GeoParquet file with a range of `n` rows as index."""
    metadata = dict(schema.metadata)
    pandas = json.loads(metadata[b"pandas"])
    (index,) = pandas["index_columns"]
    index["stop"] = n
    return schema.with_metadata({**metadata, b"pandas": json.dumps(pandas).encode()})


def _as_table(squares: GeoDataFrame, schema: pa.Schema) -> pa.Table:
    """Squares in the encoding of a file: WKB, or the geoarrow that ``spatialdata.settings`` asks for."""
    import pyarrow as pa

    encoding = json.loads(schema.metadata[b"geo"])["columns"]["geometry"]["encoding"]
    name = "WKB" if encoding == "WKB" else "geoarrow"
    return pa.table(squares.to_arrow(index=False, geometry_encoding=name, interleaved=False)).cast(schema)


class StoredShapes(UserDict[str, "GeoDataFrame"]):
    """Shapes of a store by name, each read when it is first asked for, and kept from then on."""

    def __init__(self, store: Path, names: Iterable[str]) -> None:
        super().__init__()
        self.data: dict[str, Any] = dict.fromkeys(names)
        self._store = store.absolute()

    def __getitem__(self, key: str) -> GeoDataFrame:
        if self.data[key] is None:
            from spatialdata import SpatialData

            self.data[key] = SpatialData.read(self._store, selection=("shapes",)).shapes[key]
        return self.data[key]

    def __repr__(self) -> str:
        return repr(dict(self))
