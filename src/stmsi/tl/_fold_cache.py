"""Finished folds of a cross-validation on disk, found again by what went into them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._data.tables import layer_names
from stmsi._data.whole_file import clear_old, whole_file
from stmsi._settings import logger
from stmsi.model.shared._persistence import FORMAT, PACKAGES

if TYPE_CHECKING:
    from anndata import AnnData


class UnhashedError(TypeError):
    """A thing has no value that another session could compare with."""


def fingerprint(*things: Any) -> str:
    """Hash of arrays, tables and settings by their values: equal in every session."""
    digest = hashlib.blake2b(digest_size=20)
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()


def data_fingerprint(adata: AnnData) -> str:
    """Hash of everything in an AnnData that a model can read."""
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "obsp", "varm")}
    layers = {key: adata.layers[key] for key in layer_names(adata)}
    return fingerprint(adata.X, adata.obs, adata.var, layers, parts, dict(adata.uns))


def software() -> dict[str, str]:
    """Versions of what a fold is computed with, and the format of its models: with others, scores may differ."""
    return {"format": str(FORMAT)} | {name: version(name) for name in (*PACKAGES, "anndata", "lightning")}


def is_a_file(directory: str | Path) -> str:
    """Message about a folder whose name a file has."""
    return f"cache_dir={str(directory)!r} is a file; name a folder."


def mark_used(path: Path) -> None:
    """Note that a run has used a file, where its folder may be changed."""
    with suppress(OSError):
        os.utime(path)


class FoldCache:
    """Tables in a folder, one file each, which appears whole or not at all.

    A folder that cannot be written or read is told in the log, once, and is no error: the folds are computed.

    Raises
    ------
    NotADirectoryError
        A file has the name of the folder.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser()
        self._warned = False
        try:
            is_file = self.directory.exists() and not self.directory.is_dir()
            if not is_file:
                self.directory.mkdir(parents=True, exist_ok=True)
                clear_old(self.directory)
        except OSError as error:
            self._warn(error)
            return
        if is_file:
            raise NotADirectoryError(is_a_file(directory))

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                "Finished folds cannot be kept in %s (%s); this run goes on without, and another will compute them again. Free some "
                "space, or name a folder that you may write to.", self.directory, error,
            )  # fmt: skip
        self._warned = True

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.parquet"

    def get(self, key: str) -> pd.DataFrame | None:
        """The table, or `None` where there is none that can be read."""
        path = self._path(key)
        try:
            if not path.exists():
                return None
            mark_used(path)
            return pd.read_parquet(path)
        except Exception as error:  # noqa: BLE001 pyarrow raises what it likes on damaged files
            logger.warning("%s cannot be read (%s); its fold is computed again.", path, error)
            return None

    def put(self, key: str, table: pd.DataFrame) -> None:
        """Write a table; one that is interrupted leaves no trace, and one that cannot be written is told and left out."""
        path = self._path(key)
        try:
            with whole_file(path) as new:
                table.to_parquet(new, index=False)
        except OSError as error:  # pyarrow's, too
            self._warn(error)


def _feed(digest: Any, thing: Any) -> None:
    """Add a thing to the hash, with its kind, so that no two kinds look the same."""
    digest.update(f"|{type(thing).__name__}:".encode())
    if isinstance(thing, np.ndarray):
        if thing.dtype.hasobject:
            _feed(digest, [str(v) for v in thing.ravel()])
        else:
            digest.update(f"{thing.dtype}{thing.shape}".encode())
            digest.update(np.ascontiguousarray(thing).data if thing.size else b"")
    elif sp.issparse(thing):
        rows = sp.csr_matrix(thing)
        for part in (np.asarray(rows.shape), rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data):
            _feed(digest, part)
    elif isinstance(thing, pd.DataFrame):
        for name, column in thing.items():
            _feed(digest, str(name))
            _feed(digest, column)
        _feed(digest, thing.index)
    elif isinstance(thing, pd.Series | pd.Index):
        digest.update(str(thing.dtype).encode())
        digest.update(np.asarray(pd.util.hash_pandas_object(thing, index=False)).tobytes())
    elif isinstance(thing, pd.api.extensions.ExtensionArray):
        _feed(digest, pd.Series(thing))
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=str):
            _feed(digest, str(key))
            _feed(digest, thing[key])
    elif isinstance(thing, list | tuple):
        for item in thing:
            _feed(digest, item)
    elif isinstance(thing, type):
        digest.update(f"{thing.__module__}.{thing.__qualname__}".encode())
    elif thing is None or isinstance(thing, str | bool | int | float | np.generic | Path):
        digest.update(repr(thing).encode())
    elif hasattr(thing, "compute") or hasattr(thing, "to_memory"):  # dask, backed sparse
        _feed(digest, thing.compute() if hasattr(thing, "compute") else thing.to_memory())
    elif hasattr(thing, "__array__"):
        _feed(digest, np.asarray(thing))
    else:
        try:
            digest.update(pickle.dumps(thing))
        except Exception as error:  # whatever the class of the object raises
            msg = f"{type(thing).__name__} has no value that can be compared ({error})"
            raise UnhashedError(msg) from error
