"""Finished folds of a cross-validation on disk, found again by what went into them."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stmsi._data.tables import layer_names
from stmsi._settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


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


class FoldCache:
    """Tables in a folder, one file each, which appears whole or not at all."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser()
        if self.directory.exists() and not self.directory.is_dir():
            msg = f"cache_dir={str(directory)!r} is a file; name a folder."
            raise NotADirectoryError(msg)
        self.directory.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.parquet"

    def get(self, key: str) -> pd.DataFrame | None:
        """The table, or `None` where there is none that can be read."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return pd.read_parquet(path)
        except Exception as error:  # noqa: BLE001 pyarrow raises what it likes on damaged files
            logger.warning("%s cannot be read (%s); its fold is computed again.", path, error)
            return None

    def put(self, key: str, table: pd.DataFrame) -> None:
        """Write a table; one that is interrupted leaves no trace under its name."""
        temporary = self.directory / f".{key}.{uuid4().hex}"
        try:
            table.to_parquet(temporary, index=False)
            os.replace(temporary, self._path(key))  # noqa: PTH105 atomic on every system
        finally:
            temporary.unlink(missing_ok=True)


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
        digest.update(pickle.dumps(thing))
