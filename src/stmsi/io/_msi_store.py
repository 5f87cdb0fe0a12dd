"""A SpatialData store on disk whose MSI table is written while it is read, in pieces; it is whole or not there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._core.spectra.extraction import check_finite
from stmsi._data.keys import Key
from stmsi.io._files import check_new

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.spectra.extraction import Rows
    from stmsi.io._stored_pixels import StoredPixels

_SMALLEST_CHUNK, _LARGEST_CHUNK = 2**19, 2**22
"""Values in a chunk: 2 to 16 MB of 32-bit numbers."""
_CHUNKS = 64
_LAZY_VALUES = 2**22


def write_with(rows: StoredRows, pixels: StoredPixels, sdata: SpatialData, folder: Path, target: Path) -> None:
    """Write a section of the first pixels without ions and of the corners; put in the rows and all pixels.

    The store moves from `folder` to its place when it is whole.
    """
    store = folder / "store"
    sdata.write(store)
    pixels.write(store)
    rows.finish(store / "tables" / Key.table.MSI / "X")
    sdata.write_consolidated_metadata()
    store.rename(check_new(target, "store"))


class StoredRows:
    """Rows that grow on disk into the arrays of a CSR matrix; one chunk of each is in memory.

    `folder` is new; `most` is the largest number of values there can be.
    """

    def __init__(self, folder: Path, n_rows: int, n_columns: int, most: int) -> None:
        import zarr

        self._folder, self._n_columns = folder, n_columns
        self._chunk = int(np.clip(most // _CHUNKS, _SMALLEST_CHUNK, _LARGEST_CHUNK))
        self._index_type = np.dtype(np.int32 if most < 2**31 else np.int64)
        self._arrays = {
            name: zarr.create_array(
                store=str(folder / name), shape=(max(most, 1),), chunks=(self._chunk,), dtype=dtype, zarr_format=3
            )
            for name, dtype in (("data", np.dtype(np.float32)), ("indices", self._index_type))
        }
        self._buffers = {name: np.empty(self._chunk, array.dtype) for name, array in self._arrays.items()}
        self._filled, self._written = 0, 0
        self._indptr = np.zeros(n_rows + 1, np.int64)
        self._rows = 0

    def append(self, rows: Rows) -> None:
        """Add the rows of the next chunk."""
        check_finite(rows)
        n = len(rows.counts)
        starts = self._indptr[self._rows]
        self._indptr[self._rows + 1 : self._rows + n + 1] = starts + np.cumsum(rows.counts)
        self._rows += n
        values = dict(zip(("data", "indices"), _sorted_rows(rows), strict=True))
        start = 0
        while start < len(rows.data):
            stop = min(start + self._chunk - self._filled, len(rows.data))
            end = self._filled + stop - start
            for name, buffer in self._buffers.items():
                buffer[self._filled : end] = values[name][start:stop]
            self._filled, start = end, stop
            if self._filled == self._chunk:
                self._flush()

    def _flush(self) -> None:
        end = self._written + self._filled
        for name, array in self._arrays.items():
            array[self._written : end] = self._buffers[name][: self._filled]
        self._written, self._filled = end, 0

    def finish(self, group: Path) -> None:
        """Put the arrays in the place of those of an empty matrix in a store."""
        import zarr

        if self._filled:
            self._flush()
        for name, array in self._arrays.items():
            array.resize((self._written,))
            shutil.rmtree(group / name)
            shutil.move(self._folder / name, group / name)
        shutil.rmtree(group / "indptr")
        indptr = self._indptr.astype(self._index_type)
        zarr.create_array(store=str(group / "indptr"), data=indptr, chunks=indptr.shape, zarr_format=3)


def _sorted_rows(rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Values and columns, the latter ascending inside each row."""
    if len(rows.indices) < 2:
        return rows.data, rows.indices
    row = np.repeat(np.arange(len(rows.counts)), rows.counts)
    if bool(((rows.indices[1:] > rows.indices[:-1]) | (row[1:] != row[:-1])).all()):
        return rows.data, rows.indices
    order = np.lexsort((rows.indices, row))
    return rows.data[order], rows.indices[order]


def read_lazily(path: Path, pixels: StoredPixels) -> SpatialData:
    """A store with its MSI table left on disk: ``X`` is a dask array of CSR blocks, ``obs`` and ``var`` are in memory.

    The outlines are read when they are asked for.
    """
    import zarr
    from anndata import AnnData
    from anndata import experimental as lazy
    from anndata.io import read_elem
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    sdata = SpatialData.read(path, selection=("images",))
    group: Any = zarr.open_group(str(path / "tables" / Key.table.MSI), mode="r")
    n_rows, n_columns = (int(n) for n in group["X"].attrs["shape"])
    per_row = group["X/data"].shape[0] / max(n_rows, 1)
    rows = int(np.clip(_LAZY_VALUES / max(per_row, 1), 1, n_rows))
    as_dask: Any = getattr(lazy, "read_elem_lazy", None) or lazy.read_elem_as_dask
    parts = {part: read_elem(group[part]) for part in ("obs", "var", "obsm", "varm", "uns")}
    annotated = parts["uns"][TableModel.ATTRS_KEY]
    annotated[TableModel.REGION_KEY] = list(np.atleast_1d(annotated[TableModel.REGION_KEY]))
    sdata.tables[Key.table.MSI] = AnnData(as_dask(group["X"], chunks=(rows, n_columns)), **parts)
    pixels.read_on_demand(sdata, path)
    return sdata
