"""Checks of user input, with messages that say what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from stmsi._core.ids import safe_ids
from stmsi._keys import Key

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stmsi._core.adducts import Polarity

    Data: TypeAlias = AnnData | SpatialData

_SHOWN = 10


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


def check_share(value: float, name: str) -> None:
    """Raise a `ValueError` where `value` is not between 0 and 1."""
    if not 0 <= value <= 1:
        msg = f"{name} is a share between 0 and 1, found {value!r}."
        raise ValueError(msg)


def is_spatialdata(data: object) -> bool:
    """Whether `data` is a SpatialData, without importing spatialdata for an AnnData."""
    return not isinstance(data, AnnData) and type(data).__name__ == "SpatialData"


def get_table(data: Data, table_key: str) -> AnnData:
    """The AnnData to work on: `data` itself, or its table `table_key`."""
    if isinstance(data, AnnData):
        return data
    if not is_spatialdata(data):
        msg = f"Expected an AnnData or a SpatialData, found {type(data).__name__}."
        raise TypeError(msg)
    if table_key not in data.tables:
        msg = (
            f"The SpatialData has no table {table_key!r}; its tables: {listing(data.tables)}. "
            f"Name another one, or make it with stmsi.pp.combine.{suggest(table_key, data.tables)}"
        )
        raise KeyError(msg)
    return data.tables[table_key]


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


def require_anndata_file(path: Path) -> None:
    """Refuse an HDF5 file that holds something else, of which anndata would make an empty table or a riddle."""
    import h5py

    try:
        with h5py.File(path) as file:
            if "obs" in file and "var" in file:
                return
            found = listing(file)
    except OSError as error:
        msg = f"{path} is not a readable h5ad file ({error}); copy or export it again."
        raise ValueError(msg) from error
    msg = f"{path} is an HDF5 file but not an AnnData: it has no 'obs' and 'var'; found {found}."
    raise ValueError(msg)


def check_key(key: str, what: str = "key_added") -> None:
    """Raise where a name to write under would not survive zarr and h5ad."""
    safe = safe_ids([key])[0]
    if key != safe:
        msg = f"{what}={key!r} cannot be stored: use letters, digits, _ . - and no other character ({safe!r})."
        raise ValueError(msg)


def refuse_view(adata: AnnData) -> None:
    """Raise where an AnnData is a view: writing into it would copy it behind the user's back."""
    if adata.is_view:
        msg = "The AnnData is a view of another one; call .copy() on it first (adata = adata[...].copy())."
        raise ValueError(msg)


def require_rows(adata: AnnData, what: str = "spots") -> None:
    """Raise where a table is empty."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"The table is empty ({adata.n_obs} {what} x {adata.n_vars} variables)."
        raise ValueError(msg)


def require_obs(adata: AnnData, key: str, remedy: str = "") -> pd.Series:
    """A column of ``obs``."""
    if key not in adata.obs:
        msg = (
            f"obs has no column {key!r}; found {listing(adata.obs.columns)}. {remedy}{suggest(key, adata.obs.columns)}"
        )
        raise KeyError(msg.strip())
    return adata.obs[key]


def require_sample(adata: AnnData, key: str) -> NDArray[Any]:
    """The section label of each observation, as strings; no label may be missing."""
    label = require_obs(adata, key, "It names the section of each spot; set adata.obs[...] or pass sample_key=.")
    if label.isna().any():
        msg = f"obs[{key!r}] has {int(label.isna().sum())} missing values; every spot needs a section."
        raise ValueError(msg)
    # of plain strings: numpy's own would show up as np.str_('...') in messages and names of coordinate systems
    return label.astype(str).to_numpy(dtype=object)


def require_frame(adata: AnnData, key: str, remedy: str = "") -> pd.DataFrame:
    """A DataFrame of ``obsm``; an array is wrapped with column names ``0, 1, ...``."""
    if key not in adata.obsm:
        found = listing(adata.obsm.keys())
        msg = f"obsm has no {key!r}; found {found}. {remedy}{suggest(key, adata.obsm.keys())}"
        raise KeyError(msg.strip())
    value = adata.obsm[key]
    if isinstance(value, pd.DataFrame):
        # ids are text: columns named by numbers (m/z) would match nothing that went through a file
        text = all(isinstance(c, str) for c in value.columns)
        return value if text else value.set_axis(value.columns.astype(str), axis=1)
    value = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
    return pd.DataFrame(value, index=adata.obs_names, columns=[str(j) for j in range(value.shape[1])])


def imputed(adata: AnnData, key: str, frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which intensities of ``obsm[key]`` were not measured but filled in, shape of `frame`; none without a record."""
    record = Key.observed_of(key)
    if record not in adata.obsm:
        return np.zeros(frame.shape, bool)
    observed = require_frame(adata, record)
    missing = [m for m in frame.columns if m not in observed.columns]
    if missing:
        msg = (
            f"obsm[{record!r}] lacks the metabolites {listing(missing)} of obsm[{key!r}]; map and impute again, or delete "
            f"obsm[{record!r}] where nothing is imputed."
        )
        raise ValueError(msg)
    return ~observed[list(frame.columns)].to_numpy(bool) & frame.notna().to_numpy()


