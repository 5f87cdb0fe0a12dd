"""Files, folders and stores: whether they are there, opening them, and making new ones in one piece."""

from __future__ import annotations

import shutil
import uuid
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stmsi._data.checks import listing, require_anndata_file, suggest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData


def check_file(path: Path) -> Path:
    """Raise where there is no file with something in it."""
    if not path.exists():
        hint = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        msg = f"There is no file {path}.{hint}"
        raise FileNotFoundError(msg)
    if path.is_dir():
        msg = f"{path} is a directory; pass one file. In it: {inside(path)}."
        raise ValueError(msg)
    if path.stat().st_size == 0:
        msg = f"{path} is empty (0 bytes); copy or export it again."
        raise ValueError(msg)
    return path


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
    """The AnnData of a file; raises where it is none."""
    import anndata as ad

    require_anndata_file(check_file(path))
    try:
        return ad.read_h5ad(path)
    except OSError as error:
        msg = f"{path} is not a readable h5ad file ({error}); copy or export it again."
        raise ValueError(msg) from error


def open_store(path: Path) -> SpatialData:
    """The tables, shapes and points of a SpatialData store."""
    from spatialdata import read_zarr

    if not path.exists():
        msg = f"There is no store {path}."
        raise FileNotFoundError(msg)
    if not path.is_dir():
        msg = f"{path} is a file; expected a SpatialData store, a folder that ends with .zarr."
        raise ValueError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older layouts of stores announce themselves
        try:
            return read_zarr(path, selection=("tables", "shapes", "points"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{path} is no readable SpatialData store ({error}); copy or convert it again."
            raise ValueError(msg) from error


def check_new(path: Path, what: str) -> Path:
    """Raise where nothing can be made at `path`; `what` is ``"store"`` or ``"file"``."""
    if path.exists() or path.is_symlink():
        msg = f"{path} exists; remove it or name another {what}."
        raise FileExistsError(msg)
    if not path.absolute().parent.is_dir():
        msg = f"There is no folder {path.absolute().parent} to write {path.name} into."
        raise FileNotFoundError(msg)
    return path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A folder beside `path` to make something in and move it from; an error leaves nothing behind."""
    folder = path.absolute().parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
