"""Tables in stores on disk, opened without their matrices."""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from stmsi._data.checks import listing, suggest
from stmsi._data.containers import arrays_of, check_file, check_unpacked, inside, reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


MOST_OPEN = 16
"""Stores that stay open together. Each may hold 2 MB of what was read of it."""


@contextmanager
def opened_table(path: Path, table_key: str) -> Iterator[Any]:
    """The group of a table in an h5ad file, an AnnData store or a SpatialData store, open until the context ends.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    KeyError
        A SpatialData without this table.
    ValueError
        It is damaged, or something else; also where what is read of it inside the context cannot be. Other errors of stmsi pass.
    """
    import h5py
    import zarr

    if path.is_dir():
        with reading(path, "a zarr store", "copy or convert it again", own=True):
            if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
                msg = f"{path} is not a zarr store: it has no zarr.json; found {inside(path)}."
                raise ValueError(msg)
            yield _table_group(zarr.open_group(str(path), mode="r", use_consolidated=False), path, table_key)
        return
    with reading(check_file(path), "an h5ad file", own=True), h5py.File(path) as file:
        yield _table_group(file, path, table_key)


def table_without_matrix(group: Any, path: Path, wanted: Mapping[str, Collection[str]]) -> AnnData:
    """``obs``, ``var`` and the entries wanted of ``obsm``, ``obsp``, ``varm`` and ``uns``, as far as the group of a table has them."""
    from anndata.io import read_elem

    if path.is_file():
        check_unpacked(path, arrays_of(group.file))
    parts = {
        name: {key: read_elem(group[name][key]) for key in keys if name in group and key in group[name]}
        for name, keys in wanted.items()
    }
    return AnnData(obs=read_elem(group["obs"]), var=read_elem(group["var"]), **parts)


def stored_matrix(group: Any, path: Path, layer: str | None) -> Any:
    """``X`` or a layer of the group of a table, which stays on disk.

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        There is no ``X``.
    """
    from anndata.io import sparse_dataset

    layers = list(group["layers"]) if "layers" in group else []
    if layer is not None and layer not in layers:
        msg = f"{path} has no layer {layer!r}; layers: {listing(layers)}."
        raise KeyError(msg)
    if layer is None and "X" not in group:
        msg = f"{path} has no X; put the expression there or name a layer (layer=); layers: {listing(layers)}."
        raise ValueError(msg)
    element = group["X"] if layer is None else group["layers"][layer]
    return sparse_dataset(element) if hasattr(element, "keys") else element


class OpenMatrices:
    """Matrices in stores that stay open while they are read again and again: the last :data:`MOST_OPEN` of them.

    To open a store takes a third of the time in which a few hundred spots are read. Pickled, none is open. One thread at a time may read.

    Parameters
    ----------
    table_key, layer
        Where the matrix is.
    """

    def __init__(self, table_key: str, layer: str | None) -> None:
        self._where = table_key, layer
        self._open: OrderedDict[Path, tuple[ExitStack, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenMatrices, self._where

    @contextmanager
    def matrix(self, path: Path) -> Iterator[Any]:
        """As :func:`stored_matrix`; errors as for :func:`opened_table`, after which the store is closed."""
        if path not in self._open:
            while len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)[1][0].close()
            table_key, layer = self._where
            with ExitStack() as stack:
                matrix = stored_matrix(stack.enter_context(opened_table(path, table_key)), path, layer)
                self._open[path] = stack.pop_all(), matrix
        self._open.move_to_end(path)
        try:
            yield self._open[path][1]
        except BaseException:
            # the context of the store turns the error into one that names it
            if not self._open.pop(path)[0].__exit__(*sys.exc_info()):
                raise

    def close(self) -> None:
        """Close all of them; they are opened again when they are read."""
        while self._open:
            self._open.popitem()[1][0].close()


def _table_group(group: Any, path: Path, table_key: str) -> Any:
    """The group of the AnnData in a file or store."""
    if "obs" in group and "var" in group:
        return group
    tables = list(group["tables"]) if "tables" in group else []
    if table_key in tables:
        return group["tables"][table_key]
    if tables:
        msg = f"{path} has no table {table_key!r}; its tables: {listing(tables)}.{suggest(table_key, tables)}"
        raise KeyError(msg)
    msg = f"{path} holds no AnnData and no table: it has no 'obs' and 'var'; found {listing(group)}."
    raise ValueError(msg)


def content_of(path: Path) -> tuple[str, int, int]:
    """What tells whether a file or store has changed: its place, size in bytes and time of the last change (ns)."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return str(path.resolve()), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def file_times(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change (ns) of a file, or of all files of a folder, in a fixed order.

    Names begin at the file or folder itself: from another working directory, or in another place, they are the same.
    """
    if path.is_dir():
        found = [(p.relative_to(path).as_posix(), p) for p in sorted(path.rglob("*")) if p.is_file()]
    else:
        found = [(path.name, path)]
    stats = [(name, p.stat()) for name, p in found]
    return [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