def shared_metabolites(predicted: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """Metabolites of both frames, in the order of the prediction."""
    ids = [m for m in predicted.columns if m in measured.columns]
    if not ids:
        msg = (
            f"Prediction and measurement share no metabolite: {listing(predicted.columns[:3])} against "
            f"{listing(measured.columns[:3])}."
        )
        raise ValueError(msg)
    return ids


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


def as_csr(values: Any, dtype: Any = None) -> sp.csr_matrix:
    """A matrix of an AnnData as CSR in memory, whether it is dense, sparse, dask (of either) or backed.

    A CSR matrix of the right type is returned as it is: copy before writing into it.
    """
    for load in ("to_memory", "compute"):
        if hasattr(values, load):
            values = getattr(values, load)()
    return sp.csr_matrix(values if sp.issparse(values) else np.asarray(values), dtype=dtype)


def instances(table: AnnData) -> pd.Index:
    """What each observation annotates in its shapes element, from the column that the table names."""
    key = table.uns.get("spatialdata_attrs", {}).get("instance_key", Key.obs.INSTANCE)
    return pd.Index(require_obs(table, key, "The table must say which shape each observation annotates."))


def require_metabolites(names: Sequence[str], available: pd.Index, names_of: pd.Series | None = None) -> list[str]:
    """Ids of the metabolites asked for by id or by readable name."""
    by_name: dict[str, list[str]] = {}
    for key, value in () if names_of is None else names_of.items():
        by_name.setdefault(str(value), []).append(str(key))
    for name in names:
        if name not in available and len(by_name.get(name, ())) > 1:
            msg = f"Several metabolites are called {name!r}: {listing(by_name[name])}. Name one by its id."
            raise ValueError(msg)
    ids = [n if n in available else by_name.get(n, [n])[0] for n in names]
    unknown = [n for n in ids if n not in available]
    if unknown:
        hint = suggest(unknown[0], [*available, *by_name])
        msg = f"No metabolite {listing(unknown)}; available: {listing(available)}.{hint}"
        raise KeyError(msg)
    return ids


def polarity_of(msi: AnnData, polarity: Any = None) -> Polarity:
    """The polarity asked for, or else the one that all sections of an MSI table were measured in."""
    if polarity is not None:
        check_choice(polarity, ("positive", "negative"), "polarity")
        return polarity
    attrs = msi.uns.get(Key.uns.MSI, {}).get("attrs", {})
    stated = {str(one["polarity"]) for one in attrs.values() if "polarity" in one}
    if len(stated) == 1 and stated <= {"positive", "negative"}:
        return stated.pop()  # type: ignore[return-value]
    msg = f"Pass polarity='positive' or 'negative'; uns['msi']['attrs'] of the MSI table states {listing(sorted(stated))}."
    raise ValueError(msg)


def sample_names(data: Data, table_key: str = Key.table.ST, sample_key: str = Key.obs.SAMPLE) -> list[str]:
    """Sections of a table, in order of appearance."""
    return list(dict.fromkeys(require_sample(get_table(data, table_key), sample_key)))
