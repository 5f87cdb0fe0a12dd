"""Checks of user input, with messages that say what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._data.nullable_strings import allow_nullable_strings
from stmsi._settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    Data: TypeAlias = AnnData | SpatialData

_SHOWN = 10

allow_nullable_strings()  # once, wherever tables are first looked at


def listing(names: Iterable[Any]) -> str:
    """Names for a message, shortened when there are many."""
    names = [repr(str(n)) for n in names if n is not None]  # anndata lists X among the layers, as None
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"


def suggest(name: str, available: Iterable[Any]) -> str:
    """`` Did you mean 'x'?`` where a name is close to one that exists, else an empty string."""
    close = get_close_matches(str(name), [str(a) for a in available], n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_choice(value: Any, options: Iterable[Any], name: str) -> None:
    """Raise a `ValueError` where `value` is not one of `options`."""
    options = list(options)
    if value not in options:
        msg = f"{name}={value!r} is not known; choose one of {listing(options)}.{suggest(value, options)}"
        raise ValueError(msg)


def chosen(available: Sequence[str], wanted: str | Sequence[str] | None, what: str) -> list[str]:
    """The sections asked for, in the order asked; `None`: all. `what` holds them."""
    if wanted is None:
        return list(available)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in names if name not in available]
    if unknown:
        msg = f"No section {listing(unknown)} in {what}; found {listing(available)}.{suggest(unknown[0], available)}"
        raise KeyError(msg)
    return names


def for_section(given: Any, sample: str, name: str) -> Any:
    """What an argument says of a section: its own entry of a mapping, or one thing for all.

    Raises
    ------
    KeyError
        The mapping has no such section; `name` is that of the argument.
    """
    if not isinstance(given, Mapping):
        return given
    if sample not in given:
        msg = f"{name}= has no section {sample!r}; it has {listing(given)}."
        raise KeyError(msg)
    return given[sample]


def check_share(value: float, name: str) -> None:
    """Raise a `ValueError` where `value` is not between 0 and 1."""
    if not (_is_number(value) and 0 <= value <= 1):
        msg = f"{name} is a share between 0 and 1, found {value!r}."
        raise ValueError(msg)


def check_coverage(value: float) -> None:
    """Raise a `ValueError` where the coverage of an interval is not between 0 and 1, or is one of them."""
    if not (_is_number(value) and 0 < value < 1):
        msg = f"coverage is a share between 0 and 1, found {value!r}."
        raise ValueError(msg)


def check_positive(value: float | None, name: str, unit: str = "", *, optional: bool = True) -> None:
    """Raise a `ValueError` where a value is given (or must be) and is not a positive, finite number."""
    if value is None and optional:
        return
    if value is None or not (_is_number(value) and np.isfinite(value) and value > 0):
        msg = f"{name} must be a positive number{unit and f' of {unit}'}, found {value!r}."
        raise ValueError(msg)


def check_weight(value: float, name: str) -> None:
    """Raise a `ValueError` where `value` is not a finite number of at least 0."""
    if not (_is_number(value) and np.isfinite(value) and value >= 0):
        msg = f"{name} must be a finite number of at least 0, found {value!r}."
        raise ValueError(msg)


def check_count(value: int, name: str, least: int = 1) -> None:
    """Raise a `ValueError` where `value` is not an integer of at least `least`."""
    if not _is_integer(value):
        msg = f"{name} must be an integer of at least {least}, found {value!r}."
        raise ValueError(msg)
    if value < least:
        msg = f"{name} must be at least {least}, found {value!r}."
        raise ValueError(msg)


def check_seed(value: int, name: str = "rng") -> None:
    """Raise a `ValueError` where `value` cannot seed numpy, torch and scikit-learn alike."""
    if not (_is_integer(value) and 0 <= value < 2**32):
        msg = f"{name} is a seed, an integer from 0 to {2**32 - 1}, found {value!r}."
        raise ValueError(msg)


def check_jobs(value: int | None) -> None:
    """Raise a `ValueError` where `n_jobs` is neither `None` nor a number of processes."""
    if value is not None and not (_is_integer(value) and value != 0):
        msg = f"n_jobs must be a non-zero integer (-1: all cores) or None, found {value!r}."
        raise ValueError(msg)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def is_spatialdata(data: object) -> bool:
    """Whether `data` is a SpatialData, without importing spatialdata for an AnnData."""
    return not isinstance(data, AnnData) and type(data).__name__ == "SpatialData"


def require_spatialdata(data: object) -> None:
    """Raise a `TypeError` where `data` is not a SpatialData."""
    if not is_spatialdata(data):
        msg = f"Expected a SpatialData, found {type(data).__name__}. stmsi.pp.combine makes one."
        raise TypeError(msg)


def require_anndata(data: object) -> None:
    """Raise a `TypeError` where `data` is not an AnnData."""
    if not isinstance(data, AnnData):
        remedy = ' Pass its table: sdata.tables["st"].' if is_spatialdata(data) else ""
        msg = f"Expected an AnnData of spots x genes, found {type(data).__name__}.{remedy}"
        raise TypeError(msg)


def check_key(key: str, what: str = "key_added") -> None:
    """Raise where a name to write under would not survive zarr and h5ad."""
    safe = safe_ids([key])[0]
    if key != safe:
        msg = f"{what}={key!r} cannot be stored: use letters, digits, _ . - and no other character ({safe!r})."
        raise ValueError(msg)


def own_view(adata: AnnData) -> None:
    """Make a view an AnnData of its own, in place, and say so; anything else is left alone.

    What is written then reaches the caller's variable, but not the AnnData that the view was taken of.
    """
    if not adata.is_view:
        return
    adata.obs = adata.obs.copy()  # the first write into a view copies it
    logger.warning(
        "The AnnData was a view of another one and is a copy of its own now; results are written into it, and not into the "
        "AnnData it was taken of. Keep it in a variable (adata = adata[...].copy())."
    )


def require_rows(adata: AnnData, what: str = "spots") -> None:
    """Raise where a table is empty."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"The table is empty ({adata.n_obs} {what} x {adata.n_vars} variables)."
        raise ValueError(msg)


def require_unique(
    names: pd.Index | Sequence[str], what: str, remedy: str = "Call .var_names_make_unique() or rename them."
) -> None:
    """Raise where names repeat."""
    index = pd.Index(names)
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        msg = f"{what} must be unique; repeated: {listing(repeated)}. {remedy}"
        raise ValueError(msg)


def check_nonnegative(values: Any, what: str, *, allow_nan: bool = False) -> None:
    """Raise where intensities or counts are negative, infinite or (unless allowed) NaN."""
    array = values.data if hasattr(values, "indptr") else np.asarray(values)
    if array.size == 0:
        return
    if not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        msg = f"{what} must be numbers, found dtype {array.dtype}."
        raise ValueError(msg)
    if np.isinf(array).any():
        msg = f"{what} contain {int(np.isinf(array).sum())} infinite values; remove or cap them first."
        raise ValueError(msg)
    if not allow_nan and np.isnan(array).any():
        msg = f"{what} contain {int(np.isnan(array).sum())} NaN; fill or drop them first."
        raise ValueError(msg)
    if np.nanmin(array, initial=0) < 0:
        msg = f"{what} contain {int((array < 0).sum())} negative values; intensities and counts are at least 0."
        raise ValueError(msg)
