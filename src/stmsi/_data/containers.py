"""Opening files and stores of others: what cannot be read is one clear error, and a small file cannot take much memory."""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stmsi._data.checks import listing, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py
    from anndata import AnnData
    from spatialdata import SpatialData

AGAIN = "copy or export it again"
_MUCH = 2**30
"""Bytes that a file may make us hold, whatever its own size."""
_RATIO = 2000
"""How many times its stored bytes an array may unpack to beyond that; deflate reaches 1032."""
_SPARSE = 100
"""A file this many times larger than what lies on disk is mostly a hole."""
_LONGEST_CAUSE = 200
_LAZY_PARTS = ("images", "labels")
"""Elements of a store that are read when they are drawn."""


_NOT_OF_THE_FILE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)
"""Errors of a disk that is written to, and of too many open files."""


@contextmanager
def reading(path: Path, what: str, remedy: str = AGAIN, *, own: bool = False) -> Iterator[None]:
    """Turn what a library raises while it reads a file into one error that names the file.

    Parameters
    ----------
    path
        The file, folder or store.
    what
        What it should be: ``"a parquet file"``.
    remedy
        What to do, where the error itself does not tell.
    own
        Errors of stmsi pass as they are: more than reading is done while the file is open.

    Raises
    ------
    ValueError
        Anything was raised but an `ImportError` (a package is missing), a `PermissionError`, a disk that cannot be written to, or an error of
        stmsi that names `path` already. Libraries raise what they like on damaged files, `MemoryError` and `RecursionError` among them.
    """
    try:
        yield
    except (ImportError, PermissionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
            raise
        if _is_own(error) and (own or str(path) in str(error)):
            raise
        msg = f"{path} cannot be read as {what} ({_cause(error)}); {_newer(error) or remedy}."
        raise ValueError(msg) from error


def _is_own(error: BaseException) -> bool:
    """Whether a line of stmsi raised an error that is meant for people."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    raised_by = "" if at is None else str(at.tb_frame.f_globals.get("__name__"))
    return raised_by.startswith("stmsi.") and isinstance(error, ValueError | FileNotFoundError | KeyError)


def _cause(error: BaseException) -> str:
    """The type and the first line of an error, cut where it is long."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = line if len(line) <= _LONGEST_CAUSE else f"{line[:_LONGEST_CAUSE]}..."
    return f"{type(error).__name__}: {line.rstrip('.;')}" if line else type(error).__name__


def _newer(error: BaseException) -> str | None:
    """What to do about an encoding that the installed anndata does not know, or `None` for another error."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    if not any(type(e).__name__ == "IORegistryError" or "No read method registered" in str(e) for e in chain):
        return None
    return (
        f"a newer anndata than the installed {version('anndata')} may have written it: upgrade anndata, or write the file "
        f"again with anndata {version('anndata')}; else it is damaged"
    )


def check_file(path: Path, *, holes: bool = False) -> Path:
    """Raise where there is no regular file with something in it: folders, pipes, devices, and files that are one hole."""
    if not path.exists():
        hint = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        msg = f"There is no file {path}.{hint}"
        raise FileNotFoundError(msg)
    if path.is_dir():
        msg = f"{path} is a directory; pass one file. In it: {inside(path)}."
        raise ValueError(msg)
    if not path.is_file():
        # to open a pipe waits until somebody writes into it
        msg = f"{path} is a pipe or a device; save its content as a file and pass that."
        raise ValueError(msg)
    size = path.stat().st_size
    if size == 0:
        msg = f"{path} is empty (0 bytes); copy or export it again."
        raise ValueError(msg)
    if not holes and size > _MUCH and _has_hole(path):
        msg = f"{path} says {size} bytes, but most of them were never written; copy it again."
        raise ValueError(msg)
    return path


def _has_hole(path: Path) -> bool:
    """Whether most of a file is a hole, as a download leaves it that reserved its place and stopped."""
    stat = path.stat()
    if not hasattr(os, "SEEK_HOLE") or getattr(stat, "st_blocks", 0) * 512 * _SPARSE > stat.st_size:
        return False
    with path.open("rb") as handle:
        try:
            return os.lseek(handle.fileno(), 0, os.SEEK_HOLE) < stat.st_size
        except OSError:  # file systems that do not tell
            return False


def check_folder(path: Path, what: str) -> Path:
    """Raise where there is no folder; `what` says what it should hold."""
    if not path.exists():
        msg = f"There is no folder {path}; expected {what}."
        raise FileNotFoundError(msg)
    if not path.is_dir():
        msg = f"{path} is a file; pass the folder with {what}."
        raise ValueError(msg)
    return path


def inside(folder: Path) -> str:
    """What a folder holds, for messages."""
    return listing(sorted(p.name for p in folder.iterdir()))


def open_h5ad(path: Path) -> AnnData:
    """The AnnData of a file.

    Raises
    ------
    FileNotFoundError
        There is no file.
    ValueError
        It is damaged, holds something else, was written by a newer anndata, or is a small file that unpacks to more memory than
        its size allows.
    """
    import anndata as ad
    import h5py

    with reading(check_file(path), "an h5ad file"):
        with h5py.File(path) as file:
            if not {"obs", "var"} <= set(file):
                msg = f"{path} is an HDF5 file but not an AnnData: it has no 'obs' and 'var'; found {listing(file)}."
                raise ValueError(msg)
            check_unpacked(path, arrays_of(file))
        with warnings.catch_warnings():
            # what anndata says of old layouts is no concern of whoever reads them
            warnings.filterwarnings("ignore", category=FutureWarning)
            adata = ad.read_h5ad(path)
        check_matrices(adata)
    return adata


def arrays_of(file: h5py.File) -> list[tuple[str, int, int]]:
    """Name, bytes when unpacked and bytes stored of all arrays of an HDF5 file."""
    import h5py

    found: list[tuple[str, int, int]] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found.append((name, int(item.size) * item.dtype.itemsize, item.id.get_storage_size()))

    file.visititems(note)
    return found


def check_matrices(adata: AnnData) -> None:
    """Raise where a sparse matrix points outside of itself: scipy follows the indices of a damaged file without looking."""
    found = [adata.X, *adata.layers.values(), *adata.obsm.values(), *adata.varm.values(), *adata.obsp.values()]
    found += [] if adata.raw is None else [adata.raw.X]
    for matrix in (*found, *adata.uns.values()):
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)


def check_unpacked(path: Path, arrays: list[tuple[str, int, int]]) -> None:
    """Raise where arrays claim far more bytes than are stored: damaged shapes, or a file made to fill the memory.

    Parameters
    ----------
    path
        The file, for the message.
    arrays
        Name, bytes when unpacked and bytes stored.
    """
    beyond = [(name, size) for name, size, stored in arrays if size > _RATIO * max(stored, 1)]
    total = sum(size for _, size in beyond)
    if total > _MUCH:
        names = listing([name for name, _ in sorted(beyond, key=lambda item: -item[1])[:3]])
        msg = (
            f"{path} would unpack to {total} bytes, most of them never written ({names}): it is damaged or was made to fill "
            "the memory; copy or export it again."
        )
        raise ValueError(msg)


def open_store(path: Path, selection: tuple[str, ...] | None = ("tables", "shapes", "points")) -> SpatialData:
    """A SpatialData store, or the chosen kinds of elements of it.

    Raises
    ------
    FileNotFoundError
        There is no store.
    ValueError
        It is damaged, holds something else, was written by newer packages, or unpacks to more memory than its size allows.
    """
    from spatialdata import read_zarr

    if not path.exists():
        msg = f"There is no store {path}."
        raise FileNotFoundError(msg)
    if not path.is_dir():
        msg = f"{path} is a file; expected a SpatialData store, a folder that ends with .zarr."
        raise ValueError(msg)
    with reading(path, "a SpatialData store", "copy or convert it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older layouts of stores announce themselves
        _refuse_other_stores(path)
        _check_store(path)
        sdata = read_zarr(path, selection=selection)
        for table in sdata.tables.values():
            check_matrices(table)
    return sdata


def _refuse_other_stores(path: Path) -> None:
    """Tell what a zarr store holds that is no SpatialData."""
    import zarr

    if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs", "zmetadata")):
        msg = f"{path} is not a zarr store: it has no zarr.json; found {inside(path)}."
        raise ValueError(msg)
    for name in ("zarr.json", ".zgroup", ".zattrs"):
        if (path / name).exists():
            check_file(path / name)
    group = zarr.open_group(path, mode="r")
    attrs, members = dict(group.attrs), sorted(group.keys())
    if attrs.get("encoding-type") == "anndata":
        msg = f"{path} is an AnnData, not a SpatialData; write it as .h5ad (adata.write_h5ad) and pass that."
        raise ValueError(msg)
    if "spatialdata_attrs" not in attrs and "tables" not in members:
        msg = f"{path} is not a SpatialData store; it holds {', '.join(members) or 'nothing'}."
        raise ValueError(msg)


def _check_store(path: Path) -> None:
    """Raise where a store holds pipes, or arrays that unpack to far more than is stored."""
    stored: dict[Path, int] = {}
    declared: dict[Path, int] = {}
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if here == path:
            folders[:] = [name for name in folders if name not in _LAZY_PARTS]
        for file in (here / name for name in files):
            if not file.is_file():
                msg = f"{file} is a pipe, a device or a broken link, which no store holds; copy the store {path} again."
                raise ValueError(msg)
            if file.name in ("zarr.json", ".zarray"):
                declared[here] = _declared_bytes(file)
        stored[here] = sum((here / name).stat().st_size for name in files)
    # the sum over its chunks is only for what is large
    large = {folder: size for folder, size in declared.items() if size > _MUCH // 64}
    arrays = [
        (str(folder.relative_to(path)), size, sum(n for other, n in stored.items() if other.is_relative_to(folder)))
        for folder, size in large.items()
    ]
    check_unpacked(path, arrays)


def _declared_bytes(file: Path) -> int:
    """Bytes of an array by its metadata; 0 for a group."""
    about = json.loads(file.read_text(encoding="utf-8"))
    shape = about.get("shape")
    if not isinstance(shape, list):
        return 0
    try:
        width = np.dtype(about.get("data_type", about.get("dtype"))).itemsize
    except TypeError:  # text of any length
        width = 1
    return max(width, 1) * math.prod(max(int(n), 0) for n in shape)
