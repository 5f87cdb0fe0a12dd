"""Objects of R in ``.rds`` files, as Python has them: lists as mappings, S4 objects as namespaces, matrices sparse."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from stmsi._data.checks import listing
from stmsi._data.containers import check_file, reading
from stmsi._lazy import missing_extra

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EXTRA = "spata"


def read_rds(path: Path) -> Any:
    """The object of an ``.rds`` file, compressed or not.

    Raises
    ------
    ImportError
        The package rdata is not installed.
    ValueError
        The file is no object of R, or holds something that rdata does not read.
    """
    if find_spec("rdata") is None:
        raise missing_extra("rdata", EXTRA)
    import rdata

    makers = {**rdata.conversion.DEFAULT_CLASS_MAP, "dgCMatrix": _sparse}
    what, remedy = "an object of R", "save it again by saveRDS(object, file)"
    with warnings.catch_warnings(), reading(check_file(path), what, remedy):
        warnings.filterwarnings("ignore", message="Missing constructor")  # classes of R packages stay namespaces
        return rdata.read_rds(path, constructor_dict=makers, default_encoding="utf-8")


def class_of(value: Any) -> str:
    """The class of an S4 object, else the type in Python."""
    found = getattr(value, "class", None)
    return type(value).__name__ if found is None or len(found) == 0 else str(found[0])


def named_matrix(value: Any, what: str) -> tuple[sp.csc_matrix, list[str], list[str]]:
    """A matrix of R and the names of its rows and columns.

    Raises
    ------
    ValueError
        It is no matrix, or its rows or columns have no names.
    """
    names: list[Any] = [None, None]
    if isinstance(value, tuple) and sp.issparse(value[0]):
        matrix, names = value
    elif hasattr(value, "coords"):  # a matrix with names
        matrix = sp.csc_matrix(np.asarray(value))
        names = [value.coords[d].to_numpy() if d in value.coords else None for d in value.dims]
    else:
        msg = f"{what} is of the class {class_of(value)!r}; expected a dgCMatrix or a matrix."
        raise ValueError(msg)
    if any(n is None or len(n) != size for n, size in zip(names, matrix.shape, strict=True)):
        msg = f"{what} needs names of its rows (molecules) and columns (barcodes)."
        raise ValueError(msg)
    rows, columns = ([str(n) for n in own] for own in names)
    return matrix, rows, columns


def _sparse(obj: Any, attrs: Mapping[str, Any]) -> tuple[sp.csc_matrix, list[Any]]:  # noqa: ARG001
    """A ``dgCMatrix`` and the names of its rows and columns."""
    shape = tuple(int(n) for n in attrs["Dim"])
    matrix = sp.csc_matrix((np.asarray(attrs["x"]), np.asarray(attrs["i"]), np.asarray(attrs["p"])), shape=shape)
    return matrix, list(attrs["Dimnames"])


def require_slots(value: Any, slots: tuple[str, ...], what: str) -> None:
    """Raise where an S4 object lacks slots."""
    missing = [slot for slot in slots if not hasattr(value, slot)]
    if missing:
        msg = f"{what} lacks the slots {listing(missing)}; found {listing(vars(value) if hasattr(value, '__dict__') else [])}."
        raise ValueError(msg)
